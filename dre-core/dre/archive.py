# SPDX-License-Identifier: Apache-2.0
"""Archives of deltas: how one is packed, and how one that came from elsewhere is unpacked without trusting it.

PACK is the recipe of every archive; its digest is the SHA-256 of the octets, so that tar(1) and sha256sum(1) can check
it. `unpack_checked` knows exactly what that recipe can write and refuses everything else. It judges no configuration.
"""

import hashlib
import os
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from dre.errors import DreError

# One content gives one archive: sorted, without the times that reading changes, and of the extended attributes only
# those that mean something (overlayfs keeps a note of its own in trusted.overlay.origin). Of the forms for files with
# holes 0.0 is the one that does not write tar's process number. Access lists are kept as attributes, because --acls
# would write the host's names of users for the app's numbers.
_ATTRIBUTES = (
    "user.*",
    "security.capability",
    "system.posix_acl_*",
    "trusted.overlay.opaque",
    "trusted.overlay.redirect",
)
PACK = (
    "tar",
    "--create",
    "--format=pax",
    "--pax-option=delete=atime,delete=ctime,exthdr.name=%d/PaxHeaders/%f",
    "--sort=name",
    "--numeric-owner",
    "--sparse",
    "--sparse-version=0.0",
    "--xattrs",
    *(f"--xattrs-include={pattern}" for pattern in _ATTRIBUTES),
    "--warning=no-file-ignored",  # sockets: nobody can listen on a saved one
)

# For our own archives, whose digest was verified.
UNPACK = ("tar", "--extract", "--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*")

# From one delta into another, without an archive. cp -a would not say that it could not copy an attribute.
COPY = ("cp", "-dR", "--preserve=all,xattr", "--reflink=auto", "--no-target-directory")

_HEADER_MAX = 1 << 20  # octets of one extended header; attributes are limited to 64 KiB each
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_NAMED = 5  # of the files that need --allow-setuid, how many the message names


@dataclass(frozen=True)
class Unpacked:
    """What `unpack_checked` read: the digest and the size of the archive."""

    digest: str
    size: int


