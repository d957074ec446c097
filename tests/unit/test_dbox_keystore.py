# SPDX-License-Identifier: Apache-2.0
"""Sign keys in files, in a PKCS#11 token and in a TPM: what they sign verifies, and they do not come out."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tpmkit
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "dbox"))
from dboxlib import keystore, keystore_pkcs11, keystore_tpm2  # noqa: E402
from dre import conf  # noqa: E402
from dre.errors import DreError, MissingError, UsageError  # noqa: E402

SHA256 = (padding.PKCS1v15(), hashes.SHA256())
MODULE = "/usr/lib/softhsm/libsofthsm2.so"


def signs(store, made):
    """The key of *made* signs what openssl's own code verifies, and nothing else."""
    key = store.load(made)
    value = key.sign(b"text", *SHA256)
    key.public_key().verify(value, b"text", *SHA256)
    with pytest.raises(InvalidSignature):
        key.public_key().verify(value, b"other", *SHA256)
    return key


def test_file():
    store = keystore.Files(None)
    key = signs(store, store.make(2048))
    assert key.public_key().key_size == 2048


def test_file_with_passphrase():
    store = keystore.Files(b"sesame")
    made = store.make(2048)
    assert b"ENCRYPTED" in made
    signs(store, made)
    with pytest.raises(DreError, match="wrong passphrase"):
        keystore.Files(b"other").load(made)
    with pytest.raises(DreError, match="DRE_DBOX_KEY_PASSPHRASE_FILE"):
        keystore.Files(None).load(made)
    with pytest.raises(DreError, match="not a private key"):
        store.load(b"\0" * 100)


def test_passphrase_is_the_first_line_or_a_credential(tmp_path, monkeypatch):
    file = tmp_path / keystore.CREDENTIAL
    file.write_bytes(b"sesame\nmore\n")
    file.chmod(0o600)
    assert keystore.passphrase(file) == b"sesame"
    assert keystore.passphrase(None) is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keystore.passphrase(None) == b"sesame"
    file.chmod(0o644)
    with pytest.raises(UsageError, match="readable by others"):
        keystore.passphrase(file)
    with pytest.raises(UsageError, match="no passphrase"):
        keystore.passphrase(tmp_path / "none")


def of(settings, tmp_path, place, secret="1234"):
    (tmp_path / "pin").write_text(secret + "\n")
    (tmp_path / "pin").chmod(0o600)
    keys = {"DRE_DBOX_KEY_STORE": place, "DRE_DBOX_KEY_PASSPHRASE_FILE": tmp_path / "pin"}
    return keystore.of(conf.load(str(settings(**keys))))


@pytest.fixture
def token(tmp_path, monkeypatch):
    if not os.path.exists(MODULE) or shutil.which("softhsm2-util") is None:
        pytest.skip("softhsm2 is not installed")
    pytest.importorskip("PyKCS11", reason="python3-pykcs11 is not installed")
    monkeypatch.setattr(keystore_pkcs11.places, "owner", lambda: None)  # who could not come here
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    made = ["softhsm2-util", "--init-token", "--free", "--label", "dbox", "--pin", "1234", "--so-pin", "12345678"]
    subprocess.run(made, check=True, capture_output=True)
    return f"pkcs11:token=dbox?module-path={MODULE}"


def test_pkcs11(settings, tmp_path, token):
    store = of(settings, tmp_path, token)
    made = store.make(2048)
    assert made.startswith(b"dre-pkcs11/v1\nid ")
    key = signs(store, made)
    value = key.sign(b"text", padding.PKCS1v15(), hashes.MD5())
    key.public_key().verify(value, b"text", padding.PKCS1v15(), hashes.MD5())
    # The token itself says that the key was made inside and stays there.
    pkcs11, session = store._session()
    (handle,) = session.findObjects([(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)])
    says = [pkcs11.CKA_LOCAL, pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_NEVER_EXTRACTABLE]
    assert session.getAttributeValue(handle, says) == [1, 1, 0, 1]
    with pytest.raises(pkcs11.PyKCS11Error):
        if session.getAttributeValue(handle, [pkcs11.CKA_PRIVATE_EXPONENT])[0] is None:
            raise pkcs11.PyKCS11Error(pkcs11.CKR_ATTRIBUTE_SENSITIVE)  # how PyKCS11 tells of a value it did not get
    store.destroy(made)
    assert session.findObjects([(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)]) == []
    with pytest.raises(DreError, match="no key"):
        store.load(made)
    store.destroy(made)  # once more is no failure


