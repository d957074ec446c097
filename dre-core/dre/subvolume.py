# SPDX-License-Identifier: Apache-2.0
"""Subvolumes of btrfs: directories of which a snapshot is a matter of a moment, whatever they hold.

By the kernel's own interface, linux/btrfs.h: each change is one call, which a kill leaves done or not begun, and no
program need be installed. It knows nothing of apps; where there is no btrfs its callers do without.
"""

import fcntl
import os
import stat
import struct
from pathlib import Path

# BTRFS_IOC_…; where a processor numbers them otherwise, there is no btrfs for us.
_SUBVOL_CREATE = 0x5000940E
_SNAP_DESTROY = 0x5000940F
_SNAP_CREATE_V2 = 0x50009417
_FS_INFO = 0x8400941F

_READ_ONLY = 1 << 1
_ROOT = 256  # the inode number of the root of each subvolume, and of nothing else in one
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def filesystem(path: Path) -> bytes | None:
    """The id of the btrfs that directory *path* lies on; None where it is on no btrfs, or not there."""
    answer = bytearray(1024)
    try:
        _ask(path, _FS_INFO, answer, path)
    except OSError:
        return None
    return bytes(answer[16:32])


def is_one(path: Path) -> bool:
    """Whether *path* itself is a subvolume."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_ino == _ROOT and filesystem(path) is not None


def create(path: Path) -> None:
    """Make the empty subvolume *path*, with the mode that mkdir(1) gives. Raises OSError."""
    _ask(path.parent, _SUBVOL_CREATE, bytearray(struct.pack("=q4088s", 0, os.fsencode(path.name))), path)


def snapshot(source: Path, path: Path) -> None:
    """Make *path*, a subvolume that cannot be changed, of what subvolume *source* holds now. Raises OSError.

    It is on the disk when this returns, with what was written but not yet synced.
    """
    fd = os.open(source, _DIRECTORY)
    try:
        wish = struct.pack("=qQQ32x4040s", fd, 0, _READ_ONLY, os.fsencode(path.name))
        _ask(path.parent, _SNAP_CREATE_V2, bytearray(wish), path)
    finally:
        os.close(fd)


def delete(path: Path) -> None:
    """Remove subvolume *path* with all that it holds, be it read-only. Raises OSError; so when another is inside."""
    _ask(path.parent, _SNAP_DESTROY, bytearray(struct.pack("=q4088s", 0, os.fsencode(path.name))), path)


def _ask(directory: Path, request: int, argument: bytearray, what: Path) -> None:
    fd = os.open(directory, _DIRECTORY)
    try:
        fcntl.ioctl(fd, request, argument)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(what)) from None
    finally:
        os.close(fd)
