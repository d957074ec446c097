# SPDX-License-Identifier: Apache-2.0
"""Changes to apps: create, start, stop, freeze, destroy, and the removal of what a killed one left.

Every function here wants the app's lock held and earlier intents ended: dre.recovery.held gives both. Each may be
killed at any moment; what it leaves is either ended or undone by the next one.
"""

import contextlib
import errno
import os
import re
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import (
    cgroup,
    confine,
    event,
    files,
    lxcconfig,
    names,
    network,
    output,
    parting,
    publish,
    relimit,
    sshd,
    subvolume,
    trees,
)
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, MissingError, NotFoundError, TimedOutError, UsageError
from dre.run import run
from dre.spec import Spec

LXC_WAIT = 30.0  # seconds for LXC to start an app, or to end what it has begun
# Children that write must end with us: else a killed command's tar would go on while the next command works.
MORTAL = ("setpriv", "--pdeathsig", "KILL", "--")
KILL_WAIT = 10.0  # seconds from SIGKILL to the end; only the kernel can need them
STUCK = 1.0  # seconds that a monitor of LXC may have none but dead children while it starts an app
UNMOUNT_WAIT = 3.0  # seconds for LXC to unmount, or for a process that ends to leave


def base(conf: Conf, text: str) -> str:
    """`host`, or the path of the tree that *text* names. Raises NotFoundError."""
    if text == "host":
        return text
    path = Path(text).absolute() if "/" in text else conf.core_state_dir / "base" / text
    if not path.is_dir():
        raise NotFoundError(f"{text}: no such tree: {path} is not a directory; dre-base --tree makes one")
    if not os.path.lexists(path / "bin/sh"):
        raise UsageError(f"{text}: not a root file system: {path}/bin/sh is missing")
    return os.path.realpath(path)


def create(app: App, spec: Spec, ip: str | None, fill: Callable[[Path], None] | None = None) -> Spec:
    """Make the app, stopped. *ip* is as network.address wants it; the Spec with what it gives is returned.

    *fill* puts into the empty delta what the app begins with.
    """
    need_free(app)
    if app.home.exists():
        remove(app)  # what is left of one that lxc-destroy removed
    with trees.used(app.conf, spec.base), network.reserved(app.conf):
        if spec.base != "host" and not Path(spec.base).is_dir():
            raise NotFoundError(f"{spec.base}: no such tree: it has just been deleted")
        app.home.mkdir(parents=True, mode=0o700)
        # Written before the address is given away, so that nobody else gets it.
        app.begin(verb="create")
        try:
            spec = confine.allot(app, replace(spec, ip=network.address(app, ip)))
            publish.check(app, spec)
        except DreError:
            remove(app)
            raise
        # Until the intent is gone a power failure undoes all of this; so it need not be durable before.
        files.write_atomic(app.home / "app.json", spec.to_json(), 0o600, durable=False)
    try:
        _build(app, spec, fill)
    except BaseException:
        remove(app)
        raise
    files.fsync(app.home / "app.json")
    files.fsync_dir(app.directory)
    app.done()
    app.emit("created", base=spec.base, ip=spec.ip)
    return spec


def need_free(app: App) -> None:
    """Raise DreError when there is such an app, or a container of others."""
    if app.exists():
        raise DreError(f"{app.name}: there is such an app already")
    if os.path.lexists(app.directory):
        raise DreError(f"{app.name}: taken by an LXC container that dre-app did not make: {app.directory}")
    if (app.conf.core_state_dir / "sys" / "state" / app.name).exists():
        raise DreError(f"{app.name}: there is a system of that name, and on the bridge a name means one")


