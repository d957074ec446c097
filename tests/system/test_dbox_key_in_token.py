# SPDX-License-Identifier: Apache-2.0
"""A D-Box whose sign key is in a PKCS#11 token, in a TPM, or in a file with a passphrase: it signs, and the key is
replaced. What it gave for entries stands by openssl alone.
"""

import os
import shutil
import subprocess

import dboxkit
import pytest
import test_dbox_by_hand
import tpmkit

MODULE = "/usr/lib/softhsm/libsofthsm2.so"


@pytest.fixture
def made(monkeypatch):
    """A D-Box before dbox-init, and a home where SoftHSM finds its settings."""
    path = dboxkit.place()
    monkeypatch.setenv("HOME", str(path))
    (path / "pin").write_text("1234\n")
    (path / "pin").chmod(0o600)
    box = dboxkit.Box(path, DRE_DBOX_KEY_PASSPHRASE_FILE=path / "pin")
    yield box
    dboxkit.remove(box)


def works(box):
    """It records before and after a rotation, and all of it verifies."""
    box.good("dbox-init", "--client", "writer", "--role", "writer")
    box.start()
    first = box.put(b"first")
    box.good("dbox-rotate")
    second = box.put(b"second")
    box.stop()
    box.start()  # and what is in force is found again
    third = box.put(b"third")
    work = box.path / "work"
    work.mkdir()
    shutil.copy(box.certs / "root.pem", work)
    box.good("dbox-init", "--client", "reader", "--role", "reader")
    (work / "chain.pem").write_bytes(box.good("dbox-get", "--certs"))
    for octets, receipt in ((b"first", first), (b"second", second), (b"third", third)):
        (work / "receipt").write_bytes(receipt)
        (work / "octets").write_bytes(octets)
        assert box.run("dbox-verify", work / "receipt", work / "octets").returncode == 0
        done = test_dbox_by_hand.by_hand(work)
        assert (done.returncode, done.stdout) == (0, b"verified\n"), done.stderr


def test_in_a_pkcs11_token(made):
    if not os.path.exists(MODULE) or shutil.which("softhsm2-util") is None:
        pytest.skip("softhsm2 is not installed")
    pytest.importorskip("PyKCS11", reason="python3-pykcs11 is not installed")
    tokens, home = made.path / "tokens", made.path / ".config/softhsm2"
    tokens.mkdir()
    home.mkdir(parents=True)
    (home / "softhsm2.conf").write_text(f"directories.tokendir = {tokens}\n")
    argv = ["softhsm2-util", "--init-token", "--free", "--label", "dbox", "--pin", "1234", "--so-pin", "12345678"]
    subprocess.run(argv, check=True, capture_output=True)
    if shutil.which("setpriv") and subprocess.run(["id", "dbox"], capture_output=True, check=False).returncode == 0:
        subprocess.run(["chown", "-R", "dbox:dbox", tokens], check=True)
    with made.conf.open("a") as settings:
        settings.write(f'DRE_DBOX_KEY_STORE="pkcs11:token=dbox?module-path={MODULE}"\n')
    made.good("dbox-init", *dboxkit.owner())
    first = (made.state / "sign.key").read_text()
    assert first.startswith("dre-pkcs11/v1\nid ") and b"PRIVATE" not in (made.state / "sign.key.next").read_bytes()
    works(made)
    # The old key is gone from the token too: what is left is the present one and the next.
    argv = ["pkcs11-tool", "--module", MODULE, "--login", "--pin", "1234", "-O", "--type", "privkey"]
    if shutil.which("pkcs11-tool"):
        shown = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
        assert shown.count("Private Key Object") == 2 and first.split()[-1] not in shown
        assert "never extractable" in shown


def test_in_a_tpm(made):
    tpmkit.needed()
    for name in ("tpm", "other"):
        (made.path / name).mkdir()
    settings = made.conf.read_text()
    with tpmkit.tpm(made.path / "tpm") as tcti:
        made.conf.write_text(settings + f'DRE_DBOX_KEY_STORE="tpm2:{tcti}"\n')
        made.good("dbox-init", *dboxkit.owner())
        first = (made.state / "sign.key").read_bytes()
        for name in ("sign.key", "sign.key.next"):
            assert (made.state / name).read_bytes().startswith(b"-----BEGIN TSS2 PRIVATE KEY-----"), name
        # To openssl itself it is no key at all.
        argv = ["openssl", "pkey", "-in", made.state / "sign.key", "-noout"]
        assert subprocess.run(argv, capture_output=True, check=False).returncode != 0
        works(made)
        made.stop()
        assert first not in [path.read_bytes() for path in made.state.glob("sign.*")]
        # Who has the files and the passphrase, and not the TPM, signs nothing.
        with tpmkit.tpm(made.path / "other") as elsewhere:
            made.conf.write_text(settings + f'DRE_DBOX_KEY_STORE="tpm2:{elsewhere}"\n')
            made.start()
            done = made.run("dbox-put", "--client", "writer", "--stream", "app", stdin=b"by another TPM")
            assert done.returncode != 0 and not done.stdout, done
            made.stop()
            assert b"not signed" in made.said()
        made.conf.write_text(settings + f'DRE_DBOX_KEY_STORE="tpm2:{tcti}"\n')
        made.start()
        assert made.put(b"by its own again")
        made.stop()
        assert made.run("dbox-audit", "--database", made.database).returncode == 0
    done = made.run("dbox-sequencer")
    assert done.returncode == 6 and b"not there" in done.stderr, done.stderr


def test_in_a_file_with_a_passphrase(made):
    made.good("dbox-init", *dboxkit.owner())
    assert b"ENCRYPTED PRIVATE KEY" in (made.state / "sign.key").read_bytes()
    works(made)
    made.stop()
    (made.path / "pin").write_text("other\n")
    done = made.run("dbox-sequencer")
    assert done.returncode == 1 and b"sign.key: not a private key: wrong passphrase" in done.stderr
