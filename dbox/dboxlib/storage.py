# SPDX-License-Identifier: Apache-2.0
"""What a database server or file must do for `dboxlib.store`, and its failures. Queries use `?` for values."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from dre.errors import DreError


class StorageError(DreError):
    """The database did not do what was asked. After a commit its outcome is unknown."""


class FullError(StorageError):
    """No room on the disk."""


class DuplicateError(StorageError):
    """A key is taken, or a rule of the tables was broken."""


class FencedError(DreError):
    """Another sequencer has taken over this log: this one must end."""


class Engine(Protocol):
    """One open database; each thread that uses it has a connection of its own."""

    name: str  # for messages
    new: str  # the words of an insert that leaves rows alone whose key is taken

    def close(self) -> None:
        """Close this thread's connection."""
        ...

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        ...

    def walk(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, read while they are asked for."""
        ...

    def change(self, query: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement and return how many rows it changed."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """All or nothing; durable afterwards."""
        ...

    def entries(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add entries: number, source, seq, time, type, digest, leaf, octets, salt."""
        ...

    def scrub(self) -> None:
        """Have octets that were erased disappear from journals, as far as that can be asked for."""
        ...

    def take(self) -> None:
        """Be the only sequencer for as long as this is open. Raises DreError."""
        ...

    def free(self) -> tuple[int, int] | None:
        """Octets that are free for the database and all of that disk, where that can be known."""
        ...
