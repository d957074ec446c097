# SPDX-License-Identifier: Apache-2.0
"""What an app has changed of its base, as one digest: of its delta, and of the delta inside a snapshot's archive.

A second opinion beside dre-app's own digest, made in another way: names, kinds, owners, modes, times and contents of
the files, whatever form they are kept in.
"""

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

Row = tuple[str, str, int, int, int, int, str]


def of_directory(delta: Path) -> str:
    """The digest of the delta itself."""
    return _digest(_directory(delta))


def of_archive(archive: Path) -> str:
    """The digest of the delta that a snapshot keeps as a tar archive."""
    with tarfile.open(archive) as tar:
        return _digest(list(_archive(tar)))


def _digest(rows: list[Row]) -> str:
    return hashlib.sha256("".join(f"{row}\n" for row in sorted(rows)).encode()).hexdigest()


def _directory(delta: Path) -> list[Row]:
    rows = []
    for place, directories, names in os.walk(delta):
        for name in (*directories, *names):
            path = Path(place) / name
            status = path.lstat()
            kind, content = "other", ""
            if stat.S_ISREG(status.st_mode):
                kind, content = "file", hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISDIR(status.st_mode):
                kind = "directory"
            elif stat.S_ISLNK(status.st_mode):
                kind, content = "link", str(path.readlink())
            elif stat.S_ISSOCK(status.st_mode):
                continue  # an archive has none
            rows.append(
                _row(
                    str(path.relative_to(delta)),
                    kind,
                    status.st_mode,
                    status.st_uid,
                    status.st_gid,
                    status.st_mtime,
                    content,
                )
            )
    return rows


def _archive(tar: tarfile.TarFile) -> Iterator[Row]:
    for member in tar:
        name = os.path.normpath(member.name)
        if name == ".":
            continue
        kind, content = "other", ""
        if member.islnk():
            content = hashlib.sha256(tar.extractfile(member).read()).hexdigest()
            kind = "file"
        elif member.isfile():
            kind, content = "file", hashlib.sha256(tar.extractfile(member).read()).hexdigest()
        elif member.isdir():
            kind = "directory"
        elif member.issym():
            kind, content = "link", member.linkname
        yield _row(name, kind, member.mode, member.uid, member.gid, member.mtime, content)


def _row(name: str, kind: str, mode: int, uid: int, gid: int, mtime: float, content: str) -> Row:
    time = 0 if kind == "directory" else int(mtime)
    return name, kind, stat.S_IMODE(mode), uid, gid, time, content
