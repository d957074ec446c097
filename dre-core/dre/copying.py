# SPDX-License-Identifier: Apache-2.0
"""A second app like the first, and another name for an app. Wants the locks of both names, as dre.recovery gives them.

What makes an app one of its own is not copied: its address, its hardware address, its ids, the ports it publishes, its
machine id and the host keys of its sshd.
"""

import contextlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dre import adopt, archive, event, existence, files, network, snapshot
from dre.app import App
from dre.errors import DreError
from dre.spec import DHCP, Spec

_MACHINE_IDS = ("etc/machine-id", "var/lib/dbus/machine-id")
_SEEDS = ("var/lib/systemd/random-seed", "var/lib/urandom/random-seed")


def clone(
    source: App,
    new: App,
    tag: str | None,
    request: str | None = None,
    *,
    changed_base: bool = False,
    say: snapshot.Say = str,
) -> Spec:
    """Make *new* like the stopped app *source*, or like its snapshot *tag*; returns its Spec."""
    spec = source.need()
    if tag is None:
        state = source.state()
        if state not in ("stopped", "crashed"):
            hint = f"dre-app stop {source.name}, or clone a snapshot with --tag"
            raise DreError(f"{source.name}: cannot be cloned: it is {state}; {hint}")
        existence.sweep(source)
        fill = _copier(source)
    else:
        saved = snapshot.find(source, tag)
        snapshot.check_base(source, saved, changed_base, say)
        spec, fill = spec.restored(saved.spec), _unpacker(source, saved)
    made = existence.create(new, as_new(spec, new.name, request), wish(spec), fill)
    new.emit("cloned", of=source.name, tag=tag)
    return made


def as_new(spec: Spec, name: str, request: str | None) -> Spec:
    """*spec* for another app: without what only one can have, or should do by itself before somebody has looked."""
    own = {"name": name, "created": event.stamp(), "ip": None, "ids": None, "request": request}
    return replace(spec, **own, publish=(), autostart=False)


def wish(spec: Spec) -> str | None:
    """What address an app like *spec* is to get, as `create` takes it."""
    return "none" if spec.ip is None else DHCP if spec.ip == DHCP else None


def _copier(source: App) -> Callable[[Path], None]:
    def fill(delta: Path) -> None:
        argv = [*archive.COPY, "--", str(source.delta), str(delta)]
        snapshot.write(source, argv, "copy its delta", delta.parent)
        anonymise(delta)

    return fill


def _unpacker(source: App, saved: snapshot.Snapshot) -> Callable[[Path], None]:
    def fill(delta: Path) -> None:
        snapshot.unpack(source, saved, delta)
        anonymise(delta)

    return fill


def anonymise(delta: Path) -> None:
    """Take out of *delta* by what two machines could be mistaken for each other. Whiteouts of the base's stay."""
    for name in _MACHINE_IDS:
        with _directory(delta, name) as (fd, last):
            if fd is not None and _regular(fd, last):
                os.unlink(last, dir_fd=fd)
                # There was one, so its programs want one.
                new = os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=fd)
                with open(new, "w") as stream:
                    stream.write(f"{uuid.uuid4().hex}\n")
    for name in _SEEDS:
        with _directory(delta, name) as (fd, last):
            if fd is not None and _regular(fd, last):
                os.unlink(last, dir_fd=fd)
    with _directory(delta, "etc/ssh/-") as (fd, _):
        for name in os.listdir(fd) if fd is not None else ():
            if name.startswith("ssh_host_") and _regular(fd, name):
                os.unlink(name, dir_fd=fd)


@contextlib.contextmanager
def _directory(delta: Path, name: str) -> Iterator[tuple[int | None, str]]:
    """The directory that holds *name* in *delta*, open, and the last part of *name*; None when it is not there.

    No symbolic link is followed: the app may have made it, and it would lead to a place of the host.
    """
    *parts, last = name.split("/")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(delta, flags)
    try:
        try:
            for part in parts:
                inner = os.open(part, flags, dir_fd=fd)
                os.close(fd)
                fd = inner
        except (FileNotFoundError, NotADirectoryError):
            yield None, last
        else:
            yield fd, last
    finally:
        os.close(fd)


def _regular(fd: int | None, name: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def rename(old: App, new: App) -> None:
    """Give the stopped app *old* the name of *new*, with its snapshots, logs and settings."""
    old.need()
    state = old.state()
    if state not in ("stopped", "crashed"):
        raise DreError(f"{old.name}: cannot be renamed: it is {state}; dre-app stop {old.name}")
    if new.home.exists() or new.exists():
        raise DreError(f"{new.name}: there is such an app already")
    if os.path.lexists(new.directory):
        raise DreError(f"{new.name}: taken by an LXC container that dre-app did not make: {new.directory}")
    waiting = [name for name, spec in network.others(old) if old.name in spec.after]
    if waiting:
        raise DreError(f"{old.name}: {', '.join(waiting)} start after it; dre-app set {waiting[0]} after=… first")
    adopt.need_unshared(old)
    existence.sweep(old)
    intent = {"verb": "rename", "old": old.name, "new": new.name}
    new.home.mkdir(mode=0o700)
    new.begin(**intent)
    old.begin(**intent)  # from here it will be done
    resume_rename(old, new)


def resume_rename(old: App, new: App) -> bool:
    """Do, or go on with, a rename: or forget it, and return False, when nothing of it was done."""
    if not _begun(old) and not (new.home / "app.json").exists():
        existence.remove_tree(new.home)
        return False
    if old.directory.exists():
        old.directory.rename(new.directory)
        files.fsync_dir(new.directory.parent)
    for path in old.log.parent.glob(f"{old.name}.*"):
        path.rename(path.with_name(new.name + path.name.removeprefix(old.name)))
    if old.home.exists():
        # app.json last: with it the new name is an app.
        for name in sorted(os.listdir(old.home), key=lambda name: name == "app.json"):
            if name != "intent.json":
                (old.home / name).rename(new.home / name)
        files.fsync_dir(new.home)
    spec = new.spec()
    new.store(replace(spec, name=new.name, base=adopt.base_renamed(spec, old, new)))
    if old.home.exists():
        old.done()
        old.home.rmdir()
        files.fsync_dir(old.home.parent)
    new.done()
    new.emit("renamed", old=old.name)
    return True


def _begun(old: App) -> bool:
    intent = old.intent()
    return intent is not None and intent["verb"] == "rename"
