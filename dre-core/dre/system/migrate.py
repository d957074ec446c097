# SPDX-License-Identifier: Apache-2.0
"""A system moves to another host: what both kinds of moves share, the move of a stopped one, and what becomes of a
move that was killed. The move of a running one is dre.system.live's.

The name is taken there first, by a domain without devices that bears the id of the move; it is replaced by the system
when all files are there. The stages of the intent: `send` (the other host has files of ours, and nothing that could
run), `commit` (it may have the system) and `gone` (it has: here it is removed). Wants the system's lock.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from dre import files, requests
from dre.errors import DreError
from dre.system import carrying, copying, hypervisor, identity, lifecycle, order
from dre.system import domain as definitions
from dre.system.carrying import Carrier, Load, Made, Meter, Piece
from dre.system.model import System
from dre.system.remote import Host, Way
from dre.system.spec import Spec

CONNECT = 30.0  # seconds for the other libvirt to answer
AGAIN = 10.0  # and once it has failed already
COPY, SHARED = "copy", "shared"
NAMESPACE = "urn:dre:move:1"
ARRIVING, ARRIVED = "arriving", "arrived"
ElementTree.register_namespace("dre", NAMESPACE)


@dataclass(frozen=True)
class Wish:
    """How a system is to move: its *new* name there, whether it runs meanwhile; times in seconds."""

    new: str
    live: bool = False
    storage: str = COPY  # or SHARED: the other host sees the same files
    keep: bool = False
    verify: bool = False
    without_snapshots: bool = False
    rate: int | None = None  # octets a second
    timeout: float = 3600.0
    downtime: float | None = None
    tls: bool = False  # of QEMU, which sends memory and disks of a running system


def migrate(
    system: System, way: Way, wish: Wish, request: str | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Move the system; returns its row there."""
    spec = system.ours()
    others = order.dependents(system.conf, system.name)
    if others and not wish.keep:
        raise DreError(f"{system.name}: {', '.join(others)} is after it; change that first")
    if wish.live:
        from dre.system import live

        return live.migrate(system, spec, way, wish, request, progress)
    state = system.state()
    if state not in ("stopped", "crashed"):
        raise DreError(f"{system.name}: is {state}; stop it first, or --live")
    with hypervisor.translated(system.name):
        if system.need().hasManagedSaveImage():
            raise DreError(f"{system.name}: virsh has saved its memory; start it, or virsh managedsave-remove it")
    with Host(way, CONNECT) as host:
        move = begun(system, host, way, wish, request, progress)
        try:
            top, states, digests = _sent(move, spec)
            if wish.verify:
                move.carrier.verify(digests)
            move.stage("commit", states=states)
            define(move, top, states)
        except BaseException as error:
            back(system, move.intent, host, error)
            raise
        leave(system, move.intent, host)
    return row(spec, way, wish)


@dataclass
class Move:
    """A move at work."""

    system: System
    new: System
    host: Host
    wish: Wish
    intent: dict[str, Any]
    carrier: Carrier

    def stage(self, stage: str, **more: Any) -> None:
        """Note durably how far it is."""
        self.intent = {**self.intent, "stage": stage, **more}
        self.system.begin(**self.intent)

    def noted(self, made: Made) -> None:
        """Note durably what is there."""
        self.intent = {**self.intent, "made": asdict(made)}
        self.system.begin(**self.intent)


def begun(
    system: System, host: Host, way: Way, wish: Wish, request: str | None, progress: Callable[[str], None]
) -> Move:
    """Take the name there and write the intent. Raises DreError, with nothing begun, where it cannot be had."""
    new = System(system.conf, wish.new)
    top = copying.definition(system)
    uuid = top.findtext("uuid") or ""
    _need_free(system, host, new.name, uuid)
    intent: dict[str, Any] = {
        "verb": "migrate",
        "stage": "send",
        "way": asdict(way),
        "wish": asdict(wish),
        "id": os.urandom(8).hex(),
        "uuid": uuid,
        "request": request,
        "made": asdict(Made()),
        "states": [],
    }
    meter = Meter(system.name, wish.rate, time.monotonic() + wish.timeout, progress)
    move = Move(system, new, host, wish, intent, Carrier(host, meter, lambda made: move.noted(made)))
    move.stage("send")
    try:
        with host.translated(f"{new.name}: cannot be defined"):
            host.connection.defineXML(_placeholder(top, new.name, intent["id"]))
    except DreError:
        system.done()
        raise
    return move


