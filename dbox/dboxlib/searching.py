# SPDX-License-Identifier: Apache-2.0
"""Searching a database of the D-Box: which blocks of entries can have what is wanted, and then entry by entry.

Nothing here is evidence: sources, times and types are columns that only serve to find.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dboxlib.store import BLOCK, SOURCE, TYPE, Store, milliseconds

SCAN = 200_000  # entries that one search looks through at most


def find(store: Store, wanted: Mapping[str, str | int], limit: int) -> Iterator[dict[str, Any]]:
    """Entries whose fields are as *wanted*, in order.

    Terms: stream, type, writer, digest (hex), text (in the octets), after and before (numbers), since and until
    (times). A search looks through SCAN entries at most; when it ends early, the last row is
    `{"index": N, "more": True}` and the next search goes on after N.
    """
    blocks = _blocks(store, wanted)
    terms, values = _terms(store, wanted)
    first = int(wanted["after"]) + 1 if "after" in wanted else 0
    if "since" in wanted:
        first = max(first, store.first_at(milliseconds(str(wanted["since"]))))
    end = store.entries()
    if "before" in wanted:
        end = min(end, int(wanted["before"]))
    if "until" in wanted:
        end = min(end, store.first_at(milliseconds(str(wanted["until"])) + 1))
    looked = 0
    for start, stop in _spans(blocks, first, end):
        if looked >= SCAN and limit:
            yield {"index": start - 1, "more": True}
            return
        looked += stop - start
        query = f"SELECT number, source, seq, time, type FROM entry WHERE number >= ? AND number < ?{terms}"
        query += " ORDER BY number LIMIT ?"
        for row in store.engine.rows(query, (start, stop, *values, limit)):
            yield store.named(row)
            limit -= 1
        if limit <= 0:
            return


def _terms(store: Store, wanted: Mapping[str, str | int]) -> tuple[str, list[Any]]:
    """The conditions that single entries must meet."""
    text, values = "", list[Any]()
    sources = _wanted_sources(store, wanted)
    if sources is not None:
        text += f" AND source IN ({','.join(map(str, sources)) or '-1'})"
    if "type" in wanted:
        text += " AND type = ?"
        values.append(_type_number(store, str(wanted["type"])))
    if "digest" in wanted:
        text += " AND digest = ?"
        values.append(bytes.fromhex(str(wanted["digest"])))
    if "text" in wanted:
        text += " AND instr(octets, ?) > 0"
        values.append(str(wanted["text"]).encode())
    return text, values


def _wanted_sources(store: Store, wanted: Mapping[str, str | int]) -> list[int] | None:
    if "writer" not in wanted and "stream" not in wanted:
        return None
    return [
        number
        for number, (writer, stream) in store.sources().items()
        if wanted.get("writer", writer) == writer and wanted.get("stream", stream) == stream
    ]


def _type_number(store: Store, name: str) -> int:
    rows = store.engine.rows("SELECT number FROM type WHERE name = ?", (name,))
    return int(rows[0][0]) if rows else -1


def _blocks(store: Store, wanted: Mapping[str, str | int]) -> list[int] | None:
    """The blocks in which to look; None: all."""
    found: set[int] | None = None
    sources = _wanted_sources(store, wanted)
    if sources is not None:
        values = ",".join(map(str, sources)) or "-1"
        query = f"SELECT DISTINCT block FROM present WHERE kind = {SOURCE} AND value IN ({values})"
        found = {block for (block,) in store.engine.rows(query)}
    if "type" in wanted:
        query = f"SELECT block FROM present WHERE kind = {TYPE} AND value = ?"
        these = {block for (block,) in store.engine.rows(query, (_type_number(store, str(wanted["type"])),))}
        found = these if found is None else found & these
    return None if found is None else sorted(found)


def _spans(blocks: Sequence[int] | None, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of entries to look through: 16 neighbouring blocks at a time, or those of *blocks* alone."""
    if blocks is None:
        blocks = range(first // BLOCK, (end + BLOCK - 1) // BLOCK)
    at = 0
    while at < len(blocks):
        last = at
        while last + 1 < len(blocks) and last - at < 15 and blocks[last + 1] == blocks[last] + 1:
            last += 1
        start, stop = max(blocks[at] * BLOCK, first), min((blocks[last] + 1) * BLOCK, end)
        if start < stop:
            yield start, stop
        at = last + 1
