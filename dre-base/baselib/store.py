# SPDX-License-Identifier: Apache-2.0
"""The store: a directory of trees and images, each whole under its name or not there at all.

What is being made, replaced or deleted has a hidden name beside it, and the next call for the same name finishes or
removes it. What trees and images are made of is not known here.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dre import files, trees, units
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, UsageError

# The file that is written last and says that all is there, and what.
MARKS = {"tree": "etc/dre-base.json", "image": "image.json"}
BUILD_TIMEOUT = 3600.0


@dataclass(frozen=True)
class Store:
    """A directory of trees and images, which share their names."""

    conf: Conf
    directory: Path

    def names(self) -> list[str]:
        """The names of what is there, sorted."""
        if not self.directory.is_dir():
            return []
        entries = [entry.name for entry in os.scandir(self.directory) if units.is_name(entry.name)]
        return sorted(name for name in entries if kind(self.directory / name))

    def path(self, name: str) -> Path:
        """The directory of *name*. Raises NotFoundError."""
        path = self.directory / units.name(name)
        if not path.is_dir():
            raise NotFoundError(f"{name}: no such tree or image in {self.directory}")
        return path

    def kind(self, name: str) -> str:
        """`tree` or `image`. Raises NotFoundError, and UsageError for what dre-base did not make."""
        path = self.path(name)
        found = kind(path)
        if found is None:
            raise UsageError(f"{path}: not made by dre-base (neither {' nor '.join(MARKS.values())} in it)")
        return found

    def there(self, name: str, wanted: str) -> bool:
        """Whether *name* is taken, by one of the kind *wanted*. Raises DreError where it is of the other one."""
        if not (self.directory / units.name(name)).is_dir():
            return False
        found = self.kind(name)
        if found != wanted:
            raise DreError(f"{name}: the name of {'an' if found == 'image' else 'a'} {found} already")
        return True

    @contextlib.contextmanager
    def locked(self, name: str, timeout: float = 10.0) -> Iterator[None]:
        """Hold *name*, after what a killed call left of it is finished or removed. Raises TimedOutError."""
        with files.lock(trees.lock_file(self.conf, self.directory / units.name(name)), timeout):
            self._recover(name)
            yield

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """The path of what will be *name*, to be filled and at last marked; it takes the name when all went well.

        The caller holds *name*.
        """
        make_place(self.directory)
        new = self._hidden(name, "new")
        try:
            yield new
            self._move_in(name)
        except BaseException:
            remove(new)
            raise

    def drop(self, name: str) -> None:
        """Remove *name*, which the caller holds."""
        self.path(name).rename(self._hidden(name, "gone"))
        remove(self._hidden(name, "gone"))

    def _hidden(self, name: str, what: str) -> Path:
        return self.directory / f".{name}.{what}"

    def _move_in(self, name: str) -> None:
        """Put the new one in the place of the old one; `_recover` goes on from each point in here."""
        final, old = self.directory / name, self._hidden(name, "old")
        if final.exists():
            final.rename(old)
        self._hidden(name, "new").rename(final)
        files.fsync_dir(self.directory)
        remove(old)

    def _recover(self, name: str) -> None:
        """Finish or undo what a killed call left: afterwards *name* is there or not, and nothing beside it."""
        final, new, old = self.directory / name, self._hidden(name, "new"), self._hidden(name, "old")
        if old.exists() and not final.exists():
            if kind(new):  # its mark was written last, so it is whole
                new.rename(final)
            else:
                old.rename(final)
        for remains in (new, old, self._hidden(name, "gone")):
            remove(remains)


def store(conf: Conf, directory: str | None = None) -> Store:
    """The store where `--base NAME` of dre-app and dre-sys looks, or *directory*, which must exist."""
    if directory is None:
        return Store(conf, conf.core_state_dir / "base")
    if not Path(directory).is_dir():
        raise UsageError(f"{directory}: no such directory")
    return Store(conf, Path(directory).absolute())


def kind(path: Path) -> str | None:
    """What is whole in *path*: a tree, an image, or neither."""
    return next((name for name, mark in MARKS.items() if (path / mark).is_file()), None)


def make_place(path: Path) -> None:
    """Make the directory *path*, with what is above it, readable by all whatever the umask is."""
    for place in [*reversed(path.parents), path]:
        if not place.exists():
            place.mkdir()
            place.chmod(0o755)


def octets(file: Path) -> bytes:
    """The content of *file*, nothing when it has gone since it was listed."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def remove(path: Path) -> None:
    """Remove *path* with all in it, on this file system alone. Raises DreError while something is mounted in it."""
    if not os.path.lexists(path):
        return
    below = re.compile(rb" " + re.escape(os.fsencode(path)) + rb"(/\S*)? ")
    for line in octets(Path("/proc/self/mountinfo")).splitlines():
        if below.search(line.partition(b" - ")[0]):
            raise DreError(f"{path}: something is mounted in it; umount it first")
    deadline = time.monotonic() + 5
    while True:
        try:
            shutil.rmtree(path)
            return
        except OSError:  # the processes of a killed build are still ending, and writing
            if not path.exists():
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
