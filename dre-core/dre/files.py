# SPDX-License-Identifier: Apache-2.0
"""Files that are either old or new but never half: atomic writes, and locks between processes."""

import contextlib
import fcntl
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from dre.errors import TimedOutError, UsageError


def fsync_dir(path: str | os.PathLike[str]) -> None:
    """Make the names in directory *path* durable; see fsync(2) for why the file alone is not enough."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: str | os.PathLike[str], data: bytes | str, mode: int = 0o644, durable: bool = True) -> None:
    """Replace *path* by *data* so that a reader, or a crash, sees the old file or the new one.

    Not *durable* it is quicker, for what can be derived again or is of no worth before something else is durable:
    a power failure may then leave an empty file.
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
            if durable:
                os.fsync(stream.fileno())
        temporary.rename(target)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:  # write(2) knows none, and the user wants to know
            error.filename = str(target)
        raise
    if durable:
        fsync_dir(target.parent)


def read(path: str | os.PathLike[str], most: int) -> bytes:
    """The octets of *path*, or of stdin for `-`. Raises UsageError where it cannot be read or has more than *most*."""
    try:
        if str(path) == "-":
            octets = sys.stdin.buffer.read(most + 1)
        else:
            with open(path, "rb") as stream:
                octets = stream.read(most + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(octets) > most:
        raise UsageError(f"{path}: more than {most} octets")
    return octets


def remove_halves(path: str | os.PathLike[str]) -> None:
    """Remove what killed ones left that were about to replace *path*, or any file in a directory, by write_atomic.

    Nobody may be at it just now.
    """
    target = Path(path)
    directory, begin = (target, ".") if target.is_dir() else (target.parent, f".{target.name}.")
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            if name.startswith(begin) and name.endswith(".tmp"):
                (directory / name).unlink(missing_ok=True)


def fsync(path: str | os.PathLike[str]) -> None:
    """Make the content of *path* durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_small(path: str | os.PathLike[str], most: int = 200) -> bool:
    """Remove directory *path*, on its own file system alone and not through links, when it holds little.

    False when something is left, for who takes any depth and number: rm(1), which takes longer to begin.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        return False
    try:
        if _emptied(fd, os.fstat(fd).st_dev, most) < 0:
            return False
    finally:
        os.close(fd)
    Path(path).rmdir()
    return True


def _emptied(directory: int, device: int, most: int, depth: int = 8) -> int:
    """Remove what *directory* holds; returns what is left of *most*, or -1 when not all could be removed."""
    if os.fstat(directory).st_dev != device or depth == 0:
        return -1
    with os.scandir(directory) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in itertools.islice(entries, most + 1)]
    most -= len(found)
    for name, deeper in found if most >= 0 else ():
        if not deeper:
            os.unlink(name, dir_fd=directory)
            continue
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            most = _emptied(fd, device, most, depth - 1)
        finally:
            os.close(fd)
        if most < 0:
            break
        os.rmdir(name, dir_fd=directory)
    return most


@contextlib.contextmanager
def lock(path: str | os.PathLike[str], timeout: float = 60.0) -> Iterator[None]:
    """Hold an exclusive flock(2) on *path*, waiting at most *timeout* seconds.

    The kernel drops it with the process, so a killed holder leaves nothing to clean. The file stays.
    Raises TimedOutError.
    """
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(target, flags)
    except FileNotFoundError:
        # Not at once: in a directory that others write to, O_CREAT keeps even root from another user's file; see
        # fs.protected_regular in proc_sys_fs(5).
        fd = os.open(target, flags | os.O_CREAT, 0o600)
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


@contextlib.contextmanager
def locks(needed: Callable[[], set[str]], lock: Callable[[str], AbstractContextManager[object]]) -> Iterator[None]:
    """Hold `lock(name)` of all names that are *needed* once they are held, for those may change until then.

    Always in one order, so that none waits for another that waits for it. Raises what *lock* raises.
    """
    while True:
        names = needed()
        with contextlib.ExitStack() as held:
            for name in sorted(names):
                held.enter_context(lock(name))
            if needed() <= names:
                yield
                return
