# SPDX-License-Identifier: Apache-2.0
"""Snapshots and checkpoints of systems: states within the first disk, which libvirt lists as its own.

A *snapshot* is the disks of a stopped system, a *checkpoint* the disks and the memory of a running one. Both are
internal snapshots of qcow2: one file holds all of them, each can be gone back to whatever was done since, and QEMU
writes the one that is being made without touching the others. Tags are shared by both. Wants the system's lock.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from dre import event
from dre.errors import DreError, NotFoundError, TimedOutError
from dre.system import domain as definitions
from dre.system import hypervisor, lifecycle
from dre.system.agent import Agent
from dre.system.model import RUNNING, System

SNAPSHOT, CHECKPOINT = "snapshot", "checkpoint"
BEFORE = "dre-before"  # the state just before a restart from a checkpoint, until that has proved alive
PROOF = 60.0  # seconds for a guest to show that it lives; under TCG it may be slow to wake


@dataclass(frozen=True)
class Saved:
    """One state; *size* is that of its memory in bytes, 0 of a snapshot."""

    tag: str
    kind: str
    created: str
    size: int
    description: str

    def row(self) -> dict[str, Any]:
        """The fields that list gives."""
        return asdict(self)


def tags(domain: Any) -> dict[str, list[str]]:
    """The tags of each kind, oldest first."""
    found = _listed(domain, {})
    return {f"{kind}s": [saved.tag for saved in found if saved.kind == kind] for kind in (SNAPSHOT, CHECKPOINT)}


def _listed(domain: Any, sizes: dict[str, int]) -> list[Saved]:
    """All states, oldest first: libvirt knows whole seconds only, but also which of two was there before the other."""
    tops = {snapshot.getName(): definitions.parse(snapshot.getXMLDesc()) for snapshot in domain.listAllSnapshots()}
    parents = {tag: top.findtext("parent/name") for tag, top in tops.items()}
    found = [_read(tag, top, sizes.get(tag, 0)) for tag, top in tops.items()]
    return sorted(found, key=lambda saved: (saved.created, ancestors(saved.tag, parents), saved.tag))


def ancestors(tag: str, parents: Mapping[str, str | None]) -> int:
    """How many states the state *tag* was made after, one on the other."""
    count = 0
    while (parent := parents.get(tag)) is not None and count < len(parents):
        tag, count = parent, count + 1
    return count


def _read(tag: str, top: Element, size: int) -> Saved:
    kind = SNAPSHOT if top.findtext("state") == "shutoff" else CHECKPOINT
    created = event.stamp(float(top.findtext("creationTime") or 0))
    return Saved(tag, kind, created, size, top.findtext("description") or "")


def every(system: System, kind: str | None = None) -> list[Saved]:
    """The states of the system, of *kind* or of both, oldest first."""
    domain = system.need()
    with hypervisor.translated(system.name):
        found = _listed(domain, _sizes(domain))
    return [saved for saved in found if saved.tag != BEFORE and kind in (None, saved.kind)]


def _sizes(domain: Any) -> dict[str, int]:
    """How much memory each state holds, as the disk tells."""
    import json

    from dre.run import run

    first = next(definitions.disks(definitions.parse(domain.XMLDesc(0))), None)
    if first is None:
        return {}
    done = run(["qemu-img", "info", "-U", "--output=json", str(first[1])], check=False, timeout=30)
    try:
        told = json.loads(done.stdout).get("snapshots", [])
        return {str(item["name"]): int(item["vm-state-size"]) for item in told}
    except (ValueError, KeyError, TypeError):
        return {}


def find(system: System, tag: str | None, kind: str | None = None) -> Saved:
    """The state *tag*, or the newest. Raises NotFoundError."""
    found = every(system, kind)
    what = kind or "snapshot or checkpoint"
    if tag is None:
        if not found:
            raise NotFoundError(f"{system.name}: has no {what}")
        return found[-1]
    match = [saved for saved in found if saved.tag == tag]
    if not match:
        raise NotFoundError(f"{system.name}: no {what} {tag}")
    return match[0]


def save(system: System, kind: str, tag: str | None, description: str = "") -> Saved:
    """Save the state *tag*, by default named by the time. Raises DreError where the tag is taken."""
    domain = system.need()
    state = system.state()
    if kind == SNAPSHOT and state in RUNNING:
        raise DreError(f"{system.name}: is {state}; stop it first, or dre-sys checkpoint save {system.name}")
    if kind == CHECKPOINT and state not in RUNNING:
        raise DreError(f"{system.name}: is {state}; a checkpoint is of a running system")
    tag = tag or time.strftime("%Y%m%dt%H%M%Sz", time.gmtime())
    if any(saved.tag == tag for saved in every(system)):
        raise DreError(f"{system.name}: there is a {find(system, tag).kind} {tag} already")
    need_qcow2(system, domain)
    system.begin(verb="save", tag=tag)
    try:
        create(system, domain, tag, description)
    except Exception:
        discard(system, tag)
        system.done()
        raise
    system.done()
    system.emit("saved", tag=tag, kind=kind)
    return find(system, tag)


def need_qcow2(system: System, domain: Any) -> None:
    """Raise DreError where a disk cannot hold saved states."""
    with hypervisor.translated(system.name):
        found = list(definitions.disks(definitions.parse(domain.XMLDesc(0))))
    other = [str(path) for _, path, format in found if format != "qcow2"]
    if other or not found:
        raise DreError(f"{system.name}: cannot be saved: {other[0] if other else 'it has no disk'} is not qcow2")


def create(system: System, domain: Any, tag: str, description: str) -> None:
    """Have libvirt save the state *tag*."""
    top = Element("domainsnapshot")
    for key, value in (("name", tag), ("description", description)):
        SubElement(top, key).text = value
    with hypervisor.translated(f"{system.name}: save {tag}"):
        domain.snapshotCreateXML(definitions.to_xml(top))


def resume_save(system: System, tag: str) -> None:
    """Undo a save that was killed: libvirt may have gone on with it, and ended it."""
    if system.find() is not None:
        discard(system, tag)
    system.done()


def discard(system: System, tag: str) -> None:
    """Remove the state *tag* as far as it is there: from libvirt's list, or only from the disk."""
    import libvirt

    domain = system.need()
    with contextlib.suppress(libvirt.libvirtError):
        domain.snapshotLookupByName(tag).delete()
        return
    if system.state() in RUNNING or tag not in _sizes(domain):
        return  # a running QEMU has the disk; one that is listed nowhere is overwritten by the next of that name
    from dre.run import run

    for _, path, _ in definitions.disks(definitions.parse(domain.XMLDesc(0))):
        run(["qemu-img", "snapshot", "-d", tag, str(path)], check=False, timeout=120)


