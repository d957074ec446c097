# SPDX-License-Identifier: Apache-2.0
"""What two persons have signed about one version of a script: a text of lines, then a line for each signature.

    dre-script/v1
    script shop
    sha256 <of the file>
    before <SHA-256 of the version that was in force, or none>
    id <12 digits>
    time <…Z>
    note <why; may be left out>
    (an empty line)
    propose ann <base64>
    approve bob <base64>

A signature is over the lines above the empty one and one more, such as `approve bob`: SHA-256 with the RSA (PKCS #1)
or EC (DER) key of the person's certificate, as openssl-dgst(1) makes it.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from dre.errors import DreError, NotPermittedError

from dscriptlib.persons import Person, Private, find

FORMAT = "dre-script/v1"
PROPOSE, APPROVE = "propose", "approve"
ID = re.compile(r"[0-9a-f]{12}")
_FORM = re.compile(
    rf"{FORMAT}\nscript ([a-z0-9][a-z0-9-]{{0,30}})\nsha256 ([0-9a-f]{{64}})\nbefore (none|[0-9a-f]{{64}})\n"
    r"id ([0-9a-f]{12})\ntime ([0-9TZ:.-]{24})\n(?:note ([^\n]{1,300})\n)?\n"
    r"((?:(?:propose|approve) [a-z0-9][a-z0-9-]{0,30} [A-Za-z0-9+/]{1,1400}={0,2}\n){1,2})"
)


@dataclass(frozen=True)
class Signature:
    """*word* is PROPOSE or APPROVE; *value* are the octets."""

    word: str
    person: str
    value: bytes


@dataclass(frozen=True)
class Agreement:
    """One version of one script, and who has signed it; *before* is None for the first version."""

    script: str
    sha256: str
    before: str | None
    id: str
    time: str
    note: str = ""
    signatures: tuple[Signature, ...] = ()

    def text(self) -> str:
        """The lines that are signed, but for the last."""
        note = f"note {self.note}\n" if self.note else ""
        head = f"{FORMAT}\nscript {self.script}\nsha256 {self.sha256}\nbefore {self.before or 'none'}\n"
        return f"{head}id {self.id}\ntime {self.time}\n{note}"

    def format(self) -> str:
        """The whole file."""
        signed = (f"{one.word} {one.person} {base64.b64encode(one.value).decode()}\n" for one in self.signatures)
        return f"{self.text()}\n{''.join(signed)}"

    def by(self, word: str) -> str:
        """The name of who signed with *word*, or nothing."""
        return next((one.person for one in self.signatures if one.word == word), "")


def parse(text: str, where: str) -> Agreement:
    """What `format` gave. Raises DreError."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise DreError(f"{where}: not an agreement about a script")
    script, sha256, before, identity, time, note, signed = match.groups()
    signatures = []
    for line in signed.splitlines():
        word, person, value = line.split(" ")
        try:
            signatures.append(Signature(word, person, base64.b64decode(value, validate=True)))
        except binascii.Error:
            raise DreError(f"{where}: a signature is not base64") from None
    before = None if before == "none" else before
    return Agreement(script, sha256, before, identity, time, note or "", tuple(signatures))


def sign(made: Agreement, word: str, person: Person, key: Private) -> Agreement:
    """*made* with a signature of *person*, whose key this is."""
    octets = _signed(made, word, person.name)
    if isinstance(key, rsa.RSAPrivateKey):
        value = key.sign(octets, padding.PKCS1v15(), hashes.SHA256())
    else:
        value = key.sign(octets, ec.ECDSA(hashes.SHA256()))
    return replace(made, signatures=(*made.signatures, Signature(word, person.name, value)))


def verify(made: Agreement, people: Sequence[Person], words: Sequence[str] = (PROPOSE, APPROVE)) -> None:
    """Raise NotPermittedError unless different persons of the register have signed with just these *words*."""
    if [one.word for one in made.signatures] != list(words) or len({one.person for one in made.signatures}) != len(
        words
    ):
        raise NotPermittedError(f"{made.script} {made.sha256[:12]}: is not signed by two persons")
    for one in made.signatures:
        person = find(people, one.person)
        if person is None or not _right(made, one, person):
            raise NotPermittedError(f"{made.script} {made.sha256[:12]}: the signature of {one.person} does not verify")


def _signed(made: Agreement, word: str, name: str) -> bytes:
    return f"{made.text()}{word} {name}\n".encode()


def _right(made: Agreement, signature: Signature, person: Person) -> bool:
    public, octets = person.x509.public_key(), _signed(made, signature.word, signature.person)
    try:
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(signature.value, octets, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature.value, octets, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except InvalidSignature:
        return False
    return True
