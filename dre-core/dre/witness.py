# SPDX-License-Identifier: Apache-2.0
"""Cosignatures: what a witness is asked, what it answers, and the check of what it signed.

The texts are those of https://c2sp.org: tlog-witness, tlog-cosignature (v1, Ed25519) and the vkeys of signed-note. A
witness cosigns a tree head that continues the last one it saw of the same log, and so cannot be shown two histories. It
needs nothing of the D-Box but the log's key. HTTP is the caller's.
"""

import base64
import binascii
import contextlib
import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from dre import evidence, files
from dre.errors import UsageError
from dre.evidence import FormatError, Note, Signature, VerifyError

COSIGNATURE = b"\x04"
SIZE_TYPE = "text/x.tlog.size"
LARGEST = 1 << 17  # octets of a request: 63 hashes and a note fit many times
_NAME = re.compile(r"[^\s+]{1,255}")
RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)


@dataclass(frozen=True)
class Vkey:
    """A public key with its name, as signed-note writes it: NAME+ID+base64(type and key)."""

    name: str
    kind: bytes
    public: bytes

    @property
    def id(self) -> bytes:
        """The key id in signature lines."""
        return evidence.key_id(self.name, self.kind, self.public)

    def format(self) -> str:
        """The text."""
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(self.kind + self.public).decode()}"

    def signed(self, signature: Signature, text: str) -> bool:
        """Whether *signature* is by this key over *text* itself."""
        return self._verify(signature.value, text.encode())

    def cosigned(self, signature: Signature, text: str) -> int | None:
        """When this key cosigned *text* (seconds since the epoch); None when *signature* is not that."""
        if len(signature.value) != 72:
            return None
        time = int.from_bytes(signature.value[:8], "big")
        return time if time < 1 << 63 and self._verify(signature.value[8:], _cosigned_text(time, text)) else None

    def _verify(self, value: bytes, octets: bytes) -> bool:
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(value, octets)
        except (InvalidSignature, ValueError):
            return False
        return True


