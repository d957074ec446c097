# SPDX-License-Identifier: Apache-2.0
"""dbox-init makes a chain that openssl accepts, keys that only their owner reads, and never overwrites any."""

import functools
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
    shown = openssl("pkcs12", "-in", box.certs / "owner.p12", "-passin", f"file:{box.certs / 'owner.pass'}", "-nodes")
    assert shown.returncode == 0 and b"PRIVATE KEY" in shown.stdout
    text = openssl("x509", "-noout", "-subject", "-ext", "basicConstraints", input=shown.stdout).stdout
    assert b"D-Box owner" in text and b"CA:TRUE, pathlen:0" in text
    assert openssl("pkcs12", "-in", box.certs / "owner.p12", "-passin", "pass:", "-nodes").returncode != 0


def test_no_key_above_the_owner_stays(box):
    """But with --keep-ca: then the kept root key is the one of the root certificate."""
    found = [path for path in box.path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in found} == {
        *("sign.key", "sign.key.next", "note.key", "server.key", "client-ca.key"),
        *(f"{name}.key" for name in dboxkit.CLIENTS),
    }


@functools.cache
def private(name):
    """A private key in PEM: the CA *name* has the same one in all tests."""
    return openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048").stdout


def made_by_openssl(tmp_path, pathlen=0, whole=True, passphrase="sesame"):
    """The owner's PKCS#12 as another CA would hand it over: root, one CA between, owner."""

    def certificate(name, issuer, constraints):
        key = tmp_path / f"{name}.key"
        key.write_bytes(private(name))
        usage = f"basicConstraints=critical,{constraints}\nkeyUsage=critical,keyCertSign,cRLSign,digitalSignature\n"
        (tmp_path / "ext").write_text(usage + "subjectKeyIdentifier=hash\n")
        request = openssl("req", "-new", "-key", key, "-subj", f"/O=Example/CN={name}").stdout
        by = ["-CA", tmp_path / f"{issuer}.crt", "-CAkey", tmp_path / f"{issuer}.key", "-CAcreateserial"]
        by = by if issuer else ["-signkey", key]
        argv = ["x509", "-req", "-days", "30", "-sha256", "-extfile", tmp_path / "ext", *by]
        done = openssl(*argv, "-out", tmp_path / f"{name}.crt", input=request)
        assert done.returncode == 0, done.stderr

    certificate("root", None, "CA:TRUE")
    certificate("between", "root", "CA:TRUE,pathlen:1")
    certificate("owner", "between", f"CA:TRUE,pathlen:{pathlen}" if pathlen is not None else "CA:FALSE")
    above = [tmp_path / "between.crt"] + ([tmp_path / "root.crt"] if whole else [])
    (tmp_path / "above.pem").write_text("".join(path.read_text() for path in above))
    argv = ["pkcs12", "-export", "-inkey", tmp_path / "owner.key", "-in", tmp_path / "owner.crt"]
    argv += ["-certfile", tmp_path / "above.pem", "-passout", "pass:sesame", "-out", tmp_path / "owner.p12"]
    assert openssl(*argv).returncode == 0
    (tmp_path / "pass").write_text(passphrase + "\n")
    (tmp_path / "pass").chmod(0o600)
    return ["--import-owner", tmp_path / "owner.p12", "--passphrase-file", tmp_path / "pass"]


def test_owner_is_imported(tmp_path):
    made = Box(dboxkit.place())
    made.good("dbox-init", *made_by_openssl(tmp_path))
    certificates = split(made.certs / "chain.pem")
    assert "".join(certificates[2:]) == (tmp_path / "owner.crt").read_text() + (tmp_path / "between.crt").read_text()
    assert (made.certs / "root.pem").read_text() == (tmp_path / "root.crt").read_text()
    (tmp_path / "leaf.pem").write_text(certificates[0])
    argv = ["verify", "-CAfile", tmp_path / "root.crt", "-untrusted", made.certs / "chain.pem", tmp_path / "leaf.pem"]
    assert openssl(*argv).returncode == 0
    # And it works: the next sign key is certified by the imported owner.
    made.good("dbox-rotate")
    assert len(split(made.certs / "chain.pem")) == 5
    dboxkit.remove(made)


@pytest.mark.parametrize(
    ("wrong", "status", "reason"),
    [
        ({"passphrase": "other"}, 1, b"owner.p12: wrong passphrase\n"),
        ({"pathlen": None}, 2, b"is not CA:TRUE with pathlen:0\n"),
        ({"pathlen": 1}, 2, b"is not CA:TRUE with pathlen:0\n"),
        ({"whole": False}, 2, b"the chain is not complete: no certificate of CN=root,O=Example\n"),
    ],
)
def test_owner_that_is_refused(tmp_path, wrong, status, reason):
    made = Box(dboxkit.place())
    done = made.run("dbox-init", *made_by_openssl(tmp_path, **wrong))
    assert (done.returncode, done.stderr.count(b"\n")) == (status, 1) and done.stderr.endswith(reason)
    assert not made.certs.exists()
    dboxkit.remove(made)


def test_kept_ca_and_the_size_of_sign_keys(tmp_path):
    made = Box(dboxkit.place(), DRE_DBOX_KEY_BITS="3072")  # the default
    made.good("dbox-init", "--keep-ca", tmp_path / "ca")
    key = openssl("pkey", "-in", tmp_path / "ca/root.key", "-pubout").stdout
    assert key == openssl("x509", "-noout", "-pubkey", "-in", made.certs / "root.pem").stdout
    assert made.run("dbox-init", "--keep-ca", tmp_path / "ca").returncode == 1
    (tmp_path / "sign.pem").write_text(split(made.certs / "chain.pem")[0])
    assert b"Public-Key: (3072 bit)" in openssl("x509", "-noout", "-text", "-in", tmp_path / "sign.pem").stdout
    dboxkit.remove(made)


def test_client_certificates_come_from_another_ca(box):
    client = box.certs / "clients/writer.crt"
    assert openssl("verify", "-x509_strict", "-CAfile", box.certs / "client-ca.pem", client).returncode == 0
    other = openssl(
        "verify", "-CAfile", box.certs / "root.pem", "-untrusted", box.certs / "chain.pem", "-no-CApath", client
    )
    assert other.returncode != 0


def test_keys_are_for_their_owner_alone(box):
    keys = [*box.certs.rglob("*.key"), *box.certs.glob("owner.*"), *box.state.glob("sign.key*")]
    assert len(keys) == 5 + 3 + 2 + 2
    for key in keys:
        assert stat.S_IMODE(key.stat().st_mode) == 0o400, key


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
        (["--import-owner", "x"], 2),
        (["--keep-ca", "x", "--clients"], 2),
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
