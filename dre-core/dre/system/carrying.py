# SPDX-License-Identifier: Apache-2.0
"""What goes with a system to another host: its disks, the image they are on, what we keep of it; and its way back out.

Each file and directory that is made there is noted before it is made, so that a move which fails, or is killed, can
take them away again. What was there before is never written to.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from dre import images
from dre.errors import DreError, TimedOutError
from dre.run import run
from dre.system import domain as definitions
from dre.system.model import System
from dre.system.remote import Directory, Host

_COPY = 3600.0  # seconds for a disk to be copied
_TEXTS = ("os/kernel", "os/initrd", "os/nvram")


@dataclass(frozen=True)
class Piece:
    """A file here, and its path there."""

    source: Path
    target: Path
    mode: int = 0o600


@dataclass(frozen=True)
class Load:
    """What a system consists of: files of its own, and the image's, whose last one is made last."""

    own: tuple[Piece, ...]
    image: tuple[Piece, ...] = ()

    @property
    def paths(self) -> dict[str, str]:
        """The path there of each that has another one than here."""
        pieces = (*self.own, *self.image)
        return {str(one.source): str(one.target) for one in pieces if one.source != one.target}


class Meter:
    """Counts octets: tells how far it is, holds to a rate, and ends when it is too late."""

    def __init__(self, name: str, rate: int | None, deadline: float, progress: Callable[[str], None]) -> None:
        self.name, self.rate, self.deadline, self.progress = name, rate, deadline, progress
        self.sent, self.total, self.begun = 0, 1, time.monotonic()

    def __call__(self, octets: int) -> None:
        """*octets* more are on their way."""
        self.sent += octets
        now = time.monotonic()
        if now > self.deadline:
            raise TimedOutError(f"{self.name}: its files are not there in time")
        if self.rate:
            time.sleep(max(0.0, min(self.begun + self.sent / self.rate, self.deadline) - now))
        self.progress(f"{self.name}: {self.sent >> 20} of {self.total >> 20} MiB sent")


def load(system: System, new: System, top: Element, without_snapshots: bool) -> Load:
    """What the system of definition *top* needs there, where it is *new*. Raises DreError for what cannot go."""
    own: list[Piece] = []
    bases: set[Path] = set()
    for path in _files(top):
        if path.parent != system.home:
            raise DreError(f"{system.name}: {path} is not dre-sys's and stays here: take it away from the system first")
        own.append(Piece(path, new.home / path.name))
    for _, path, format in definitions.disks(top):
        if format == "qcow2":
            bases |= _base(system, path, without_snapshots)
    nvram = Path(top.findtext("os/nvram") or "/")
    if nvram.is_file():
        own.append(Piece(nvram, nvram.with_name(nvram.name.replace(system.name, new.name, 1))))
    if len(bases) > 1:
        raise DreError(f"{system.name}: its disks are on {len(bases)} images; it cannot be moved by this version")
    return Load(tuple(own), tuple(_image(system, bases.pop(), top)) if bases else ())


def _files(top: Element) -> Iterator[Path]:
    for disk in top.iterfind("devices/disk"):
        source = disk.find("source")
        if source is not None:  # else a drive without a CD
            yield Path(source.get("file") or source.get("dev") or "/")


def chain(path: Path) -> list[dict[str, Any]]:
    """What qemu-img tells of a disk and of each that it is on."""
    told = run(["qemu-img", "info", "-U", "--backing-chain", "--output=json", str(path)], timeout=30).stdout
    found: list[dict[str, Any]] = json.loads(told)
    return found


def _base(system: System, disk: Path, without_snapshots: bool) -> set[Path]:
    """The image that the disk is on. What lies between, of a warm start, is put into the disk, for it is of this host.

    Raises DreError where that would change what the disk's snapshots hold.
    """
    first, *on = chain(disk)
    if len(on) > 1 and first.get("snapshots") and not without_snapshots:
        text = "it began with a warm start, without which its snapshots and checkpoints are none; --without-snapshots"
        raise DreError(f"{system.name}: {text}")
    return {Path(one["filename"]) for one in on[-1:]}


def _image(system: System, base: Path, top: Element) -> Iterator[Piece]:
    """The files of the image, in its directory when it is one of dre-base, else one file."""
    boot = [Path(top.findtext(key) or "") for key in ("os/kernel", "os/initrd") if top.findtext(key)]
    whole = (base.parent / images.MANIFEST).is_file()
    for path in boot:
        if path.parent != base.parent or not whole:
            raise DreError(f"{system.name}: {path} does not belong to its image; it cannot be moved")
    for path in (base, *boot, *([base.parent / images.MANIFEST] if whole else [])):
        yield Piece(path, path, 0o644)