def _need_free(system: System, host: Host, name: str, uuid: str) -> None:
    """Raise DreError where that name or that machine is there, but for what an earlier move from here has left."""
    for key in (uuid, name):
        found = host.find(key)
        if found is None:
            continue
        with host.translated(name):
            stage, same = mark(found)[1], found.UUIDString() == uuid and found.name() == name
            if same and stage == ARRIVING and not found.isActive():
                left = _left(system)
                Made(**left.pop(host.way.uri, asdict(Made()))).remove(host)
                found.undefine()
                _keep_left(system, left)
                continue
            what = "such a system" if key == name else f"this very machine, as {found.name()},"
        raise DreError(f"{name}: there is {what} at {host.way.host} already")


def _left(system: System) -> dict[str, Any]:
    """What moves that failed had made at hosts that were silent then, by their URI; nothing else is removed there."""
    try:
        found: dict[str, Any] = json.loads((system.home / "left.json").read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DreError(f"{system.home}/left.json: damaged: {error}") from None
    return found


def _keep_left(system: System, left: dict[str, Any]) -> None:
    if left:
        files.write_atomic(system.home / "left.json", json.dumps(left) + "\n", 0o600)
    else:
        (system.home / "left.json").unlink(missing_ok=True)


def _placeholder(top: Element, name: str, identity: str) -> str:
    made = Element("domain", type=top.get("type", "qemu"))
    SubElement(made, "name").text = name
    SubElement(made, "uuid").text = top.findtext("uuid")
    SubElement(made, "memory", unit="KiB").text = "32768"
    kind = top.find("os/type")
    SubElement(SubElement(made, "os"), "type", kind.attrib if kind is not None else {}).text = "hvm"
    emulator = top.findtext("devices/emulator")
    if emulator:
        SubElement(SubElement(made, "devices"), "emulator").text = emulator
    set_mark(made, identity, ARRIVING)
    return definitions.to_xml(made)


def set_mark(top: Element, identity: str, stage: str) -> None:
    """Have a definition say that it comes from the move *identity*, and how far that is."""
    metadata = top.find("metadata")
    metadata = SubElement(top, "metadata") if metadata is None else metadata
    for old in metadata.findall(f"{{{NAMESPACE}}}move"):
        metadata.remove(old)
    SubElement(metadata, f"{{{NAMESPACE}}}move", id=identity).text = stage


def mark(domain: Any) -> tuple[str, str]:
    """Id and stage of the move that a domain there comes from; empty when it comes from none."""
    import libvirt

    xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0)
    found = definitions.parse(xml).find(f"metadata/{{{NAMESPACE}}}move")
    return (found.get("id", ""), found.text or "") if found is not None else ("", "")


def _sent(move: Move, spec: Spec) -> tuple[Element, list[str], dict[str, str]]:
    """Bring all files there; the definition to make there, its saved states, and the digest of each file."""
    system, new = move.system, move.new
    top = copying.definition(system)
    digests: dict[str, str] = {}
    paths: dict[str, str] = {}
    if move.wish.storage == COPY:
        load = carrying.load(system, new, top, move.wish.without_snapshots)
        image = move.carrier.image(load.image)
        paths = replace(load, image=image).paths
        if image != load.image:
            spec = based(spec, image)
        with own_pieces(move, spec, load, image) as pieces:
            digests |= move.carrier.send(pieces)
    made = dress(move, top, spec, paths)
    digests |= send_own(move, spec)
    kept = [] if move.wish.without_snapshots else copying.states(system)
    return made, [moved_state(state, system, new, paths) for state in kept], digests


