# SPDX-License-Identifier: Apache-2.0
"""Images that people bring: a disk in any format of virtual machines becomes a qcow2 in the store. Looks at no content.

The file may be hostile and may change at any time: what is judged and converted is a copy of it.
"""

from pathlib import Path

from dre.errors import DreError, NotFoundError, UsageError
from dre.images import DISK, FORMATS, inspect
from dre.run import need, run

from baselib import disk, images, usage
from baselib.debian import MORTAL, Progress
from baselib.store import BUILD_TIMEOUT, Store


def take(store: Store, name: str, file: Path, format: str | None, replace: bool, progress: Progress) -> None:
    """Make image *name* of the disk in *file*, of *format* or as it shows.

    Raises NotFoundError when there is no such file, UsageError for what is no disk of one file, and DreError for a
    taken name.
    """
    need("qemu-img")
    if not file.exists():
        raise NotFoundError(f"{file}: no such file")
    if not file.is_file():  # a FIFO would keep us waiting, a device has no end
        raise UsageError(f"{file}: not an image: not a regular file")
    with store.locked(name, timeout=BUILD_TIMEOUT):
        if store.there(name, "image"):
            if not replace:
                raise DreError(f"{name}: already there; use --replace")
            usage.refuse_image(store, name)
        with store.making(name) as new:
            new.mkdir(mode=0o700)
            copy = new / "copy"
            progress("copying")
            argv = [*MORTAL, "cp", "--reflink=auto", "--sparse=auto", "--no-preserve=all", "--"]
            run([*argv, str(file.absolute()), str(copy)], timeout=BUILD_TIMEOUT)
            found, size = _judge(copy, file, format)
            progress(f"converting from {found}")
            disk.convert(copy, new / DISK, found)
            copy.unlink()
            progress("digests")
            images.seal(new, {"name": name, "size": size, "imported": True})


def _judge(copy: Path, file: Path, format: str | None) -> tuple[str, int]:
    """Format and virtual size of the disk in *copy*; errors speak of *file*."""
    if format == "raw":  # as it is, whatever stands at its beginning
        size = copy.stat().st_size
        if size == 0:
            raise UsageError(f"{file}: not an image: empty")
        return "raw", size
    try:
        return inspect(copy, FORMATS if format is None else (format,))
    except UsageError as error:
        raise UsageError(str(error).replace(str(copy), str(file))) from None
