# SPDX-License-Identifier: Apache-2.0
"""dbox-init makes a chain that openssl accepts, keys that only their owner reads, and never overwrites any."""

import hashlib
import shutil
import sqlite3
import stat
import subprocess

import dboxkit
import pytest
from dboxkit import Box

box = dboxkit.box


def openssl(*argv, **kwargs):
    return subprocess.run(["openssl", *map(str, argv)], capture_output=True, check=False, timeout=30, **kwargs)


def picture(path):
    return {
        str(file): (file.stat().st_mode, hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "")
        for file in sorted(path.rglob("*"))
    }


def split(path):
    ending = "-----END CERTIFICATE-----\n"
    return [part + ending for part in path.read_text().split(ending)[:-1]]


def test_openssl_accepts_the_chain_strictly(box, tmp_path):
    certificates = split(box.certs / "chain.pem")
    assert len(certificates) == 5  # sign key, note key, owner, manufacturer, centre
    (tmp_path / "middle.pem").write_text("".join(certificates[2:]))
    for number in (0, 1):
        leaf = tmp_path / "leaf.pem"
        leaf.write_text(certificates[number])
        done = openssl(
            *("verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", box.certs / "root.pem"),
            *("-untrusted", tmp_path / "middle.pem", leaf),
        )
        assert done.returncode == 0, done.stderr
    server = openssl(
        *("verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-purpose", "sslserver", "-verify_hostname", "d-box"),
        *("-CAfile", box.certs / "root.pem", "-untrusted", tmp_path / "middle.pem", box.certs / "server.crt"),
    )
    assert server.returncode == 0, server.stderr
    text = openssl("x509", "-noout", "-ext", "subjectAltName", "-in", box.certs / "server.crt").stdout
    for name in (b"DNS:localhost", b"IP Address:127.0.0.1", b"DNS:d-box"):
        assert name in text


def test_owner_is_a_ca_that_may_only_issue_leaves_and_lies_in_pkcs12(box):
    shown = openssl(
        "pkcs12", "-in", box.certs / "owner.p12", "-passin", f"file:{box.certs / 'owner.pass'}", "-nodes", "-clcerts"
    )
    assert shown.returncode == 0 and b"PRIVATE KEY" in shown.stdout
    text = openssl("x509", "-noout", "-subject", "-ext", "basicConstraints", input=shown.stdout).stdout
    assert b"D-Box owner" in text and b"CA:TRUE, pathlen:0" in text
    assert openssl("pkcs12", "-in", box.certs / "owner.p12", "-passin", "pass:", "-nodes").returncode != 0


def test_client_certificates_come_from_another_ca(box):
    client = box.certs / "clients/writer.crt"
    assert openssl("verify", "-x509_strict", "-CAfile", box.certs / "client-ca.pem", client).returncode == 0
    other = openssl(
        "verify", "-CAfile", box.certs / "root.pem", "-untrusted", box.certs / "chain.pem", "-no-CApath", client
    )
    assert other.returncode != 0


def test_keys_are_for_their_owner_alone(box):
    keys = [*box.certs.rglob("*.key"), *box.certs.glob("owner.*"), box.state / "sign.key"]
    assert len(keys) == 3 + 5 + 3 + 2 + 1
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o400, key
    assert stat.S_IMODE((box.certs / "ca").stat().st_mode) == 0o700


def test_second_call_changes_nothing(box):
    before = picture(box.path / "etc"), picture(box.path / "state")
    done = box.run("dbox-init")
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"dbox-init: {box.certs}: there are keys")
    assert (picture(box.path / "etc"), picture(box.path / "state")) == before


def test_keys_gone_but_entries_there_is_refused(box):
    with sqlite3.connect(box.database) as database:
        database.execute("INSERT INTO entry VALUES (0, 1, 1, 0, NULL, x'00', x'00', x'00', NULL)")
    shutil.rmtree(box.certs)
    done = box.run("dbox-init")
    assert done.returncode == 1 and b"holds entries" in done.stderr
    assert not box.certs.exists()


def test_client_twice_is_refused_and_another_role_is_taken(box):
    before = picture(box.certs)
    again = box.run("dbox-init", "--client", "writer", "--role", "writer")
    assert again.returncode == 1 and b"there already" in again.stderr
    box.good("dbox-init", "--client", "writer", "--role", "reader")
    assert picture(box.certs) == before
    with sqlite3.connect(box.database) as database:
        roles = [role for (role,) in database.execute("SELECT role FROM client WHERE name = 'writer'")]
    assert roles == ["writer", "reader"]


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["--client", "a"], 2),
        (["--role", "writer"], 2),
        (["--client", "../a", "--role", "writer"], 2),
        (["--client", "a", "--role", "god"], 2),
        (["--owner", "root"], 2),
        (["--client", "a", "--role", "writer", "--owner", "no-such-user"], 3),
    ],
)
def test_wrong_arguments(box, argv, status):
    done = box.run("dbox-init", *argv)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(b"dbox-init: ")
    assert not (box.certs / "clients/a.crt").exists()


def test_client_before_the_box_is_refused(tmp_path):
    done = Box(tmp_path).run("dbox-init", "--client", "a", "--role", "writer")
    assert done.returncode == 3 and b"run dbox-init first" in done.stderr


def test_database_only_grows(box):
    with sqlite3.connect(box.database) as database:
        database.execute("INSERT INTO entry VALUES (0, 1, 1, 0, NULL, x'00', x'00', x'00', NULL)")
        database.execute("INSERT INTO head VALUES (1, 'note')")
        for wrong in (
            "UPDATE entry SET octets = x'01'",
            "UPDATE entry SET octets = NULL",
            "UPDATE entry SET time = 1",
            "DELETE FROM entry",
            "REPLACE INTO entry VALUES (0, 1, 1, 0, NULL, x'00', x'00', x'01', NULL)",
            "REPLACE INTO entry VALUES (1, 1, 1, 0, NULL, x'00', x'00', x'01', NULL)",
            "INSERT INTO entry VALUES (5, 1, 2, 0, NULL, x'00', x'00', x'01', NULL)",
            "UPDATE head SET note = 'other'",
            "REPLACE INTO head VALUES (1, 'other')",
            "INSERT INTO head VALUES (0, 'older')",
            "DELETE FROM head",
            "UPDATE client SET role = 'admin'",
            "DELETE FROM certificate",
        ):
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(wrong)