def based(spec: Spec, image: tuple[Piece, ...]) -> Spec:
    """*spec* on the image where that is there."""
    return replace(spec, base=carrying.named(image))


@contextlib.contextmanager
def own_pieces(move: Move, spec: Spec, load: Load, image: tuple[Piece, ...]) -> Iterator[tuple[Piece, ...]]:
    """The system's own files as they are to be there."""
    with _work(move.system) as work:
        found = []
        for piece in load.own:
            source = piece.source
            depth = len(carrying.chain(source)) if source.suffix == ".qcow2" else 1
            if depth > 2 or (depth == 2 and image != load.image):
                source = carrying.rebased(source, work, image[0])
            if spec.cloud and source.name == "seed.iso" and move.new.name != move.system.name:
                identity.seed(move.system.conf, replace(spec, name=move.new.name), work / "seed.iso")
                source = work / "seed.iso"
            found.append(replace(piece, source=source))
        yield tuple(found)


@contextlib.contextmanager
def _work(system: System) -> Iterator[Path]:
    """A directory for what is made to be sent."""
    work = system.home / "migrate"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def dress(move: Move, top: Element, spec: Spec, paths: dict[str, str]) -> Element:
    """The definition *top* as it is to be there."""
    nvram = top.find("os/nvram")
    boot = top.find("os")
    if boot is not None and nvram is not None and not Path(nvram.text or "/").is_file():
        boot.remove(nvram)  # it was never started: libvirt there will make one
    dress_running(move, top, paths)
    if move.new.name != move.system.name and not spec.cloud:
        identity.tell_guest(move.new, top, replace(spec, name=move.new.name))
    with move.carrier.place(move.new.log.parent):  # its console is written there
        pass
    return top


def dress_running(move: Move, top: Element, paths: dict[str, str]) -> Element:
    """The same for a definition that runs: what its guest was told at its start stays."""
    carrying.relocate(top, paths)
    if move.new.name != move.system.name:
        copying.move(top, move.system, move.new)
    set_mark(top, move.intent["id"], ARRIVED)
    return top


def send_own(move: Move, spec: Spec) -> dict[str, str]:
    """Send what we keep of it, which makes it dre-sys's there."""
    target = move.new.home / "system.json"
    with move.host.directory(target.parent) as there:
        if there and target.name in there.sizes():
            return {}  # the directory itself is shared
    text = replace(spec, name=move.new.name, request=None, warm=None).to_json()
    with _work(move.system) as work:
        (work / target.name).write_text(text)
        return move.carrier.send((Piece(work / target.name, target),))


def moved_state(state: str, old: System, new: System, paths: dict[str, str]) -> str:
    """The definition of a saved state as it is to be there."""
    top = definitions.parse(state)
    for kind in ("domain", "inactiveDomain"):
        for inner in top.findall(kind):
            carrying.relocate(inner, paths)
            copying.move(inner, old, new)
    return definitions.to_xml(top)


def define(move: Move, top: Element, states: list[str]) -> None:
    """Define the system there, with its saved states."""
    with move.host.translated(f"{move.new.name}: cannot be defined"):
        copying.redefine_states(move.host.connection.defineXML(definitions.to_xml(top)), states)


def back(system: System, intent: dict[str, Any], host: Host | None, error: BaseException | None = None) -> None:
    """The system stays: take away what is there of it. Where that host is silent it is left; nothing of it can run."""
    left = ""
    try:
        if host is None or not host.connection.isAlive():
            raise DreError("it does not answer")
        clean(intent, host)
    except Exception:
        try:
            with Host(Way(**intent["way"]), AGAIN) as again:
                clean(intent, again)
        except DreError as silent:
            left = f"; what is there of it is removed by the next move there: {silent}"
            _keep_left(system, {**_left(system), intent["way"]["uri"]: intent["made"]})
    shutil.rmtree(system.home / "migrate", ignore_errors=True)
    system.done()
    if left and isinstance(error, DreError):
        error.args = (f"{error}{left}",)


