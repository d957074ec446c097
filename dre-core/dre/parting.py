# SPDX-License-Identifier: Apache-2.0
"""What a D-aware program says while its app is stopped: datagrams as of sd_notify(3), heard by `stop` alone.

The app sees the directory of the socket, read-only, and finds its path in DAWARE_NOTIFY; mostly nobody is in there to
hear. What comes is the app's word: bounded, and nothing but text.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

WAIT = 10.0  # seconds that `stop` gives by default
PLACE = "notify"  # in the app's directory
INSIDE = "/run/dre-notify"
_NAME = "socket"
_OCTETS = 4096  # of a datagram
_COUNT = 1000  # datagrams that are looked at
_LENGTH = 256  # characters of what is kept


class Ear:
    """Hears by *listener*, where there is one; *said* is the last STATUS of the app, *count* what came."""

    def __init__(self, listener: socket.socket | None) -> None:
        self._listener = listener
        self._count = 0
        self.said: str | None = None

    def until(self, end: int, timeout: float) -> bool:
        """Hear until descriptor *end* is readable, which is the answer, at most for *timeout* seconds."""
        deadline = time.monotonic() + timeout
        while True:
            left = deadline - time.monotonic()
            listener = [self._listener] if self._listener is not None and self._count < _COUNT else []
            ready = select.select([end, *listener], [], [], max(left, 0.0))[0]
            if end in ready or left <= 0:
                self._hear()
                return end in ready
            if ready:
                self._hear()

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._listener is not None and self._count < _COUNT:
                self._count += 1
                for line in self._listener.recv(_OCTETS).decode(errors="replace").split("\n"):
                    name, equals, text = line.partition("=")
                    if name == "STATUS" and equals:
                        self.said = "".join(one if one.isprintable() else "?" for one in text[:_LENGTH])


@contextlib.contextmanager
def heard(place: Path) -> Iterator[Ear]:
    """Hear what the app that sees the directory *place* says; nothing where that cannot be, as on a full disk."""
    with contextlib.ExitStack() as stack:
        try:
            listener = _listen(place, stack)
        except OSError:
            listener = None
        yield Ear(listener)


def _listen(place: Path, stack: contextlib.ExitStack) -> socket.socket:
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, directory)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
    stack.callback((place / _NAME).unlink, missing_ok=True)
    (place / _NAME).unlink(missing_ok=True)  # of one that was killed
    listener.bind(f"/proc/self/fd/{directory}/{_NAME}")  # an address has room for 108 octets
    (place / _NAME).chmod(0o666)  # noqa: S103 - for whoever runs in the app
    return listener
