# SPDX-License-Identifier: Apache-2.0
"""Where the private half of a sign key is: in a file, in a PKCS#11 token, or in a TPM 2.0.

Every store makes a key and gives the octets of a file (`sign.key`) that lead to it again: the key itself in PEM, with a
passphrase or without, the name of an object in the token, or a blob that one TPM alone can use. So a rotation is the
same for all: the new file is made first and the old one destroyed last. Which key is in force is `dboxlib.rotation`.
"""

import os
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from dre.conf import Conf
from dre.errors import DreError, UsageError

CREDENTIAL = "dbox-key-passphrase"  # name under which systemd hands the passphrase or PIN over (LoadCredential=)
SECRET = 4096  # octets of a passphrase file


class Key(Protocol):
    """A private key that signs; rsa.RSAPrivateKey is one."""

    def public_key(self) -> rsa.RSAPublicKey:
        """Its public half."""
        ...

    def sign(self, data: bytes, padding: padding.PKCS1v15, algorithm: hashes.HashAlgorithm, /) -> bytes:
        """RSA PKCS#1 v1.5 over the digest of *data*. Raises DreError."""
        ...


class KeyStore(Protocol):
    """A place for sign keys."""

    def make(self, bits: int) -> bytes:
        """A fresh key: what is written to its file. Raises DreError."""
        ...

    def load(self, octets: bytes) -> Key:
        """The key of a file. Raises DreError."""
        ...

    def destroy(self, octets: bytes) -> None:
        """Destroy what overwriting the file does not; one that is gone already is no failure. Raises DreError."""
        ...


def of(conf: Conf) -> KeyStore:
    """The store of the settings. Call as root: the passphrase or PIN is read now. Raises DreError."""
    kind, _, rest = conf.dbox_key_store.partition(":")
    secret = passphrase(conf.dbox_key_passphrase_file)
    if kind == "pkcs11":
        from dboxlib import keystore_pkcs11

        return keystore_pkcs11.Token(conf.dbox_key_store, secret)
    if kind == "tpm2":
        from dboxlib import keystore_tpm2

        return keystore_tpm2.Tpm(rest, secret)
    return Files(secret)


def passphrase(path: Path | None) -> bytes | None:
    """The passphrase or PIN: the first line of *path*, or systemd's credential; None without either."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if path is None:
        path = Path(credentials) / CREDENTIAL if credentials else None
        if path is None or not path.exists():
            return None
    try:
        with path.open("rb") as stream:
            line = stream.read(SECRET).split(b"\n")[0]
            mode = os.fstat(stream.fileno()).st_mode
    except OSError as error:
        raise UsageError(f"{path}: no passphrase of the sign key: {error.strerror}") from None
    if mode & 0o007:
        raise UsageError(f"{path}: must not be readable by others (mode {mode & 0o7777:04o})")
    if not line:
        raise UsageError(f"{path}: no passphrase in the first line")
    return line


class Files:
    """Keys in PEM files; the file's mode protects them, and a passphrase where there is one."""

    def __init__(self, secret: bytes | None) -> None:
        self._secret = secret

    def make(self, bits: int) -> bytes:
        """A fresh key."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if self._secret is not None:
            protection = serialization.BestAvailableEncryption(self._secret)
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)

    def load(self, octets: bytes) -> Key:
        """The key in these octets."""
        secret = self._secret if b"ENCRYPTED" in octets else None
        if b"ENCRYPTED" in octets and secret is None:
            raise DreError("the sign key has a passphrase; DRE_DBOX_KEY_PASSPHRASE_FILE names the file with it")
        try:
            key = serialization.load_pem_private_key(octets, secret)
        except (ValueError, TypeError) as error:
            reason = "wrong passphrase" if secret is not None else error
            raise DreError(f"not a private key: {reason}") from None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise DreError("the sign key is not an RSA key")
        return key

    def destroy(self, octets: bytes) -> None:
        """Nothing is elsewhere."""
