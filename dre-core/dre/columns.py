# SPDX-License-Identifier: Apache-2.0
"""Data on stdout: aligned columns for people and awk, or JSON Lines with the same fields. Loads nothing slow."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as of the module typing, which is slow to load
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import IO, Any

Column = tuple[str, str, int]  # header, field name, least width


class Output:
    """Where a verb prints its rows, and in which form."""

    def __init__(self, as_json: bool, stream: IO[str] | None = None) -> None:
        self.as_json = as_json
        self.stream = stream or sys.stdout
        self._encode: Callable[[Any], str] | None = None

    def line(self, text: str) -> None:
        """Print one plain line."""
        self.stream.write(text + "\n")

    def json(self, row: Mapping[str, Any]) -> None:
        """Print one JSON object on one line."""
        if self._encode is None:
            import json

            self._encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        self.line(self._encode(row))

    def header(self, columns: Sequence[Column]) -> None:
        """Print the header line, only on a terminal and only for people."""
        if not self.as_json and self.stream.isatty():
            self.line("  ".join(f"{title:<{width}}" for title, _, width in columns).rstrip())

    def row(self, row: Mapping[str, Any], columns: Sequence[Column]) -> None:
        """Print one row: all its fields as JSON, or the *columns* of it."""
        if self.as_json:
            self.json(row)
        else:
            self.line("  ".join([plain(row.get(key)).ljust(width) for _, key, width in columns]).rstrip())

    def table(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> None:
        """Print a header where one belongs, and all *rows*, each column as wide as its longest value."""
        rows = list(rows)
        wide = [
            (title, key, max([width, len(title), *(len(plain(row.get(key))) for row in rows)]))
            for title, key, width in columns
        ]
        self.header(wide)
        for row in rows:
            self.row(row, wide)


def plain(value: Any) -> str:
    """A value as one word for a column: unknown is `-`, a list is joined by commas."""
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    return "-" if value is None or value == "" else str(value)
