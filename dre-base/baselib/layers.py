# SPDX-License-Identifier: Apache-2.0
"""A root file system to change, over one that stays as it is: an overlay that nobody else sees, or a copy.

The mounts are in a namespace of this process alone, and so end with it.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from dre.errors import DreError
from dre.run import run

from baselib.debian import MORTAL

_NEWNS, _MS_REC, _MS_PRIVATE = 0x00020000, 0x4000, 1 << 18  # linux/sched.h, linux/mount.h


@contextlib.contextmanager
def over(lower: Path, place: Path) -> Iterator[Path]:
    """A directory in the new *place* that has what *lower* has; what is changed in it does not change *lower*."""
    place.mkdir()
    root = place / "root"
    if _mount(lower, place):
        try:
            yield root
        finally:
            run(["umount", str(root)])
    else:
        run([*MORTAL, "cp", "-a", "--reflink=auto", "--", str(lower), str(root)], timeout=1800)
        yield root


def _mount(lower: Path, place: Path) -> bool:
    """False where the kernel makes no overlay of these: in some containers, and on some file systems."""
    libc = ctypes.CDLL(None)
    if libc.unshare(_NEWNS) != 0 or libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        return False
    for name in ("upper", "work", "root"):
        (place / name).mkdir()
    below = os.path.relpath(lower, place)  # commas and colons are in what is above, if anywhere
    options = f"lowerdir={below},upperdir=upper,workdir=work"
    try:
        run(["mount", "-t", "overlay", "overlay", "-o", options, "root"], cwd=str(place))
    except DreError:
        (place / "root").rmdir()
        return False
    return True
