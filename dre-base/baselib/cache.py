# SPDX-License-Identifier: Apache-2.0
"""What dre-base keeps to be quicker the next time: downloaded packages, and root file systems that images begin with.

A root file system is kept under the digest of all that it was made from. Whether it still is what the archives would
give is not known here; see images.py, which asks them. All of it may be deleted while no dre-base runs.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dre import files, trees
from dre.conf import Conf
from dre.run import run

from baselib.store import make_place, remove

LIMIT = 2 << 30


class Cache:
    """The directory `.cache` of a store; its files are linked with those of the builds beside it."""

    def __init__(self, conf: Conf, store: Path) -> None:
        self.directory = store / ".cache"
        self._lock = trees.lock_file(conf, self.directory)

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        make_place(self.directory.parent)
        with files.lock(self._lock, timeout=600.0):
            self.directory.mkdir(mode=0o700, exist_ok=True)
            yield

    @contextlib.contextmanager
    def root(self, words: Sequence[str]) -> Iterator[Path | None]:
        """The root file system made from *words*, which stays as long as it is held, or None."""
        fd = None
        with self._held(), contextlib.suppress(FileNotFoundError):
            kept = self._place(words)
            fd = os.open(kept, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH)
            os.utime(kept)
        try:
            yield None if fd is None else kept
        finally:
            if fd is not None:
                os.close(fd)

    def keep(self, words: Sequence[str], root: Path) -> None:
        """Take *root*, made from *words*, and keep no more in all than the limit."""
        run(["sync", "--file-system", str(root)], timeout=600)  # it was made without waiting for the disk
        self.forget(words)
        with self._held():
            root.rename(self._place(words))
            os.utime(self._place(words))
            self._prune()

    def forget(self, words: Sequence[str]) -> None:
        """What was made from *words* is of no use any more."""
        with self._held():
            kept = self._place(words)
            if kept.is_dir():
                kept.rename(kept.with_suffix(f".{os.getpid()}.gone"))
            self._prune()

    def lend(self, archives: Path) -> None:
        """Link the downloaded packages into *archives*, where apt looks before it fetches."""
        with self._held():
            archives.mkdir(parents=True, exist_ok=True)
            for deb in self.directory.glob("*.deb"):
                with contextlib.suppress(FileExistsError):
                    (archives / deb.name).hardlink_to(deb)

    def collect(self, archives: Path) -> None:
        """Keep the packages in *archives*, and leave none there."""
        with self._held():
            for deb in archives.glob("*.deb"):
                with contextlib.suppress(FileExistsError):
                    (self.directory / deb.name).hardlink_to(deb)
                deb.unlink()
            self._prune()

    def _place(self, words: Sequence[str]) -> Path:
        digest = hashlib.sha256("\0".join(words).encode()).hexdigest()
        return self.directory / f"{digest[:32]}.root"

    def _prune(self) -> None:
        """Remove what is of no use, then the oldest until the rest is within the limit."""
        for gone in self.directory.glob("*.gone"):
            _remove_unheld(gone)
        kept = [(entry, entry.stat().st_mtime, _size(entry)) for entry in self.directory.iterdir()]
        total = sum(size for _, _, size in kept)
        # A root file system is dearer to make than packages are to fetch.
        for entry, _, size in sorted(kept, key=lambda item: (item[0].suffix != ".deb", item[1])):
            if total <= LIMIT:
                return
            if entry.suffix == ".deb":
                entry.unlink()
            else:
                _remove_unheld(entry)
            total -= size


def _remove_unheld(root: Path) -> None:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(root)
    except BlockingIOError:
        pass  # another dre-base builds on it; the next to prune removes it
    finally:
        os.close(fd)


def _size(entry: Path) -> int:
    if entry.is_dir():
        return sum(below.lstat().st_blocks * 512 for below in entry.rglob("*"))
    return entry.stat().st_size
