# SPDX-License-Identifier: Apache-2.0
"""A running system moves to another host. QEMU sends memory and disks, libvirt directs it, we watch over the guest.

libvirt has reported success for guests that were dead on arrival. So a checkpoint is made here just before, and kept
until the guest has proved alive there, where it comes to rest first, and then runs reaching nobody. Without that proof
it is destroyed there, and only then goes on here, from the checkpoint. It never runs in both places.

Stage `move` of the intent: libvirt may have been told, and does not list the saved states here, for it would refuse.
"""

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import SubElement

from dre.errors import DreError, MissingError, TimedOutError
from dre.system import carrying, copying, hypervisor, saved
from dre.system import domain as definitions
from dre.system import migrate as moves
from dre.system.carrying import Load, Piece
from dre.system.migrate import COPY, Move, Wish
from dre.system.model import System
from dre.system.remote import Host, Way, quiet_bridge
from dre.system.saved import BEFORE
from dre.system.spec import Spec
from dre.system.transit import END, LOOK, Watch, asked, cancel, carry

_QEMU_CONF = Path("/etc/libvirt/qemu.conf")
_ANNOUNCE = {"initial": 50, "max": 550, "rounds": 5, "step": 100}  # milliseconds; QEMU's own, after a migration


def migrate(
    system: System, spec: Spec, way: Way, wish: Wish, request: str | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Move the running system; returns its row there with `down`, the seconds in which its processors stood still."""
    state = system.state()
    if state != "running":
        raise DreError(f"{system.name}: is {state}; --live is for one that runs")
    domain = system.need()
    saved.need_qcow2(system, domain)
    if wish.storage == COPY and not wish.without_snapshots and (count := len(saved.every(system))):
        text = "QEMU sends disks without them: --without-snapshots gives them up, a stopped system takes them along"
        raise DreError(f"{system.name}: its {count} snapshots and checkpoints would be lost; {text}")
    if wish.tls:
        _need_certificate()
    with Host(way, moves.CONNECT) as host:
        move = moves.begun(system, host, way, wish, request, progress)
        try:
            params, flags = _prepared(move, spec)
        except BaseException as error:
            moves.back(system, move.intent, host, error)
            raise
        at = time.time()
        try:
            _checkpointed(move, domain, at)
            with Watch(system) as watch:
                carry(move, domain, watch, params, flags, progress)
        except BaseException as error:
            arrived = _decide(system, move.intent, way, host, error)
            if arrived is None:
                raise
        else:
            arrived = _arrived(system, move.intent, host, watch)
        return {**moves.row(spec, way, wish), **arrived}


def _prepared(move: Move, spec: Spec) -> tuple[dict[str, Any], int]:
    """Have all there that the guest needs to run there; libvirt's parameters and flags of the migration."""
    import libvirt

    system, wish = move.system, move.wish
    top = copying.definition(system)
    paths: dict[str, str] = {}
    targets: list[str] = []
    whole = False
    if wish.storage == COPY:
        load = carrying.load(system, move.new, top, True)
        image = move.carrier.image(load.image)
        paths = Load(load.own, image).paths
        if image != load.image:
            spec = moves.based(spec, image)
        targets, whole = _made_disks(move, spec, top, load, image)
    lasting = moves.dress(move, top, spec, paths)
    moves.send_own(move, spec)
    with hypervisor.translated(system.name):
        xml = system.need().XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
    running = moves.dress_running(move, definitions.parse(xml), paths)
    for name in running.findall("name"):
        name.text = system.name  # libvirt wants the old one here, and puts the new one in its place
    if move.host.make_quiet(move.intent["id"]):
        for source in running.iterfind("devices/interface[@type='bridge']/source"):
            source.set("bridge", quiet_bridge(move.intent["id"]))
    found: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_DEST_NAME: move.new.name,
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: definitions.to_xml(running),
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: definitions.to_xml(lasting),
    }
    if targets:
        found[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = targets
    if wish.rate is not None:
        found[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = max(wish.rate >> 20, 1)
    return found, _flags(move, whole)


def _need_certificate() -> None:
    """Raise MissingError where QEMU here has no certificates: libvirt would say so late, and not in these words."""
    text = _QEMU_CONF.read_text(errors="replace") if _QEMU_CONF.exists() else ""
    told = dict(re.findall(r'^\s*(migrate|default)_tls_x509_cert_dir\s*=\s*"(.*)"', text, re.MULTILINE))
    path = Path(told.get("migrate") or told.get("default") or "/etc/pki/qemu", "ca-cert.pem")
    if not path.exists():
        raise MissingError(f"--tls: {path}: no such file; QEMU needs certificates at both hosts, or --unencrypted")


def _made_disks(move: Move, spec: Spec, top: Any, load: Load, image: tuple[Piece, ...]) -> tuple[list[str], bool]:
    """Make empty disks there on the image, for QEMU to fill, and send what else is the system's.

    The disks' names, and whether one is on more than an image, so that all of it has to be copied.
    """
    disks = {path: (target, format) for target, path, format in definitions.disks(top)}
    whole = False
    others = Load(tuple(own for own in load.own if own.source not in disks), load.image)
    with moves.own_pieces(move, spec, others, image) as pieces:
        move.carrier.send(pieces)
    for own in load.own:
        if own.source in disks:
            told = carrying.chain(own.source)
            base = (image[0].target, str(told[1]["format"])) if len(told) == 2 else (Path(), "")
            whole |= len(told) > 2
            with move.carrier.place(own.target.parent) as there:
                move.carrier.make(there, own.target, int(told[0]["virtual-size"]), own.mode, base)
    return [target for target, _ in disks.values()], whole


def _checkpointed(move: Move, domain: Any, at: float) -> None:
    """Save the guest as it is, and have libvirt forget all saved states for a while."""
    system = move.system
    saved.discard(system, BEFORE)
    move.stage("move", at=at, states=copying.states(system))
    saved.create(system, domain, BEFORE, f"before the move to {move.host.way.host}")
    move.stage("move", states=copying.states(system))
    _forget_states(system)


def _forget_states(system: System) -> None:
    import libvirt

    with hypervisor.translated(system.name):
        for snapshot in system.need().listAllSnapshots():
            snapshot.delete(libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)


def _flags(move: Move, whole: bool) -> int:
    import libvirt

    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_PAUSED
        | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
        | libvirt.VIR_MIGRATE_AUTO_CONVERGE
    )
    if move.wish.storage == COPY:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK if whole else libvirt.VIR_MIGRATE_NON_SHARED_INC
    if move.wish.tls:
        flags |= libvirt.VIR_MIGRATE_TLS
    elif move.wish.storage != COPY and move.host.way.private:
        flags |= libvirt.VIR_MIGRATE_TUNNELLED  # memory goes by the connection of libvirt, which is encrypted
    return int(flags)


def _arrived(system: System, intent: dict[str, Any], host: Host, watch: Watch | None) -> dict[str, Any]:
    """The guest rests there: let it go on and prove that it lives, and leave it there; else let it go on here."""
    try:
        domain = host.find(intent["uuid"])
        if domain is None:
            raise DreError(f"{system.name}: libvirt says that it moved, but it is not at {host.way.host}")
        woken = _prove(host, intent, domain)
        reached = time.monotonic()
        if watch is not None and not watch.ended(END):
            raise TimedOutError(f"{system.name}: libvirt does not end what is left of it here")
    except DreError as error:
        lost = _return(system, intent, host, error)
        raise DreError(f"{system.name}: moved to {host.way.host}, but not alive there: {error}; {lost}") from None
    _settle_states(system, intent, host, domain)
    moves.leave(system, intent, host)
    if watch is None or watch.stopped is None:
        return {"down": None, "silent": None}
    return {"down": round(woken - watch.stopped, 3), "silent": round(reached - watch.stopped, 3)}


def _prove(host: Host, intent: dict[str, Any], domain: Any) -> float:
    """Wake the guest with no way to anywhere, and connect it when it has shown that it lives; when it was woken.

    Its links are on a bridge that leads nowhere, which it does not notice; else they are down, which it does.
    """
    name, quiet = intent["wish"]["new"], quiet_bridge(intent["id"])
    with host.translated(name):
        bridges = {bridge for bridge, _, _ in definitions.links(definitions.parse(domain.XMLDesc(0)))}
        if quiet not in bridges:
            _set_links(domain, "down")
        domain.resume()
        woken = time.monotonic()
    saved.prove(name, domain)
    with host.translated(name):
        if quiet in bridges:
            _connect(domain, quiet)
        else:
            _set_links(domain, "up")
    _announce(domain)
    return woken


def _announce(domain: Any) -> None:
    """Have switches learn where its addresses are now: what QEMU has sent for that, when it arrived, reached nobody.

    Where QEMU or libvirt there cannot, they learn it from the first thing that the guest sends of itself.
    """
    asked(domain, "announce-self", _ANNOUNCE)


def _connect(domain: Any, quiet: str) -> None:
    """Put its links from the bridge *quiet* onto those that they are to be on."""
    import libvirt

    lasting = definitions.links(definitions.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)))
    bridges = {mac: bridge for bridge, _, mac in lasting}
    for made in definitions.parse(domain.XMLDesc(0)).iterfind("devices/interface[mac]"):
        source, mac = made.find("source"), made.find("mac")
        if source is not None and mac is not None and source.get("bridge") == quiet:
            source.set("bridge", bridges[mac.get("address")] or "")
            domain.updateDeviceFlags(definitions.to_xml(made), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _set_links(domain: Any, state: str) -> None:
    """Put its links down, or those up that are not to be down always."""
    import libvirt

    lasting = definitions.parse(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    always = {
        made.find("mac").get("address")  # type: ignore[union-attr]
        for made in lasting.iterfind("devices/interface[mac]")
        if (link := made.find("link")) is not None and link.get("state") == "down"
    }
    for made in definitions.parse(domain.XMLDesc(0)).iterfind("devices/interface[mac]"):
        if made.find("mac").get("address") not in always:  # type: ignore[union-attr]
            link = made.find("link")
            link = SubElement(made, "link") if link is None else link
            link.set("state", state)
            domain.updateDeviceFlags(definitions.to_xml(made), libvirt.VIR_DOMAIN_AFFECT_LIVE)


def _settle_states(system: System, intent: dict[str, Any], host: Host, domain: Any) -> None:
    """On shared disks the saved states are there too, but for the one from just before."""
    if intent["wish"]["storage"] == COPY:
        return
    new = System(system.conf, intent["wish"]["new"])
    with host.translated(new.name):
        copying.redefine_states(domain, [moves.moved_state(state, system, new, {}) for state in intent["states"]])
        domain.snapshotLookupByName(BEFORE).delete()


def _return(system: System, intent: dict[str, Any], host: Host, error: DreError) -> str:
    """End the guest there, then let it go on here from the checkpoint; what became of it, in words."""
    import libvirt

    domain = None
    try:
        with host.translated(system.name):
            domain = host.find(intent["uuid"])
            if domain is not None and domain.isActive():
                with contextlib.suppress(libvirt.libvirtError):
                    domain.destroy()
                if domain.isActive():
                    raise DreError(f"{system.name}: cannot be ended at {host.way.host}")
    except DreError as silent:
        raise moves.undecided(system, host.way, silent) from None
    moves.clean(intent, host)
    return _go_on(system, intent)


def _go_on(system: System, intent: dict[str, Any]) -> str:
    """Let the system, which runs nowhere, go on here from the checkpoint."""
    copying.redefine_states(system.need(), intent["states"])
    failure = saved.go_back(system, BEFORE)
    lost = round(time.time() - intent["at"], 1)
    if failure is not None:
        system.done()  # the checkpoint stays: it is all there is
        return f"nor does it go on here from checkpoint {BEFORE}: {failure}"
    saved.discard(system, BEFORE)
    system.done()
    system.emit("returned", 4, lost=lost)
    return f"it goes on here as it was before, its last {lost:g} s are lost"


def _stay(system: System, intent: dict[str, Any], host: Host | None, error: BaseException | None) -> None:
    """It runs here, untouched: all is as before but for the time that the checkpoint took."""
    copying.redefine_states(system.need(), intent["states"])
    saved.discard(system, BEFORE)
    moves.back(system, intent, host, error)


def _decide(
    system: System, intent: dict[str, Any], way: Way, host: Host | None, error: BaseException | None = None
) -> dict[str, Any] | None:
    """End a move that did not come to its end, by looking at both hosts; what `_arrived` says when it did all the same.

    Raises DreError where only the other side knows, and is silent.
    """
    if _active_and_calm(system):
        _stay(system, intent, host, error)
        return None
    try:
        with contextlib.ExitStack() as stack:
            there = host if host is not None and host.connection.isAlive() else None
            there = there or stack.enter_context(Host(way, moves.AGAIN))
            domain = there.find(intent["uuid"])
            with there.translated(system.name):
                runs = domain is not None and domain.isActive()
            if runs:
                return _arrived(system, intent, there, None)
            moves.clean(intent, there)
            became = _go_on(system, intent)
    except DreError as silent:
        if system.intent() is None:
            raise
        raise moves.undecided(system, way, silent) from None
    if isinstance(error, DreError):
        error.args = (f"{error}; {became}",)
    return None


def _active_and_calm(system: System) -> bool:
    """Whether it runs here, once libvirt has ended the migration: that goes on when we are killed, and is cancelled."""
    import libvirt

    domain = system.need()
    deadline = time.monotonic() + END
    with hypervisor.translated(system.name), contextlib.suppress(libvirt.libvirtError):
        while domain.isActive() and domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE:
            if time.monotonic() > deadline:
                raise TimedOutError(f"{system.name}: its move does not end")
            cancel(domain, True)
            time.sleep(LOOK)
    with hypervisor.translated(system.name):
        return bool(domain.isActive())


def resume(system: System, intent: dict[str, Any], way: Way) -> None:
    """End a move that was killed while libvirt may have been at it."""
    _decide(system, intent, way, None)
