# SPDX-License-Identifier: Apache-2.0
"""What a guest itself says of an NFS mount, by its agent: mounts, names and attributes. Its word, which may be a lie.

Names are those that getdents(2) gives to ls, attributes those that statx(2) gives to stat, both of coreutils.
"""

import os
import re
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from dre.errors import MissingError
from dre.system.agent import Agent, Ended

from sysmonlib.served import MOST, Fsid
from sysmonlib.tcp import End

_SAY_MOUNT = r"""
export LC_ALL=C
stat --cached=never --printf '%d %i %s %f %Z %n\0' -- "$0" || stat --printf '%d %i %s %f %Z %n\0' -- "$0"
cat /proc/fs/nfsfs/volumes
"""
# Without what the kernel of the guest keeps, it has to ask the server. The argument before {} makes ls name each. Who
# asks for the time of a change (%Z) has it first write to the server what is not there yet.
_SAY_ALL = r"""
export LC_ALL=C
echo 3 >/proc/sys/vm/drop_caches
stat --cached=never -- "$0" >/dev/null 2>&1
find "$0" -xdev -type d -exec ls -aU1 --quoting-style=c -- "$0" {} + 2>/dev/null
printf '\0'
find "$0" -xdev -exec stat $1 --printf '%d %i %s %f %Z %n\0' -- {} + 2>/dev/null
exit 0
"""
_FORCED = "--cached=never"  # statx asks the server, whatever is known already
_RECORD = re.compile(rb"(\d{1,20}) (\d{1,20}) (\d{1,20}) ([0-9a-f]{1,8}) -?\d{1,20} (/.*)", re.DOTALL)
_QUOTED = re.compile(rb'"((?:[^"\\\x00-\x1f]|\\[abfnrtv"\\]|\\[0-3][0-7]{2})*)"(:?)')
_ESCAPED = re.compile(rb"\\([abfnrtv\"\\]|[0-7]{3})")
_LETTERS = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_VOLUME = re.compile(
    rb"v[234] +([0-9a-f]{8}|[0-9a-f]{32}) +([0-9a-f]{1,4}) +(\d{1,7}):(\d{1,7}) +([0-9a-f]{1,16}):([0-9a-f]{1,16})\b.*"
)


class Nonsense(Exception):
    """An answer that no guest gives which does what it was asked to; the message says why."""


@dataclass(frozen=True)
class Mount:
    """A directory on NFS, as the guest has it: its device there, and the file system *fsid* of *server*."""

    path: bytes
    device: int
    fileid: int
    server: End
    fsid: Fsid


@dataclass(frozen=True)
class File:
    """What stat says of one path; *mode* is st_mode, *size* is in octets."""

    device: int
    fileid: int
    size: int
    mode: int


@dataclass(frozen=True)
class View:
    """The names of each directory below a mount that was listed, and what stat says of each path."""

    names: dict[bytes, set[bytes]] = field(default_factory=dict)
    files: dict[bytes, File] = field(default_factory=dict)


def mount(agent: Agent, path: bytes, timeout: float) -> Mount:
    """Where the directory *path* of the guest is. Raises MissingError where it is none on NFS, and Nonsense."""
    said = _run(agent, _SAY_MOUNT, path, timeout=timeout)
    record, end, volumes = said.partition(b"\0")
    shown = os.fsdecode(path)
    if not end:
        raise MissingError(f"{agent.name}: there is no {shown} in it, or it has no stat of coreutils")
    files = dict(_files(record + end, path))
    if path not in files or not stat.S_ISDIR(files[path].mode):
        raise MissingError(f"{agent.name}: {shown} is no directory there")
    found = files[path]
    for line in volumes.splitlines():
        match = _VOLUME.fullmatch(line.rstrip())
        if match and os.makedev(int(match[3]), int(match[4])) == found.device:
            server = (bytes.fromhex(match[1].decode()), int(match[2], 16))
            return Mount(path, found.device, found.fileid, server, (int(match[5], 16), int(match[6], 16)))
    raise MissingError(f"{agent.name}: {shown} is not on NFS there")


def look(agent: Agent, path: bytes, forced: bool, timeout: float) -> View:
    """All below the directory *path*, in its file system; *forced*: attributes anew, whatever the guest knows.

    Raises MissingError where it is too much, TimedOutError where it lasts longer than *timeout* seconds, and Nonsense.
    """
    said = _run(agent, _SAY_ALL, path, _FORCED if forced else "", timeout=timeout)
    return parse(said, path)


def parse(said: bytes, path: bytes) -> View:
    """The view in the output of ls and stat. Raises Nonsense where it is not of their form, MissingError."""
    listed, end, records = said.partition(b"\0")
    if not end:
        raise Nonsense("its answer has no end")
    if listed.count(b"\n") > 2 * MOST or records.count(b"\0") > MOST:
        raise MissingError(f"there is more below {os.fsdecode(path)} than can be looked at: {MOST} names")
    return View(_names(listed, path), dict(_files(records, path)))


def _run(agent: Agent, script: str, path: bytes, *words: str, timeout: float) -> bytes:
    ended: Ended = agent.run(["/bin/sh", "-c", script, os.fsdecode(path), *words], timeout=timeout)
    if ended.cut:
        raise MissingError(f"{agent.name}: what it says of {os.fsdecode(path)} is too much to look at")
    return ended.stdout


def _names(listed: bytes, path: bytes) -> dict[bytes, set[bytes]]:
    found: dict[bytes, set[bytes]] = {}
    names: set[bytes] | None = None
    for line in listed.split(b"\n"):
        if not line:
            continue
        match = _QUOTED.fullmatch(line)
        if match is None:
            raise Nonsense(f"a line of its ls is {_shown(line)}")
        text = _ESCAPED.sub(_unescaped, match[1])
        if match[2]:
            if not _below(text, path):
                raise Nonsense(f"its ls has {_shown(text)}, which is not below {os.fsdecode(path)}")
            names = found.setdefault(text, set())
        elif names is None or not text or b"/" in text or b"\0" in text or len(text) > 255:
            raise Nonsense(f"a name in its ls is {_shown(text)}")
        else:
            names.add(text)
    for names in found.values():
        names -= {b".", b".."}
    return found


def _unescaped(match: re.Match[bytes]) -> bytes:
    word = match[1]
    return bytes([int(word, 8) & 255]) if len(word) == 3 else _LETTERS.get(word, word)


def _files(records: bytes, path: bytes) -> Iterator[tuple[bytes, File]]:
    if records and not records.endswith(b"\0"):
        raise Nonsense("the last line of its stat has no end")
    for record in records.split(b"\0")[:-1]:
        match = _RECORD.fullmatch(record)
        if match is None or not _below(match[5], path):
            raise Nonsense(f"a line of its stat is {_shown(record)}")
        yield match[5], File(int(match[1]), int(match[2]), int(match[3]), int(match[4], 16))


def _below(text: bytes, path: bytes) -> bool:
    """Whether *text* is *path* or a path below it."""
    return len(text) <= 4096 and (text == path or text.startswith(path.rstrip(b"/") + b"/"))


def _shown(octets: bytes) -> str:
    return ascii(octets[:60])[1:]


def address(server: End) -> str:
    """The address of *server* for people."""
    return socket.inet_ntop(socket.AF_INET if len(server[0]) == 4 else socket.AF_INET6, server[0])
