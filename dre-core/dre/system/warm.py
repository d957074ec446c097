# SPDX-License-Identifier: Apache-2.0
"""Warm start: a guest of an image that was booted once and saved, from which a new system goes on within seconds.

One warm state per image, memory, number of processors and QEMU: its disk, onto which those of new systems are layered,
and libvirt's save file. A system made of it shares nothing that tells machines apart: name, address, MAC, machine id,
ssh host keys and random numbers are its own before its link is up.
"""

import contextlib
import hashlib
import json
import secrets
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from dre import event, files
from dre.conf import Conf
from dre.errors import DreError
from dre.images import Image
from dre.run import need, run
from dre.spec import DHCP
from dre.system import address, building, hypervisor, isolation, lifecycle, resident, savefile, virt
from dre.system import domain as definitions
from dre.system.agent import Agent
from dre.system.model import System
from dre.system.spec import Spec

BOOT_WAIT = 600.0  # seconds for the image to boot once; under TCG it takes a minute
KEPT = 4  # warm states that nothing uses
# Before it is saved: nothing of it that must differ may be there, and no service may use what is still to come. Its
# disk has no machine id, so that a system that has to boot from it makes one of its own.
_SETTLE = """
systemctl is-system-running --wait >/dev/null || true
systemctl stop ssh ssh.socket 2>/dev/null || true
rm -f /etc/ssh/ssh_host_*
cp /etc/machine-id /run/dre-machine-id
: >/etc/machine-id
ip link set eth0 down
sync
"""


@dataclass(frozen=True)
class Warm:
    """A warm state in *directory*: disk.qcow2, state, head, meta.json."""

    directory: Path

    @property
    def disk(self) -> Path:
        """What new disks are layered on."""
        return self.directory / "disk.qcow2"

    @property
    def state(self) -> Path:
        """libvirt's save file."""
        return self.directory / "state"

    def whole(self) -> bool:
        """Whether it was made to its end: the description is written last."""
        return (self.directory / "meta.json").exists()


def find(conf: Conf, key: str) -> Warm:
    """The warm state *key*, which may or may not exist."""
    return Warm(conf.core_state_dir / "sys" / "warm" / key)


def key(image: Image, kind: str, memory: int, vcpus: int) -> str:
    """What a warm state depends on, as its name."""
    qemu = Path(need(virt.QEMU)).stat()
    told = [image.manifest.get("sha256"), str(image.disk), kind, memory, vcpus, qemu.st_size, qemu.st_mtime_ns]
    told += [_SETTLE, resident.PROGRAM]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


def make(conf: Conf, image: Image, kind: str, memory: int, vcpus: int, progress: Callable[[str], None]) -> str:
    """Have a warm state of *image*, booting it once where there is none; returns its key.

    Raises DreError and its children, with nothing left.
    """
    if image.kernel is None:
        raise DreError(f"{image.name}: cannot be warm: it is not an image of dre-base")
    name = key(image, kind, memory, vcpus)
    warm = find(conf, name)
    with files.lock(conf.core_run_dir / "lock" / f"warm-{name}", timeout=BOOT_WAIT + 60):
        if not warm.whole():
            _build(conf, warm, image, kind, memory, vcpus, progress)
    return name


def _build(
    conf: Conf, warm: Warm, image: Image, kind: str, memory: int, vcpus: int, progress: Callable[[str], None]
) -> None:
    template = System(conf, f"warm-{warm.directory.name}")
    lifecycle.remove(template)  # of one that was killed
    shutil.rmtree(warm.directory, ignore_errors=True)
    _forget_oldest(warm.directory.parent)
    warm.directory.mkdir(parents=True, mode=0o711)
    spec = Spec(template.name, image.name, event.stamp(), "", ssh_keys=())
    wanted = building.Wanted(image, kind, memory, vcpus)
    try:
        building.create(template, spec, DHCP, wanted)
        isolation.isolate(template, True)  # nobody shall get to know it
        progress("boots once")
        lifecycle.start(template)
        lifecycle.wait_usable(template, BOOT_WAIT)
        domain = template.need()
        agent = Agent(template.name, domain)
        ended = agent.run(["/bin/sh", "-c", _SETTLE], timeout=BOOT_WAIT)
        if ended.status != 0:
            raise DreError(f"{image.name}: cannot be warm: {ended.stderr.decode(errors='replace').strip()[-200:]}")
        resident.begin(agent)
        progress("is saved")
        with hypervisor.translated(f"{image.name}: cannot be saved"):
            domain.save(str(warm.state))
        template.disk.rename(warm.disk)
        warm.disk.chmod(0o444)
        files.write_atomic(warm.directory / "meta.json", json.dumps({"image": image.name, "memory": memory}) + "\n")
    except BaseException:
        shutil.rmtree(warm.directory, ignore_errors=True)
        raise
    finally:
        with contextlib.suppress(DreError):
            lifecycle.stop(template, 0.0)
        lifecycle.remove(template)


