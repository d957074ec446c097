# SPDX-License-Identifier: Apache-2.0
"""Who may sign scripts and answer on the page: persons with a role, each known by a certificate.

The register is root's. While it is empty nobody need sign. Who was revoked stays in it, so that what was signed before
can still be checked. Each change is recorded in the D-Box.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from dre import event, files, trust
from dre.conf import Conf
from dre.dbox import Recorder
from dre.errors import DreError, NotFoundError, NotPermittedError, UsageError

from dscriptlib import answers, lines

ROLES = ("author", "approver")
REVOKED = "revoked"
Private = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Person:
    """One who has a role, or had one; *certificate* is PEM."""

    name: str
    role: str
    certificate: str
    time: str

    @property
    def x509(self) -> x509.Certificate:
        """The certificate."""
        return x509.load_pem_x509_certificate(self.certificate.encode())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, hex."""
        return trust.fingerprint(self.x509)


def all(conf: Conf) -> list[Person]:
    """Everybody who was ever registered, by name. Raises DreError where the register cannot be read."""
    try:
        rows = json.loads(_path(conf).read_text())
        return [Person(**row) for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise DreError(f"{_path(conf)}: not a register of persons: {error}") from None


def find(people: Sequence[Person], name: str) -> Person | None:
    """Who has that name."""
    return next((person for person in people if person.name == name), None)


def register(conf: Conf, name: str, role: str, pem: bytes | None) -> None:
    """Give *name* a role; *pem* is a new certificate, which another person must not have. Raises DreError."""
    with files.lock(_lock(conf)):
        people = all(conf)
        known = find(people, name)
        if pem is None and known is None:
            raise UsageError(f"{name} is new: --certificate is missing")
        text = _certificate(pem) if pem is not None else known.certificate if known else ""
        made = Person(name, role, text, event.stamp())
        for other in people:
            if other.name != name and _public(other.x509) == _public(made.x509):
                raise UsageError(f"{other.name} has this key already")
        _change(conf, people, made)


def revoke(conf: Conf, name: str) -> None:
    """*name* has no role any more. Raises NotFoundError."""
    with files.lock(_lock(conf)):
        people = all(conf)
        known = find(people, name)
        if known is None:
            raise NotFoundError(f"no person {name!r}")
        _change(conf, people, replace(known, role=REVOKED, time=event.stamp()))


def holder(people: Sequence[Person], key: Private) -> Person:
    """Whose certificate is for *key*, if it counts today. Raises NotPermittedError."""
    public = key.public_key().public_bytes(*_FORM)
    for person in people:
        if _public(person.x509) == public:
            return valid(person)
    raise NotPermittedError("this key is of no person that is registered; see dscript person")


def valid(person: Person) -> Person:
    """*person*, if the role counts and the certificate is valid today. Raises NotPermittedError."""
    if person.role not in ROLES:
        raise NotPermittedError(f"{person.name} has no role any more")
    begin, end = trust.period([person.x509])
    if not begin <= event.stamp() <= end:
        raise NotPermittedError(f"the certificate of {person.name} is valid from {begin} to {end} only")
    return person


# --- what is kept ---

_FORM = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(*_FORM)


def _certificate(pem: bytes) -> str:
    try:
        found = x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise UsageError("--certificate: not a certificate in PEM") from None
    if not isinstance(found.public_key(), ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise UsageError("--certificate: expected an EC or RSA key")
    return found.public_bytes(serialization.Encoding.PEM).decode()


def _change(conf: Conf, people: Sequence[Person], made: Person) -> None:
    """Record the change, then make it."""
    data = {"person": made.name, "role": made.role, "fingerprint": made.fingerprint, "by": answers.caller()}
    Recorder(conf, "dscript").record("script", lines.line("engine", "script.person.changed", data, 4).encode())
    rows = sorted([*(one for one in people if one.name != made.name), made], key=lambda one: one.name)
    files.write_atomic(_path(conf), json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _path(conf: Conf) -> Path:
    return conf.core_state_dir / "script" / "persons.json"


def _lock(conf: Conf) -> Path:
    _path(conf).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    return conf.core_run_dir / "lock" / "dscript-persons"
