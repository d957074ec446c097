# SPDX-License-Identifier: Apache-2.0
"""Lines to a pipe so that a kill -9 of the writer never leaves half of one in it."""

import os
import select

from dre.event import LIMIT


def write_lines(fd: int, octets: bytes) -> None:
    """Write whole lines in pieces of whole lines, each of at most PIPE_BUF octets: all or nothing (pipe(7)).

    Waits while the pipe is full, also when *fd* is in non-blocking mode.
    """
    start = 0
    while start < len(octets):
        end = len(octets) if len(octets) - start <= LIMIT else octets.rfind(b"\n", start, start + LIMIT) + 1
        if end <= start:  # a line that is too long to be whole in any case
            end = start + LIMIT
        try:
            start += os.write(fd, octets[start:end])
        except BlockingIOError:
            select.select([], [fd], [])
