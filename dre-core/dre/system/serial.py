# SPDX-License-Identifier: Apache-2.0
"""What a system writes to its serial console, which libvirt's virtlogd keeps in a file and holds to a size."""

import collections
import os
import time
from collections.abc import Iterable, Iterator

from dre.system.model import System

BLOCK = 1 << 20
LONGEST = 64 << 20  # octets of the log that are read: a guest may fill it as fast as it can
PAUSE = 0.2  # seconds between two looks of one who follows


def lines(system: System, count: int | None, follow: bool) -> Iterable[bytes]:
    """The lines of the log: all, or the last *count*; with *follow* then those that come, without end."""
    try:
        with system.log.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - LONGEST))
            found: Iterable[bytes] = stream
            yield from found if count is None else collections.deque(found, count)
            position = stream.tell()
    except FileNotFoundError:
        position = 0
    if follow:
        yield from _follow(system, position)


def _follow(system: System, position: int) -> Iterator[bytes]:
    """What comes after *position*, through the log's rollover, until the system is destroyed."""
    rest = b""
    while system.home.exists():
        try:
            with system.log.open("rb") as stream:
                position = position if os.fstat(stream.fileno()).st_size >= position else 0  # it was rolled over
                stream.seek(position)
                block = stream.read(BLOCK)
        except FileNotFoundError:
            block, position = b"", 0
        position += len(block)
        *ended, rest = (rest + block).split(b"\n")
        yield from (line + b"\n" for line in ended)
        if len(rest) > BLOCK:
            yield rest
            rest = b""
        if not block:
            time.sleep(PAUSE)
