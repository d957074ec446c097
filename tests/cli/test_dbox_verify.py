# SPDX-License-Identifier: Apache-2.0
"""dbox-verify: 0 only for evidence that is whole, 1 for evidence that is not, 2 for what cannot be checked at all.

The receipts come from a real log, which is stopped and whose database is gone before anything is checked.
"""

import base64
import json
import os
import random
import re
import shutil
import subprocess

import dboxkit
import pytest
from conftest import environment
from test_dbox_init import made_by_openssl

OCTETS = b'{"time":"2026-11-23T08:00:00.123Z","source":"/host:h7","type":"app.undone","sev":5,"data":{}}'


@pytest.fixture(scope="module")
def evidence(tmp_path_factory):
    """A directory with receipt, octets, root.pem and chain.pem, and nothing of the D-Box they came from."""
    made = dboxkit.copy()
    try:
        made.start()
        for number in range(4):
            made.put(b"entry %d" % number)
        path = tmp_path_factory.mktemp("evidence")
        (path / "receipt").write_bytes(made.put(OCTETS, stream="script"))
        (path / "octets").write_bytes(OCTETS)
        (path / "chain.pem").write_bytes(made.good("dbox-get", "--certs"))
        shutil.copyfile(made.certs / "root.pem", path / "root.pem")
        (path / "dre.conf").write_text('DRE_DBOX_CERTS_DIR="/nonexistent"\n')
        assert made.stop() == 0
    finally:
        dboxkit.remove(made)
    return path


@pytest.fixture
def work(evidence, tmp_path):
    shutil.copytree(evidence, tmp_path / "work")
    return tmp_path / "work"


def verify(path, *options, stdin=None, argv=("receipt", "octets"), before=()):
    return subprocess.run(
        [*before, dboxkit.program("dbox-verify"), "--config", "dre.conf", "--root", "root.pem", "--certs", "chain.pem"]
        + [*options, *argv],
        cwd=path,
        input=stdin,
        capture_output=True,
        env=environment(),
        timeout=30,
        check=False,
    )


def test_whole_evidence_verifies_without_network(work):
    before = ["unshare", "-n"] if dboxkit.is_root() else []
    done = verify(work, before=before)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"verified: entry ")
    assert verify(work, argv=("receipt", "-"), stdin=OCTETS).returncode == 0
    fields = json.loads(verify(work, "--json").stdout)
    assert (fields["verified"], fields["stream"], fields["seq"]) == (True, "script", 1)
    assert verify(work, "--quiet").stdout == b""


def changed(octets, at):
    return octets[:at] + bytes([octets[at] ^ 1]) + octets[at + 1 :]


def test_one_octet_changed_in_the_octets(work):
    for at in (0, 20, len(OCTETS) - 1):
        (work / "octets").write_bytes(changed(OCTETS, at))
        done = verify(work)
        assert done.returncode == 1 and b"octets do not match" in done.stderr
    (work / "octets").write_bytes(OCTETS + b"\n")
    assert verify(work).returncode == 1


def test_header_rewritten_to_fit_other_octets_is_not_in_the_tree(work):
    text = (work / "receipt").read_text()
    header = base64.b64decode(re.search("^extra (.*)$", text, re.M)[1])
    import hashlib

    forged = header.replace(hashlib.sha256(OCTETS).hexdigest().encode(), hashlib.sha256(b"forged").hexdigest().encode())
    forged = forged.replace(b"length %d" % len(OCTETS), b"length 6")
    (work / "receipt").write_text(re.sub("(?m)^extra .*$", "extra " + base64.b64encode(forged).decode(), text))
    (work / "octets").write_bytes(b"forged")
    done = verify(work)
    assert done.returncode == 1 and b"header is not in the tree" in done.stderr


def lines_of(text):
    """Where in a receipt which part stands: name → range of octets."""
    parts, at, seen = {}, 0, 0
    for number, line in enumerate(text.split(b"\n")):
        name = {0: "format", 1: "header", 2: "index"}.get(number, "path" if not seen else f"note{seen}")
        if seen and line.startswith("—".encode()):
            name = "ed25519" if "rsa" in parts else "rsa"
        seen += not line or bool(seen)
        parts.setdefault(name, range(at, at + len(line)))
        at += len(line) + 1
    return parts