def parse_vkey(text: str) -> Vkey:
    """The key of *text*: Ed25519 of a log (0x01) or of a witness (0x04). Raises FormatError."""
    name, _, rest = text.partition("+")
    identity, _, octets = rest.partition("+")
    try:
        raw = base64.b64decode(octets, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not _NAME.fullmatch(name) or len(raw) != 33 or raw[:1] not in (evidence.ED25519, COSIGNATURE):
        raise FormatError(f"not an Ed25519 key NAME+ID+BASE64: {text[:60]!r}")
    key = Vkey(name, raw[:1], raw[1:])
    if key.id.hex() != identity:
        raise FormatError(f"the id of the key {name} is wrong: {text[:80]!r}")
    return key


@dataclass(frozen=True)
class Known:
    """A witness: its key, and where it answers; no address in a file of those that are only trusted."""

    key: Vkey
    url: str = ""


def parse_keys(text: str, where: str) -> list[Known]:
    """A file of keys, one a line, each with an address where there is one; # begins a comment. Raises UsageError."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split() if line.startswith("#") else line.split()
        if not words:
            continue
        try:
            key = parse_vkey(words[0])
        except FormatError as error:
            raise UsageError(f"{where}:{number}: {error}") from None
        if len(words) > 2 or (len(words) == 2 and not re.fullmatch(r"https?://\S+", words[1])):
            raise UsageError(f"{where}:{number}: expected a key and a URL")
        found.append(Known(key, words[1].rstrip("/") if len(words) == 2 else ""))
    return found


def cosignatures(note: Note, keys: Sequence[Vkey]) -> list[tuple[str, int]]:
    """Which of the witnesses *keys* cosigned *note*, and when. Raises VerifyError for one of theirs that is wrong."""
    found = []
    for key in keys:
        for signature in note.signatures:
            if (signature.name, signature.key) == (key.name, key.id) and key.kind == COSIGNATURE:
                time = key.cosigned(signature, note.text)
                if time is None:
                    raise VerifyError(f"cosignature of {key.name} is wrong")
                found.append((key.name, time))
                break
    return found


def signature_lines(text: str) -> tuple[Signature, ...]:
    """The signature lines in *text*. Raises FormatError."""
    return evidence.parse_note("x\n\n" + text).signatures


def _cosigned_text(time: int, text: str) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()


# --- The witness's key ---


class SecretKey:
    """The key of a witness, as one line of text: PRIVATE+KEY+NAME+ID+base64(type and seed), as signed-note has it."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.public = Vkey(name, COSIGNATURE, key.public_key().public_bytes(*RAW))

    def format(self) -> str:
        """The line."""
        form = (serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
        seed = base64.b64encode(COSIGNATURE + self.key.private_bytes(*form)).decode()
        return f"PRIVATE+KEY+{self.public.name}+{self.public.id.hex()}+{seed}\n"

    def cosign(self, text: str, time: int) -> Signature:
        """The cosignature of a tree head's *text* at *time*."""
        value = time.to_bytes(8, "big") + self.key.sign(_cosigned_text(time, text))
        return Signature(self.public.name, self.public.id, value)


def make_key(name: str) -> SecretKey:
    """A fresh key. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"expected the name of a witness such as witness.example.org/w1, got {name!r}")
    return SecretKey(name, Ed25519PrivateKey.generate())


def parse_secret(text: str) -> SecretKey:
    """The key of a line. Raises FormatError."""
    words = text.strip().split("+", 4)
    wrong = FormatError("not the key of a witness: expected PRIVATE+KEY+NAME+ID+BASE64")
    if len(words) != 5 or words[:2] != ["PRIVATE", "KEY"]:
        raise wrong
    try:
        raw = base64.b64decode(words[4], validate=True)
    except (binascii.Error, ValueError):
        raise wrong from None
    if len(raw) != 33 or raw[:1] != COSIGNATURE:
        raise wrong
    key = SecretKey(words[2], Ed25519PrivateKey.from_private_bytes(raw[1:]))
    if key.public.id.hex() != words[3]:
        raise wrong
    return key


# --- What is asked, and the answer ---


def request(old: int, proof: Sequence[bytes], note: Note) -> bytes:
    """The body of add-checkpoint."""
    lines = [f"old {old}", *(base64.b64encode(node).decode() for node in proof), "", ""]
    return ("\n".join(lines) + note.format()).encode()


@dataclass(frozen=True)
class Answer:
    """Status, body and type of an answer."""

    status: int
    body: str
    kind: str = "text/plain; charset=utf-8"


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, body: str, kind: str = "text/plain; charset=utf-8") -> None:
        super().__init__(body)
        self.answer = Answer(status, body, kind)


@dataclass(frozen=True)
class _Head:
    """The three lines of a checkpoint that a witness understands, of whatever log."""

    origin: str
    size: int
    root: bytes


class Witness:
    """One witness. *logs* are the keys of the logs it knows; what it saw of each lies in *state*, by origin."""

    def __init__(self, key: SecretKey, logs: Sequence[Vkey], state: Path) -> None:
        self.key = key
        self.logs = logs
        self.state = state
        self._one = threading.Lock()

    def add_checkpoint(self, body: bytes, time: int) -> Answer:
        """The answer to a request, after it was made durable."""
        try:
            return self._add(body, time)
        except Refused as refused:
            return refused.answer

    def _add(self, body: bytes, time: int) -> Answer:
        try:
            old, proof, note, head = _parse(body)
        except FormatError as error:
            raise Refused(400, f"{error}\n") from None
        keys = [key for key in self.logs if key.name == head.origin]
        if not keys:
            raise Refused(404, f"log {head.origin} is not known here\n")
        if not any(
            (signature.name, signature.key) == (key.name, key.id) and key.signed(signature, note.text)
            for key in keys
            for signature in note.signatures
        ):
            raise Refused(403, f"no signature by a known key of log {head.origin}\n")
        if old > head.size:
            raise Refused(400, f"old size {old} is larger than the tree head's {head.size}\n")
        path = self.path(head.origin)
        # Two processes may serve one state: both the thread and the process must be alone.
        with self._one, files.lock(path.with_suffix(".lock")):
            self._continues(old, proof, head)
            cosignature = self.key.cosign(note.text, time)
            own = (self.key.public.name, self.key.public.id)
            lines = tuple(line for line in note.signatures if (line.name, line.key) != own)[:63]
            files.write_atomic(path, Note(note.text, (*lines, cosignature)).format(), 0o644)
        return Answer(200, cosignature.line())

    def _continues(self, old: int, proof: Sequence[bytes], head: _Head) -> None:
        """Raise Refused unless *head* continues what was seen of its log."""
        last = self.last(head.origin)
        size = last.size if last else 0
        if old != size:
            raise Refused(409, f"{size}\n", SIZE_TYPE)
        if last is not None and head.size == size and head.root != last.root:
            raise Refused(409, f"{size}\n", SIZE_TYPE)
        try:
            evidence.verify_consistency(old, last.root if last else b"", head.size, head.root, proof)
        except VerifyError as error:
            raise Refused(422, f"{error}\n") from None

    def last(self, origin: str) -> _Head | None:
        """The last tree head cosigned of a log. Raises FormatError when it cannot be read: better none."""
        with contextlib.suppress(FileNotFoundError):
            return _head(evidence.parse_note(self.path(origin).read_text()))
        return None

    def path(self, origin: str) -> Path:
        """The file of a log: its last tree head with our cosignature, which is itself an anchor."""
        return self.state / f"{hashlib.sha256(origin.encode()).hexdigest()[:32]}.note"


def _parse(body: bytes) -> tuple[int, list[bytes], Note, _Head]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise FormatError("not UTF-8 text") from None
    top, _, rest = text.partition("\n\n")
    first, *lines = top.split("\n")
    if not re.fullmatch(r"old (0|[1-9][0-9]{0,18})", first) or len(lines) > 63:
        raise FormatError("expected 'old SIZE', at most 63 hashes, an empty line and a tree head")
    proof = [_hash(line) for line in lines]
    note = evidence.parse_note(rest)
    return int(first[4:]), proof, note, _head(note)


def _head(note: Note) -> _Head:
    lines = note.text.split("\n")
    if len(lines) < 4 or not lines[0] or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]):
        raise FormatError("not a tree head: expected the lines origin, size and root")
    return _Head(lines[0], int(lines[1]), _hash(lines[2]))


def _hash(line: str) -> bytes:
    try:
        value = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != 32 or base64.b64encode(value).decode() != line:
        raise FormatError(f"not a hash in base64: {line[:50]!r}")
    return value
