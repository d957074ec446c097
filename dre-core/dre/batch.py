# SPDX-License-Identifier: Apache-2.0
"""One receipt for a run of entries that a writer handed in together: as strong as one for each, and as long as two.

The entries follow one another in the log and have one time, so the writer can make every header itself from the last
one and its own octets. The path of the last entry holds all that is to the right of the run, that of the first all
that is to its left: `expand` makes from them the single receipts, which `dbox-verify` knows. Nothing in the text is
believed: a header that is not in the tree gives receipts that do not verify.

    dre-run/v1
    first <index of the first entry>
    salt <base64>          one for each entry, where the stream is erasable
    path <base64>          the hashes of the first entry's path, from the leaf upwards
                           an empty line, and the receipt of the last entry
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dre import evidence
from dre.evidence import FormatError, Receipt, VerifyError

VERSION = "dre-run/v1"
_LINE = re.compile(r"(first|salt|path) (\S+)")


@dataclass(frozen=True)
class Run:
    """The receipt of the entries from *first* to *last*."""

    first: int
    path: tuple[bytes, ...]
    last: Receipt
    salts: tuple[bytes, ...] = ()

    def format(self) -> str:
        """The text as it travels."""
        lines = [VERSION, f"first {self.first}"]
        lines += [f"salt {base64.b64encode(salt).decode()}" for salt in self.salts]
        lines += [f"path {base64.b64encode(node).decode()}" for node in self.path]
        return "\n".join([*lines, "", ""]) + self.last.format()

    def expand(self, parts: Sequence[bytes]) -> list[Receipt]:
        """The receipts of the entries whose octets are *parts*, each checked up to the root of the tree head.

        Raises VerifyError. The signatures on the tree head are for dre.trust.
        """
        end = self.last.index
        if len(parts) != end - self.first + 1 or (self.salts and len(self.salts) != len(parts)):
            raise VerifyError(f"a receipt of entries {self.first} to {end} for {len(parts)} entries")
        salts = self.salts or (b"",) * len(parts)
        last = evidence.parse_header(self.last.header)
        headers = []
        for number, (octets, salt) in enumerate(zip(parts, salts, strict=True), last.seq - len(parts) + 1):
            made = replace(last, seq=number, length=len(octets), digest=evidence.digest(octets, salt))
            headers.append(made.octets())
        if headers[-1] != self.last.header:
            raise VerifyError("octets do not match the digest in the header")
        size = evidence.parse_head(self.last.note.text).size
        paths = _paths(self.first, [evidence.leaf_hash(header) for header in headers], size, self.path, self.last.path)
        receipts = [
            Receipt(header, self.first + at, tuple(path), self.last.note, salt)
            for at, (header, path, salt) in enumerate(zip(headers, paths, salts, strict=True))
        ]
        # All inner nodes of the run lie on the ways of these two to the root, or below hashes made from its leaves.
        for receipt, octets in ((receipts[0], parts[0]), (receipts[-1], parts[-1])):
            evidence.bind(receipt, octets)
        return receipts


def parse(octets: bytes) -> Run:
    """The run in these *octets*. Raises FormatError."""
    top, _, rest = octets.partition(b"\n\n")
    try:
        lines = top.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise FormatError("not the receipt of a run: not ASCII") from None
    if lines[0] != VERSION:
        raise FormatError(f"not the receipt of a run: the first line is not {VERSION!r}")
    found: dict[str, list[str]] = {"first": [], "salt": [], "path": []}
    for line in lines[1:]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise FormatError(f"not the receipt of a run: {line[:40]!r}")
        found[match[1]].append(match[2])
    if len(found["first"]) != 1 or not re.fullmatch(r"0|[1-9][0-9]{0,17}", found["first"][0]):
        raise FormatError("not the receipt of a run: expected one line 'first'")
    run = Run(
        int(found["first"][0]),
        tuple(_octets(text, 32) for text in found["path"]),
        evidence.parse_receipt(rest),
        tuple(_octets(text, evidence.SALT) for text in found["salt"]),
    )
    if run.first > run.last.index or len(run.path) > 64 or run.format().encode() != octets:
        raise FormatError("not the receipt of a run: not as it would be written")
    return run


def _paths(
    first: int, leaves: Sequence[bytes], size: int, left: Sequence[bytes], right: Sequence[bytes]
) -> list[list[bytes]]:
    """The paths of the *leaves* at *first* and on, of which the first one's and the last one's are given."""
    end = first + len(leaves)
    known = {**_siblings(first, size, left), **_siblings(end - 1, size, right)}

    def node(start: int, stop: int) -> bytes:
        made = known.get((start, stop))
        if made is None:
            if stop - start == 1:
                if not first <= start < end:
                    raise VerifyError("the receipt of a run lacks a hash")
                made = leaves[start - first]
            else:
                split = start + evidence.split_at(stop - start)
                made = evidence.node_hash(node(start, split), node(split, stop))
            known[start, stop] = made
        return made

    # What the run itself makes is not taken from the paths: a wrong hash in there would go unseen.
    for start, stop in [key for key in known if first <= key[0] and key[1] <= end]:
        del known[start, stop]
    return [[node(*span) for span in _spans(number, size)] for number in range(first, end)]


def _spans(index: int, size: int) -> list[tuple[int, int]]:
    """The ranges of leaves under the siblings of leaf *index*, from the leaf upwards."""
    spans = []
    start, end = 0, size
    while end - start > 1:
        split = start + evidence.split_at(end - start)
        if index < split:
            spans.append((split, end))
            end = split
        else:
            spans.append((start, split))
            start = split
    return spans[::-1]


def _siblings(index: int, size: int, path: Sequence[bytes]) -> dict[tuple[int, int], bytes]:
    spans = _spans(index, size) if index < size else []
    if len(spans) != len(path):
        raise VerifyError("header is not in the tree: a path of the wrong length")
    return dict(zip(spans, path, strict=True))


def _octets(text: str, length: int) -> bytes:
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        octets = b""
    if len(octets) != length:
        raise FormatError(f"not the receipt of a run: expected {length} octets in base64, got {text[:20]!r}")
    return octets
