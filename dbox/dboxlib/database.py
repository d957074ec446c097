# SPDX-License-Identifier: Apache-2.0
"""The database of a log, as an audit reads it: every entry is compared with all that is stored of it."""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dre.audit import Anchor, Chunk, Key
from dre.evidence import TamperedError

from dboxlib.sources import OWN, by_size, event_of, own_writers
from dboxlib.store import TAG, Store, text_time

TOGETHER = 1024  # entries looked at together: they should fit into the processor's cache


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
        query = (
            "SELECT number, source, seq, time, digest, leaf, octets, salt FROM entry WHERE number >= ? ORDER BY number"
        )
        rows = self.store.engine.walk(query, (first,))
        while block := list(itertools.islice(rows, TOGETHER)):
            chunk = self._whole(first, block, names)
            if chunk is not None:
                yield chunk
            else:
                yield from self._one_by_one(first, block[-1][0] + 1, names)
            first = block[-1][0] + 1

    def _whole(self, first: int, block: list[Any], names: Mapping[int, Key]) -> Chunk | None:
        """The entries of *block* when each is as it should be; else None, and the store finds out what is wrong.

        An audit spends most of its time here: what is the same for many entries is made once.
        """
        numbers, sources, seqs, times, digests, tags, octets, salts = zip(*block, strict=True)
        if numbers[-1] - first != len(block) - 1 or numbers[0] != first or None in octets:
            return None
        if not set(sources) <= names.keys():
            return None
        parts = (
            octets if salts.count(None) == len(salts) else [(s or b"") + o for o, s in zip(octets, salts, strict=True)]
        )
        sha256 = hashlib.sha256
        if [sha256(part).digest() for part in parts] != list(digests):
            return None
        leaves, keys, stamps = list[bytes](), list[Key](), list[str]()
        begin = 0
        for (source, time), run in itertools.groupby(zip(sources, times, strict=True)):
            end = begin + sum(1 for _ in run)
            stamp = text_time(time)
            copy = sha256(f"\0{self.store._prefix(0, source)}{stamp}\nseq ".encode()).copy  # their leaves begin so
            for seq, part, digest in zip(seqs[begin:end], octets[begin:end], digests[begin:end], strict=True):
                leaf = copy()
                leaf.update(f"{seq}\nlength {len(part)}\ndigest sha256 {digest.hex()}\n".encode())
                leaves.append(leaf.digest())
            keys += [names[source]] * (end - begin)
            stamps += [stamp] * (end - begin)
            begin = end
        if [leaf[:TAG] for leaf in leaves] != list(tags):
            return None
        return Chunk(first, leaves, keys, list(seqs), stamps)

    def _one_by_one(self, first: int, end: int, names: Mapping[int, Key]) -> Iterator[Chunk]:
        gone: list[int] = []
        chunk = Chunk(first, [], [], [], [], gone)
        try:
            for number, header, leaf, source, kept in self.store.walk(first, end):
                fields = header.split(b"\n", 6)
                if not kept:
                    gone.append(number)
                chunk.leaves.append(leaf)
                chunk.keys.append(names[source])
                chunk.seqs.append(int(fields[5][4:]))
                chunk.times.append(fields[4][5:].decode())
        except TamperedError:
            yield chunk
            raise
        yield chunk

    def anchors(self) -> Iterator[Anchor]:
        """What third parties said."""
        for anchor in self.store.anchors():
            yield Anchor(*anchor)

    @functools.cached_property
    def _by_size(self) -> dict[int, list[Anchor]]:
        return by_size(self.anchors())

    def anchored(self, size: int) -> Sequence[Anchor]:
        """What they said of the tree head of *size*."""
        return self._by_size.get(size, ())