def unpack_checked(stream: IO[bytes], into: Path, *, allow_setuid: bool = False) -> Unpacked:
    """Unpack the archive of a delta, read from *stream* to its end, into the empty directory *into*.

    The stream need not be seekable. Raises DreError, naming the member and the reason, for anything that PACK cannot
    have written of a delta or that would lead out of *into*: absolute names, `..`, names below what is no directory,
    names given twice, links to what is not in the archive, devices other than overlayfs's sign for a deleted file,
    redirects to other places of the base, unknown attributes; and, unless *allow_setuid*, programs that give privilege.
    What was unpacked until then is left to the caller, and so is the comparison of the digest.
    """
    source: Any = _Counted(stream)  # of a file it has what tarfile wants of a pipe
    unpacking = _Unpacking(into)
    try:
        into.chmod(0o700)  # nobody shall reach a program in it before all of it was judged
        with tarfile.open(
            fileobj=source, mode="r|", tarinfo=Member, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            known: list[tarfile.TarInfo] = vars(archive)["members"]
            while (member := archive.next()) is not None:
                known.clear()  # else the memory would grow with the archive: nobody asks for them again
                unpacking.take(archive, member)
        if unpacking.privileged and not allow_setuid:
            raise _privileged(unpacking.privileged)
        unpacking.finish()
    except tarfile.TarError as error:
        raise DreError(f"not an archive of a delta: {error}") from None
    except OSError as error:
        raise DreError(f"cannot unpack into {into}: {_shown(unpacking.last)}: {error.strerror or error}") from None
    while source.read(1 << 20):
        pass  # what follows the end mark belongs to the digest
    return Unpacked(source.digest.hexdigest(), source.size)


def _privileged(names: list[str]) -> DreError:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    listed = ", ".join(map(_shown, names[:_NAMED]))
    return DreError(f"holds programs with setuid, setgid or capabilities: {listed}{more}; --allow-setuid takes them")


class _Counted:
    """A stream to read from that knows the digest of what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest, self.size = stream, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        octets = self.stream.read(size)
        self.digest.update(octets)
        self.size += len(octets)
        return octets


class Member(tarfile.TarInfo):
    """A member whose headers do not fill the memory, whatever size they claim."""

    def _proc_member(self, archive: Any) -> Any:  # the hook that tarfile has for subclasses
        if self.type in (*_EXTENDED, *_LONG_NAMES) and self.size > _HEADER_MAX:
            raise tarfile.ReadError(f"a header of {self.size} octets")
        return super()._proc_member(archive)  # type: ignore[misc]


@dataclass
class _Unpacking:
    """One archive on its way into a directory: what was made so far, by name."""

    into: Path
    directories: dict[str, tarfile.TarInfo | None] = field(default_factory=lambda: {"": None})
    others: set[str] = field(default_factory=set)
    privileged: list[str] = field(default_factory=list)
    last: str = "."

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Make *member*."""
        self.last = member.name
        name = _name(member.name)
        parent = name.rpartition("/")[0]
        if name == "" and not member.isdir():
            raise _refused(member.name, "its root is no directory")
        # With both, no component of a path can be a link: each is a directory that was made here.
        if parent not in self.directories:
            raise _refused(member.name, "lies in no directory of the archive")
        if name in self.others or self.directories.get(name) is not None:
            raise _refused(member.name, "is there twice")
        _check_attributes(member)
        path = self.into / name
        if member.isdir():
            if name:
                path.mkdir(mode=0o700)
            self.directories[name] = member
            return  # what it holds changes its time, so that its attributes come last
        self._make(archive, member, path)
        self.others.add(name)

    def _make(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
        if member.islnk():
            target = _name(member.linkname)
            if target not in self.others:
                raise _refused(member.name, f"is a link to {_shown(member.linkname)}, which is not in the archive")
            os.link(self.into / target, path, follow_symlinks=False)
            return  # its attributes are those of what it is a link to
        if member.isreg():
            if member.mode & 0o6000 or _capability(member):
                self.privileged.append(member.name)
            _write(archive, member, path)
        elif member.issym():
            path.symlink_to(member.linkname)
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        elif member.ischr() and (member.devmajor, member.devminor) == (0, 0):
            os.mknod(path, stat.S_IFCHR | 0o600, 0)
        else:
            raise _refused(member.name, "is a device" if member.isdev() else "is of an unknown type")
        _attributes(member, path)

    def finish(self) -> None:
        """Give the directories their attributes, the inner ones first."""
        if self.directories[""] is None:
            raise DreError("not an archive of a delta: it has no root directory")
        for name, member in reversed(self.directories.items()):
            assert member is not None
            self.last = member.name
            _attributes(member, self.into / name)


def _refused(name: str, reason: str) -> DreError:
    return DreError(f"refused: {_shown(name)}: {reason}")


def _shown(name: str) -> str:
    """A name of the archive, which may hold anything, as one printable word."""
    return name if name.isprintable() else ascii(name)


def _name(name: str) -> str:
    """A member's name, or the target of a hard link, relative to the root. Raises DreError when it leads out of it."""
    if name.startswith("/"):
        raise _refused(name, "is an absolute name")
    parts = name.split("/")
    if parts[0] == ".":
        parts = parts[1:]
    if {"", ".", ".."} & set(parts) or "\0" in name:
        raise _refused(name, "is no plain path")
    return "/".join(parts)


def _extended(member: tarfile.TarInfo, what: str) -> dict[str, bytes]:
    """Of the extended headers those that begin with *what*, without it."""
    found = {key: value for key, value in member.pax_headers.items() if key.startswith(what)}
    return {key.removeprefix(what): value.encode("utf-8", "surrogateescape") for key, value in found.items()}


def _capability(member: tarfile.TarInfo) -> bool:
    return "security.capability" in _extended(member, "SCHILY.xattr.")


def _check_attributes(member: tarfile.TarInfo) -> None:
    for key, value in _extended(member, "SCHILY.xattr.").items():
        if key == "trusted.overlay.opaque" and member.isdir() and value == b"y":
            continue
        if key == "trusted.overlay.redirect":
            # It could show a place of the base that the app must not see.
            raise _refused(member.name, "is redirected to another place of the base")
        known = key.startswith("user.") or key in ("system.posix_acl_access", "system.posix_acl_default")
        if not known and not (key == "security.capability" and member.isreg()):
            raise _refused(member.name, f"has the attribute {_shown(key)}")


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """The content of a regular file, with its holes."""
    content: Any = archive.fileobj  # not extractfile: of a file with holes that would read the holes
    content.seek(member.offset_data)
    # typeshed takes it for bytes; it is None, or a list of (offset, length).
    ranges: Any = [(0, member.size)] if member.sparse is None else member.sparse
    end = 0
    with path.open("xb") as new:
        os.fchmod(new.fileno(), 0o600)
        for offset, length in ranges:
            if offset < end or length < 0 or offset + length > member.size:
                raise _refused(member.name, "has impossible holes")
            end = offset + length
            new.seek(offset)
            _copy(content, new, length)
        new.truncate(member.size)


def _copy(content: IO[bytes], new: IO[bytes], length: int) -> None:
    while length > 0:
        octets = content.read(min(length, 1 << 20))
        if not octets:
            raise tarfile.ReadError("it ends in the middle of a file")
        new.write(octets)
        length -= len(octets)


def _attributes(member: tarfile.TarInfo, path: Path) -> None:
    """Owner, mode, extended attributes and time, in the order in which none undoes another."""
    for number in (member.uid, member.gid):
        if not 0 <= number < (1 << 32) - 1:
            raise _refused(member.name, f"belongs to {number}")
    os.chown(path, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        path.chmod(member.mode & 0o7777)
    for key, value in _extended(member, "SCHILY.xattr.").items():
        os.setxattr(path, key, value, follow_symlinks=False)
    moment = _moment(member)
    os.utime(path, ns=(moment, moment), follow_symlinks=False)


def _moment(member: tarfile.TarInfo) -> int:
    """The time of change in nanoseconds; tarfile's own number is not exact."""
    text = member.pax_headers.get("mtime", str(int(member.mtime)))
    whole, _, part = text.partition(".")
    try:
        nanoseconds = int((part + "000000000")[:9])
        moment = int(whole) * 1_000_000_000 + (-nanoseconds if whole.startswith("-") else nanoseconds)
    except ValueError:
        moment = -1 << 63
    if not -(1 << 62) < moment < 1 << 62:
        raise _refused(member.name, "has no time that can be")
    return moment
