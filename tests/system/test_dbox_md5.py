# SPDX-License-Identifier: Apache-2.0
"""MD5 is read from an old D-Box and given to old clients where that is wanted; it never proves anything."""

import base64
import hashlib
import json
import subprocess
import sys

import dboxkit
import pytest
from conftest import ROOT

box = dboxkit.box


def openssl(*argv):
    return subprocess.run(["openssl", *map(str, argv)], capture_output=True, check=False, timeout=30)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """What an old D-Box left: one good record, one of other octets, one whose key is not the certificate's."""
    path = tmp_path_factory.mktemp("old")
    for name in ("one", "two"):
        new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", path / f"{name}.key"]
        assert openssl(*new, "-out", path / f"{name}.pem").returncode == 0
    for name, octets, key in (("good", b"as it was\n", "one"), ("changed", b"other\n", "one"), ("key", b"x\n", "two")):
        (path / f"{name}.octets").write_bytes(octets)
        sign = ["dgst", "-md5", "-sign", path / f"{key}.key", "-out", path / f"{name}.sig"]
        assert openssl(*sign, path / f"{name}.octets").returncode == 0
        (path / f"{name}.crt").write_bytes((path / "one.pem").read_bytes())
    (path / "changed.octets").write_bytes(b"Other\n")
    return path


def test_legacy_is_checked_and_flagged(box, old):
    box.start()
    done = box.run("dbox-import", "--legacy", old)
    assert done.returncode == 1
    assert done.stdout == b"good: MD5 signature verified; integrity proven since import\n"
    for name in (b"changed", b"key"):
        assert name + b": the MD5 signature is not of these octets by this key; not imported" in done.stderr
    rows = [json.loads(row) for row in box.good("dbox-get", "--json", "--search", "stream=legacy").splitlines()]
    octets, certificate, told = (box.good("dbox-get", row["index"], "--octets") for row in rows)
    assert octets == b"as it was\n" and certificate == (old / "good.crt").read_bytes()
    event = json.loads(told)
    assert event["type"] == "dbox.legacy.imported"
    assert event["data"]["integrity"] == "proven since import"
    assert event["data"]["sha256"] == hashlib.sha256(octets).hexdigest()
    assert base64.b64decode(event["data"]["signature"]) == (old / "good.sig").read_bytes()
    # Once is enough; and a receipt of today verifies as any other.
    assert b"good: was imported before" in box.run("dbox-import", "--legacy", old).stdout
    assert len(box.good("dbox-get", "--search", "stream=legacy").splitlines()) == 3
    (box.path / "receipt").write_bytes(box.good("dbox-get", rows[0]["index"], "--proof"))
    assert box.run("dbox-verify", box.path / "receipt", "-", stdin=octets).returncode == 0
    # The old triple itself is no evidence.
    for file in (old / "good.sig", old / "good.crt"):
        assert box.run("dbox-verify", file, old / "good.octets").returncode == 2


def test_without_md5_the_old_is_taken_unverified(old, monkeypatch):
    sys.path.insert(0, str(ROOT / "dbox"))
    from dboxlib import legacy

    records = {one.name: one for one in legacy.find(old)}
    assert legacy.check(records["good"]) == "MD5 signature verified"
    monkeypatch.setattr(legacy, "md5", lambda: False)  # as under FIPS
    assert legacy.check(records["good"]) == "unverified legacy"
    assert b'"checked":"unverified legacy"' in records["good"].parts("unverified legacy")[2]


def test_md5_signatures_for_old_clients_only_when_wanted(box):
    box.start()
    box.put(b"octets")
    index = json.loads(box.good("dbox-get", "--json", "--search", "stream=app"))["index"]
    assert "md5" not in json.loads(box.good("dbox-get", index, "--signature", "--json"))
    box.stop()
    with box.conf.open("a") as settings:
        settings.write('DRE_DBOX_COMPAT_MD5="yes"\n')
    box.start()
    fields = json.loads(box.good("dbox-get", index, "--signature", "--json"))
    certificate = box.path / "sign.pem"
    certificate.write_bytes(box.good("dbox-get", "--certs"))  # the newest sign key is the first
    (box.path / "public").write_bytes(openssl("x509", "-in", certificate, "-noout", "-pubkey").stdout)
    (box.path / "octets").write_bytes(b"octets")
    for digest, value in (("md5", fields["md5"]["signature"]), ("sha256", fields["signature"])):
        (box.path / digest).write_bytes(base64.b64decode(value))
        argv = ["dgst", f"-{digest}", "-verify", box.path / "public", "-signature", box.path / digest]
        assert openssl(*argv, box.path / "octets").returncode == 0
        # Neither is a receipt: no MD5 makes dbox-verify say yes.
        assert box.run("dbox-verify", box.path / digest, box.path / "octets").returncode == 2


def test_refused(box, tmp_path):
    assert box.run("dbox-import").returncode == 2
    assert box.run("dbox-import", "--legacy", tmp_path, "--database", "x").returncode == 2
    done = box.run("dbox-import", "--legacy", tmp_path)
    assert done.returncode == 3 and b"no NAME.octets" in done.stderr
    (tmp_path / "a.octets").write_bytes(b"x")
    assert box.run("dbox-import", "--legacy", tmp_path).returncode == 3