def _build(app: App, spec: Spec, fill: Callable[[Path], None] | None) -> None:
    if subvolume.filesystem(app.directory.parent) is None:
        app.directory.mkdir()
    else:
        subvolume.create(app.directory)  # overlayfs wants delta and work in the same one
    app.directory.chmod(0o710)  # what lies in a delta with the setuid bit is for nobody of the host
    for part in ("delta", "work", "rootfs"):
        (app.directory / part).mkdir(mode=0o755)
    lower = "/" if spec.base == "host" else spec.base
    # A link, so that nothing of the tree can be reached by removing the app's directory.
    (app.directory / "lower").symlink_to(lower)
    if fill is not None:
        fill(app.delta)
    if spec.base == "host":
        lxcconfig.hide(app.conf, app.delta)
    app.log.parent.mkdir(parents=True, exist_ok=True)
    app.log.touch(mode=0o640)
    app.derive(spec)
    names.write(app, spec)
    if spec.unprivileged:  # where it cannot be, say so now
        try:
            mount(app)
        finally:
            unmount(app)


def start(app: App, crashes: int = 0) -> bool:
    """Start the app; False when it runs already. With *crashes* it had so many, and is started again after the last."""
    spec = app.need()
    state = _steady(app)
    if state == "frozen":
        raise DreError(f"{app.name}: is frozen; dre-app thaw {app.name}")
    if state == "running":
        if _begun_wholly(app):
            network.complete(app, spec, app.init_pid())
        else:
            begun(app, spec)
        return False
    make_ready(app, spec, crashes)
    names.write(app, spec)
    said = output.of_lxc(app)
    said.unlink(missing_ok=True)
    # As a program and not by the library: liblxc forks the monitor from its caller, with all that the caller
    # has open (our lock!) and in memory, and moves the caller into the monitor's control group.
    if spec.unprivileged:
        mount(app)  # as the hook would, but without a new interpreter
    argv = ["lxc-start", "-n", app.name, "-P", str(app.conf.app_lxc_path), "-o", str(said), "-l", "ERROR"]
    before = app.delta.stat()
    reason = None
    with _unstuck(app) as ended:
        if run(argv, check=False, timeout=LXC_WAIT).returncode != 0:
            reason = _reason(said)
    if reason and ended:
        reason = "its first process died before it was one"
    if reason:
        with contextlib.suppress(DreError):  # the reason is what matters; the next start says who stands in it
            unmount(app)
        network.clear(app, spec)
        raise DreError(f"{app.name}: cannot start: {reason}")
    with contextlib.suppress(FileNotFoundError):
        # LXC makes and removes names in the root directory as it starts; without this each start would change
        # the digest of the delta.
        os.utime(app.rootfs, ns=(before.st_atime_ns, before.st_mtime_ns))
    begun(app, spec, crashes)
    return True


def make_ready(app: App, spec: Spec, crashes: int = 0) -> None:
    """What must be there before LXC starts or restores the stopped app."""
    relimit.check(app, spec.limits)
    confine.check_seccomp(app, spec)
    sweep(app, {"wanted": True, "kept": True, "told": True, "crashes": crashes} if crashes else None)
    app.refresh(spec)
    for item in spec.binds:
        if not Path(item.source).exists():
            raise DreError(f"{app.name}: cannot start: {item.source}, which it binds, does not exist")
    network.prepare(app, spec)
    output.begin(app, again=crashes > 0)
    if spec.restart != "no":
        app.status.write_bytes(b"")


def begun(app: App, spec: Spec, crashes: int = 0) -> int | None:
    """What follows once LXC has started or restored the app: it is noted, told, and wholly connected. Its init."""
    # Not by lxc-info: to load the library into this process costs no more, and in one that serves it is there already.
    answer: int = app.container().init_pid
    pid = answer if answer > 0 else None  # its program may have ended at once
    _note(app, pid, kept=spec.restart != "no", crashes=crashes, starting=True)
    app.emit("started", pid=pid)
    try:
        network.complete(app, spec, pid)
        sshd.await_ready(app, spec, pid)
    except DreError:
        stop(app, 0.0)
        raise
    record = app.record()
    if record.pop("starting", None):
        app.remember(record)
    return pid


def _begun_wholly(app: App) -> bool:
    """Whether the start of the running app was not killed before its end."""
    record = app.record()
    return bool(record.get("monitor")) and not record.get("starting")


def _reason(said: Path) -> str:
    """The first error that LXC logged, which is the cause; the later ones follow from it."""
    with contextlib.suppress(FileNotFoundError):
        found = re.search(r"ERROR +\S+ - [^ ]+ - (.*)", said.read_text(errors="replace"))
        if found:
            return f"{found[1]} ({said})"
    return "lxc-start gave no reason"


