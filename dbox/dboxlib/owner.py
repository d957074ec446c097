# SPDX-License-Identifier: Apache-2.0
"""The owner's key: read from its PKCS#12 file, and checked before it certifies anything. Only ever as root."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from dre import trust
from dre.errors import DreError, MissingError, NotPermittedError, UsageError
from dre.evidence import VerifyError

from dboxlib import keystore, pki


def load(certs: Path, file: Path | None = None, passphrase_file: Path | None = None) -> pki.Issued:
    """The owner's key: that of dbox-init, or that of *file* where the owner keeps it elsewhere. Raises DreError."""
    return read(file or certs / "owner.p12", passphrase_file or certs / "owner.pass")[0]


def read(file: Path, passphrase_file: Path) -> tuple[pki.Issued, list[x509.Certificate]]:
    """Key and certificate of the owner, and the certificates above, in no order. Raises DreError."""
    try:
        octets = file.read_bytes()
        passphrase = keystore.passphrase(passphrase_file)
    except FileNotFoundError:
        raise MissingError(f"{file}: no such file; the owner's key certifies sign keys") from None
    except PermissionError:
        raise NotPermittedError(f"{file}: the owner's key is for root alone") from None
    try:
        return pki.unpack_owner(octets, passphrase or b"")
    except ValueError as error:
        wrong = "wrong passphrase" if "password" in str(error).lower() else f"not the owner's PKCS#12 file: {error}"
        raise DreError(f"{file}: {wrong}") from None


def certificates(chain: bytes) -> list[x509.Certificate]:
    """The certificates of PEM."""
    return trust.certificates(chain, "chain")


def imported(file: Path, passphrase_file: Path) -> tuple[pki.Issued, list[x509.Certificate]]:
    """The owner of *file* and its chain up to the root, after all that a verifier will ask of them was asked."""
    owner, others = read(file, passphrase_file)
    if not pki.same_key(owner.key, owner.certificate):
        raise UsageError(f"{file}: the key is not that of the certificate")
    public = owner.certificate.public_key()
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < 2048:
        raise UsageError(f"{file}: the owner's key is not RSA of 2048 bits or more")
    try:
        constraints = owner.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca or constraints.path_length != 0:
        raise UsageError(f"{file}: the owner's certificate is not CA:TRUE with pathlen:0")
    chain, rest = [owner.certificate], list(others)
    while chain[-1].subject != chain[-1].issuer:
        above = next((one for one in rest if one.subject == chain[-1].issuer), None)
        if above is None:
            name = chain[-1].issuer.rfc4514_string()
            raise UsageError(f"{file}: the chain is not complete: no certificate of {name}")
        rest.remove(above)
        chain.append(above)
    if len(chain) == 1:
        raise UsageError(f"{file}: the owner's certificate is a root itself; it needs one above it")
    try:
        trust.authorities(chain)
    except VerifyError as error:
        raise UsageError(f"{file}: {error}") from None
    return owner, chain[1:]
