# SPDX-License-Identifier: Apache-2.0
"""Trees: root file systems that containers use as their lower layer, read-only. Made by mmdebstrap, kept in a store.

A tree lies in the store under its name only when it is whole; what is being made, replaced or deleted has a hidden
name beside it, and the next call for the same name finishes or removes it. System images are not made here.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dre import event, files, trees, units
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, UsageError
from dre.run import follow, need, run

from baselib import sources

MANIFEST = "etc/dre-base.json"
BUILD_TIMEOUT = 3600.0
_SUITE = re.compile(r"[a-z][a-z0-9-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+~:-]+)?")
_MIRROR = re.compile(r"https?://[A-Za-z0-9._~:/@%+-]+")
# Nobody reads manuals inside a container; copyright files stay, as their licences ask.
_DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-include=/usr/share/locale/locale.alias",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
)


@dataclass(frozen=True)
class Wish:
    """What a tree is to be made from. Raises UsageError for words that apt would not take as what they are."""

    suite: str
    mirror: str | None = None
    packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, words, form in (
            ("suite", [self.suite], _SUITE),
            ("mirror", [self.mirror] if self.mirror is not None else [], _MIRROR),
            ("package", self.packages, _PACKAGE),
        ):
            for word in words:
                if not form.fullmatch(word):
                    raise UsageError(f"{word!r} is not a {kind}")


@dataclass(frozen=True)
class Manifest:
    """What a tree was made from and what was in it then."""

    name: str
    suite: str
    mirror: str | None
    wanted: list[str]
    created: str
    size: int
    sha256: str  # of the package list, as `listing` writes it
    packages: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Store:
    """A directory of trees."""

    conf: Conf
    directory: Path

    def names(self) -> list[str]:
        """The names of the trees, sorted."""
        if not self.directory.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.directory) if _is_tree(entry))

    def path(self, name: str) -> Path:
        """The directory of tree *name*. Raises NotFoundError."""
        path = self.directory / units.name(name)
        if not path.is_dir():
            raise NotFoundError(f"{name}: no such tree in {self.directory}")
        return path

    def manifest(self, name: str) -> Manifest:
        """The manifest of tree *name*. Raises NotFoundError, and UsageError where it cannot be read."""
        return _manifest(self.path(name))

    def create(self, name: str, wish: Wish, replace: bool, progress: Callable[[str], None]) -> bool:
        """Make tree *name*; False when it is there already, made from the same wish.

        Raises DreError when it is there from another one and not *replace*, or when mmdebstrap fails.
        """
        final, new = self.directory / units.name(name), self._hidden(name, "new")
        with self._locked(name, timeout=BUILD_TIMEOUT):
            if final.is_dir() and not replace:
                made = _manifest(final)
                if (made.suite, made.mirror, made.wanted) == (wish.suite, wish.mirror, sorted(set(wish.packages))):
                    return False
                raise DreError(f"{name}: already there, made with other options; use --replace")
            if final.is_dir():
                self._refuse_used(name)
            _build(new, wish, progress)
            _seal(new, name, wish)
            self._move_in(name)
            return True

    def delete(self, name: str) -> None:
        """Remove tree *name*. Raises DreError while an app uses it."""
        with self._locked(name):
            path = self.path(name)
            _manifest(path)  # what dre-base did not make it does not remove
            self._refuse_used(name)
            path.rename(self._hidden(name, "gone"))
            _remove(self._hidden(name, "gone"))

    def findings(self, name: str) -> Iterator[dict[str, Any]]:
        """Where the packages of tree *name* differ from its manifest. Raises as `manifest` does."""
        with self._locked(name):
            path = self.path(name)
            made, now = _manifest(path), _packages(path)
        if _sha256(made.packages) != made.sha256:
            yield {"finding": "manifest", "package": None, "expected": made.sha256, "found": _sha256(made.packages)}
        for package in sorted(made.packages.keys() | now.keys()):
            expected, found = made.packages.get(package), now.get(package)
            if expected != found:
                kind = "added" if expected is None else "missing" if found is None else "changed"
                yield {"finding": kind, "package": package, "expected": expected, "found": found}

    def users(self, name: str) -> list[str]:
        """The apps that have tree *name* as their lower layer, and the mounts that do, sorted."""
        tree = self.directory / name
        names = re.compile(rb"(?<![\w.-])" + re.escape(os.fsencode(tree)) + rb"(?![\w.-])")
        apps, state = self.conf.app_lxc_path, self.conf.core_state_dir / "app/state"
        told = [file for file in (*apps.glob("*/config"), *state.glob("*/app.json")) if names.search(_octets(file))]
        linked = [lower for lower in apps.glob("*/lower") if tree.exists() and lower.samefile(tree)]
        found = {file.parent.name for file in (*told, *linked)}
        for line in _octets(Path("/proc/self/mountinfo")).splitlines():
            if names.search(line.partition(b" - ")[2]):  # the part with lowerdir=
                found.add(f"the mount on {line.split()[4].decode(errors='replace')}")
        return sorted(found)

    def _refuse_used(self, name: str) -> None:
        users = self.users(name)
        if users:
            raise DreError(f"{name}: used by {', '.join(users)}; destroy them first")

    def _hidden(self, name: str, what: str) -> Path:
        return self.directory / f".{name}.{what}"

    @contextlib.contextmanager
    def _locked(self, name: str, timeout: float = 10.0) -> Iterator[None]:
        with files.lock(trees.lock_file(self.conf, self.directory / units.name(name)), timeout):
            self._recover(name)
            yield

    def _move_in(self, name: str) -> None:
        """Put the new tree in the place of the old one; `_recover` goes on from each point in here."""
        final, old = self.directory / name, self._hidden(name, "old")
        if final.exists():
            final.rename(old)
        self._hidden(name, "new").rename(final)
        files.fsync_dir(self.directory)
        _remove(old)

    def _recover(self, name: str) -> None:
        """Finish or undo what a killed call left: afterwards the tree is there or not, and nothing beside it."""
        final, new, old = self.directory / name, self._hidden(name, "new"), self._hidden(name, "old")
        if old.exists() and not final.exists():
            if (new / MANIFEST).exists():  # written last, so the new tree is whole
                new.rename(final)
            else:
                old.rename(final)
        for remains in (new, old, self._hidden(name, "gone")):
            _remove(remains)


def store(conf: Conf, directory: str | None = None) -> Store:
    """The store where `dre-app --base NAME` looks, or *directory*, which must exist."""
    if directory is None:
        return Store(conf, conf.core_state_dir / "base")
    if not Path(directory).is_dir():
        raise UsageError(f"{directory}: no such directory")
    return Store(conf, Path(directory).absolute())


def listing(packages: dict[str, str]) -> str:
    """The canonical package list: `name version` lines in order of names."""
    return "".join(f"{name} {version}\n" for name, version in sorted(packages.items()))


def _sha256(packages: dict[str, str]) -> str:
    return hashlib.sha256(listing(packages).encode()).hexdigest()


def _is_tree(entry: "os.DirEntry[str]") -> bool:
    return bool(units.NAME.fullmatch(entry.name)) and (Path(entry.path) / MANIFEST).is_file()


def _manifest(tree: Path) -> Manifest:
    file = tree / MANIFEST
    try:
        made = Manifest(**json.loads(file.read_bytes()))
        if not isinstance(made.packages, dict):
            raise TypeError("packages is not an object")
        return made
    except FileNotFoundError:
        raise UsageError(f"{tree}: not made by dre-base (no {MANIFEST} in it)") from None
    except (ValueError, TypeError) as error:
        raise UsageError(f"{file}: not a manifest: {error}") from None


def _octets(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""  # destroyed since it was listed


def _packages(tree: Path) -> dict[str, str]:
    form = "${db:Status-Abbrev}|${binary:Package}|${Version}\n"
    admin = tree / "var/lib/dpkg"
    if not (admin / "status").is_file():  # dpkg-query would take it for an empty list
        raise UsageError(f"{admin}/status: no such file")
    rows = run(["dpkg-query", f"--admindir={admin}", "-W", "-f", form]).stdout.decode().splitlines()
    return {name: version for state, name, version in (row.split("|") for row in rows) if state.startswith("ii")}


def _build(new: Path, wish: Wish, progress: Callable[[str], None]) -> None:
    """Run mmdebstrap in namespaces of its own, which end with us: no mount and no process outlives a kill -9."""
    need("mmdebstrap")
    new.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    host = "" if wish.mirror else sources.of_host(wish.suite)
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL"]
    argv += ["--mount-proc", "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
    argv += [f"--dpkgopt={option}" for option in _DPKG_OPTIONS]
    argv += [f"--aptopt={option}" for option in sources.apt_options()]
    if wish.packages:
        argv.append(f"--include={','.join(sorted(set(wish.packages)))}")
    argv += ["--", wish.suite, str(new)]
    if wish.mirror or host:
        argv.append(wish.mirror or "-")  # with neither, mmdebstrap knows the archive and the keyring of the suite
    said: list[str] = []

    def listen(line: str) -> None:
        if line.startswith("I: "):
            progress(line[3:])
        elif line.startswith("E: "):
            said.append(line[3:])

    try:
        status = follow(argv, listen, timeout=BUILD_TIMEOUT, stdin=host.encode())
        if status != 0:
            raise DreError(f"mmdebstrap {wish.suite}: {said[0] if said else f'exit status {status}'}")
    except BaseException:
        _remove(new)
        raise


def _seal(new: Path, name: str, wish: Wish) -> None:
    """Take out what is this host's, write the manifest as the last file, and make all of it durable."""
    (new / "etc/hostname").unlink(missing_ok=True)
    for key in (new / "etc/ssh").glob("ssh_host_*_key*"):  # else all containers of this tree would share them
        key.unlink()
    packages = _packages(new)
    size = sum(entry.lstat().st_blocks * 512 for entry in new.rglob("*"))
    wanted = sorted(set(wish.packages))
    made = Manifest(name, wish.suite, wish.mirror, wanted, event.stamp(), size, _sha256(packages), packages)
    run(["sync", "--file-system", str(new)], timeout=600)
    files.write_atomic(new / MANIFEST, json.dumps(asdict(made), indent=1) + "\n")


def _remove(tree: Path) -> None:
    if not tree.exists():
        return
    below = re.compile(rb" " + re.escape(os.fsencode(tree)) + rb"(/\S*)? ")
    for line in _octets(Path("/proc/self/mountinfo")).splitlines():
        if below.search(line.partition(b" - ")[0]):
            raise DreError(f"{tree}: something is mounted in it; umount it first")
    deadline = time.monotonic() + 5
    while True:
        try:
            shutil.rmtree(tree)
            return
        except OSError:  # the processes of a killed build are still ending, and writing
            if not tree.exists():
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
