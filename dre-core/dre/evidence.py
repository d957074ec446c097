# SPDX-License-Identifier: Apache-2.0
"""What the D-Box hashes and signs, each in its one byte form: header, leaf, tree, tree head, receipt.

Pure functions over octets: no files, no clock, no keys. The tree is RFC 6962 section 2.1; tree heads and receipts
are the C2SP texts signed-note, tlog-checkpoint and tlog-proof (https://c2sp.org). Every parser refuses text that is
not exactly what the formatter would write: base64 has spare bits, and evidence must not have two spellings.
Whose signature counts is decided in dre.trust, not here.
"""

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dre.errors import DreError, UsageError
from dre.units import is_name

VERSION = "dre-entry/v1"
PROOF = "c2sp.org/tlog-proof@v1"
SALT = 32  # octets
LARGEST = 1 << 20  # octets of a receipt: a header, 64 hashes and a note of 16 post-quantum signatures fit many times
# C2SP signed-note: 0x01 is Ed25519; 0xff marks a type of our own and is followed by a longer identifier.
ED25519 = b"\x01"
RSA_SHA256 = b"\xffRSA-SHA256 with X.509 key"
_ORIGIN = re.compile(r"[A-Za-z0-9._~/:-]{1,255}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_HEX = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_HEADER = ("log", "stream", "writer", "time", "seq", "length", "digest")


class FormatError(UsageError):
    """These octets are not a header, a tree head or a receipt: nothing can be said about them."""


class VerifyError(DreError):
    """The evidence does not verify; the message begins with the step that failed."""


class TamperedError(VerifyError):
    """What is stored of entry *index* is not what was logged."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"entry {index} was tampered with: {reason}")
        self.index = index
        self.reason = reason


# --- Entry header and leaf ---


def digest(octets: bytes, salt: bytes = b"") -> str:
    """The payload commitment of a header: SHA-256 over salt and octets, in hex."""
    return hashlib.sha256(salt + octets).hexdigest()


@dataclass(frozen=True)
class Header:
    """What the leaf of an entry binds: the log, who sent what when, and the digest of the octets."""

    log: str
    stream: str
    writer: str  # SHA-256 of the writer's certificate, hex
    time: str
    seq: int
    length: int
    digest: str

    def octets(self) -> bytes:
        """The header as it is hashed."""
        return (
            f"{VERSION}\nlog {self.log}\nstream {self.stream}\nwriter {self.writer}\ntime {self.time}\n"
            f"seq {self.seq}\nlength {self.length}\ndigest sha256 {self.digest}\n"
        ).encode()


def parse_header(octets: bytes) -> Header:
    """The header of these *octets*. Raises FormatError."""
    lines = _text(octets, "entry header").split("\n")
    if len(lines) != 2 + len(_HEADER) or lines[0] != VERSION or lines[-1]:
        raise FormatError(f"not an entry header: expected {VERSION!r} and {len(_HEADER)} lines after it")
    values = {}
    for word, line in zip(_HEADER, lines[1:], strict=False):
        key, _, values[word] = line.partition(" ")
        if key != word:
            raise FormatError(f"not an entry header: expected the line {word!r}, got {line[:40]!r}")
    method, _, hexadecimal = values["digest"].partition(" ")
    if method != "sha256" or not _HEX.fullmatch(hexadecimal) or not _HEX.fullmatch(values["writer"]):
        raise FormatError("not an entry header: writer and digest must be SHA-256 in hex")
    if not is_name(values["stream"]) or not _TIME.fullmatch(values["time"]):
        raise FormatError("not an entry header: bad stream or time")
    return Header(
        origin(values["log"]),
        values["stream"],
        values["writer"],
        values["time"],
        _number(values["seq"], "seq"),
        _number(values["length"], "length"),
        hexadecimal,
    )


def origin(text: str) -> str:
    """The name of a log: a URL without scheme, as tlog-checkpoint advises. Raises FormatError."""
    if not _ORIGIN.fullmatch(text):
        raise FormatError(f"{text[:80]!r} is not the name of a log")
    return text


def leaf_hash(header: bytes) -> bytes:
    """The leaf of an entry: SHA-256 of 0x00 and the header."""
    return hashlib.sha256(b"\x00" + header).digest()


def check_stored(index: int, header: bytes, leaf: bytes, octets: bytes | None, salt: bytes = b"") -> Header:
    """The header of an entry as it is stored, after everything stored with it was compared; at every reading.

    *octets* is None where they were erased. Whether the leaf is in the tree is for who has the tree. Raises
    TamperedError.
    """
    try:
        fields = parse_header(header)
    except FormatError as error:
        raise TamperedError(index, str(error)) from None
    if leaf_hash(header) != leaf:
        raise TamperedError(index, "its header does not have its leaf hash")
    if octets is not None and (fields.length != len(octets) or fields.digest != digest(octets, salt)):
        raise TamperedError(index, "its octets do not match the digest in its header")
    return fields


# --- RFC 6962 tree ---


def node_hash(left: bytes, right: bytes) -> bytes:
    """An inner node: SHA-256 of 0x01 and both children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """All complete subtrees of the leaves appended so far, in memory; 64 octets a leaf.

    Readers may ask for any size that was reached before while one writer appends.
    """

    def __init__(self) -> None:
        self._levels: list[bytearray] = [bytearray()]

    def __len__(self) -> int:
        return len(self._levels[0]) // 32

    def leaf(self, index: int) -> bytes:
        """The hash of a leaf."""
        return bytes(self._levels[0][index * 32 : index * 32 + 32])

    def append(self, leaves: Iterable[bytes]) -> None:
        """Append leaf hashes."""
        for leaf in leaves:
            self._levels[0] += leaf
        for level, below in enumerate(self._levels):  # grows while we go up
            if len(below) < 64:
                return
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            above = self._levels[level + 1]
            for start in range(2 * len(above), len(below) - 63, 64):
                above += node_hash(bytes(below[start : start + 32]), bytes(below[start + 32 : start + 64]))

    def truncate(self, size: int) -> None:
        """Forget the leaves from *size* on: their batch was not committed."""
        for level, nodes in enumerate(self._levels):
            del nodes[(size >> level) * 32 :]

    def _subtree(self, start: int, end: int) -> bytes:
        """The hash over leaves start..end, where *start* is a multiple of the power of two that covers the range."""
        width = end - start
        level = width.bit_length() - 1
        if width == 1 << level:
            at = (start >> level) * 32
            return bytes(self._levels[level][at : at + 32])
        split = start + split_at(width)
        return node_hash(self._subtree(start, split), self._subtree(split, end))

    def root(self, size: int) -> bytes:
        """The root of the first *size* leaves."""
        return self._subtree(0, size) if size else hashlib.sha256(b"").digest()

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The path of leaf *index* to the root of the first *size* leaves, from the leaf upwards."""
        path = []
        start, end = 0, size
        while end - start > 1:
            split = start + split_at(end - start)
            if index < split:
                path.append(self._subtree(split, end))
                end = split
            else:
                path.append(self._subtree(start, split))
                start = split
        return path[::-1]

    def consistency(self, old: int, new: int) -> list[bytes]:
        """The proof that the tree of *old* leaves is a prefix of the one of *new*; 0 < old <= new."""
        path: list[bytes] = []
        start, end, whole = 0, new, True
        while end != old:
            split = start + split_at(end - start)
            if old <= split:
                path.append(self._subtree(split, end))
                end = split
            else:
                path.append(self._subtree(start, split))
                start, whole = split, False
        return [*([] if whole else [self._subtree(start, end)]), *path[::-1]]


def split_at(width: int) -> int:
    """The largest power of two below *width*."""
    return 1 << (width - 1).bit_length() - 1


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Raise VerifyError unless *path* leads from *leaf* at *index* to *root* of *size* leaves (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        raise VerifyError(f"header is not in the tree: index {index} lies outside a tree of {size}")
    node, last, value = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            raise VerifyError("header is not in the tree: the path is too long")
        if node & 1 or node == last:
            value = node_hash(sibling, value)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        node, last = node >> 1, last >> 1
    if last or value != root:
        raise VerifyError("header is not in the tree: its path does not lead to the root of the tree head")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Raise VerifyError unless the tree of *new* leaves begins with the tree of *old* ones (RFC 9162, 2.1.4.2)."""
    wrong = VerifyError(f"tree head of size {new} does not continue the one of size {old} seen before")
    if old > new:
        raise VerifyError(f"tree head of size {new} is older than the one of size {old} seen before")
    if old == new or not old:
        if path or (old and old_root != new_root):
            raise wrong
        return
    nodes = list(path) if old & (old - 1) else [old_root, *path]
    if not nodes:
        raise wrong
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = nodes[0]
    for value in nodes[1:]:
        if last == 0:
            raise wrong
        if node & 1 or node == last:
            first, second = node_hash(value, first), node_hash(value, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, value)
        node, last = node >> 1, last >> 1
    if last or first != old_root or second != new_root:
        raise wrong


# --- Signed notes and tree heads ---


@dataclass(frozen=True)
class Signature:
    """One signature line of a note: *key* is the 4 octets of the key id."""

    name: str
    key: bytes
    value: bytes

    def line(self) -> str:
        """The line with its newline."""
        return f"— {self.name} {_base64(self.key + self.value)}\n"


@dataclass(frozen=True)
class Note:
    """A signed note: its text, which ends in a newline, and the signature lines."""

    text: str
    signatures: tuple[Signature, ...]

    def format(self) -> str:
        """The note as it travels."""
        return self._formatted

    @functools.cached_property
    def _formatted(self) -> str:  # one note stands in the receipts of a whole batch
        return self.text + "\n" + "".join(signature.line() for signature in self.signatures)


def key_id(name: str, kind: bytes, public: bytes) -> bytes:
    """The key id as signed-note recommends; *public* is the raw Ed25519 key, or the DER SubjectPublicKeyInfo."""
    return hashlib.sha256(name.encode() + b"\n" + kind + public).digest()[:4]


def parse_note(text: str) -> Note:
    """The note of *text*. Raises FormatError."""
    body, _, rest = text.rpartition("\n\n")
    if not body or not rest.endswith("\n") or _CONTROL.search(text):
        raise FormatError("not a signed note: expected a text, an empty line and signature lines")
    signatures = []
    for line in rest[:-1].split("\n"):
        dash, name, value, *more = line.split(" ") if line.count(" ") == 2 else ("", "", "")
        octets = _octets(value, "signature") if dash == "—" and not more else b""
        if not name or "+" in name or len(octets) < 5:
            raise FormatError(f"not a signature line: {line[:40]!r}")
        signatures.append(Signature(name, octets[:4], octets[4:]))
    if len(signatures) > 64:
        raise FormatError("a note of more than 64 signatures")
    return Note(body + "\n", tuple(signatures))


@dataclass(frozen=True)
class Head:
    """A tree head (a checkpoint, as C2SP says): which log, how many leaves, their root, and when it was signed."""

    origin: str
    size: int
    root: bytes
    time: str

    def text(self) -> str:
        """The text that is signed; the time is an extension line, so that a key's period can be checked offline."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\ntime {self.time}\n"


def parse_head(text: str) -> Head:
    """The tree head of a note's *text*. Raises FormatError."""
    lines = text.split("\n")
    if len(lines) != 5 or lines[4] or not lines[3].startswith("time "):
        raise FormatError("not a tree head: expected the lines origin, size, root and time")
    root, time = _octets(lines[2], "root"), lines[3][5:]
    if len(root) != 32 or not _TIME.fullmatch(time):
        raise FormatError("not a tree head: bad root or time")
    return Head(origin(lines[0]), _number(lines[1], "size"), root, time)


# --- Receipts ---


@dataclass(frozen=True)
class Receipt:
    """The proof that an entry is in the log: its header, its place, the path to the root, the signed tree head.

    *salt* is empty for a plain stream. A salted entry carries it on a second extra line, which is ours: tlog-proof
    itself knows one.
    """

    header: bytes
    index: int
    path: tuple[bytes, ...]
    note: Note
    salt: bytes = b""

    def format(self) -> str:
        """The tlog-proof text."""
        lines = [PROOF, f"extra {_base64(self.header)}"]
        lines += [f"extra {_base64(self.salt)}"] if self.salt else []
        lines += [f"index {self.index}", *map(_base64, self.path), "", ""]
        return "\n".join(lines) + self.note.format()


def parse_receipt(octets: bytes) -> Receipt:
    """The receipt in these *octets*. Raises FormatError: empty, foreign, or not exactly as we would write it."""
    if not octets:
        raise FormatError("not a receipt: empty")
    if len(octets) > LARGEST:
        raise FormatError(f"not a receipt: more than {LARGEST} octets")
    top, _, note = _text(octets, "receipt").partition("\n\n")
    lines = top.split("\n")
    if lines.pop(0) != PROOF:
        raise FormatError(f"not a receipt: the first line is not {PROOF!r}")
    extra = []
    while lines and lines[0].startswith("extra "):
        extra.append(_octets(lines.pop(0)[6:], "extra"))
    if not 1 <= len(extra) <= 2 or (len(extra) == 2 and len(extra[1]) != SALT):
        raise FormatError(
            "not a receipt: expected the header on an extra line, and a salt on a second where there is one"
        )
    if not lines or not lines[0].startswith("index "):
        raise FormatError("not a receipt: expected the line 'index'")
    index = _number(lines.pop(0)[6:], "index")
    path = tuple(_octets(line, "path") for line in lines)
    if len(path) > 64 or any(len(node) != 32 for node in path):
        raise FormatError("not a receipt: a path is at most 64 hashes of 32 octets")
    parse_header(extra[0])
    receipt = Receipt(extra[0], index, path, parse_note(note), extra[1] if len(extra) == 2 else b"")
    parse_head(receipt.note.text)
    return receipt


def bind(receipt: Receipt, octets: bytes) -> tuple[Header, Head]:
    """Check everything but the signatures: octets to header, header to leaf, leaf to root, one log throughout.

    Raises VerifyError. The tree head returned is only as good as the signatures on it: see dre.trust.
    """
    header = parse_header(receipt.header)
    if header.length != len(octets) or header.digest != digest(octets, receipt.salt):
        raise VerifyError("octets do not match the digest in the header")
    return header, bind_header(receipt, header)


def bind_header(receipt: Receipt, header: Header) -> Head:
    """The part of `bind` that needs no octets: all that can be said of an entry whose octets were erased."""
    head = parse_head(receipt.note.text)
    if header.log != head.origin:
        raise VerifyError(f"wrong origin: header of log {header.log}, tree head of log {head.origin}")
    if header.time > head.time:  # fixed width, so text order is time order
        raise VerifyError(f"tree head of {head.time} is older than its entry of {header.time}")
    verify_inclusion(leaf_hash(receipt.header), receipt.index, head.size, receipt.path, head.root)
    return head


# --- Text forms ---


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _octets(text: str, what: str) -> bytes:
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{what}: not base64: {text[:20]!r}") from None
    if _base64(octets) != text:
        raise FormatError(f"{what}: not canonical base64")
    return octets


def _number(text: str, what: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise FormatError(f"{what}: not a number: {text[:20]!r}")
    return int(text)


def _text(octets: bytes, what: str) -> str:
    try:
        return octets.decode()
    except UnicodeDecodeError:
        raise FormatError(f"not a {what}: not UTF-8 text") from None