def test_pkcs11_refused(settings, tmp_path, token):
    with pytest.raises(DreError, match="wrong PIN"):
        of(settings, tmp_path, token, "4321").make(2048)
    with pytest.raises(MissingError, match="no token"):
        of(settings, tmp_path, token.replace("=dbox", "=other")).make(2048)
    with pytest.raises(MissingError, match="not a PKCS#11 module"):
        of(settings, tmp_path, "pkcs11:token=dbox?module-path=/nowhere.so").make(2048)
    with pytest.raises(UsageError, match="expected pkcs11:"):
        of(settings, tmp_path, "pkcs11:token=dbox")
    with pytest.raises(UsageError, match="needs the PIN"):
        keystore.of(conf.load(str(settings(DRE_DBOX_KEY_STORE=token))))


def test_pkcs11_without_the_python_module(monkeypatch):
    monkeypatch.setattr(keystore_pkcs11.places, "owner", lambda: None)
    monkeypatch.setitem(sys.modules, "PyKCS11", None)
    store = keystore_pkcs11.Token(f"pkcs11:token=dbox?module-path={MODULE}", b"1234")
    with pytest.raises(MissingError, match="apt-get install python3-pykcs11"):
        store.make(2048)


@pytest.fixture
def tpm(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "unittest.mock", raising=False)  # where it is, tpm2_pytss pretends only
    tpmkit.needed()
    with tpmkit.tpm(tmp_path) as tcti:
        yield tcti


def test_tpm(settings, tmp_path, tpm):
    store = of(settings, tmp_path, f"tpm2:{tpm}")
    made, other = store.make(2048), store.make(2048)
    assert made.startswith(b"-----BEGIN TSS2 PRIVATE KEY-----")
    signs(store, made)
    for _ in range(4):  # more than the TPM has room for
        signs(store, other)
        signs(store, made)
    with pytest.raises(DreError, match="SHA-256 only"):
        store.load(made).sign(b"text", padding.PKCS1v15(), hashes.MD5())
    with pytest.raises(DreError, match="not a key of a TPM"):
        store.load(b"\0" * 100)
    store.destroy(made)


def test_tpm_that_is_full_of_what_killed_ones_left(settings, tmp_path, tpm):
    """No resource manager: room is made, and who then finds another one's key in the place of its own sees it."""
    store, other = (of(settings, tmp_path, f"tpm2:{tpm}") for _ in range(2))
    made, second = store.make(2048), other.make(2048)
    signs(store, made)
    for lost in (1, 2, 3):
        for _ in range(lost):
            with contextlib.suppress(other._context()[0].TSS2_Exception):
                other._parent()  # and never gone
        signs(other, second)  # made room, and is where the first key was
        signs(store, made)
        signs(other, second)
        assert store.make(2048)


def test_tpm_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "unittest.mock", raising=False)
    pytest.importorskip("tpm2_pytss", reason="python3-tpm2-pytss is not installed")
    with pytest.raises(MissingError, match="not there"):
        keystore_tpm2.Tpm("device:/dev/no-tpm", None).make(2048)
    monkeypatch.setitem(sys.modules, "tpm2_pytss", None)
    with pytest.raises(MissingError, match="apt-get install python3-tpm2-pytss"):
        keystore_tpm2.Tpm("device:/dev/no-tpm", None).make(2048)
