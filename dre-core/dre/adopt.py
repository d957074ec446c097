# SPDX-License-Identifier: Apache-2.0
"""Making an app of a container that others made, where it lies: its files become the app's base or delta by renames.

What its configuration may say is dre.foreign's. Nothing is copied and nothing lost: its configuration stays beside the
new one as config.lxc. Wants the app's lock, as dre.lifecycle does.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dre import cgroup, confine, existence, files, foreign, lxcconfig, network, relimit
from dre.app import App
from dre.errors import DreError, NotFoundError
from dre.spec import Spec

BASE = "base"  # below the app's directory: the tree that came with it
_SAVED = "config.lxc"
_BOUND = {"snaps": "lxc-snapshot", "lxc_snapshots": "lxc-copy"}  # what LXC would not find again after the renames


def adopt(app: App, ip: str | None, command: tuple[str, ...], privileged: bool) -> list[str]:
    """Make the stopped LXC container an app; nothing when it is one. Returns what a person should know.

    *ip* is as network.address wants it. Raises DreError, with nothing changed, for what an app cannot be.
    """
    if app.exists():
        return []
    config = app.directory / "config"
    if not config.exists():
        raise NotFoundError(f"{app.name}: no container in {app.conf.app_lxc_path}")
    _need_still(app)
    found = foreign.read(config, app.name)
    base, moves = _layers(app, found.rootfs)
    _need_unused(app)
    came = [old for old, new in moves if new == BASE]
    root = app.directory / came[0] if came else Path("/" if base == "host" else base)
    command, halt = _program(app, found, command, root)
    privileged = privileged or base == "host"
    wanted = existence.new_spec(
        app,
        base=base,
        command=command,
        halt=halt,
        env=found.env,
        binds=tuple(found.binds),
        autostart=found.autostart,
        limits=cgroup.Limits(**found.limits),
        privileged=privileged,
    )
    relimit.check(app, wanted.limits)
    with network.reserved(app.conf):
        wanted = replace(wanted, ip=network.address(app, _address(app, found, ip)))
        wanted = confine.allot(app, wanted)
        intent = {"verb": "adopt", "spec": asdict(wanted), "moves": moves}
        _make_home(app, wanted, intent)
    resume(app, intent)
    said = [f"its address is {wanted.ip or 'none'}"] if wanted.ip != found.ip else []
    return [*said, f"its configuration is kept in {app.directory}/{_SAVED}"]


def resume(app: App, intent: dict[str, Any]) -> None:
    """Do, or go on with, an adoption whose intent is written. Every step may be repeated."""
    spec = Spec.from_json(json.dumps(intent["spec"]))
    saved = app.directory / _SAVED
    if not saved.exists():
        files.write_atomic(saved, (app.directory / "config").read_bytes(), 0o600)
    for old, new in intent["moves"]:
        if not os.path.lexists(app.directory / new):
            (app.directory / old).rename(app.directory / new)
    for part in ("delta", "work", "rootfs"):
        (app.directory / part).mkdir(mode=0o755, exist_ok=True)
    lower = app.directory / "lower"
    if not os.path.lexists(lower):
        own = str(app.directory / BASE) == spec.base
        lower.symlink_to("/" if spec.base == "host" else BASE if own else spec.base)
    if spec.base == "host":
        lxcconfig.hide(app.conf, app.delta)
    app.directory.chmod(0o710)
    files.fsync_dir(app.directory)
    app.log.parent.mkdir(parents=True, exist_ok=True)
    app.log.touch(mode=0o640)
    app.store(spec)
    app.done()
    app.emit("adopted", base=spec.base, ip=spec.ip)


def need_unshared(app: App) -> None:
    """Raise DreError when another app stands on the tree that came with this one and would go with it."""
    if not (app.directory / BASE).is_dir():
        return
    users = [name for name, spec in network.others(app) if Path(spec.base).is_relative_to(app.directory)]
    if users:
        raise DreError(f"{app.name}: its tree is the base of {', '.join(sorted(set(users)))}; destroy that first")


def base_renamed(spec: Spec, old: App, new: App) -> str:
    """The base of *spec*, app *old*, when its directory has become that of *new*."""
    return str(new.directory / BASE) if spec.base == str(old.directory / BASE) else spec.base


def _need_still(app: App) -> None:
    state = app.container().state
    if state != "STOPPED":
        raise DreError(f"{app.name}: cannot adopt: it is {state.lower()}; lxc-stop -n {app.name}")
    if (app.directory / "partial").exists():
        raise DreError(f"{app.name}: cannot adopt: lxc-create has not finished it")
    for entry, tool in _BOUND.items():
        path = app.directory / entry
        if path.exists() and (path.stat().st_size if path.is_file() else any(path.iterdir())):
            raise DreError(f"{app.name}: cannot adopt: {path}: {tool} has made copies that need it as it is")


def _need_unused(app: App) -> None:
    users = [name for name, spec in network.others(app) if Path(spec.base).is_relative_to(app.directory)]
    if users:
        raise DreError(f"{app.name}: cannot adopt: its tree is the base of {', '.join(sorted(set(users)))}")


def _layers(app: App, rootfs: str) -> tuple[str, list[list[str]]]:
    """The base to be, and the renames below the app's directory that make it, the delta too. Raises DreError."""
    kind, _, rest = rootfs.partition(":")
    if rootfs.startswith("/"):
        kind, rest = "dir", rootfs
    if kind == "dir":
        lower, upper = rest, None
    elif kind in ("overlay", "overlayfs") and rest.count(":") == 1:
        lower, upper = rest.split(":")
    else:
        reason = "neither a directory nor an overlay of two"
        raise DreError(f"{app.name}: cannot adopt: lxc.rootfs.path = {rootfs}: {reason}")
    moves = []
    if upper is not None:
        inside = _inside(app, upper)
        if inside is None:
            raise DreError(f"{app.name}: cannot adopt: {upper} lies outside {app.directory}")
        if inside != "delta":
            moves.append([inside, "delta"])
    inside = _inside(app, lower)
    if inside is None:  # shared: a base like any other, which nobody moves and nobody removes
        path = os.path.realpath(lower)
        return ("host", moves) if path == "/" else (existence.base(app.conf, path), moves)
    existence.base(app.conf, str(app.directory / inside))
    taken = [part for part in (BASE, "work", "delta") if os.path.lexists(app.directory / part) and part != inside]
    if [part for part in taken if part != "delta" or upper is None]:
        raise DreError(f"{app.name}: cannot adopt: {app.directory}/{taken[0]} is in the way")
    return str(app.directory / BASE), [*moves, [inside, BASE]]


