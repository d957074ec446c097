# SPDX-License-Identifier: Apache-2.0
"""Whose signature on a tree head counts: keys whose certificates lead to a given root, and the check of a receipt.

Apart from dre.evidence because it needs X.509 and signatures. Trust comes from the root alone: the other
certificates are untrusted input that must prove itself. It knows the one profile that dbox-init makes (RSA with
SHA-256, CA path lengths, log-signing certificates for RSA and Ed25519 keys) and refuses everything else. Validity is
judged at the time of the tree head and not now: evidence outlives certificates. Needs no network and no D-Box.
"""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from dre import evidence
from dre.evidence import FormatError, Head, Header, Note, Receipt, Signature, VerifyError

# Extended key usage "may sign tree heads"; the arc is made from a UUID, which needs no registration.
LOG_SIGNING = x509.ObjectIdentifier("1.2.840.113556.1.8000.2554.10975.59672.4459.21436.43455.15993779.9642793")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n")
_SHA256_RSA = bytes.fromhex("300d06092a864886f70d01010b0500")  # AlgorithmIdentifier sha256WithRSAEncryption
_CRITICAL = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage)
# What cryptography raises for malformed ones.
_ODD = (ValueError, KeyError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension)
_LONGEST = 8  # certificates from a leaf to its root
_STAMP = "%Y-%m-%dT%H:%M:%S.000Z"


@dataclass(frozen=True)
class LogKey:
    """A public key that may sign tree heads of the log *origin* from *begin* to *end* (event time form)."""

    origin: str
    kind: bytes
    id: bytes
    public: rsa.RSAPublicKey | ed25519.Ed25519PublicKey
    begin: str
    end: str
    fingerprint: str = ""  # of the certificate
    issuer: str = ""  # fingerprint of the certificate above it

    def signed(self, signature: Signature, text: str) -> bool:
        """Whether *signature* over *text* is by this key."""
        try:
            if isinstance(self.public, rsa.RSAPublicKey):
                self.public.verify(signature.value, text.encode(), padding.PKCS1v15(), hashes.SHA256())
            else:
                self.public.verify(signature.value, text.encode())
        except InvalidSignature:
            return False
        return True


class Trust:
    """The keys of all log-signing certificates that lead to the root."""

    def __init__(self, keys: Sequence[LogKey]) -> None:
        self.keys = {(key.origin, key.id): key for key in keys}
        # By fingerprint: the largest tree head of a key that was replaced, and the one before that of its successor.
        # Known to who has the proofs, see dre.handover.
        self.last: dict[str, int] = {}
        self.first: dict[str, int] = {}

    def head(self, note: Note) -> Head:
        """The tree head of *note*, signed by both an RSA and an Ed25519 key. Raises VerifyError.

        Lines of unknown keys are ignored, as signed-note demands: witnesses may have added theirs.
        """
        head = evidence.parse_head(note.text)
        found = set()
        for signature in note.signatures:
            key = self.keys.get((signature.name, signature.key))
            if key is None:
                continue
            if key.origin != head.origin:
                raise VerifyError(f"wrong origin: tree head of log {head.origin}, key of log {key.origin}")
            if not key.begin <= head.time <= key.end:
                raise VerifyError(f"certificate chain: not valid at the time of the tree head, {head.time}")
            if not key.signed(signature, note.text):
                raise VerifyError(f"tree head signature: {_kind(key.kind)} signature is wrong")
            if head.size > self.last.get(key.fingerprint, head.size):
                ended = self.last[key.fingerprint]
                raise VerifyError(f"tree head signature: of {head.size} entries, by a sign key replaced at {ended}")
            if head.size <= self.first.get(key.fingerprint, -1):
                begun = self.first[key.fingerprint]
                raise VerifyError(f"tree head signature: of {head.size} entries, by a sign key in force after {begun}")
            found.add(key.kind)
        for kind in (evidence.RSA_SHA256, evidence.ED25519):
            if kind not in found:
                raise VerifyError(f"tree head signature: none by an {_kind(kind)} key certified under this root")
        return head

    def signers(self, note: Note) -> set[str]:
        """The fingerprints of the certificates of the log's keys that *note* bears a line of; see `head`."""
        lines = [(signature.name, signature.key) for signature in note.signatures]
        return {self.keys[line].fingerprint for line in lines if line in self.keys}

    def certified(self, fingerprint: str) -> LogKey | None:
        """The key of the certificate with this fingerprint."""
        return next((key for key in self.keys.values() if key.fingerprint == fingerprint), None)

    def check(self, receipt: Receipt, octets: bytes) -> tuple[Header, Head]:
        """Check that *receipt* proves that *octets* are in the log. Raises VerifyError naming the step that failed."""
        bound = evidence.bind(receipt, octets)
        self.head(receipt.note)
        return bound


