# SPDX-License-Identifier: Apache-2.0
"""A sign key that is old is replaced: the old one signs the entry that names the new one, then it is gone."""

import json
import shutil
import time

import dboxkit
import pytest

box = dboxkit.box


@pytest.fixture
def short():
    made = dboxkit.copy(DRE_DBOX_KEY_PERIOD="1s")
    yield made
    dboxkit.remove(made)


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


def test_a_rotation_cut_off_is_forgotten_or_finished(short):
    short.start()
    rotated(short, 1)
    short.stop()
    key = (short.state / "sign.key").read_bytes()
    # Killed before the transaction: the next key is not in the database, and of no use to anybody.
    (short.state / "sign.key.next").write_bytes(b"torn")
    short.start()
    short.put(b"on")
    short.stop()
    assert not (short.state / "sign.key.next").exists()
    # Killed after it, when the old key was overwritten already.
    key = (short.state / "sign.key").read_bytes()
    (short.state / "sign.key.next").write_bytes(key)
    (short.state / "sign.key").chmod(0o600)
    (short.state / "sign.key").write_bytes(b"\0" * 1700)
    subprocess_chown(short)
    short.start()
    short.put(b"and on")


def subprocess_chown(box):
    """The files belong to whom the database belongs to, as dboxd itself would have made them."""
    owner = box.database.stat()
    for path in box.state.glob("sign.key*"):
        shutil.chown(path, owner.st_uid, owner.st_gid)


def test_without_the_owners_key_the_present_key_stays(short):
    (short.certs / "owner.p12").unlink()
    key = (short.state / "sign.key").read_bytes()
    short.start()
    time.sleep(1.1)
    for number in range(3):
        short.put(b"%d" % number)
    short.stop()
    assert (short.state / "sign.key").read_bytes() == key
    assert short.said().count(b"the owner's key is not at hand") == 1
