# SPDX-License-Identifier: Apache-2.0
"""Images that systems are based on: where one lies, and whether a file is one. Makes and changes none; see dre-base.

An image NAME is the directory {state}/base/NAME with `image.qcow2`, `image.json` (its manifest) and, for direct boot,
`vmlinuz` and `initrd.img`. A file may be hostile: what would make QEMU open a second file is refused.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dre import trees, units
from dre.conf import Conf
from dre.errors import NotFoundError, UsageError
from dre.run import run

MANIFEST, DISK, KERNEL, INITRD = "image.json", "image.qcow2", "vmlinuz", "initrd.img"
FORMATS = ("qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc")
_DATA_FILE = 1 << 2  # the bit of qcow2's incompatible features for an external data file
# (offset, octets) of what tells a bootable disk or a file system from any other file: MBR, GPT, ext, XFS, btrfs.
_MAGIC = ((510, b"\x55\xaa"), (512, b"EFI PART"), (0x438, b"\x53\xef"), (0, b"XFSB"), (0x10040, b"_BHRfS_M"))


@dataclass(frozen=True)
class Image:
    """A disk to base a system on; *kernel*, *initrd* and *cmdline* are None where it boots by itself alone."""

    name: str
    directory: Path
    disk: Path
    kernel: Path | None
    initrd: Path | None
    cmdline: str | None
    manifest: dict[str, Any] = field(repr=False)
    format: str = "qcow2"
    size: int = 0  # virtual, in bytes


def find(conf: Conf, text: str) -> Image:
    """The image *text*: a name in the store, the path of an image's directory, or that of a disk's file.

    Raises NotFoundError where there is none, and UsageError for what is none or cannot be read.
    """
    path = Path(text).absolute() if "/" in text else conf.core_state_dir / "base" / units.name(text)
    if path.is_dir():
        return load(path)
    if "/" in text and path.exists():
        format, size = inspect(path)
        return Image(path.stem, path.parent, path, None, None, None, {}, format, size)
    hint = "" if "/" in text else f" in {path.parent}; dre-base --name {text} makes one"
    raise NotFoundError(f"{text}: no such image{hint}")


@contextlib.contextmanager
def used(conf: Conf, image: Image) -> Iterator[Image]:
    """*image* as it is now, which dre-base neither deletes nor replaces in this block: for who makes a disk on it.

    Raises NotFoundError where it has gone since it was found, and TimedOutError while dre-base works on it.
    """
    with trees.used(conf, str(image.directory)):
        if not image.disk.is_file():
            raise NotFoundError(f"{image.name}: no such image: it has just been deleted")
        yield load(image.directory) if image.manifest else image


def load(directory: Path) -> Image:
    """The image whose directory this is. Raises UsageError."""
    manifest = read_manifest(directory)
    format, size = inspect(directory / DISK, ("qcow2",))
    kernel, initrd, cmdline = directory / KERNEL, directory / INITRD, manifest.get("cmdline")
    if cmdline is None or not (kernel.is_file() and initrd.is_file()):
        return Image(directory.name, directory, directory / DISK, None, None, None, manifest, format, size)
    return Image(directory.name, directory, directory / DISK, kernel, initrd, str(cmdline), manifest, format, size)


def read_manifest(directory: Path) -> dict[str, Any]:
    """What `image.json` in *directory* says. Raises UsageError."""
    file = directory / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        tree = (directory / "bin/sh").exists() or (directory / "etc/dre-base.json").exists()
        kind = "a tree for apps, not an image" if tree else f"not an image: no {MANIFEST} in {directory}"
        raise UsageError(f"{directory.name}: {kind}") from None
    except ValueError as error:
        raise UsageError(f"{file}: not a manifest: {error}") from None
    if not isinstance(manifest, dict):
        raise UsageError(f"{file}: not a manifest: not an object")
    return manifest


def inspect(file: Path, formats: tuple[str, ...] = FORMATS) -> tuple[str, int]:
    """Format and virtual size of the disk in *file*, which needs no other file. Raises UsageError."""
    file = file.absolute()  # else QEMU takes what stands before a colon for a protocol
    _refuse_parents(file, _head(file))
    done = run(["qemu-img", "info", "-U", "--output=json", str(file)], timeout=30, check=False)
    try:
        told = json.loads(done.stdout) if done.returncode == 0 else {}
        format, size = str(told["format"]), int(told["virtual-size"])
    except (ValueError, KeyError, TypeError):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UsageError(f"{file}: not an image: {said[-1] if said else 'qemu-img knows no size of it'}") from None
    if format not in formats:
        raise UsageError(f"{file}: an image of format {format}, not {' or '.join(formats)}")
    data = told.get("format-specific", {}).get("data", {})
    if told.get("backing-filename") or data.get("data-file"):
        raise UsageError(f"{file}: it needs a second file; qemu-img convert makes one of both")
    if any(extent.get("filename") != str(file) for extent in data.get("extents", [])):
        raise UsageError(f"{file}: its content is in other files; qemu-img convert makes one of them")
    if told.get("encrypted"):
        raise UsageError(f"{file}: it is encrypted")
    if format == "raw" and not has_magic(file):
        raise UsageError(f"{file}: not an image: no format that qemu-img knows, no partition table, no file system")
    return format, size


def has_magic(file: Path) -> bool:
    """Whether the raw disk in *file* has a partition table or a file system."""
    with file.open("rb") as stream:
        for offset, octets in _MAGIC:
            stream.seek(offset)
            if stream.read(len(octets)) == octets:
                return True
    return False


def _head(file: Path) -> bytes:
    if not file.is_file():  # a device or a FIFO would be read, or waited for
        if file.exists():
            raise UsageError(f"{file}: not an image: not a regular file")
        raise UsageError(f"{file}: no such file")
    try:
        with file.open("rb") as stream:
            return stream.read(104)
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None


def _refuse_parents(file: Path, head: bytes) -> None:
    """Refuse before qemu-img sees it: to tell of a disk it opens, in some versions, what the header names."""
    second = f"{file}: its content is in another file; qemu-img convert makes one image of both"
    if head.startswith(b"# Disk DescriptorFile") or (head[:4] == b"KDMV" and not any(head[12:20])):  # vmdk
        raise UsageError(second)
    if head[:4] == b"QFI\xfb" and len(head) >= 72:
        version, backing = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:16], "big")
        if backing:
            raise UsageError(f"{file}: it has a backing file; qemu-img convert makes one image of both")
        if version >= 3 and int.from_bytes(head[72:80], "big") & _DATA_FILE:
            raise UsageError(second)
