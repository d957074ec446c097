# SPDX-License-Identifier: Apache-2.0
"""A system as one file: a backup, or the way to a host that cannot be reached.

The file is what dre.packing makes: `manifest.json`, then the disks as qcow2 images that need no other file. Whoever
reads it trusts nothing in it: the description is read as words that somebody typed, a disk must be what the manifest
says and must not name other files, and the definition is made anew. Saved states and what virsh changed stay behind.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from dre import event, images, packing, sshd
from dre.errors import DreError, NotFoundError, UsageError
from dre.images import Image
from dre.run import run
from dre.spec import DHCP
from dre.system import building, copying, hypervisor, saved
from dre.system import domain as definitions
from dre.system.building import Wanted
from dre.system.model import System
from dre.system.saved import SNAPSHOT
from dre.system.spec import Spec

FORMAT = "dre-sys/1"
_BLOCK = 1 << 20
_MOST_VCPUS = 1 << 12


def export(system: System, out: IO[bytes], tag: str | None, *, compress: bool) -> None:
    """Write the stopped system to *out*, or the disks of its snapshot *tag*."""
    spec = system.ours()
    if tag is None:
        copying.need_stopped(system)
    else:
        saved.find(system, tag, SNAPSHOT)
    top = copying.definition(system)
    disks = copying.own_disks(system, top)
    packed = [system.home / f".export-{path.name}" for path in disks]  # as large as what the disks hold
    try:
        for path, whole in zip(disks, packed, strict=True):
            copying.copy(path, whole, tag, whole=True)
        head = {
            "format": FORMAT,
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
        spec, wanted = _accepted(system, described, virt, request, say)
        disks = [_disk(number, item) for number, item in enumerate(incoming.head["disks"])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"not the description of a system: {error!r}") from None

    def fill(home: Path) -> list[Path]:
        made = []
        try:
            for name, length, sha256 in disks:
                _unpack(incoming.member(name), home / name, length, sha256)
                images.inspect(home / name, ("qcow2",))
                made.append(home / name)
            if incoming.tar.next() is not None:
                raise DreError(f"{system.name}: refused: the archive holds more than it says")
        except tarfile.TarError as error:
            raise DreError(f"{system.name}: the archive is damaged: {error}") from None
        return made

    wanted.fill = fill
    building.need_free(system)
    made = building.create(system, spec, _address(described), wanted)
    system.emit("imported", was=incoming.name)
    return made


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