def clean(intent: dict[str, Any], host: Host) -> None:
    """Remove from there what this move has made, and the name last."""
    found = host.find(intent["uuid"])
    with host.translated("clean up"):
        deadline = time.monotonic() + AGAIN
        while found is not None and found.isActive() and time.monotonic() < deadline:
            time.sleep(0.2)  # libvirt there may still be ending what came in
        if found is not None and (found.isActive() or mark(found)[0] != intent["id"]):
            raise DreError(f"{found.name()} at {host.way.host} is not what was sent")
    Made(**intent["made"]).remove(host)
    host.end_quiet(intent["id"])
    if found is not None:
        undefine(host, found)


def undefine(host: Host, domain: Any) -> None:
    """Remove a domain there; its files are another matter."""
    import libvirt

    every = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
    with host.translated(domain.name()):
        domain.undefineFlags(every | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)


def leave(system: System, intent: dict[str, Any], host: Host | None) -> None:
    """The system is theirs: here it is removed."""
    intent = {**intent, "stage": "gone"}
    system.begin(**intent)
    way, wish = Way(**intent["way"]), Wish(**intent["wish"])
    if host is not None:
        _unmark(intent, host)
    system.emit("migrated", 5, to=way.host, id=intent["id"], **{"as": wish.new})
    requests.complete(system.conf, intent["request"], "sys")
    spec = system.spec()
    if wish.keep and spec is not None:
        system.store(replace(spec, autostart=False))
        system.done()
    elif wish.storage == SHARED:
        _forget(system)
    else:
        lifecycle.remove(system)


def row(spec: Spec, way: Way, wish: Wish) -> dict[str, Any]:
    """What is there now."""
    ip = [str(spec.ip).partition("/")[0]] if spec.ip not in (None, "dhcp") else []
    state = "running" if wish.live else "stopped"
    return {"name": wish.new, "state": state, "ip": ip, "host": way.host, "down": None}


def _unmark(intent: dict[str, Any], host: Host) -> None:
    """It is an ordinary domain from now on. The mark is in nobody's way where that fails."""
    import libvirt

    with contextlib.suppress(DreError, libvirt.libvirtError):
        host.forget_pools()
        host.end_quiet(intent["id"])
        domain = host.find(intent["uuid"])
        flags = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, "dre", NAMESPACE, flags)


def _forget(system: System) -> None:
    """Remove the system from here, but none of the files that the other host uses now."""
    import libvirt

    found = system.find()
    if found is not None:
        every = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        with hypervisor.translated(system.name):
            found.undefineFlags(every | libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
    system.wanted.unlink(missing_ok=True)
    system.done()


def undecided(system: System, way: Way, error: DreError) -> DreError:
    """Only the other host knows where the system is, and it is silent."""
    return DreError(
        f"{system.name}: may be at {way.host} by now, so it is not touched here: {error}; once {way.host} answers,"
        " dre-sys recover decides"
    )


def resume(system: System, intent: dict[str, Any]) -> None:
    """End a move that was killed: not begun, or done. Raises DreError when only the other side knows, and is silent."""
    way = Way(**intent["way"])
    if intent["stage"] == "gone":
        leave(system, intent, None)
        return
    if intent["wish"]["live"] and intent["stage"] == "move":
        from dre.system import live

        live.resume(system, intent, way)
        return
    if intent["stage"] == "send":
        back(system, intent, None)
        return
    try:
        host = Host(way, AGAIN)
    except DreError as error:
        raise undecided(system, way, error) from None
    with host:
        domain = host.find(intent["uuid"])
        with host.translated(system.name):
            arrived = domain is not None and mark(domain) == (intent["id"], ARRIVED)
            if arrived:
                copying.redefine_states(domain, intent["states"])
        if arrived:
            leave(system, intent, host)
        else:
            back(system, intent, host)
