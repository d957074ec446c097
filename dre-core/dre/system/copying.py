# SPDX-License-Identifier: Apache-2.0
"""A second system like a stopped one, and another name for one. Wants the locks of both names.

A clone is another machine: address, MAC, machine id and ssh host keys are its own. A renamed system stays what it was,
with all its saved states.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from dre import event, network
from dre.errors import DreError, TimedOutError
from dre.run import run
from dre.system import address, building, hypervisor, identity, isolation, lifecycle, order, partition, saved, savefile
from dre.system import domain as definitions
from dre.system.model import RUNNING, System
from dre.system.saved import SNAPSHOT
from dre.system.spec import Spec

MEMORY = ".memory"  # in the home of one that is renamed while it runs
SAVE_WAIT = 300.0  # seconds for libvirt to save it
COPY_WAIT = 3600.0  # seconds for a disk to be copied
_MACHINE_ID = "systemd.machine_id="


def clone(source: System, new: System, tag: str | None, request: str | None) -> Spec:
    """Make *new* like the stopped system *source*, or like its snapshot *tag*. Raises DreError and its children."""
    old = source.ours()
    if tag is None:
        need_stopped(source)
    else:
        saved.find(source, tag, SNAPSHOT)
    building.need_free(new)
    top = definition(source)
    disks = own_disks(source, top)
    with network.reserved(new.conf):
        new.begin(verb="create")
        try:
            wanted = None if old.ip is not None and old.ip != "dhcp" else (old.ip or "none")
            spec = replace(
                old,
                name=new.name,
                created=event.stamp(),
                ip=address.choose(new.conf, new.name, wanted),
                mac=address.mac(new.conf, None, new.name),
                request=request,
                autostart=False,  # not before somebody has looked at it
                dedicated=(),
                fresh=not old.cloud,
            )
        except DreError:
            lifecycle.remove(new)
            raise
        new.store(spec, durable=False)
    try:
        for path in disks:
            copy(path, new.home / path.name, tag)
        new.log.parent.mkdir(parents=True, exist_ok=True)
        _make_other(new, top, spec, old.ip)
        with hypervisor.translated(f"{new.name}: cannot be defined"):
            hypervisor.connect(new.conf).defineXML(definitions.to_xml(top))
    except BaseException:
        lifecycle.remove(new)
        raise
    new.done()
    new.emit("created", base=spec.base, ip=spec.ip, source=source.name)
    return spec


def need_stopped(system: System) -> None:
    """Raise DreError while it runs."""
    state = system.state()
    if state in RUNNING:
        raise DreError(f"{system.name}: is {state}; stop it first")


def definition(system: System) -> Element:
    """What libvirt starts it with."""
    import libvirt

    with hypervisor.translated(system.name):
        xml = system.need().XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    return definitions.parse(xml)


def own_disks(system: System, top: Element) -> list[Path]:
    """Its disks. Raises DreError for one that is not ours: two systems must not write to it."""
    found = []
    for _, path, format in definitions.disks(top):
        if path.parent != system.home or format != "qcow2":
            raise DreError(f"{system.name}: its disk {path} is not dre-sys's; do that without it")
        found.append(path)
    return found


def copy(source: Path, target: Path, tag: str | None, whole: bool = False) -> None:
    """What *source* holds now, or held at *tag*, on the same image or *whole*; without its saved states."""
    import json

    told = json.loads(run(["qemu-img", "info", "-U", "--output=json", str(source)], timeout=30).stdout)
    argv = ["qemu-img", "convert", "-U", "-O", "qcow2"]
    if tag is not None:
        argv += ["-l", f"snapshot.name={tag}"]
    if told.get("full-backing-filename") and not whole:
        argv += ["-B", told["full-backing-filename"], "-F", told["backing-filename-format"]]
    run([*argv, str(source), str(target)], timeout=COPY_WAIT)
    target.chmod(0o600)


def _make_other(new: System, top: Element, spec: Spec, had: str | None) -> None:
    """Turn the definition *top* into that of *new*."""
    for gone in top.findall("uuid"):
        top.remove(gone)
    name = top.find("name")
    old = System(new.conf, (name.text if name is not None else None) or "")
    move(top, old, new)
    for number, made in enumerate(top.iterfind("devices/interface")):
        mac = made.find("mac")
        if mac is not None and number == 0 and had is not None:
            mac.set("address", spec.mac)
        elif mac is not None:
            made.remove(mac)
    partition.pin(top, (), [])
    identity.tell_guest(new, top, spec)
    line = top.find("os/cmdline")
    if line is not None:
        words = [word for word in (line.text or "").split() if not word.startswith(_MACHINE_ID)]
        line.text = " ".join([*words, _MACHINE_ID + secrets.token_hex(16)])


def move(top: Element, old: System, new: System) -> None:
    """Put the name *new* for *old*, and its places, into a definition."""
    for name in top.findall("name"):
        name.text = new.name
    for item in top.iter():
        for key in ("file", "path"):
            text = item.get(key, "")
            if text.startswith(f"{old.home}/"):
                item.set(key, f"{new.home}/{text.removeprefix(f'{old.home}/')}")
            elif text == str(old.log):
                item.set(key, str(new.log))
    for number, made in enumerate(top.iterfind("devices/interface")):
        source, target = made.find("source"), made.find("target")
        if source is not None and target is not None and source.get("bridge"):
            target.set("dev", definitions.link(source.get("bridge", ""), new.name, number))


def rename(old: System, new: System, running: bool = False) -> None:
    """Give the stopped system the name *new*; its saved states stay. With *running* it may run: its memory is saved
    meanwhile, and goes on under that name."""
    spec = old.ours()
    alive = running and old.state() in RUNNING
    if not alive:
        need_stopped(old)
    building.need_free(new)
    others = order.dependents(old.conf, old.name)
    if others:
        raise DreError(f"{old.name}: {', '.join(others)} is after it; change that first")
    top = definition(old)
    move(top, old, new)
    if not spec.cloud:  # its seed is made anew when it has its place
        identity.tell_guest(new, top, replace(spec, name=new.name))
    found = []
    for state in states(old):
        one = definitions.parse(state)
        for kind in ("domain", "inactiveDomain"):
            for inner in one.findall(kind):
                move(inner, old, new)
        found.append(definitions.to_xml(one))
    xml = definitions.to_xml(top)
    old.begin(verb="rename", old=old.name, new=new.name, domain=xml, states=found, memory=alive)
    if alive:
        try:
            _save_memory(old)
        except DreError:
            old.done()
            raise
    _rename(old, new, xml, found)


def _save_memory(system: System) -> None:
    """Save the memory beside the disk; afterwards it is stopped. Raises DreError, and then it runs on."""
    with hypervisor.translated(f"{system.name}: cannot be saved"):
        system.need().save(str(system.home / MEMORY))


def _restore_memory(old: System, new: System) -> None:
    """Go on from the saved memory under the new name."""
    memory = new.home / MEMORY

    def change(top: Element) -> None:
        if top.findtext("name") != new.name:  # else it was done by one that was killed
            move(top, old, new)

    try:
        if not lifecycle.goes_on(new):
            savefile.rewrite(memory, savefile.head(memory), change)
            lifecycle.prepare(new)
            with hypervisor.translated(f"{new.name}: cannot go on from its memory"):
                hypervisor.connect(new.conf).restore(str(memory))
    except DreError as error:
        kept = memory.with_name("memory")
        memory.rename(kept)
        new.done()
        raise DreError(f"{error}; it is stopped, and {kept} holds the memory") from None
    memory.unlink()
    lifecycle.complete(new)
    saved.set_clock(new)


def states(system: System) -> list[str]:
    """libvirt's definitions of its saved states, in an order in which they can be made again."""
    import libvirt

    with hypervisor.translated(system.name):
        every = system.need().listAllSnapshots()
        found = {one.getName(): one.getXMLDesc(libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE) for one in every}
    parents = {tag: definitions.parse(xml).findtext("parent/name") for tag, xml in found.items()}
    return [found[tag] for tag in sorted(found, key=lambda tag: saved.ancestors(tag, parents))]


