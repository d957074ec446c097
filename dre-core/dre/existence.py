# SPDX-License-Identifier: Apache-2.0
"""What an app has on this host: made, mounted, swept and removed. dre.lifecycle starts and stops it.

Every function here that changes something wants the app's lock held: dre.recovery.held gives it. Each may be killed at
any moment, and be repeated.
"""

import contextlib
import os
import re
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import cgroup, confine, event, files, lxcconfig, names, network, publish, subvolume, trees
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, MissingError, NotFoundError, TimedOutError, UsageError
from dre.run import MORTAL, run
from dre.spec import Spec

KILL_WAIT = 10.0  # seconds from SIGKILL to the end; only the kernel can need them
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


def new_spec(app: App, **fields: Any) -> Spec:
    """A Spec for `create`, stamped with the time."""
    return Spec(name=app.name, created=event.stamp(), **fields)


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
        with contextlib.suppress(ProcessLookupError), watched(noted[0]) as fd:
            if not ended(fd, KILL_WAIT):
                raise TimedOutError(f"{app.name}: LXC's monitor (process {noted[0]}) does not end")


@contextlib.contextmanager
def watched(pid: int) -> Iterator[int]:
    """A descriptor that becomes readable when process *pid* ends."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def ended(fd: int, timeout: float) -> bool:
    return bool(select.select([fd], [], [], timeout)[0])


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
