# SPDX-License-Identifier: Apache-2.0
"""The D-Box's signing hand: the current sign key and the note key, in memory, and what they sign.

Knows nothing of the database, and never sees the owner's key: who replaces sign keys gets them with their certificates
(`dboxlib.rotation`).
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from dre import trust
from dre.errors import DreError
from dre.evidence import Head, Note, Signature

from dboxlib import pki
from dboxlib.keystore import Key


@dataclass(frozen=True)
class SignKey:
    """A sign key and its certificate."""

    key: Key
    certificate: x509.Certificate


@dataclass
class Signer:
    """Keys of one log."""

    origin: str
    sign: SignKey
    note_key: ed25519.Ed25519PrivateKey
    heads: int = 0  # signed by the present sign key since it is here

    def __post_init__(self) -> None:
        self._rsa_id = trust.key_id(self.origin, self.sign.key.public_key())[1]
        self._ed_id = trust.key_id(self.origin, self.note_key.public_key())[1]

    def replace(self, sign: SignKey) -> None:
        """Sign with another key from now on."""
        self.sign = sign
        self.heads = 0
        self.__post_init__()

    def note(self, head: Head) -> Note:
        """Sign a tree head with both keys. Raises DreError outside the sign key's period."""
        begin, end = period(self.sign.certificate)
        if not begin <= head.time <= end:
            raise DreError(f"the sign key is valid from {begin} to {end} only: no tree head can be signed")
        text = head.text()
        self.heads += 1
        return Note(
            text,
            (
                Signature(self.origin, self._rsa_id, self.digest(text.encode())),
                Signature(self.origin, self._ed_id, self.note_key.sign(text.encode())),
            ),
        )

    def digest(self, octets: bytes) -> bytes:
        """The signed digest of *octets*: RSA PKCS#1 v1.5 over SHA-256."""
        return self.sign.key.sign(octets, padding.PKCS1v15(), hashes.SHA256())

    def md5(self, octets: bytes) -> bytes:
        """The digest signature of the first D-Box: RSA PKCS#1 v1.5 over MD5. Proves nothing today. Raises DreError."""
        try:
            return self.sign.key.sign(octets, padding.PKCS1v15(), hashes.MD5())  # noqa: S303 - opted in
        except (UnsupportedAlgorithm, InternalError):
            raise DreError("this host's OpenSSL has no MD5") from None


def period(certificate: x509.Certificate) -> tuple[str, str]:
    """When a certificate is valid, in event time form."""
    return trust.period([certificate])


def load_key(octets: bytes) -> pki.PrivateKey:
    """A private key from PEM. Raises DreError."""
    try:
        key = serialization.load_pem_private_key(octets, None)
    except (ValueError, TypeError) as error:
        raise DreError(f"not a private key: {error}") from None
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise DreError("not a key of the D-Box")
    return key