def delete(system: System, kind: str, tag: str) -> None:
    """Delete the state *tag*. Raises NotFoundError."""
    find(system, tag, kind)
    with hypervisor.translated(f"{system.name}: {tag}"):
        system.need().snapshotLookupByName(tag).delete()
    system.emit("forgot", tag=tag, kind=kind)


def load(system: System, tag: str | None) -> Saved:
    """Put the stopped system back to a snapshot. Raises DreError while it runs."""
    saved = find(system, tag, SNAPSHOT)
    state = system.state()
    if state in RUNNING:
        raise DreError(f"{system.name}: is {state}; stop it first, or dre-sys undo {system.name} {saved.tag}")
    system.begin(verb="load", tag=saved.tag)
    _revert(system, saved.tag)
    system.done()
    system.emit("loaded", tag=saved.tag)
    return saved


def _revert(system: System, tag: str, running: bool = False) -> None:
    import libvirt

    domain = system.need()
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING if running else 0
    with hypervisor.translated(f"{system.name}: back to {tag}"):
        snapshot = domain.snapshotLookupByName(tag)
        try:
            domain.revertToSnapshot(snapshot, flags)
        except libvirt.libvirtError as error:
            if hypervisor.code(error) != libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY:
                raise
            # Its hardware has changed since: a new QEMU is needed, which libvirt starts only when told to.
            domain.revertToSnapshot(snapshot, flags | libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)


def restart(system: System, tag: str | None, request: str | None = None) -> Saved:
    """Let the system go on from a checkpoint, running or not. What it is now is kept until that one proves alive.

    Raises DreError when the guest did not come to life, with the system as it was before.
    """
    saved = find(system, tag, CHECKPOINT)
    alive = system.state() in RUNNING
    system.begin(verb="restart", tag=saved.tag, request=request, before=alive)
    if alive:
        discard(system, BEFORE)
        create(system, system.need(), BEFORE, f"before the restart from {saved.tag}")
    failure = go_back(system, saved.tag)
    if failure is not None and alive:
        go_back(system, BEFORE)
    _ended(system)
    if failure is not None:
        kept = "is as it was before" if alive else "is stopped"
        raise DreError(f"{system.name}: did not come to life from {saved.tag}: {failure}; {kept}")
    system.emit("restarted-from", tag=saved.tag)
    return saved


def go_back(system: System, tag: str) -> DreError | None:
    """Go back to *tag* running, a second time where the guest did not wake; why not, or None."""
    failure: DreError | None = None
    for _ in range(2):
        try:
            lifecycle.prepare(system)
            _revert(system, tag, running=True)
            lifecycle.complete(system)
            prove_alive(system)
            set_clock(system)
            return None
        except DreError as error:
            failure = error
    return failure