@dataclass
class Carrier:
    """Brings files to a host; *noted* is called with what it has made whenever that grows."""

    host: Host
    meter: Meter
    noted: Callable[["Made"], None]
    made: "Made" = field(default_factory=lambda: Made())

    def image(self, wanted: tuple[Piece, ...]) -> tuple[Piece, ...]:
        """Have the image there, and return where each of its files is: where it is here, when nothing else is there."""
        if not wanted:
            return ()
        for pieces in (wanted, _elsewhere(wanted)):
            place = pieces[0].target.parent
            with self.host.directory(place) as there:
                sizes = there.sizes() if there else {}
                if there and self._same(there, sizes, pieces):
                    return pieces
                if not any(one.target.name in sizes for one in pieces):
                    break
        else:
            raise DreError(f"{self.host.way.host}: {pieces[0].target} is something else than the image it is named for")
        self.send(pieces)
        return pieces

    def _same(self, there: Directory, sizes: dict[str, int], pieces: tuple[Piece, ...]) -> bool:
        """Whether these files are there already. A manifest has the digest of its disk; else the file is read."""
        if any(sizes.get(one.target.name) != one.source.stat().st_size for one in pieces):
            return False
        last = pieces[-1]
        if last.source.name == images.MANIFEST:
            return there.read(last.target.name) == last.source.read_bytes()
        self.meter.progress(f"{self.meter.name}: comparing {last.target} there")
        return there.digest(last.target.name, lambda _: None) == _digest(last.source)

    def send(self, pieces: tuple[Piece, ...]) -> dict[str, str]:
        """Send files, each made anew; the sha256 of each by its path there."""
        self.meter.total += sum(one.source.stat().st_blocks * 512 for one in pieces)
        found = {}
        for one in pieces:
            with self.place(one.target.parent) as there:
                volume = self.make(there, one.target, one.source.stat().st_size, one.mode)
                found[str(one.target)] = there.fill(volume, one.source, self.meter)
        return found

    def verify(self, digests: dict[str, str]) -> None:
        """Read back what was sent. Raises DreError where that is something else."""
        for name, digest in digests.items():
            path = Path(name)
            with self.place(path.parent) as there:
                if there.digest(path.name, lambda _: None) != digest:
                    raise DreError(f"{self.host.way.host}: {path} is not what was sent")

    def place(self, path: Path) -> Any:
        """The directory *path* there, made when there is none; a context."""
        with self.host.directory(path) as there:
            missing = there is None
        if missing:
            self.made.directories.append(str(path))
            self.noted(self.made)
        return self.host.directory(path, make=True)

    def make(self, there: Directory, path: Path, size: int, mode: int, backing: tuple[Path, str] | None = None) -> Any:
        """Make the file *path* there, noted as ours before it can be there. Raises DreError where it is already."""
        if path.name in there.sizes():
            raise DreError(f"{self.host.way.host}: {path} exists already")
        self.made.files.append(str(path))
        self.noted(self.made)
        return there.make(path.name, size, mode, backing)


@dataclass
class Made:
    """What a move has made at the other host."""

    files: list[str] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)

    def remove(self, host: Host) -> None:
        """Take it all away again."""
        for name in self.files:
            path = Path(name)
            with host.directory(path.parent) as there:
                if there:
                    there.remove(path.name)
        for name in self.directories:
            host.rmdir(Path(name))
        host.forget_pools()


def _elsewhere(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The same image under a name of its own, for a host that has another one by this name."""
    last = pieces[-1].source
    end = _digest(last)[:8]
    if last.name == images.MANIFEST:
        place = last.parent.with_name(f"{last.parent.name}-{end}")
        return tuple(Piece(one.source, place / one.source.name, one.mode) for one in pieces)
    return (Piece(last, last.with_name(f"{last.stem}-{end}{last.suffix}"), 0o644),)


def named(image: tuple[Piece, ...]) -> str:
    """What a system calls the image that it is based on."""
    path = image[-1].target
    return path.parent.name if path.name == images.MANIFEST else str(path)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def relocate(top: Element, paths: dict[str, str]) -> None:
    """Put the *paths* that are other ones there into a definition."""
    for item in top.iter():
        for key in ("file", "path"):
            if item.get(key) in paths:
                item.set(key, paths[str(item.get(key))])
    for where in _TEXTS:
        for item in top.findall(where):
            item.text = paths.get(item.text or "", item.text)


def rebased(disk: Path, work: Path, image: Piece) -> Path:
    """A copy of *disk* in *work*, directly on the image where that is there."""
    copy = work / disk.name
    run(["cp", "--sparse=always", "--reflink=auto", str(disk), str(copy)], timeout=_COPY)
    told = chain(disk)
    if len(told) > 2:
        for snapshot in told[0].get("snapshots", []):
            run(["qemu-img", "snapshot", "-d", snapshot["name"], str(copy)], timeout=_COPY)
        run(["qemu-img", "rebase", "-b", str(image.source), "-F", told[-1]["format"], str(copy)], timeout=_COPY)
    run(["qemu-img", "rebase", "-u", "-b", str(image.target), "-F", told[-1]["format"], str(copy)], timeout=60)
    return copy
