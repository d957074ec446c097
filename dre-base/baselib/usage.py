# SPDX-License-Identifier: Apache-2.0
"""Which systems an image is the base of: by their disks, by what libvirt keeps of them, and by running programs.

The disk of a system is an overlay that names the image's disk as its backing file; without that file it is lost, and
with another in its place it is broken. Trees and their apps are in trees.py.
"""

import contextlib
import json
import os
import re
import xml.sax.saxutils
from collections.abc import Iterator
from pathlib import Path

from dre.errors import DreError
from dre.images import DISK
from dre.run import run

from baselib.store import Store, octets

LIBVIRT = (Path("/etc/libvirt/qemu"), Path("/run/libvirt/qemu"))
_DEEPEST = 16  # overlays on each other


def refuse_image(store: Store, name: str) -> None:
    """Raise DreError while a system uses image *name*."""
    found = users(store, name)
    if found:
        raise DreError(f"{name}: used by {', '.join(found)}; destroy them first")


def users(store: Store, name: str) -> list[str]:
    """The systems and the processes that use image *name*, sorted."""
    directory = store.directory / name
    found = set(_domains(directory))
    for overlay in (store.conf.core_state_dir / "sys/state").glob("*/*.qcow2"):
        if _based(overlay, directory / DISK):
            found.add(overlay.parent.name)
    found |= {f"process {pid}" for pid in _holders(directory / DISK)}
    return sorted(found)


def _domains(directory: Path) -> Iterator[str]:
    """The domains that name a file of the image, or a disk with such a backing file."""
    names = re.compile(rb"(?<![\w.-])" + re.escape(xml.sax.saxutils.escape(str(directory)).encode()) + rb"/")
    for place in LIBVIRT:
        for file in place.glob("*.xml"):
            text = octets(file)
            disks = re.findall(rb"""<source file=(?:'([^']*)'|"([^"]*)")""", text)
            paths = [xml.sax.saxutils.unescape(os.fsdecode(single or double)) for single, double in disks]
            if names.search(text) or any(_based(Path(path), directory / DISK) for path in paths):
                yield file.stem


def _based(overlay: Path, disk: Path) -> bool:
    """Whether *disk* is below *overlay*, or the same. Each file is asked for its own header alone."""
    for _ in range(_DEEPEST):
        if overlay == disk or _same(overlay, disk):
            return True
        if not overlay.is_file():
            return False
        argv = ["qemu-img", "info", "-U", "--output=json", str(overlay.absolute())]
        done = run(argv, timeout=30, check=False)
        below = json.loads(done.stdout).get("full-backing-filename") if done.returncode == 0 else None
        if below is None:
            return False
        overlay = Path(below)
    return False


def _same(one: Path, other: Path) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return one.samefile(other)
    return False


def _holders(disk: Path) -> Iterator[int]:
    """The processes that have *disk* open."""
    with contextlib.suppress(OSError):
        wanted = disk.stat()
        for entry in os.scandir("/proc"):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    for link in os.scandir(f"/proc/{entry.name}/fd"):
                        with contextlib.suppress(OSError):
                            held = Path(link.path).stat()
                            if (held.st_dev, held.st_ino) == (wanted.st_dev, wanted.st_ino):
                                yield int(entry.name)
                                break