def test_every_part_of_the_receipt_is_bound(work):
    """One octet of each; its first and its last one by DRE_FULL, and all of them are changed below."""
    text = (work / "receipt").read_bytes()
    parts = lines_of(text)
    assert {"header", "index", "path", "rsa", "ed25519"} <= set(parts)
    said = {}
    for name, where in parts.items():
        middle = (where.start + where.stop) // 2
        letter = b"A" if text[middle : middle + 1] != b"A" else b"B"  # base64 still
        ends = {where.start, where.stop - 1} if os.environ.get("DRE_FULL") else set()
        for at in {middle, *ends} & set(where):
            (work / "receipt").write_bytes(changed(text, at) if at != middle else text[:at] + letter + text[at + 1 :])
            done = verify(work)
            assert done.returncode in (1, 2), (name, at, done.stdout)
            if done.returncode == 1:
                said.setdefault(name, done.stderr)
    assert b"RSA signature is wrong" in said["rsa"] or b"none by an RSA key" in said["rsa"]
    assert b"header is not in the tree" in said["path"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # cryptography about odd names
def test_any_changed_octet_of_receipt_or_certificates_is_refused(work):
    """In one process, what the program does once it has read its files; each octet of certificates by DRE_FULL."""
    from dre import evidence as form
    from dre import trust

    files = {name: (work / name).read_bytes() for name in ("receipt", "root.pem", "chain.pem")}

    def check(receipt, root, chain):
        trust.load(root, chain).check(form.parse_receipt(receipt), OCTETS)

    check(*files.values())
    whole = trust.load(files["root.pem"], files["chain.pem"])
    for at in range(len(files["receipt"])):
        with pytest.raises((form.FormatError, form.VerifyError)):
            whole.check(form.parse_receipt(changed(files["receipt"], at)), OCTETS)
    for name in ("root.pem", "chain.pem"):
        step = 1 if os.environ.get("DRE_FULL") else 11
        for at in range(random.randrange(step), len(files[name]), step):
            other = {**files, name: changed(files[name], at)}
            with pytest.raises((form.FormatError, form.VerifyError)):
                check(*other.values())


def test_signature_taken_away_is_missed(work):
    lines = (work / "receipt").read_bytes().split(b"\n")
    for number, kind in ((-3, b"RSA"), (-2, b"Ed25519")):
        (work / "receipt").write_bytes(b"\n".join(line for line in lines if line is not lines[number]))
        done = verify(work)
        assert done.returncode == 1 and b"tree head signature: none by an " + kind in done.stderr


def test_signature_of_a_witness_is_no_obstacle(work):
    line = "— witness.example " + base64.b64encode(b"abcd" + b"w" * 64).decode() + "\n"
    (work / "receipt").write_bytes((work / "receipt").read_bytes() + line.encode())
    assert verify(work).returncode == 0


def test_chain_from_another_root(work):
    other = work / "other"
    other.mkdir()
    box = dboxkit.Box(other)
    box.good("dbox-init", *made_by_openssl(other))
    done = verify(work, "--root", box.certs / "root.pem")
    assert done.returncode == 1 and b"certificate chain" in done.stderr
    done = verify(work, "--root", box.certs / "root.pem", "--certs", box.certs / "chain.pem")
    assert done.returncode == 1 and b"tree head signature: none by" in done.stderr
    # A foreign chain beside the good one is not skipped over either.
    (work / "both.pem").write_bytes((work / "chain.pem").read_bytes() + (box.certs / "chain.pem").read_bytes())
    assert verify(work, "--certs", "both.pem").returncode == 1


def test_chain_without_an_issuer(work):
    pem = (work / "chain.pem").read_text().split("-----END CERTIFICATE-----\n")
    (work / "chain.pem").write_text("-----END CERTIFICATE-----\n".join([*pem[:3], *pem[4:]]))
    done = verify(work)
    assert done.returncode == 1 and b"does not lead to the root" in done.stderr


def test_server_certificate_cannot_sign_heads(work, evidence):
    """Only certificates made for it count, although the same owner issued the server's."""
    pem = (work / "chain.pem").read_text().split("-----END CERTIFICATE-----\n")
    (work / "chain.pem").write_text("-----END CERTIFICATE-----\n".join(pem[2:]))
    done = verify(work)
    assert done.returncode == 1 and b"no certificate for signing tree heads" in done.stderr


def test_an_extension_that_is_there_twice_is_refused(work):
    """KeyUsage (2.5.29.15) turned into one more BasicConstraints (2.5.29.19), in each certificate of the chain."""
    chain = (work / "chain.pem").read_bytes()
    for block in chain.split(b"-----BEGIN CERTIFICATE-----\n")[1:]:
        der = base64.b64decode(block.partition(b"-")[0]).replace(b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x13")
        other = base64.encodebytes(der).replace(b"\n", b"")
        lines = b"".join(other[at : at + 64] + b"\n" for at in range(0, len(other), 64))
        (work / "chain.pem").write_bytes(chain.replace(block.partition(b"-")[0], lines))
        done = verify(work)
        assert done.returncode == 1 and b" does not verify: certificate chain: " in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["receipt", "octets", "root.pem", "chain.pem"])
@pytest.mark.parametrize("content", [b"", b"hello\n", b"\xff\x00"])
def test_empty_and_foreign_files_are_never_verified(work, name, content):
    (work / name).write_bytes(content)
    done = verify(work)
    assert done.returncode == (1 if name == "octets" and content else 2), done.stderr
    assert done.stderr.startswith(b"dbox-verify: ") and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("name", ["receipt", "octets", "root.pem", "chain.pem"])
def test_missing_files_are_not_findings(work, name):
    (work / name).unlink()
    done = verify(work)
    assert done.returncode == 2 and f"{name}: No such file".encode() in done.stderr


@pytest.mark.parametrize(("given", "missing", "option"), [((), "root", "root"), (("root",), "chain", "certs")])
def test_where_no_d_box_is_the_option_is_named(work, given, missing, option):
    words = [word for name in given for word in (f"--{name}", f"{name}.pem")]
    done = subprocess.run(
        [dboxkit.program("dbox-verify"), "--config", "dre.conf", *words, "receipt", "octets"],
        cwd=work,
        capture_output=True,
        env=environment(),
        timeout=30,
    )
    told = done.stderr.decode()
    assert done.returncode == 2 and f"/nonexistent/{missing}.pem: no such file" in told and f"--{option} FILE" in told


def test_wrong_arguments(work):
    assert verify(work, argv=("receipt",)).returncode == 2
    assert verify(work, "--frobnicate").returncode == 2