def _ended(system: System) -> None:
    discard(system, BEFORE)
    system.done()


def prove_alive(system: System, wait: float = PROOF) -> None:
    """Return when the guest has shown that it lives: libvirt has reported success for dead ones.

    Its agent answers, where it was connected; else its processors at least use time. Raises TimedOutError.
    """
    prove(system.name, system.need(), wait)


def prove(name: str, domain: Any, wait: float = PROOF) -> None:
    """As `prove_alive`, of a domain of any host."""
    deadline = time.monotonic() + wait
    agent = Agent(name, domain)
    while True:
        with hypervisor.translated(name):
            if not domain.isActive():
                raise DreError(f"{name}: its QEMU has ended")
            connected = _agent_connected(domain)
            used = domain.info()[4]
        if agent.answers(5) if connected else _moves(domain, used):
            return
        if time.monotonic() > deadline:
            raise TimedOutError(f"{name}: the guest gives no sign of life")
        time.sleep(0.1)


def _agent_connected(domain: Any) -> bool:
    top = definitions.parse(domain.XMLDesc(0))
    path = f"devices/channel/target[@name='{definitions.AGENT}']"
    return any(target.get("state") == "connected" for target in top.iterfind(path))


def set_clock(system: System) -> None:
    """Tell the guest the present time, where it has an agent: its own clock goes on from when it was saved."""
    domain = system.need()
    with hypervisor.translated(system.name):
        if not _agent_connected(domain):
            return
    agent = Agent(system.name, domain)
    try:
        try:
            agent.ask("guest-set-time", time=time.time_ns())
        except DreError:  # it wants hwclock(8), which not every guest has
            _run_date(agent)
    except DreError as error:  # it lives all the same, and late is what one without an agent is, too
        system.emit("clock-behind", 4, reason=str(error))


def _run_date(agent: Agent) -> None:
    ended = agent.run(["date", "-u", "-s", f"@{time.time():.3f}"], timeout=30)
    if ended.status != 0:
        raise DreError(f"{agent.name}: date: {hypervisor.plain(ended.stderr.decode(errors='replace').strip())}")


def _moves(domain: Any, used: int) -> bool:
    time.sleep(0.5)
    return bool(domain.info()[4] > used)


def resume_restart(system: System, intent: dict[str, Any]) -> None:
    """End a restart from a checkpoint that was killed: go back to it."""
    failure = go_back(system, intent["tag"])
    if failure is not None and intent["before"]:
        with contextlib.suppress(DreError):
            go_back(system, BEFORE)
    _ended(system)
    if failure is None:
        system.emit("restarted-from", tag=intent["tag"])
        _answered(system, intent)


def undo(system: System, tag: str | None, timeout: float, request: str | None = None) -> Saved:
    """Back to a snapshot or checkpoint, and running again, whatever it is doing now."""
    saved = find(system, tag)
    system.begin(verb="undo", tag=saved.tag, kind=saved.kind, request=request)
    _undo(system, saved.tag, saved.kind, timeout)
    return saved


def resume_undo(system: System, intent: dict[str, Any]) -> None:
    """End an undo that was killed."""
    _undo(system, intent["tag"], intent["kind"], 0.0)
    _answered(system, intent)


def _undo(system: System, tag: str, kind: str, timeout: float) -> None:
    try:
        if kind == CHECKPOINT:
            failure = go_back(system, tag)
            if failure is not None:
                raise failure
        else:
            lifecycle.stop(system, timeout)
            _revert(system, tag)
            lifecycle.start(system)
    except DreError:
        system.done()  # what failed once would fail for ever; its caller is told
        raise
    system.done()
    system.emit("undone", tag=tag)


def resume_load(system: System, tag: str) -> None:
    """End a load that was killed."""
    _revert(system, tag)
    system.done()
    system.emit("loaded", tag=tag)


def _answered(system: System, intent: dict[str, Any]) -> None:
    from dre import requests

    requests.complete(system.conf, intent.get("request"), "sys")


def prune(system: System, keep: int, scheduled: bool = False) -> list[str]:
    """Delete all states but the newest *keep*, with *scheduled* only those of the schedule; returns their tags."""
    found = [saved for saved in every(system) if not scheduled or saved.description == SCHEDULED]
    gone = [saved for saved in found[: max(len(found) - keep, 0)] if scheduled or saved.kind == SNAPSHOT]
    for saved in gone:
        delete(system, saved.kind, saved.tag)
    return [saved.tag for saved in gone]


SCHEDULED = "scheduled"  # the description of what `snapshot run` saves
