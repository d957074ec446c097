# SPDX-License-Identifier: Apache-2.0
"""The database of a log, as an audit reads it: every entry is compared with all that is stored of it."""

from collections.abc import Iterator, Mapping
from typing import Any

from dre.audit import Anchor, Chunk
from dre.evidence import TamperedError

from dboxlib.sources import CHUNK, OWN, event_of, own_writers
from dboxlib.store import Store


class Database:
    """The database of a log, read-only."""

    octets = True

    def __init__(self, store: Store) -> None:
        self.store = store
        self.origin = store.origin

    def chain(self) -> bytes:
        """The certificates below the root, PEM."""
        return self.store.chain().encode()

    def heads(self, first: int) -> Iterator[tuple[int, str]]:
        """Size and note of the tree heads of at least *first* entries, by size."""
        return self.store.heads(first - 1)

    def own(self) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
        """The D-Box's own events, found by their source, which is in the leaf, and not by what serves searching."""
        owners = own_writers(self.chain())
        for source, (writer, stream) in self.store.sources().items():
            if stream == OWN and writer in owners:
                query = "SELECT number, octets FROM entry WHERE source = ? ORDER BY seq"
                for number, octets in self.store.engine.walk(query, (source,)):
                    yield from event_of(number, octets)

    def chunks(self, first: int) -> Iterator[Chunk]:
        """All entries from *first* on. Raises TamperedError, after those before it."""
        names = self.store.sources()
        chunk = Chunk(first, [], [], [], [])
        gone: list[int] = []
        try:
            for number, header, leaf, source, kept in self.store.walk(first):
                fields = header.split(b"\n", 6)
                if not kept:
                    gone.append(number)
                chunk.leaves.append(leaf)
                chunk.keys.append(names[source])
                chunk.seqs.append(int(fields[5][4:]))
                chunk.times.append(fields[4][5:].decode())
                if len(chunk.leaves) == CHUNK:
                    yield Chunk(chunk.first, chunk.leaves, chunk.keys, chunk.seqs, chunk.times, gone)
                    chunk, gone = Chunk(number + 1, [], [], [], []), []
        except TamperedError:
            yield Chunk(chunk.first, chunk.leaves, chunk.keys, chunk.seqs, chunk.times, gone)
            raise
        if chunk.leaves:
            yield Chunk(chunk.first, chunk.leaves, chunk.keys, chunk.seqs, chunk.times, gone)

    def anchors(self) -> Iterator[Anchor]:
        """What third parties said."""
        for anchor in self.store.anchors():
            yield Anchor(*anchor)
