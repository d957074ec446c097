# SPDX-License-Identifier: Apache-2.0
"""A sign key that is old is replaced: the old one signs the entry that names the new one, then it is gone."""

import json
import shutil
import time

import dboxforge
import dboxkit
import pytest

box = dboxkit.box


def fixture(**keys):
    def make():
        made = dboxkit.copy(**keys)
        yield made
        dboxkit.remove(made)

    return pytest.fixture(make)


short = fixture(DRE_DBOX_KEY_PERIOD="1s")
often = fixture(DRE_DBOX_KEY_HEADS="5")


def rotated(box, count):
    """Put until the log tells of *count* changes of key."""
    deadline = time.monotonic() + 30
    while True:
        box.put(b"tick")
        rows = box.good("dbox-get", "--json", "--search", "type=dbox.key.rotated").splitlines()
        if len(rows) >= count:
            return [json.loads(row)["index"] for row in rows]
        assert time.monotonic() < deadline, box.said().decode()
        time.sleep(0.2)


def check(box, receipt, octets, certs):
    (box.path / "receipt").write_bytes(receipt)
    return box.run("dbox-verify", "--certs", certs, box.path / "receipt", "-", stdin=octets)


def test_rotation(short):
    old_key, old_chain = (short.state / "sign.key").read_bytes(), short.certs / "chain.pem"
    short.start()
    index = rotated(short, 1)[0]
    entry = json.loads(short.good("dbox-get", index, "--octets"))
    assert entry["data"]["size"] == index + 1 and entry["data"]["old"] != entry["data"]["new"]
    chain = short.path / "chain.pem"
    chain.write_bytes(short.good("dbox-get", "--certs"))
    late = short.put(b"late")
    chain.write_bytes(short.good("dbox-get", "--certs"))
    assert check(short, late, b"late", chain).returncode == 0
    # A verifier that does not have the new certificate yet refuses, and does not guess.
    done = check(short, late, b"late", old_chain)
    assert done.returncode == 1 and b"none by an RSA key" in done.stderr
    # Entries from before the change verify under the new head.
    early = short.good("dbox-get", "1", "--proof")
    chain.write_bytes(short.good("dbox-get", "--certs"))
    assert check(short, early, short.good("dbox-get", "1", "--octets"), chain).returncode == 0
    short.stop()
    assert (short.state / "sign.key").read_bytes() != old_key
    assert not (short.state / "sign.key.next").exists()


def test_a_rotation_cut_off_is_forgotten_or_finished(box):
    next_key, next_certificate = box.state / "sign.key.next", box.state / "sign.crt.next"
    pair = next_key.read_bytes(), next_certificate.read_bytes()
    # Killed while the next key was prepared: half a pair is of no use to anybody.
    next_certificate.unlink()
    box.start()
    box.put(b"on")
    box.stop()
    assert not next_key.exists()
    assert box.run("dbox-rotate", "--prepare").returncode == 0
    # Killed after the transaction, when the old key was overwritten already.
    box.good("dbox-rotate")
    key = (box.state / "sign.key").read_bytes()
    assert key != pair[0]
    next_key.write_bytes(key)
    (box.state / "sign.key").chmod(0o600)
    (box.state / "sign.key").write_bytes(b"\0" * 1700)
    as_made(box)
    box.start()
    box.put(b"and on")
    assert (box.state / "sign.key").read_bytes() == key


def as_made(box):
    """The files belong to whom the database belongs to, as dboxd itself would have made them."""
    owner = box.database.stat()
    for path in box.state.glob("sign.*"):
        shutil.chown(path, owner.st_uid, owner.st_gid)


def test_without_a_prepared_key_the_present_one_stays(short):
    for name in ("sign.key.next", "sign.crt.next"):
        (short.state / name).unlink()
    key = (short.state / "sign.key").read_bytes()
    short.start()
    time.sleep(1.1)
    for number in range(3):
        short.put(b"%d" % number)
    done = short.run("dbox-get", "--head")
    short.stop()
    assert done.returncode == 0 and (short.state / "sign.key").read_bytes() == key
    assert short.said().count(b"no next key is prepared; dbox-rotate --prepare") == 1


def keys(box):
    return [path.read_bytes() for path in (box.state / "sign.key", box.state / "sign.key.next")]


def test_the_sequencer_never_holds_the_owners_key(box):
    """It replaces the sign key by the pair that root prepared, with the owner's key gone from the host."""
    (box.certs / "owner.p12").rename(box.path / "owner.p12")
    (box.certs / "owner.pass").rename(box.path / "owner.pass")
    old, prepared = keys(box)
    box.start()
    done = box.run("dbox-rotate")
    assert done.returncode == 6 and b"owner.p12: no such file" in done.stderr  # nothing to prepare the one after with
    assert (box.state / "sign.key").read_bytes() == prepared
    box.put(b"on")
    owner = ["--owner", box.path / "owner.p12", "--passphrase-file", box.path / "owner.pass"]
    assert b"is prepared" in box.run("dbox-rotate", "--prepare", *owner).stderr
    assert box.run("dbox-rotate", "--prepare").returncode == 0  # there is one: nothing to do
    box.good("dbox-rotate", *owner)
    box.put(b"and on")
    assert len(rotated(box, 2)) == 2