def load(root: bytes, chain: bytes) -> Trust:
    """The keys in PEM *chain* that *root* (PEM, one or more) vouches for.

    Raises FormatError when either is not plain PEM, VerifyError when any certificate does not lead to the root.
    """
    roots, others = certificates(root, "root"), certificates(chain, "chain")
    try:
        return Trust(_log_keys(roots, others))
    except _ODD as error:  # cryptography looks into a certificate only when asked
        raise VerifyError(f"certificate chain: a malformed certificate: {error}") from None


def authorities(path: Sequence[x509.Certificate]) -> None:
    """Raise VerifyError unless *path*, from a CA that issues leaves up to a root, could stand above a sign key."""
    for below, (child, issuer) in enumerate(zip(path, [*path[1:], path[-1]], strict=True)):
        _issued(child, issuer)
        _may_issue(child, below)


def certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """The certificates of a PEM file that holds nothing else. Raises FormatError."""
    blocks = _PEM.findall(pem)
    if not blocks or b"".join(blocks) != pem:
        raise FormatError(f"{what}: not a file of PEM certificates and nothing else")
    found = []
    for block in blocks:
        try:
            certificate = x509.load_pem_x509_certificate(block)
            canonical = certificate.public_bytes(serialization.Encoding.PEM)
        except _ODD as error:
            raise FormatError(f"{what}: not a certificate: {error}") from None
        if canonical != block:
            raise FormatError(f"{what}: not canonical PEM")
        found.append(certificate)
    return found


def key_id(origin: str, public: object) -> tuple[bytes, bytes]:
    """Signature type and key id under which *public* signs heads of *origin*."""
    if isinstance(public, rsa.RSAPublicKey):
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return evidence.RSA_SHA256, evidence.key_id(origin, evidence.RSA_SHA256, der)
    if isinstance(public, ed25519.Ed25519PublicKey):
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return evidence.ED25519, evidence.key_id(origin, evidence.ED25519, raw)
    raise VerifyError("certificate chain: a key for tree heads must be RSA or Ed25519")


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, hex: how a writer is named in a header."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _path(
    leaf: x509.Certificate, roots: Sequence[x509.Certificate], others: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """The certificates from *leaf* to one of *roots*."""
    path = [leaf]
    while path[-1] not in roots:
        child = path[-1]
        issuers = [one for one in (*roots, *others) if one.subject == child.issuer and one not in path]
        if not issuers or len(path) == _LONGEST:
            raise VerifyError(f"certificate chain: {_name(leaf)!r} does not lead to the root")
        # Names are unique in our profile; should two issuers share one, the first that verifies is as good.
        for number, issuer in enumerate(issuers, 1):
            try:
                _issued(child, issuer)
                _may_issue(issuer, len(path) - 1)
                path.append(issuer)
                break
            except VerifyError:
                if number == len(issuers):
                    raise
    return path


def _issued(child: x509.Certificate, issuer: x509.Certificate) -> None:
    """Raise VerifyError unless *issuer*'s key signed *child*."""
    public, method = issuer.public_key(), child.signature_hash_algorithm
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < 2048 or not isinstance(method, hashes.SHA256):
        raise VerifyError(f"certificate chain: {_name(child)!r} is not signed with SHA-256 by an RSA key of 2048 bits")
    try:
        public.verify(child.signature, child.tbs_certificate_bytes, padding.PKCS1v15(), method)
    except InvalidSignature:
        raise VerifyError(f"certificate chain: {_name(child)!r} is not signed by {_name(issuer)!r}") from None
    # The algorithm is named again outside of what is signed; it too must have its one form.
    value = b"\0" + child.signature
    end = child.tbs_certificate_bytes + _SHA256_RSA + b"\x03\x82" + len(value).to_bytes(2, "big") + value
    if not child.public_bytes(serialization.Encoding.DER).endswith(end):
        raise VerifyError(f"certificate chain: {_name(child)!r}: signature in an unknown form")


