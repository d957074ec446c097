# SPDX-License-Identifier: Apache-2.0
"""A system as one file: a backup, or the way to a host that cannot be reached.

The file is what dre.packing makes: `manifest.json`, then the disks as qcow2 images that need no other file. Whoever
reads it trusts nothing in it: the description is read as words that somebody typed, a disk must be what the manifest
says and must not name other files, and the definition is made anew. Saved states and what virsh changed stay behind.

Of a system on an image of dre-base the disk may be without what that holds. It names no other file then either: the
manifest has the sha256 of the image, and the disk is put on the one here that has the same.
"""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from dre import event, images, packing, sshd
from dre.errors import DreError, NotFoundError, UsageError
from dre.images import Image
from dre.run import run
from dre.spec import DHCP
from dre.system import building, carrying, copying, hypervisor, saved
from dre.system import domain as definitions
from dre.system.building import Wanted
from dre.system.model import System
from dre.system.saved import SNAPSHOT
from dre.system.spec import Spec

FORMAT, ONTO = "dre-sys/1", "dre-sys-onto/1"  # two: a version that knows only the first must not take the second
_BLOCK = 1 << 20
_MOST_VCPUS = 1 << 12


def export(system: System, out: IO[bytes], tag: str | None, *, compress: bool, onto_image: bool = False) -> None:
    """Write the stopped system to *out*, or the disks of its snapshot *tag*.

    With *onto_image* the first disk is without what its image holds.
    """
    spec = system.ours()
    if tag is None:
        copying.need_stopped(system)
    else:
        saved.find(system, tag, SNAPSHOT)
    top = copying.definition(system)
    disks = copying.own_disks(system, top)
    image = _need_image(system, spec) if onto_image else None
    packed = [system.home / f".export-{path.name}" for path in disks]  # as large as what the disks hold
    try:
        for number, (path, whole) in enumerate(zip(disks, packed, strict=True)):
            if image is not None and number == 0:
                _changes(system, path, whole, tag, image)
            else:
                copying.copy(path, whole, tag, whole=True)
        head = {
            "format": FORMAT if image is None else ONTO,
            "onto": None if image is None else image.manifest["sha256"],
            "name": system.name,
            "exported": event.stamp(),
            "system": _description(system, spec, top),
            "disks": [{"name": path.name, **_about(whole)} for path, whole in zip(disks, packed, strict=True)],
        }
        with packing.compressor(out, compress) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            octets = json.dumps(head, indent=1).encode()
            packing.add(tar, "manifest.json", io.BytesIO(octets), len(octets))
            for path, whole in zip(disks, packed, strict=True):
                with whole.open("rb") as content:
                    packing.add(tar, path.name, content, whole.stat().st_size)
    finally:
        for whole in packed:
            whole.unlink(missing_ok=True)
    system.emit("exported", tag=tag)


def _need_image(system: System, spec: Spec) -> Image:
    """The image of dre-base that it is on. Raises DreError where there is none."""
    found = _image(system, spec.base)
    if found is None or not found.manifest.get("sha256"):
        text = "is not an image of dre-base, by whose name and sha256 it could be found again"
        raise DreError(f"{system.name}: {spec.base} {text}; export it without --without-image")
    return found


def _changes(system: System, disk: Path, into: Path, tag: str | None, image: Image) -> None:
    """Write to *into* what *disk* holds, or held at *tag*, other than the image."""
    depth = len(carrying.chain(disk))
    if carrying.chain(disk)[-1]["filename"] != str(image.disk):
        raise DreError(f"{system.name}: its disk is not on {image.disk} any more; export it without --without-image")
    if depth > 2 and tag is not None:
        text = "it began with a warm start, and its snapshots are on that; export them without --without-image"
        raise DreError(f"{system.name}: {text}")
    if depth > 2:
        with tempfile.TemporaryDirectory(dir=system.home, prefix=".export-") as work:
            piece = carrying.Piece(image.disk, image.disk)
            copying.copy(carrying.rebased(disk, Path(work), piece), into, None)
    else:
        copying.copy(disk, into, tag)
    run(["qemu-img", "rebase", "-u", "-b", "", str(into)], timeout=60)


def _description(system: System, spec: Spec, top: Any) -> dict[str, Any]:
    with hypervisor.translated(system.name):
        domain = system.need()
        memory, vcpus = domain.maxMemory() * 1024, domain.vcpusFlags()
    boot = top.find("os")
    return {
        "base": spec.base,
        "image": _image_digest(system, spec),
        "memory": memory,
        "vcpus": vcpus,
        "ip": spec.ip,
        "uefi": boot is not None and boot.get("firmware") == "efi",
        "cloud": spec.cloud,
        "ssh_keys": list(spec.ssh_keys),
    }