def _inside(app: App, path: str) -> str | None:
    """The place of directory *path* below the app's own, None when it lies elsewhere. Raises DreError."""
    real = Path(path).resolve()
    if not real.is_dir():
        raise DreError(f"{app.name}: cannot adopt: {path} is not a directory")
    own = app.directory.resolve()
    if not real.is_relative_to(own) or real == own:
        return None
    if real.stat().st_dev != own.stat().st_dev or os.path.ismount(real):
        raise DreError(f"{app.name}: cannot adopt: {path} is a file system of its own")
    return str(real.relative_to(own))


def _program(
    app: App, found: foreign.Container, command: tuple[str, ...], root: Path
) -> tuple[tuple[str, ...], int | None]:
    """Its program, and the signal that ends it when that is an init of its own."""
    if command:
        return command, None
    if found.halt is None:
        return found.command, None
    command = found.command or (foreign.INIT,)
    if not os.path.lexists(root / command[0].lstrip("/")):
        raise DreError(f"{app.name}: cannot adopt: it has no {command[0]}; say after -- what it shall run")
    return command, found.halt


def _address(app: App, found: foreign.Container, asked: str | None) -> str | None:
    """The address as asked for; else the one it had, where that is on our bridge; else the next free one."""
    if asked is not None:
        return asked
    if not found.network:
        return "none"
    try:
        return network.address(app, found.ip) if found.ip else None
    except DreError:
        return None


def _make_home(app: App, spec: Spec, intent: dict[str, Any]) -> None:
    """Our directory, with the intent in it from the first moment: one without would be taken for a half-made create."""
    half = app.home.with_name(f".{app.name}.adopt")
    existence.remove_tree(half)
    half.mkdir(parents=True, mode=0o700)
    files.write_atomic(half / "app.json", spec.to_json(), 0o600)
    files.write_atomic(half / "intent.json", json.dumps(intent) + "\n", 0o600)
    half.rename(app.home)
    files.fsync_dir(app.home.parent)