def _may_issue(issuer: x509.Certificate, below: int) -> None:
    """Raise VerifyError unless *issuer* is a CA that may stand above *below* other CA certificates."""
    extensions = _extensions(issuer)
    constraints = extensions.get(x509.BasicConstraints)
    usage = extensions.get(x509.KeyUsage)
    if not isinstance(constraints, x509.BasicConstraints) or not constraints.ca:
        raise VerifyError(f"certificate chain: {_name(issuer)!r} may not issue certificates")
    if not isinstance(usage, x509.KeyUsage) or not usage.key_cert_sign:
        raise VerifyError(f"certificate chain: the key of {_name(issuer)!r} may not sign certificates")
    if constraints.path_length is not None and below > constraints.path_length:
        raise VerifyError(f"certificate chain: too long below {_name(issuer)!r}")


def _signs_heads(certificate: x509.Certificate) -> bool:
    """Whether this is a certificate for signing tree heads (and not the server's, or a CA's)."""
    extensions = _extensions(certificate)
    constraints, usage = extensions.get(x509.BasicConstraints), extensions.get(x509.KeyUsage)
    purpose = extensions.get(x509.ExtendedKeyUsage)
    return (
        isinstance(constraints, x509.BasicConstraints)
        and not constraints.ca
        and isinstance(usage, x509.KeyUsage)
        and usage.digital_signature
        and isinstance(purpose, x509.ExtendedKeyUsage)
        and LOG_SIGNING in purpose
    )


def _log_keys(roots: Sequence[x509.Certificate], others: Sequence[x509.Certificate]) -> list[LogKey]:
    for certificate in roots:
        _issued(certificate, certificate)
    keys = []
    for certificate in others:
        path = _path(certificate, roots, others)
        if path[1:] and _signs_heads(certificate):
            keys.append(_log_key(path))
    if not keys:
        raise VerifyError("certificate chain: no certificate for signing tree heads in it")
    return keys


def _log_key(path: Sequence[x509.Certificate]) -> LogKey:
    """The key of a log-signing certificate, with the period in which its whole *path* is valid."""
    names = _extensions(path[0]).get(x509.SubjectAlternativeName)
    urls = (
        names.get_values_for_type(x509.UniformResourceIdentifier)
        if isinstance(names, x509.SubjectAlternativeName)
        else []
    )
    if len(urls) != 1 or not urls[0].startswith("https://"):
        raise VerifyError(f"certificate chain: {_name(path[0])!r} names no log")
    origin = evidence.origin(urls[0].removeprefix("https://"))
    public = path[0].public_key()
    kind, identity = key_id(origin, public)
    assert isinstance(public, rsa.RSAPublicKey | ed25519.Ed25519PublicKey)  # key_id refused others
    return LogKey(origin, kind, identity, public, *period(path), fingerprint(path[0]), fingerprint(path[1]))


def period(path: Sequence[x509.Certificate]) -> tuple[str, str]:
    """When all certificates of *path* are valid, in event time form."""
    begin = max(_utc(certificate, "not_valid_before") for certificate in path)
    end = min(_utc(certificate, "not_valid_after") for certificate in path)
    return begin.strftime(_STAMP), end.strftime(_STAMP)


def _extensions(certificate: x509.Certificate) -> dict[type[x509.ExtensionType], x509.ExtensionType]:
    try:
        found = {type(extension.value): extension for extension in certificate.extensions}
    except _ODD as error:
        raise VerifyError(f"certificate chain: {_name(certificate)!r}: {error}") from None
    for kind, extension in found.items():
        if extension.critical and kind not in _CRITICAL:
            raise VerifyError(f"certificate chain: {_name(certificate)!r}: unknown critical extension")
    return {kind: extension.value for kind, extension in found.items()}


def _utc(certificate: x509.Certificate, what: str) -> datetime.datetime:
    """A date of validity; cryptography 42 renamed the attributes and now warns of the old ones."""
    aware = getattr(certificate, f"{what}_utc", None)
    if isinstance(aware, datetime.datetime):
        return aware
    naive = getattr(certificate, what)
    assert isinstance(naive, datetime.datetime)
    return naive.replace(tzinfo=datetime.timezone.utc)


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else "a certificate without a name"


def _kind(kind: bytes) -> str:
    return "Ed25519" if kind == evidence.ED25519 else "RSA"