def end_start(app: App) -> bool | None:
    """End the start of a wanted app that was killed; whether there was one, None when the app is not running yet."""
    record = app.record()
    if not record.get("wanted") or _begun_wholly(app) or record.get("told") and app.state() == "crashed":
        return False
    if app.state() != "running":
        return None
    begun(app, app.spec(), crashes=int(record.get("crashes", 0)))
    return True


def _note(
    app: App, init: int | None, wanted: bool = True, kept: bool = False, crashes: int = 0, starting: bool = False
) -> None:
    """Note the processes of a running app, for `usage`, for `stop`, and to tell crashed from stopped."""
    record: dict[str, Any] = {"wanted": wanted, "kept": kept, "crashes": crashes}
    if starting:
        record["starting"] = True
    with contextlib.suppress(OSError):  # its program may have ended at once
        if init is not None:
            monitor = apps.monitor(init)
            record["monitor"] = [monitor, apps.started(monitor)]
            record["init"] = [init, apps.started(init)]
    app.remember(record)


def _note_stop(app: App, init: int) -> None:
    """Note that the app is to end. Where that finds no room, as where it is most needed, forget it: to end is all that
    then can be told."""
    try:
        _note(app, init, wanted=False)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        app.record_file.unlink(missing_ok=True)


def _steady(app: App) -> str:
    """The state once it is neither starting nor stopping. Raises TimedOutError."""
    deadline = time.monotonic() + LXC_WAIT
    while (state := app.state()) in ("starting", "stopping"):
        if not unstick(app) and time.monotonic() > deadline:
            raise TimedOutError(f"{app.name}: still {state} after {LXC_WAIT:g} s")
        time.sleep(0.02)
    return state


@contextlib.contextmanager
def _unstuck(app: App) -> Iterator[list[bool]]:
    """While LXC starts the app, end its monitor when that waits for ever; the list is empty while that was not so."""
    done, ended = threading.Event(), list[bool]()

    def look() -> None:
        while not done.wait(STUCK):
            if unstick(app, STUCK):
                ended.append(True)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield ended
    finally:
        done.set()
        looking.join()


def unstick(app: App, seconds: float = 0.0) -> bool:
    """Kill the monitor, or the first process, of an app that does not come to its state: where the one of them died as
    it was started the other waits for a word of it for ever. False when there is none, for so many *seconds*."""
    title = f"[lxc monitor] {app.conf.app_lxc_path} {app.name}".encode()
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), _watched(int(process)) as fd:
            if _title(process) != title:
                continue
            if _alone(process, title) and not (seconds and _ended(fd, seconds)) and _alone(process, title):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                return _ended(fd, KILL_WAIT)
    return False


