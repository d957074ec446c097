# SPDX-License-Identifier: Apache-2.0
"""Numbers of a stage in a file, for `dre-monitor status`: overwritten in place by one short write."""

import contextlib
import json
import os
from pathlib import Path

_ROOM = 512  # octets: one write of them is whole, also for a reader


class Tally:
    """The file *path*; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._fd = -1
        self._written = b""

    def read(self) -> dict[str, float]:
        """The numbers that were noted last; none where there are none."""
        return read(self.path) if self.path else {}

    def write(self, numbers: dict[str, float]) -> None:
        """Note *numbers*, unless they are the same."""
        octets = json.dumps(numbers).encode().ljust(_ROOM - 1) + b"\n"
        if not self.path or octets == self._written:
            return
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        os.pwrite(self._fd, octets, 0)
        self._written = octets


def read(path: Path) -> dict[str, float]:
    """The numbers in *path*; none where there are none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_bytes()[:_ROOM])
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if isinstance(value, int | float)}
    return {}