def test_rotated_by_hand_with_and_without_a_sequencer(box):
    old, prepared = keys(box)
    box.good("dbox-rotate")
    now, after = keys(box)
    assert now == prepared and after not in (old, prepared)
    status = (box.state / "sign.key").stat()
    assert status.st_mode & 0o777 == 0o400 and status.st_uid == box.database.stat().st_uid
    box.start()
    first = rotated(box, 1)
    box.good("dbox-rotate")
    assert keys(box)[0] == after
    assert len(rotated(box, 2)) == 2 and first
    # The chain beside the root knows every sign key by now.
    late = box.put(b"late")
    assert check(box, late, b"late", box.certs / "chain.pem").returncode == 0


def test_a_tree_head_by_the_old_key_after_its_hand_over_is_refused(box):
    """Somebody kept the old key. Its certificate is still valid; but the key itself had said where it ends."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import padding
    from dre import evidence, trust

    old = serialization.load_pem_private_key(keys_now(box), None)
    box.start()
    early = box.put(b"early")
    box.good("dbox-rotate")
    receipt = evidence.parse_receipt(box.put(b"late"))
    chain, handovers, file = (box.path / name for name in ("chain.pem", "handovers", "receipt"))
    chain.write_bytes(box.good("dbox-get", "--certs"))
    handovers.write_bytes(box.good("dbox-get", "--handovers"))
    head = evidence.parse_head(receipt.note.text)
    identity = trust.key_id(head.origin, old.public_key())[1]
    value = old.sign(receipt.note.text.encode(), padding.PKCS1v15(), hashes.SHA256())
    lines = (evidence.Signature(head.origin, identity, value), receipt.note.signatures[1])
    forged = evidence.Receipt(receipt.header, receipt.index, receipt.path, evidence.Note(receipt.note.text, lines))

    def verify(octets, text, *more):
        file.write_bytes(text)
        return box.run("dbox-verify", "--certs", chain, *more, file, "-", stdin=octets)

    known = ("--handovers", handovers)
    for octets, good in ((b"early", early), (b"late", receipt.format().encode())):
        assert verify(octets, good, *known).returncode == 0
    # Without the proof of the change nobody can know; with it everybody does.
    assert verify(b"late", forged.format().encode()).returncode == 0
    done = verify(b"late", forged.format().encode(), *known)
    assert done.returncode == 1 and b"by a sign key replaced at" in done.stderr
    # The proof itself is checked: another size, another writer, torn.
    text = handovers.read_bytes()
    handovers.write_bytes(text[:-40] + b"\n")
    assert verify(b"late", receipt.format().encode(), *known).returncode in (1, 2)
    handovers.write_bytes(b"dre-handovers/v2\n")
    assert verify(b"late", receipt.format().encode(), *known).returncode == 2
    from dre import handover

    handovers.write_bytes(handover.format([(receipt, b"late")]))
    done = verify(b"late", receipt.format().encode(), *known)
    assert done.returncode == 1 and b"does not tell of a change" in done.stderr


def test_rotated_by_the_number_of_tree_heads(often):
    old, prepared = keys(often)
    often.start()
    for number in range(12):
        often.put(b"%d" % number)
    deadline = time.monotonic() + 20
    while (often.state / "sign.crt.next").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert keys_now(often) == prepared
    assert len(rotated(often, 1)) == 1  # once: no other key is prepared
    often.stop()
    # A key's heads are counted on after a restart.
    often.good("dbox-rotate", "--prepare")
    often.start()
    assert len(rotated(often, 2)) == 2


def keys_now(box):
    return (box.state / "sign.key").read_bytes()


def foreign_owner(path):
    """Options with the owner of another D-Box."""
    from dboxlib import pki

    keys = dboxforge.keys("h7.example/dbox/another")
    above = [one.certificate for one in (keys.manufacturer, keys.centre, keys.root)]
    for name, octets in (("owner.p12", pki.pack_owner(keys.owner, above, b"word")), ("owner.pass", b"word")):
        (path / name).write_bytes(octets)
        (path / name).chmod(0o400)
    return ["--owner", path / "owner.p12", "--passphrase-file", path / "owner.pass"]


def test_refused(box):
    assert box.run("dbox-rotate", "--owner", "x").returncode == 2
    other = dboxkit.place()
    made = dboxkit.Box(other)
    assert made.run("dbox-rotate").returncode == 2
    (box.state / "sign.crt.next").unlink()
    foreign = foreign_owner(other)
    done = box.run("dbox-rotate", "--prepare", *foreign)
    assert done.returncode == 2 and b"not the owner of the log" in done.stderr
    wrong = [*foreign[:2], "--passphrase-file", box.certs / "owner.pass"]
    done = box.run("dbox-rotate", "--prepare", *wrong)
    assert done.returncode == 1 and done.stderr.endswith(b"owner.p12: wrong passphrase\n")
    dboxkit.remove(made)