def _alone(process: str, title: bytes) -> bool:
    """Whether it is a monitor whose children are all dead, or a first process without a monitor."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return bool(children) and all(apps.started(int(child)) is None for child in children) or _lost(process, title)


def _title(process: str) -> bytes:
    return Path(f"/proc/{process}/cmdline").read_bytes().rstrip(b"\0")


def _lost(process: str, title: bytes) -> bool:
    """Whether it is no monitor but a first process, which still has the *title*, and its monitor is gone.

    LXC lets it die with that, but not when that has ended before it comes to ask for it.
    """
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return len(status["NSpid"].split()) > 1 and _title(status["PPid"]) != title


def stop(app: App, timeout: float) -> bool:
    """Send TERM to all processes of the app, kill them after *timeout* seconds; False when it was stopped already."""
    spec = app.need()
    state = _steady(app)
    if state not in ("running", "frozen"):
        sweep(app)
        return False
    init = app.init_pid()
    told: dict[str, Any] = {}
    if init is not None:
        _note_stop(app, init)
        with contextlib.suppress(OSError), _watched(apps.monitor(init)) as monitor:  # ended by itself just now
            if state == "frozen":
                _unfreeze(app, init)  # a frozen process cannot obey
            told = _end(app, init, monitor, lxcconfig.halt(app.container(), spec), timeout)
    sweep(app)
    app.emit("stopped", **told)
    return True


def _end(app: App, init: int, monitor: int, halt: int | None, timeout: float) -> dict[str, Any]:
    """End the app; in how many `seconds`, whether it was `killed`, and what a D-aware program `said` meanwhile."""
    begun = time.monotonic()
    with parting.heard(app.directory / parting.PLACE) as ear:
        # Not left to init.lxc, which would kill one second after its TERM: a database may need longer.
        if halt is None:
            terminate(init)
        else:
            with contextlib.suppress(ProcessLookupError), _watched(init) as fd:
                signal.pidfd_send_signal(fd, halt)
        obeyed = ear.until(monitor, timeout)
    if not obeyed:
        app.container().stop()
        if not _ended(monitor, KILL_WAIT):
            raise TimedOutError(f"{app.name}: not ended {KILL_WAIT:g} s after it was killed")
    said = {"said": ear.said} if ear.said is not None else {}
    return {"seconds": round(time.monotonic() - begun, 3), "killed": not obeyed, **said}


def terminate(init: int) -> None:
    """TERM to every process of the app but its *init*, which ends with its child."""
    group = cgroup.Group.of(init)
    for pid in group.pids():
        if pid == init:
            continue
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                # The number may be another process's by now; this descriptor is for one process.
                if cgroup.Group.of(pid).is_same(group):
                    signal.pidfd_send_signal(fd, signal.SIGTERM)
            except FileNotFoundError:
                pass
            finally:
                os.close(fd)


@contextlib.contextmanager
def _watched(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when process *pid* ends."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def _ended(fd: int, timeout: float) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


def freeze(app: App) -> bool:
    """Freeze the running app; False when it is frozen already."""
    app.need()
    state = _steady(app)
    if state == "frozen":
        return False
    if state != "running":
        raise DreError(f"{app.name}: cannot freeze: it is {state}")
    if not app.container().freeze():
        raise DreError(f"{app.name}: LXC could not freeze it")
    app.emit("frozen")
    return True


def thaw(app: App) -> bool:
    """Thaw the frozen app; False when it runs already."""
    app.need()
    state = _steady(app)
    if state == "running":
        return False
    if state != "frozen":
        raise DreError(f"{app.name}: cannot thaw: it is {state}")
    init = app.init_pid()
    if init is None or not _unfreeze(app, init):
        raise DreError(f"{app.name}: could not be thawed")
    app.emit("thawed")
    return True


def _unfreeze(app: App, init: int) -> bool:
    """Let the processes of the frozen app run; whether that could be done. Raises OSError when it has ended."""
    group = cgroup.Group.of(init)
    app.container().unfreeze()  # what it answers is not to be believed where monitor or init were killed
    with contextlib.suppress(OSError):  # killed while frozen, it ends now, and so does its group
        if group.frozen():  # LXC's monitor was killed, and so will be the app, once it can
            group.write(*(("", "cgroup.freeze", "0") if group.v2 else ("freezer", "freezer.state", "THAWED")))
        return not group.frozen()
    return True


def destroy(app: App) -> None:
    """Remove the stopped app with its snapshots; never anything of its base."""
    spec = app.need()
    app.begin(verb="destroy")
    remove(app)
    app.emit("destroyed", base=spec.base)


def remove(app: App) -> None:
    """Remove all that is the app's own. May be repeated: it is also how a killed create or destroy ends."""
    (app.directory / "config").unlink(missing_ok=True)  # first: without it there is no container
    sweep(app)
    saved = app.home / "snapshot"
    for path in (app.directory, *_entries(saved), saved):
        remove_tree(path)
    halves = [*_entries(app.log.parent, f".{app.name}."), *_entries(app.record_file.parent, f".{app.name}.")]
    for path in (*_entries(app.log.parent, f"{app.name}."), app.record_file, *halves):
        path.unlink(missing_ok=True)
    gone = app.home.with_name(f".{app.name}.gone")  # its intent must not vanish before the rest
    remove_tree(gone)
    with contextlib.suppress(FileNotFoundError):
        app.home.rename(gone)
        files.fsync_dir(gone.parent)
    remove_tree(gone)