def _image_digest(system: System, spec: Spec) -> str | None:
    """The digest of the image that its kernel belongs to."""
    found = _image(system, spec.base)
    return str(found.manifest.get("sha256")) if found and found.kernel else None


def _image(system: System, base: str) -> Image | None:
    try:
        return images.find(system.conf, base)
    except (NotFoundError, UsageError):
        return None


def _about(disk: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with disk.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return {"length": disk.stat().st_size, "sha256": digest.hexdigest()}


def take(
    system: System, incoming: packing.Incoming, virt: str, request: str | None, say: Callable[[str], object]
) -> Spec:
    """Make the new system *system* of an archive. Raises DreError, with nothing made, when it is damaged or hostile."""
    try:
        described = dict(incoming.head["system"])
        onto = _onto(system, described, incoming.head)
        spec, wanted = _accepted(system, described, virt, request, say)
        disks = [_disk(number, item) for number, item in enumerate(incoming.head["disks"])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"not the description of a system: {error!r}") from None

    def fill(home: Path) -> list[Path]:
        made: list[Path] = []
        try:
            for name, length, sha256 in disks:
                _unpack(incoming.member(name), home / name, length, sha256)
                images.inspect(home / name, ("qcow2",))
                if onto is not None and not made:
                    words = ["-b", str(onto.disk), "-F", onto.format]
                    run(["qemu-img", "rebase", "-u", *words, str(home / name)], timeout=60)
                made.append(home / name)
            if incoming.tar.next() is not None:
                raise DreError(f"{system.name}: refused: the archive holds more than it says")
        except tarfile.TarError as error:
            raise DreError(f"{system.name}: the archive is damaged: {error}") from None
        return made

    wanted.fill, wanted.say = fill, say
    building.need_free(system)
    made = building.create(system, spec, _address(described), wanted)
    system.emit("imported", was=incoming.name)
    return made


def _onto(system: System, described: Mapping[str, Any], head: Mapping[str, Any]) -> Image | None:
    """The image here that the first disk goes onto, or None. Raises NotFoundError where there is no such image."""
    if head["format"] == FORMAT:
        return None
    base, digest = str(described["base"]), str(head["onto"])
    found = _image(system, base)
    if found is None or found.manifest.get("sha256") != digest:
        what = "is another one here" if found else "is not here"
        told = f"the image {base if base.isprintable() else 'of it'}, with the sha256 {digest[:16]}, {what}"
        raise NotFoundError(f"{system.name}: {told}; it was exported --without-image")
    return found


def _address(described: Mapping[str, Any]) -> str | None:
    """None, the next free one: another system may have the old one by now."""
    return {None: "none", DHCP: DHCP}.get(described["ip"])


def _accepted(
    system: System, described: dict[str, Any], virt: str, request: str | None, say: Callable[[str], object]
) -> tuple[Spec, Wanted]:
    memory, vcpus = int(described["memory"]), int(described["vcpus"])
    if not 1 << 20 <= memory < 1 << 50 or not 0 < vcpus <= _MOST_VCPUS:
        raise ValueError(f"memory {memory}, vcpus {vcpus}")
    base = str(described["base"])
    image = _image(system, base)
    if image and (not image.kernel or image.manifest.get("sha256") != described["image"]):
        image = None
    if image is None and described["image"]:
        say(f"{system.name}: the image {base} is another here, or not there; it boots by what is on its own disk")
    keys = tuple(str(key) for key in described["ssh_keys"])
    if not all(map(sshd.is_key, keys)):
        raise ValueError("ssh_keys")
    spec = Spec(
        name=system.name,
        base=base if base.isprintable() else "unknown",
        created=event.stamp(),
        mac="",
        ssh_keys=keys,
        request=request,
        cloud=described["cloud"] is True,
    )
    return spec, Wanted(image, virt, memory, vcpus, uefi=described["uefi"] is True)


def _disk(number: int, item: Mapping[str, Any]) -> tuple[str, int, str]:
    """Name, length and digest of a disk. Raises ValueError for a name that is not the one it must have."""
    expected = "disk.qcow2" if number == 0 else f"disk{number + 1}.qcow2"
    if item["name"] != expected or number >= len(definitions.DISKS):
        raise ValueError(f"disk {number + 1} is called {item['name']!r}")
    return expected, int(item["length"]), str(item["sha256"])


def _unpack(content: IO[bytes], into: Path, length: int, sha256: str) -> None:
    digest, left = hashlib.sha256(), length
    with into.open("xb") as stream:
        into.chmod(0o600)
        while block := content.read(_BLOCK):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            if block.strip(b"\0"):
                stream.write(block)
            else:
                stream.seek(len(block), 1)  # a hole, as it was
        stream.truncate()
    if left or digest.hexdigest() != sha256:
        raise DreError(f"{into.name}: not what the archive says of it: damaged, or changed")
    run(["sync", "--file-system", str(into)], timeout=600)
