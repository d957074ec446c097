# SPDX-License-Identifier: Apache-2.0
"""Files that are either old or new but never half: atomic writes, and locks between processes."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from dre.errors import TimedOutError


def fsync_dir(path: str | os.PathLike[str]) -> None:
    """Make the names in directory *path* durable; see fsync(2) for why the file alone is not enough."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: str | os.PathLike[str], data: bytes | str, mode: int = 0o644) -> None:
    """Replace *path* by *data* so that a reader, or a crash, sees the old file or the new one.

    The temporary file lies beside *path* as `.<name>.<pid>.tmp`. Raises OSError.
    """
    target = Path(path)
    octets = data.encode() if isinstance(data, str) else data
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(octets)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.rename(target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync_dir(target.parent)


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], timeout: float = 60.0) -> Iterator[None]:
    """Hold an exclusive flock(2) on *path*, waiting at most *timeout* seconds.

    The kernel drops it with the process, so a killed holder leaves nothing to clean. The file stays.
    Raises TimedOutError.
    """
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + timeout
    pause = 0.002
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimedOutError(f"{target}: still locked by another command after {timeout:g} s") from None
                time.sleep(pause)  # flock has no timed form; the pause grows to 50 ms
                pause = min(pause * 2, 0.05)
        yield
    finally:
        os.close(fd)
