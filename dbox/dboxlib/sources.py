# SPDX-License-Identifier: Apache-2.0
"""Where an audit reads a log: from a server over HTTPS; and what all sources do with headers from outside.

A server gives an auditor headers and no octets, so their digests stay unchecked. Databases are in dboxlib.database,
which needs the D-Box, and exports in dboxlib.export.
"""

import base64
import hashlib
import itertools
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from dre import audit, dbox, evidence, trust
from dre.audit import Anchor, Chunk, Key
from dre.dbox import Client
from dre.evidence import FormatError, TamperedError

CHUNK = 4096  # entries
OWN = "dbox"  # stream of the D-Box's own entries
KINDS = (b"dbox.erased", b"dbox.expired", b"dbox.key.rotated")


class Server:
    """A D-Box over HTTPS, in the name of an auditor."""

    octets = False

    def __init__(self, client: Client) -> None:
        self.client = client
        newest = evidence.parse_head(evidence.parse_note(client.request("GET", "/v1/checkpoint").decode()).text)
        self.origin, self.size = newest.origin, newest.size
        self._anchors: dict[int, list[Anchor]] = {}

    def chain(self) -> bytes:
        """The certificates below the root, PEM."""
        return self.client.request("GET", "/v1/keys")

    def heads(self, first: int) -> Iterator[tuple[int, str]]:
        """Size and note of the tree heads of at least *first* entries, up to the newest one at the beginning."""
        after = first - 1
        while after < self.size:
            rows = self.client.request("GET", f"/v1/heads?after={after}" if after >= 0 else "/v1/heads").splitlines()
            for row in rows:
                size, note, anchors = _head_row(row)
                if size > self.size:
                    return
                if size <= after:
                    raise FormatError("tree heads of the D-Box are not in order")
                after = size
                self._anchors.update({size: anchors} if anchors else {})
                yield size, note
            if not rows:
                return

    def own(self) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """None: an auditor reads no octets."""
        return iter(())

    def chunks(self, first: int) -> Iterator[Chunk]:
        """All entries from *first* on. Raises TamperedError, after those before it."""
        split = Splitter(self.origin)
        while first < self.size:
            end = min(first + CHUNK, self.size)
            headers = dbox.unframe(self.client.request("GET", f"/v1/leaves?from={first}&to={end}"))
            if not headers:
                return
            chunk = Chunk(first, [], [], [], [])
            for header in headers:
                try:
                    split.add(chunk, header)
                except TamperedError:
                    yield chunk
                    raise
            yield chunk
            first += len(headers)

    def anchors(self) -> Iterator[Anchor]:
        """What third parties said of the tree heads that were read."""
        return itertools.chain.from_iterable(self._anchors.values())

    def anchored(self, size: int) -> Sequence[Anchor]:
        """What they said of one."""
        return self._anchors.get(size, ())


def _head_row(row: bytes) -> tuple[int, str, list[Anchor]]:
    """Size, note and anchors of one row of /v1/heads. Raises FormatError."""
    try:
        fields = json.loads(row)
        size, note = int(fields["size"]), str(fields["note"])
        anchors = [
            Anchor(one["kind"], one["name"], size, one["time"], base64.b64decode(one["octets"]))
            for one in fields["anchors"]
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError(f"not a row of tree heads: {error}") from None
    return size, note, anchors


class Splitter:
    """Headers from outside, one after another into a chunk."""

    def __init__(self, origin: str) -> None:
        self._match = audit.header_pattern(origin).fullmatch
        self._keys: dict[tuple[Hashable, Hashable], Key] = {}

    def add(self, chunk: Chunk, header: bytes) -> tuple[int, bytes]:
        """Append an entry to *chunk*; its length and digest. Raises TamperedError for what is no header."""
        match = self._match(header)
        if match is None:
            number = chunk.first + len(chunk.leaves)
            try:
                log = evidence.parse_header(header).log
            except FormatError as error:
                raise TamperedError(number, str(error)) from None
            raise TamperedError(number, f"its header is of log {log}")
        stream, writer, time, seq, length, digest = match.groups()
        chunk.leaves.append(hashlib.sha256(b"\0" + header).digest())
        chunk.keys.append(audit.key_of(self._keys, writer, stream))
        chunk.seqs.append(int(seq))
        chunk.times.append(time.decode())
        return int(length), digest


def by_size(anchors: Iterable[Anchor]) -> dict[int, list[Anchor]]:
    """Anchors under the sizes of their tree heads."""
    found: dict[int, list[Anchor]] = {}
    for anchor in anchors:
        found.setdefault(anchor.size, []).append(anchor)
    return found


def own_writers(chain: bytes) -> set[str]:
    """Under whose fingerprints a D-Box writes itself: those of its certificates, which no client has."""
    return {trust.fingerprint(certificate) for certificate in trust.certificates(chain, "certificates")}


def event_of(number: int, octets: bytes | None) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """Index, type and data of one of the D-Box's own entries, when an audit needs it."""
    if octets is None or not any(kind in octets for kind in KINDS):
        return
    try:
        fields = json.loads(octets)
        kind, data = fields["type"], fields["data"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return  # changed; the audit will see it
    if isinstance(kind, str) and isinstance(data, dict):
        yield number, kind, data
