# SPDX-License-Identifier: Apache-2.0
"""What the first D-Box left: octets, the RSA signature of their MD5, and the certificate of the key; read, never made.

Such a signature is checked before the octets are taken, so that no damaged archive is carried on; but two texts of one
MD5 are made in seconds, so it proves nothing of the time before. What is taken says so itself, in an entry of its own:
integrity proven since the import.
"""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from dre import dbox, event, trust
from dre.errors import DreError, NotFoundError

TYPE = "dbox.legacy.imported"
VERIFIED, UNVERIFIED = "MD5 signature verified", "unverified legacy"
SINCE = "proven since import"


@dataclass(frozen=True)
class Old:
    """One record of an old D-Box: *name*.octets, *name*.sig and *name*.crt."""

    name: str
    octets: bytes
    signature: bytes
    certificate: bytes

    def parts(self, checked: str) -> list[bytes]:
        """The entries that it becomes: octets and certificate unchanged, and what is to be said of them."""
        data: dict[str, object] = {
            "name": self.name,
            "length": len(self.octets),
            "sha256": hashlib.sha256(self.octets).hexdigest(),
            "certificate": trust.fingerprint(_certificate(self)),
            "signature": base64.b64encode(self.signature).decode(),
            "checked": checked,
            "integrity": SINCE,
        }
        told = event.Event(event.stamp(), event.host() + "/dbox", TYPE, 5, data)
        return [self.octets, self.certificate, event.format(told).rstrip(b"\n")]

    def request(self) -> str:
        """The name under which a second import of the same finds the first."""
        octets = b"".join(hashlib.sha256(part).digest() for part in (self.octets, self.signature, self.certificate))
        return f"legacy-{hashlib.sha256(octets).hexdigest()}"


def find(directory: Path) -> Iterator[Old]:
    """The records of a directory, by name. Raises NotFoundError when one is not whole or there is none."""
    names = sorted(path.name.removesuffix(".octets") for path in directory.glob("*.octets"))
    if not names:
        raise NotFoundError(f"{directory}: no NAME.octets with NAME.sig and NAME.crt")
    for name in names:
        yield Old(name, *(_read(directory / f"{name}.{ending}") for ending in ("octets", "sig", "crt")))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            octets = stream.read(dbox.LARGEST + 1)
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from None
    if not octets or len(octets) > dbox.LARGEST:
        raise DreError(f"{path}: expected 1 to {dbox.LARGEST} octets")
    return octets


def check(old: Old) -> str:
    """What can be said of a record. Raises DreError when its signature is wrong."""
    public = _certificate(old).public_key()
    if not isinstance(public, rsa.RSAPublicKey):
        raise DreError(f"{old.name}: the certificate is not one of an RSA key")
    if not md5():
        return UNVERIFIED
    try:
        public.verify(old.signature, old.octets, padding.PKCS1v15(), hashes.MD5())  # noqa: S303 - what is there is MD5
    except InvalidSignature:
        raise DreError(f"{old.name}: the MD5 signature is not of these octets by this key; not imported") from None
    return VERIFIED


def md5() -> bool:
    """Whether this host's OpenSSL knows MD5; under FIPS it does not."""
    try:
        hashes.Hash(hashes.MD5()).finalize()  # noqa: S303
    except (UnsupportedAlgorithm, InternalError):
        return False
    return True


def _certificate(old: Old) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(old.certificate)
    except ValueError as error:
        raise DreError(f"{old.name}.crt: not a certificate in PEM: {error}") from None