def _forget_oldest(place: Path) -> None:
    """Remove what is more than KEPT warm states that no disk is layered on."""
    if not place.is_dir():
        return
    used = {_below(disk) for disk in (place.parent / "state").glob("*/*.qcow2")}
    free = [entry for entry in place.iterdir() if entry / "disk.qcow2" not in used]
    for entry in sorted(free, key=lambda path: path.stat().st_mtime)[: max(len(free) - KEPT, 0)]:
        shutil.rmtree(entry)


def _below(disk: Path) -> Path | None:
    done = run(["qemu-img", "info", "-U", "--output=json", str(disk)], check=False, timeout=30)
    found = json.loads(done.stdout).get("full-backing-filename") if done.returncode == 0 else None
    return Path(found) if found else None


def awake(system: System, spec: Spec) -> None:
    """Let the new system *system* go on from its warm state, as a machine of its own. Raises DreError and children."""
    warm = find(system.conf, str(spec.warm))
    if not warm.whole():
        raise DreError(f"{system.name}: its warm state is not there any more")
    with files.lock(system.conf.core_run_dir / "lock" / f"warm-{spec.warm}", timeout=120):
        _introduce(system, warm)
        with hypervisor.translated(f"{system.name}: warm start"):
            hypervisor.connect(system.conf).restore(str(warm.state))
    tell(system, spec)


def _introduce(system: System, warm: Warm) -> None:
    """Put the definition of *system* into the save file. Raises DreError for a file of another kind."""
    kept = warm.directory / "head"  # as libvirt wrote it: in the file itself is that of the last one, or half of it
    if not kept.exists():
        files.write_atomic(kept, savefile.head(warm.state))
    savefile.rewrite(warm.state, kept.read_bytes(), lambda top: _become(system, top))


def _become(system: System, top: Element) -> None:
    """Make the definition of the running template that of *system*."""
    own = definitions.parse(system.need().XMLDesc(0))
    for tag in ("name", "uuid", "genid"):
        _one(top, tag).text = _one(own, tag).text
    template = System(system.conf, f"warm-{system.ours().warm}")
    for item in top.iter():
        for where in ("file", "path"):
            text = item.get(where, "")
            if text == str(template.log):
                item.set(where, str(system.log))
            elif text.startswith(f"{template.home}/"):
                item.set(where, f"{system.home}/{text.removeprefix(f'{template.home}/')}")
    for mine, theirs in zip(top.iterfind("devices/interface"), own.iterfind("devices/interface"), strict=True):
        for tag, attribute in (("mac", "address"), ("target", "dev")):
            _one(mine, tag).set(attribute, _one(theirs, tag).get(attribute, ""))
    backing = top.find("devices/disk/backingStore")
    if backing is not None:  # there is one layer more than the template had
        _one(top, "devices/disk").remove(backing)


def _one(top: Element, path: str) -> Element:
    """What stands at *path*. Raises ValueError where nothing does."""
    found = top.find(path)
    if found is None:
        raise ValueError(f"{path} is missing")
    return found


def tell(system: System, spec: Spec) -> None:
    """Give the guest what is its own, then its link; may be repeated."""
    agent = Agent(system.name, system.need())
    agent.wait(time.monotonic() + 60)
    variables = {
        "NOW": f"{time.time():.6f}",
        "SEED": secrets.token_hex(64),
        "MACHINE": uuid.uuid4().hex,
        "NAME": spec.name,
        "KEYS": "".join(f"{line}\n" for line in spec.ssh_keys),
        "MAC": spec.mac,
        "NETWORK": _network(system.conf, spec),
    }
    resident.wake(agent, variables, timeout=120)
    if not spec.isolated:
        isolation.apply(system, False)


def _network(conf: Conf, spec: Spec) -> str:
    """A file of systemd.network(5) for a fixed address; nothing for DHCP."""
    if spec.ip in (None, DHCP):
        return ""
    lines = ["[Match]", "Name=eth0", "[Network]", f"Address={spec.ip}"]
    way = address.gateway(conf, str(spec.ip))
    lines += [f"Gateway={way}"] if way else []
    lines += [f"DNS={server}" for server in address.name_servers(conf)]
    return "".join(f"{line}\n" for line in lines)
