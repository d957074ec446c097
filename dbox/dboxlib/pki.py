# SPDX-License-Identifier: Apache-2.0
"""The keys and certificates of a D-Box: the hierarchy of the specification, the TLS server, and the clients' own CA.

root CA → centre → manufacturer → D-Box owner → { sign key (RSA), note key (Ed25519), TLS server }. Client
certificates come from a CA of their own, so that an owner key cannot make writers and a stolen client CA cannot sign
tree heads. This module makes keys and certificates; where they lie is `dboxlib.places`, what they prove `dre.trust`.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dre.trust import LOG_SIGNING

from dboxlib.keystore import Key

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
DAY = datetime.timedelta(days=1)
YEAR = 365 * DAY
SPARE = 7 * DAY  # of a sign certificate beyond its wait and its period: a missed rotation does not stop the log at once


@dataclass(frozen=True)
class Issued:
    """A key and its certificate."""

    key: PrivateKey
    certificate: x509.Certificate


def authority(name: str, box: str, length: int, issuer: Issued | None, years: int, bits: int = 3072) -> Issued:
    """A CA certificate that may stand above *length* others; without *issuer* a root."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    extensions = [
        x509.BasicConstraints(ca=True, path_length=None if issuer is None else length),
        _usage(key_cert_sign=True, crl_sign=True, digital_signature=issuer is not None and length == 0),
    ]
    return _issue(key, name, box, issuer, extensions, years * YEAR)


def sign_certificate(owner: Issued, box: str, origin: str, public: rsa.RSAPublicKey, period: float) -> x509.Certificate:
    """The certificate of a key for tree heads of the log *origin* that waits and then serves *period* seconds each."""
    life = 2 * datetime.timedelta(seconds=period) + SPARE
    return _certificate(public, "D-Box sign key", box, owner, _log_signing(origin), life)


def sign_key(owner: Issued, box: str, origin: str, bits: int = 2048, period: float = 86400.0) -> Issued:
    """A fresh key for tree heads of the log *origin*, for who needs no key store."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return Issued(key, sign_certificate(owner, box, origin, key.public_key(), period))


def note_key(owner: Issued, box: str, origin: str) -> Issued:
    """The Ed25519 key of the log *origin*: C2SP clients know a log by it, so it stays while sign keys rotate."""
    return _issue(ed25519.Ed25519PrivateKey.generate(), "D-Box note key", box, owner, _log_signing(origin), 10 * YEAR)


def server(owner: Issued, box: str, names: Sequence[str]) -> Issued:
    """The TLS server's key, for host *names* and addresses."""
    extensions: list[x509.ExtensionType] = [
        x509.BasicConstraints(ca=False, path_length=None),
        _usage(digital_signature=True),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        x509.SubjectAlternativeName([_host(name) for name in names]),
    ]
    return _issue(ec.generate_private_key(ec.SECP256R1()), "D-Box server", box, owner, extensions, 10 * YEAR)


def client_authority(box: str) -> Issued:
    """The CA of client certificates, apart from the D-Box's own chain."""
    extensions = [
        x509.BasicConstraints(ca=True, path_length=0),
        _usage(key_cert_sign=True, crl_sign=True),
    ]
    return _issue(ec.generate_private_key(ec.SECP256R1()), "D-Box client CA", box, None, extensions, 20 * YEAR)


def client(issuer: Issued, box: str, name: str) -> Issued:
    """A client certificate; what its holder may do is recorded in the D-Box, not in here."""
    extensions: list[x509.ExtensionType] = [
        x509.BasicConstraints(ca=False, path_length=None),
        _usage(digital_signature=True),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    ]
    return _issue(ec.generate_private_key(ec.SECP256R1()), name, box, issuer, extensions, 5 * YEAR)


def pem(certificate: x509.Certificate) -> bytes:
    """A certificate as it lies in files."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: PrivateKey) -> bytes:
    """A private key as it lies in files, without a passphrase: the file's mode protects it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def same_key(key: "PrivateKey | Key", certificate: x509.Certificate) -> bool:
    """Whether *certificate* is for *key*."""
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def pack_owner(owner: Issued, above: Sequence[x509.Certificate], passphrase: bytes) -> bytes:
    """The owner's PKCS#12 file: key, certificate and the certificates above."""
    assert isinstance(owner.key, rsa.RSAPrivateKey)
    builder = serialization.PrivateFormat.PKCS12.encryption_builder()
    protection = (
        builder.kdf_rounds(50_000)
        .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(hashes.SHA256())
        .build(passphrase)
    )
    return pkcs12.serialize_key_and_certificates(b"D-Box owner", owner.key, owner.certificate, above, protection)


def unpack_owner(octets: bytes, passphrase: bytes) -> tuple[Issued, list[x509.Certificate]]:
    """Key and certificate of the owner, and the other certificates. Raises ValueError: wrong file or passphrase."""
    key, certificate, others = pkcs12.load_key_and_certificates(octets, passphrase)
    if not isinstance(key, rsa.RSAPrivateKey) or certificate is None:
        raise ValueError("expected an RSA key and its certificate")
    return Issued(key, certificate), others


def _issue(
    key: PrivateKey,
    name: str,
    box: str,
    issuer: Issued | None,
    extensions: Sequence[x509.ExtensionType],
    life: datetime.timedelta,
) -> Issued:
    """A key and its certificate, by *issuer* or by itself."""
    signer = issuer or Issued(key, None)  # type: ignore[arg-type]  # a root signs itself
    return Issued(key, _certificate(key.public_key(), name, box, signer, extensions, life))


def _certificate(
    public: PublicKey,
    name: str,
    box: str,
    signer: Issued,
    extensions: Sequence[x509.ExtensionType],
    life: datetime.timedelta,
) -> x509.Certificate:
    """A certificate for *public* by *signer*, valid from now for *life*; a signer without one is itself."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "D-RE"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, box),
        ]
    )
    begin = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer.certificate else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key()), critical=False)
    )
    for extension in extensions:
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer.key, hashes.SHA256())


def _log_signing(origin: str) -> list[x509.ExtensionType]:
    return [
        x509.BasicConstraints(ca=False, path_length=None),
        _usage(digital_signature=True, content_commitment=True),
        x509.ExtendedKeyUsage([LOG_SIGNING]),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"https://{origin}")]),
    ]


def _usage(**wanted: bool) -> x509.KeyUsage:
    every = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**{**every, **wanted})


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