def remove_tree(path: Path) -> None:
    """Remove *path* and what is below it, on its own file system alone and not through links.

    A subvolume goes too where *path* is one, or a snapshot that holds one.
    """
    if not os.path.lexists(path):
        return
    for found in () if path.is_symlink() else (path / "tree", path):
        if subvolume.is_one(found):
            subvolume.delete(found)
    if os.path.lexists(path) and not files.remove_small(path):
        run([*MORTAL, "rm", "-rf", "--one-file-system", "--", str(path)], timeout=600)


def sweep(app: App, record: dict[str, Any] | None = None) -> None:
    """Remove what a killed monitor or a killed verb left of a stopped app: mount, link, control groups, record.

    With *record* that takes the place of the old one, and no moment is without: killed there, a crash is still known.
    """
    _await_monitor(app)
    unmount(app)
    if (app.home / "app.json").exists():
        with contextlib.suppress(DreError):
            network.clear(app, app.spec())
    others = set(os.listdir(app.conf.app_lxc_path)) if app.conf.app_lxc_path.is_dir() else set()
    cgroup.sweep(app.name, others)
    if record is None:
        app.record_file.unlink(missing_ok=True)
    else:
        app.remember(record)


def tidy(app: App) -> None:
    """Remove half-made and half-removed files; only when no intent needs them."""
    halves = [*_entries(app.home / "snapshot", "."), *_entries(app.home / "checkpoint", ".")]
    halves += [*_entries(app.home, ".", ".tmp"), *_entries(app.directory, ".", ".tmp")]
    for path in (app.directory / "delta.new", app.directory / "delta.old", *halves):
        remove_tree(path)


def _entries(directory: Path, begin: str = "", end: str = "") -> list[Path]:
    # Not by glob, which is slow: each verb that changes an app is here, and seldom finds anything.
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return [directory / name for name in os.listdir(directory) if name.startswith(begin) and name.endswith(end)]
    return []


def _await_monitor(app: App) -> None:
    """Wait until the last monitor has ended: its hook unmounts, and must not unmount for a new start."""
    noted = app.record().get("monitor")
    if noted and apps.started(noted[0]) == noted[1]:
        with contextlib.suppress(ProcessLookupError), _watched(noted[0]) as fd:
            if not _ended(fd, KILL_WAIT):
                raise TimedOutError(f"{app.name}: LXC's monitor (process {noted[0]}) does not end")


def mounted(app: App) -> list[str]:
    """Where something of the app is mounted: its overlay, and what an unprivileged one sees of the host."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        if f"/{app.name}/" not in line:  # nothing of a name is ever escaped
            continue
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4])
        if place.startswith(f"{app.directory}/"):
            found.append(place)
    return found


def mount(app: App) -> None:
    """Mount the overlay of a stopped app as its start would."""
    if app.spec().unprivileged:
        from dre import idmap  # late, for ctypes costs some milliseconds

        try:
            idmap.mount(str(app.directory))
        except idmap.Refused as error:
            raise MissingError(f"{app.name}: {error}; make it privileged to do without") from None
        except OSError as error:
            raise DreError(f"{app.name}: cannot mount its layers: {error}") from None
        return
    hook = {"LXC_ROOTFS_PATH": str(app.rootfs), "LXC_HOOK_TYPE": "pre-start"}
    run([str(lxcconfig.share() / "overlay")], env=hook)


def unmount(app: App) -> None:
    """Unmount what is mounted of the app. Raises DreError when somebody stands in it and stays there."""
    deadline = time.monotonic() + UNMOUNT_WAIT
    while places := mounted(app):
        done = run(["umount", "--", *reversed(places)], check=False)
        if done.returncode != 0 and time.monotonic() > deadline and mounted(app):
            said = done.stderr.decode(errors="replace").strip()
            raise DreError(f"{app.name}: cannot unmount {' '.join(mounted(app))}: {said}")
        if done.returncode != 0:
            time.sleep(0.05)  # LXC's monitor may be at it too, or a process of the app about to end


def new_spec(app: App, **fields: Any) -> Spec:
    """A Spec for `create`, stamped with the time."""
    return Spec(name=app.name, created=event.stamp(), **fields)
