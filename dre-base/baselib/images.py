# SPDX-License-Identifier: Apache-2.0
"""Images of systems: a disk that boots by itself, kernel and initramfs beside it, and the manifest. Built in a store.

First a root file system with the packages that every image has, from the cache while the archives have no newer
versions; then the packages asked for; then the steps, each one change; then the disk. Images that people bring are
in importing.py; what the reader of an image relies on is dre.images.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from dre import event, files
from dre.errors import DreError, UsageError
from dre.images import DISK, INITRD, KERNEL, MANIFEST, read_manifest
from dre.run import run

from baselib import debian, disk, layers, packages, sources, usage
from baselib.cache import Cache
from baselib.store import BUILD_TIMEOUT, Store, make_place, remove
from baselib.wish import Wish

STEPS = Path(__file__).resolve().parents[1] / "steps"
FIRST = "10-initramfs"  # before a kernel is installed; the others when all packages are
# One of several names: a pattern stands for nothing where the suite has no such package.
SYSTEM = (
    *(
        "systemd-sysv",
        "dbus",
        "udev",
        "openssh-server",
        "qemu-guest-agent",
        "iproute2",
        "iputils-ping",
        "procps",
        "kmod",
    ),
    *("netbase", "ca-certificates", "initramfs-tools", "zstd", "?exact-name(systemd-resolved)"),
    "?exact-name(systemd-repart)",
)
KERNELS = ("?exact-name(linux-image-amd64)", "?exact-name(linux-image-generic)")
# What mmdebstrap would clean away and we still use; and no waiting for the disk while nothing is of worth yet.
_OPTIONS = (
    "--skip=check/empty,cleanup/apt,download/empty,essential/unlink",
    "--dpkgopt=force-unsafe-io",
)


@dataclass(frozen=True)
class ImageWish:
    """What an image is to be: packages, the virtual size of its disk in bytes, keys that root comes in with."""

    wish: Wish
    size: int
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size < disk.LEAST:
            raise UsageError(f"--size {self.size}: less than {disk.LEAST >> 20}M, which no system fits into")


@dataclass(frozen=True)
class Manifest:
    """What an image was made from and what is in it; what an imported one does not tell is None."""

    name: str
    size: int  # virtual
    sha256: str  # of the disk's file
    created: str
    imported: bool
    format: str = "qcow2"
    suite: str | None = None
    mirror: str | None = None
    wanted: list[str] | None = None
    ssh_keys: list[str] | None = None
    cmdline: str | None = None
    kernel: str | None = None  # its version
    kernel_sha256: str | None = None
    initrd_sha256: str | None = None
    source_date_epoch: int | None = None
    packages_sha256: str | None = None
    packages: dict[str, str] | None = field(default=None, repr=False)


def create(
    store: Store, name: str, wish: ImageWish, *, replace: bool, older: float | None, progress: debian.Progress
) -> bool:
    """Make image *name*; False when it is there already from the same wish, or made within the last *older* seconds.

    Raises DreError when it is there from another wish and not *replace*, when a system uses it, or a program fails.
    """
    with store.locked(name, timeout=BUILD_TIMEOUT):
        if store.there(name, "image"):
            made = manifest(store, name)
            if older is not None:
                replace = replace or time.time() - event.seconds(made.created) > older
            if not replace:
                if same(made, wish):
                    return False
                raise DreError(f"{name}: already there, made with other options; use --replace")
            usage.refuse_image(store, name)
        disk.check_tools()
        epoch = source_date_epoch()
        sources.look_up(wish.wish)
        with store.making(name) as new:
            new.mkdir(mode=0o700)
            _build(store, new, name, wish, epoch, progress)
        return True


def same(made: Manifest, wish: ImageWish) -> bool:
    """Whether *made* came from *wish*."""
    asked = (wish.wish.suite, wish.wish.mirror, wish.wish.wanted, wish.size, list(wish.keys))
    return (made.suite, made.mirror, made.wanted, made.size, made.ssh_keys) == asked


def manifest(store: Store, name: str) -> Manifest:
    """The manifest of image *name*. Raises NotFoundError, and UsageError where it cannot be read."""
    directory = store.path(name)
    told = read_manifest(directory)
    try:
        made = Manifest(**told)
        if made.packages is not None and not isinstance(made.packages, dict):
            raise TypeError("packages is not an object")
        return made
    except TypeError as error:
        raise UsageError(f"{directory / MANIFEST}: not a manifest: {error}") from None


def findings(store: Store, name: str) -> Iterator[packages.Finding]:
    """Where the files of image *name* are not what its manifest says. Raises as `manifest` does, and MissingError."""
    with store.locked(name):
        directory, made = store.path(name), manifest(store, name)
        if made.packages is not None:
            yield from packages.altered(made.packages, str(made.packages_sha256))
        for kind, file, expected in (
            ("disk", DISK, made.sha256),
            ("kernel", KERNEL, made.kernel_sha256),
            ("initrd", INITRD, made.initrd_sha256),
        ):
            found = _digest(directory / file) if (directory / file).is_file() else None
            if found != expected:
                yield {"finding": kind, "package": None, "expected": expected, "found": found}
        if (directory / DISK).is_file():
            done = run(["qemu-img", "check", "-q", "-f", "qcow2", str(directory / DISK)], timeout=600, check=False)
            if done.returncode != 0:
                said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
                yield {"finding": "structure", "package": None, "expected": "no errors", "found": said[-1]}


def seal(new: Path, made: dict[str, Any]) -> None:
    """Add the digests of the files in *new* to *made*, and write it as the last file; all of it is then durable."""
    for file in (DISK, KERNEL, INITRD):
        if (new / file).exists():
            (new / file).chmod(0o644)
            files.fsync(new / file)
    for key, file in (("kernel_sha256", KERNEL), ("initrd_sha256", INITRD)):
        made[key] = _digest(new / file) if (new / file).exists() else None
    finished = Manifest(created=event.stamp(), sha256=_digest(new / DISK), **made)
    new.chmod(0o755)  # libvirt's QEMU is another user
    files.write_atomic(new / MANIFEST, json.dumps(asdict(finished), indent=1) + "\n")


def source_date_epoch() -> int | None:
    """SOURCE_DATE_EPOCH: no time in the image shall be later. Raises UsageError."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 32):
        raise UsageError(f"SOURCE_DATE_EPOCH={text!r}: not a time in seconds")
    return int(text)