def redefine_states(domain: Any, states: list[str]) -> None:
    """Tell libvirt of the saved states that lie in the disk of *domain*, as far as it does not know them."""
    import libvirt

    with hypervisor.translated(domain.name()):
        there = set(domain.snapshotListNames())
        for state in states:
            if definitions.parse(state).findtext("name") not in there:
                domain.snapshotCreateXML(state, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)


def resume(system: System, intent: dict[str, Any]) -> None:
    """End a rename that was killed."""
    old, new = (System(system.conf, intent[key]) for key in ("old", "new"))
    if intent.get("memory") and _runs_on(old):
        (old.home / MEMORY).unlink(missing_ok=True)
        old.done()
        return
    _rename(old, new, intent["domain"], intent["states"])


def _runs_on(system: System) -> bool:
    """Whether it was killed before the memory was saved: libvirt may still be at that, and would end it yet."""
    import libvirt

    domain = system.find()
    deadline = time.monotonic() + SAVE_WAIT
    while domain is not None and domain.isActive():
        with hypervisor.translated(system.name):
            if domain.jobInfo()[0] == libvirt.VIR_DOMAIN_JOB_NONE:
                return bool(domain.isActive())
        if time.monotonic() > deadline:
            raise TimedOutError(f"{system.name}: libvirt is still saving its memory")
        time.sleep(0.1)
    return False


def _rename(old: System, new: System, xml: str, states: list[str]) -> None:
    """Each step may have been done already. The intent goes along with the directory."""
    import libvirt

    if old.home.exists():
        old.home.rename(new.home)
    connection = hypervisor.connect(new.conf)
    before = old.find()
    with hypervisor.translated(f"{old.name}: rename"):
        if before is not None:
            before.undefineFlags(
                libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
            )
        domain = connection.defineXML(xml)
        redefine_states(domain, states)
    for end in (".log", *(f".log.{number}" for number in range(4))):
        log = old.log.with_suffix(end)
        if log.exists():
            log.rename(new.log.with_suffix(end))
    spec = new.spec()
    if spec is not None:
        spec = replace(spec, name=new.name)
        new.store(spec)
        if spec.cloud:
            identity.seed(new.conf, spec, new.home / "seed.iso")
        if spec.isolated:
            isolation.apply(new, True)
    if (new.home / MEMORY).exists():
        lifecycle.forget(old)
        _restore_memory(old, new)
    new.done()
    new.emit("renamed", old=old.name)


def partners(system: System) -> Iterator[str]:
    """The names that an unfinished rename of or to this one has."""
    place = system.home.parent
    for home in (place.iterdir() if place.is_dir() else ()) if not system.home.exists() else (system.home,):
        if not (home / "intent.json").exists():
            continue
        intent = None
        with contextlib.suppress(DreError):  # damaged: whoever settles that system says so
            intent = System(system.conf, home.name).intent()
        if intent is not None and intent["verb"] == "rename" and system.name in (intent["old"], intent["new"]):
            yield from (intent["old"], intent["new"])
