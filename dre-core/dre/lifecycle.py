# SPDX-License-Identifier: Apache-2.0
"""Changes to apps: start, stop, freeze and thaw; dre.existence has what makes and removes them.

Every function here wants the app's lock held and earlier intents ended: dre.recovery.held gives both. Each may be
killed at any moment; what it leaves is either ended or undone by the next one.
"""

import contextlib
import errno
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import cgroup, confine, existence, lxcconfig, names, network, output, parting, relimit, sshd
from dre.app import App
from dre.errors import DreError, TimedOutError
from dre.run import run
from dre.spec import Spec

LXC_WAIT = 30.0  # seconds for LXC to start an app, or to end what it has begun
STUCK = 1.0  # seconds that a monitor of LXC may have none but dead children while it starts an app
_SAID = 4096  # octets that hold the last line that a shell said
EXEC_WAIT = 0.5  # seconds, at most, until it is known whether the program of an app that was started could begin


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
        existence.mount(app)  # as the hook would, but without a new interpreter
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
            existence.unmount(app)
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
    existence.sweep(app, {"wanted": True, "kept": True, "told": True, "crashes": crashes} if crashes else None)
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


def prove(app: App) -> None:
    """Raise DreError when the app that was just started has ended, for the shell that begins its program could not.

    Mostly the program has begun before LXC tells of the start. Not looked at: one with an init or an sshd of its own.
    """
    spec, init = app.spec(), app.init_pid()
    if spec.halt is None and spec.sshd_port is None and not (init and _begins(init)):
        with app.log.open("rb") as stream:
            stream.seek(-min(_SAID, app.log.stat().st_size), os.SEEK_END)
            last = stream.read().decode(errors="replace").splitlines()[-1:]
        if found := re.match(r"/run/dre-command: (?:exec: )?(?:line )?[0-9]+: (?:exec: )?(.*)", "".join(last)):
            said = "".join(one if one.isprintable() else "?" for one in found[1])  # its log may hold anything
            raise DreError(f"{app.name}: cannot start: {said}")


def _begins(init: int) -> bool:
    """Whether an app begins its program, or has it; False once it has ended."""
    deadline = time.monotonic() + EXEC_WAIT
    with contextlib.suppress(OSError), existence.watched(init) as end:
        while not any(map(_is_own, _below(init))):
            if existence.ended(end, 0.001):
                return False
            if time.monotonic() > deadline:
                break  # its limits, or the host, hold it back
        return True
    return False


def _below(pid: int) -> Iterator[int]:
    """Children of process *pid*, and theirs."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from _below(int(child))


def _is_own(pid: int) -> bool:
    """Whether process *pid* of an app is neither the shell that begins its program nor what is yet to be that."""
    title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
    return bool(title) and not title.endswith(lxcconfig.START.encode().replace(b" ", b"\0"))


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
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), existence.watched(int(process)) as fd:
            if _title(process) != title:
                continue
            if _alone(process, title) and not (seconds and existence.ended(fd, seconds)) and _alone(process, title):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
                return existence.ended(fd, existence.KILL_WAIT)
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
        existence.sweep(app)
        return False
    init = app.init_pid()
    told: dict[str, Any] = {}
    if init is not None:
        _note_stop(app, init)
        with contextlib.suppress(OSError), existence.watched(apps.monitor(init)) as monitor:  # ended by itself just now
            if state == "frozen":
                _unfreeze(app, init)  # a frozen process cannot obey
            told = _end(app, init, monitor, lxcconfig.halt(app.container(), spec), timeout)
    existence.sweep(app)
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
            with contextlib.suppress(ProcessLookupError), existence.watched(init) as fd:
                signal.pidfd_send_signal(fd, halt)
        obeyed = ear.until(monitor, timeout)
    if not obeyed:
        app.container().stop()
        if not existence.ended(monitor, existence.KILL_WAIT):
            raise TimedOutError(f"{app.name}: not ended {existence.KILL_WAIT:g} s after it was killed")
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