def _build(store: Store, new: Path, name: str, wish: ImageWish, epoch: int | None, progress: debian.Progress) -> None:
    ids = disk.Ids(None if epoch is None else json.dumps([epoch, asdict(wish)]))
    root_uuid = ids.uuid("root")
    cmdline = f"root=UUID={root_uuid} rw console=tty0 console=ttyS0 net.ifnames=0 quiet"
    given = {"DRE_ROOT": f"UUID={root_uuid}", "DRE_CMDLINE": cmdline, "DRE_KEYS": "\n".join(wish.keys)}
    with _system(store, new, wish.wish, epoch, progress) as root:
        for step in sorted(STEPS.iterdir()):
            if step.name != FIRST:
                progress(f"step {step.name}")
                run([*debian.MORTAL, str(step), str(root)], env=given)
        disk.need_room(root, wish.size)
        held = packages.installed(root)
        version = _take_kernel(root, new)
        ordered = root if epoch is None else _in_order(root, new / "ordered", epoch)
        progress("writing the disk")
        disk.make(ordered, new / "disk.raw", wish.size, root_uuid, ids, epoch)
    progress("converting to qcow2")
    disk.convert(new / "disk.raw", new / DISK)
    for entry in new.iterdir():
        if entry.name not in (DISK, KERNEL, INITRD):
            remove(entry) if entry.is_dir() else entry.unlink()
    progress("digests")
    seal(
        new,
        {
            **{
                "name": name,
                "size": wish.size,
                "imported": False,
                "suite": wish.wish.suite,
                "mirror": wish.wish.mirror,
            },
            **{"wanted": wish.wish.wanted, "ssh_keys": list(wish.keys), "cmdline": cmdline, "kernel": version},
            **{"source_date_epoch": epoch, "packages": held, "packages_sha256": packages.sha256(held)},
        },
    )


