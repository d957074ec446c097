# SPDX-License-Identifier: Apache-2.0
"""A container as one file: a tar archive, compressed by zstd, that begins with `manifest.json`.

The file is replaced at once when all is written. Its reader trusts nothing in it; what the members mean is not known
here.
"""

import contextlib
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dre import archive, files, run, units
from dre.errors import DreError, UsageError

MANIFEST_MAX = 16 << 20


def add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    """Add a member *name* of *size* octets of *content*."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    tar.addfile(member, content)


@contextlib.contextmanager
def compressor(out: IO[bytes], compress: bool) -> Iterator[IO[bytes]]:
    """What to write to, for *out* to get it compressed."""
    if not compress:
        yield out
        return
    with _zstd(["-q", "-3", "-T0", "-c"], stdin=subprocess.PIPE, stdout=out) as child:
        yield child.stdin  # type: ignore[misc]


@contextlib.contextmanager
def _zstd(options: list[str], about: str = "", **streams: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """zstd at work. Raises MissingError, and DreError when it ends badly, which is the reason for a broken pipe too.

    *about* begins what that says.
    """
    child = subprocess.Popen([run.need("zstd"), *options], stderr=subprocess.PIPE, **streams)
    broken: Exception | None = None
    with child:
        try:
            yield child
        except (BrokenPipeError, tarfile.TarError, DreError) as error:
            broken = error
        except BaseException:
            child.kill()
            raise
        for stream in (child.stdin, child.stdout):
            with contextlib.suppress(BrokenPipeError):
                if stream:
                    stream.close()
        assert child.stderr
        said = child.stderr.read().decode(errors="replace").strip()
        # What is read no more ends zstd by SIGPIPE; then ours is the reason.
        if child.wait() > 0 and said:
            words = said.splitlines()[-1].removeprefix("zstd: ")
            for place in ("/*stdin*\\: ", "/*stdin*\\ : "):  # as it calls what has no name
                words = words.removeprefix(place)
            raise DreError(f"{about}zstd: {words}") from broken
        if broken:
            raise broken


@contextlib.contextmanager
def target(name: str, standard: IO[bytes]) -> Iterator[IO[bytes]]:
    """What to write file *name* to, which is replaced at once when all is written; `-` is *standard*.

    What is no file, a FIFO or a device, is written to.
    """
    if name == "-":
        if standard.isatty():
            raise UsageError("an archive is not for a terminal: give a FILE, or a pipe")
        yield standard
        standard.flush()
        return
    place = Path(os.path.realpath(name))
    if place.is_dir():
        raise DreError(f"{name}: is a directory")
    if place.exists() and not place.is_file():
        with open(place, "wb") as stream:
            yield stream
        return
    if not place.parent.is_dir():
        raise DreError(f"{place.parent}: No such file or directory")
    part = place.with_name(f"{place.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(place)
        files.fsync_dir(place.parent)
    finally:
        part.unlink(missing_ok=True)


@dataclass
class Incoming:
    """An archive that is being read: what it says of itself, and then its members one by one."""

    tar: tarfile.TarFile
    head: dict[str, Any]

    @property
    def name(self) -> str:
        """The name the container had."""
        return units.name(str(self.head["name"]))

    def member(self, name: str) -> IO[bytes]:
        """The content of the next member, which must be *name*."""
        found = self.tar.next()
        if found is None or found.name != name or not found.isreg():
            raise DreError(f"the archive is damaged: {name} is missing")
        content = self.tar.extractfile(found)
        assert content is not None
        return content


@contextlib.contextmanager
def opened(name: str, standard: IO[bytes], *formats: str) -> Iterator[Incoming]:
    """The archive of one of *formats* in file *name*, compressed or not; `-` is *standard*. Raises UsageError."""
    with contextlib.ExitStack() as stack:
        source = standard if name == "-" else stack.enter_context(open(name, "rb"))
        # With -f it passes on what is not compressed.
        child = stack.enter_context(_zstd(["-q", "-d", "-c", "-f"], f"{name}: ", stdin=source, stdout=subprocess.PIPE))
        try:
            tar = stack.enter_context(tarfile.open(fileobj=child.stdout, mode="r|", tarinfo=archive.Member))
            first = tar.next()
            if first is None or first.name != "manifest.json" or not first.isreg() or first.size > MANIFEST_MAX:
                raise ValueError("it does not begin with manifest.json")
            content = tar.extractfile(first)
            assert content is not None
            head = json.loads(content.read())
            if head["format"] not in formats:
                raise ValueError(f"its format is {head['format']!r}, not {' or '.join(formats)}")
        except (ValueError, KeyError, TypeError, RecursionError, tarfile.TarError) as error:
            raise UsageError(f"{name}: not an archive of this kind: {error}") from None
        yield Incoming(tar, head)