@contextlib.contextmanager
def _system(store: Store, new: Path, wish: Wish, epoch: int | None, progress: debian.Progress) -> Iterator[Path]:
    """A root file system with the packages of every image and those of *wish*, to be changed as one likes."""
    own = [package for package in wish.wanted if package.startswith("linux-image-")]
    more = [package for package in wish.wanted if package not in own]
    include = [*SYSTEM, *(own or KERNELS)]
    cache = Cache(store.conf, store.directory)
    host = "" if wish.mirror else sources.of_host(wish.suite)
    words = [wish.suite, wish.mirror or "", host, *sources.apt_options(), *include, *debian.OPTIONS, *_OPTIONS]
    words += [(STEPS / FIRST).read_text(), str(epoch)]
    progress("looking for a kept system")
    with cache.root(words) as kept:
        if kept is not None:
            with layers.over(kept, new / "kept") as root:
                progress(f"asking the archives for newer versions than are in {kept}")
                if not debian.outdated(root):
                    _install(cache, root, more, new / "debs", progress)
                    yield root
                    return
            progress("there are newer versions: making it anew")
    base = new / "base"
    archives = base / "var/cache/apt/archives"
    cache.lend(archives)
    bare = changed(wish, packages=())
    debian.bootstrap(base, bare, progress, include, [*_OPTIONS, f"--essential-hook={STEPS / FIRST}"])
    _copy_keys(host, base)
    cache.collect(archives)
    with layers.over(base, new / "fresh") as root:
        _install(cache, root, more, new / "debs", progress)
        yield root
    progress("keeping the system for the next time")
    cache.keep(words, base)


def _install(cache: Cache, root: Path, wanted: list[str], archives: Path, progress: debian.Progress) -> None:
    if wanted:
        progress(f"installing {', '.join(wanted)}")
        cache.lend(archives)
        debian.install(root, wanted, archives)
        cache.collect(archives)


def _copy_keys(host: str, root: Path) -> None:
    """The keyrings that the host's sources name, for the system has the same sources."""
    for line in host.splitlines():
        if line.startswith("Signed-By:"):
            for word in line.split()[1:]:
                place = root / word.lstrip("/")
                if word.startswith(("/usr/share/keyrings/", "/etc/apt/keyrings/")) and not place.exists():
                    make_place(place.parent)
                    shutil.copyfile(word, place)


def _take_kernel(root: Path, new: Path) -> str:
    """Copy kernel and initramfs that the links in *root* name; return the version. Raises DreError."""
    for links in (root, root / "boot"):  # Debian's, Ubuntu's
        try:
            names = [(links / name).readlink().name for name in (KERNEL, INITRD)]
        except OSError:
            continue
        for name, target in zip(names, (KERNEL, INITRD), strict=True):
            shutil.copyfile(root / "boot" / name, new / target)
        return names[0].removeprefix("vmlinuz-")
    raise DreError("no kernel in the image: no link vmlinuz in it")


def _in_order(root: Path, ordered: Path, epoch: int) -> Path:
    """*root* anew in the order of names, for mke2fs takes files in that of the directory; no time is after *epoch*."""
    ordered.mkdir()
    tar = ordered.with_suffix(".tar")
    common = [*debian.MORTAL, "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls"]
    clamp = ["--sort=name", f"--mtime=@{epoch}", "--clamp-mtime"]
    run([*common, *clamp, "-cf", str(tar), "-C", str(root), "."], timeout=600)
    run([*common, "-xpf", str(tar), "-C", str(ordered)], timeout=600)
    tar.unlink()
    return ordered


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
