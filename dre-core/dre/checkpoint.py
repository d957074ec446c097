# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of running apps: memory and disk of one moment, and the restart that rolls both back together.

One is a directory: images/ as CRIU writes them, delta.tar, the log of the app's program, and meta.json with the
configuration and the digests of all that. Bound directories are not in it, nor is what the other end of a connection
knows. Wants the app's lock, as dre.lifecycle does; how CRIU is called stands in dre.criu.
"""

import hashlib
import json
import platform
import re
import shlex
import shutil
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dre import (
    archive,
    criu,
    event,
    existence,
    files,
    identity,
    lifecycle,
    limits,
    lxcconfig,
    network,
    requests,
    snapshot,
)
from dre.app import App
from dre.cgroup import Group, Limits
from dre.errors import DreError, NotFoundError
from dre.run import MORTAL, run
from dre.spec import Spec

_PACKED = re.compile(r"\./(?:images/[A-Za-z0-9._-]+|delta\.tar|log|meta\.json)")


@dataclass(frozen=True)
class Checkpoint:
    """A saved moment of an app. *digest* is that of the list of all its files, *init* that of LXC's init it ran by."""

    tag: str
    created: str
    size: int
    digest: str
    path: Path
    spec: Spec
    files: dict[str, str]
    init: str
    base: dict[str, Any]
    kernel: str
    criu: str
    request: str | None = None

    def row(self) -> dict[str, Any]:
        """The fields that `checkpoint list` gives."""
        return {key: getattr(self, key) for key in ("tag", "created", "size", "digest", "kernel", "criu")}


def _place(app: App, tag: str) -> Path:
    return app.home / "checkpoint" / tag


def _half(app: App, tag: str) -> Path:
    return app.home / "checkpoint" / f".{tag}.new"


def find(app: App, tag: str) -> Checkpoint:
    """The checkpoint *tag*. Raises NotFoundError."""
    path = _place(app, tag)
    try:
        meta = json.loads((path / "meta.json").read_text())
        meta["spec"] = Spec.from_json(json.dumps(meta["spec"]))
        return Checkpoint(tag=tag, path=path, **meta)
    except FileNotFoundError:
        raise NotFoundError(f"{app.name}: no checkpoint {tag}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DreError(f"{path}/meta.json: damaged: {error}") from None


def every(app: App) -> list[Checkpoint]:
    """All checkpoints, oldest first. Raises NotFoundError when there is no such app."""
    app.need()
    place = app.home / "checkpoint"
    tags = [path.name for path in place.iterdir() if not path.name.startswith(".")] if place.exists() else []
    return sorted((find(app, tag) for tag in tags), key=lambda found: (found.created, found.tag))


def newest(app: App) -> Checkpoint:
    """The checkpoint made last. Raises NotFoundError when there is none."""
    found = every(app)
    if not found:
        raise NotFoundError(f"{app.name}: has no checkpoint; dre-app checkpoint save makes one of the running app")
    return found[-1]


def save(app: App, tag: str | None, stop: bool, request: str | None = None) -> Checkpoint:
    """Save the running app, which then goes on, or with *stop* has ended. Raises DreError when it could not be."""
    spec = app.need()
    tag = tag or snapshot.auto_tag()
    if _place(app, tag).exists():
        found = find(app, tag)
        if request is not None and found.request == request:
            return found
        raise DreError(f"{app.name}: there is a checkpoint {tag} already")
    if (app.home / "snapshot" / tag).exists():
        raise DreError(f"{app.name}: there is a snapshot {tag} already")
    meta = begun(app, spec, request)
    app.begin(verb="checkpoint", tag=tag, stop=stop, meta=meta)
    try:
        take(app, tag, stop, meta)
    except (DreError, OSError):
        app.done()
        raise
    app.done()
    return find(app, tag)


def begun(app: App, spec: Spec, request: str | None) -> dict[str, Any]:
    """What a checkpoint of the app at this moment says of it. Raises where none can be made."""
    criu.check(app.name, spec)
    pid = _running(app)
    return {
        "created": event.stamp(),
        "spec": asdict(spec),
        "base": identity.of(spec),
        "init": _init_of(app, pid),
        "kernel": platform.release(),
        "criu": criu.version(),
        "request": request,
    }


def take(app: App, tag: str, stop: bool, meta: dict[str, Any]) -> None:
    """Make the checkpoint. The caller has written an intent, with which `finish` can be called after a kill."""
    try:
        _dump(app, tag, stop)
        _complete(app, tag, stop, meta)
    except (DreError, OSError):
        existence.remove_tree(_half(app, tag))
        raise


def finish(app: App, tag: str, stop: bool, meta: dict[str, Any]) -> None:
    """End a `take` that was killed: what was dumped wholly is kept, else the app has just gone on."""
    half = _half(app, tag)
    criu.settled(half / "images")
    try:
        if (half / "delta.tar").exists():
            _complete(app, tag, stop, meta)
    finally:
        existence.remove_tree(half)


def _running(app: App) -> int:
    state = app.state()
    pid = app.init_pid() if state == "running" else None
    if pid is None:
        raise DreError(f"{app.name}: cannot save a checkpoint: it is {state}")
    return pid


def _init_of(app: App, pid: int) -> str:
    try:
        return _sha256(Path(f"/proc/{pid}/exe"))
    except OSError:  # its file is mounted alone, as older versions did it
        raise DreError(f"{app.name}: was started by an older dre-app; dre-app restart {app.name}") from None


def _dump(app: App, tag: str, stop: bool) -> None:
    half = _half(app, tag)
    images = half / "images"
    images.mkdir(parents=True, mode=0o700)
    half.chmod(0o700)
    script = half / "action"
    files.write_atomic(script, _action(app, half), 0o700)
    criu.dump(app, images, script, stop)
    script.unlink()


def _action(app: App, half: Path) -> str:
    """The program that criu calls when all is in the images and nothing of the app runs: it copies what is on disk.

    delta.tar gets its name last: it is the sign that the checkpoint is whole.
    """
    part = str(half / "delta.part")
    return f"""#!/bin/sh
set -eu
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
cp --reflink=auto -- {shlex.quote(str(app.log))} {shlex.quote(str(half / "log"))}
{shlex.join([*archive.PACK, "-C", str(app.delta), "-f", part, "."])}
mv -- {shlex.quote(part)} {shlex.quote(str(half / "delta.tar"))}
"""


def _complete(app: App, tag: str, stop: bool, meta: dict[str, Any]) -> None:
    """Make what was dumped the checkpoint; may be repeated after a kill."""
    half = _half(app, tag)
    (half / "action").unlink(missing_ok=True)
    (half / "meta.json").unlink(missing_ok=True)
    names = sorted(str(path.relative_to(half)) for path in half.rglob("*") if path.is_file())
    sums = {name: _sha256(half / name) for name in names}
    run(["sync", "--", *(str(half / name) for name in names), str(half / "images")], timeout=600)
    whole = {
        **meta,
        "size": sum((half / name).stat().st_size for name in names),
        "digest": hashlib.sha256("".join(f"{sums[name]}  {name}\n" for name in names).encode()).hexdigest(),
        "files": sums,
    }
    files.write_atomic(half / "meta.json", json.dumps(whole, indent=1) + "\n", 0o600)
    if stop:
        existence.sweep(app)
        app.emit("stopped")
    half.rename(_place(app, tag))
    files.fsync_dir(_place(app, tag).parent)
    app.emit("checkpoint.saved", tag=tag, digest=whole["digest"])


def settled(app: App, intent: dict[str, Any]) -> None:
    """Wait until what a killed save or restart has begun is at its end."""
    half = _half(app, intent["tag"]) if intent["verb"] == "checkpoint" else _place(app, intent["tag"])
    criu.settled(half / "images")


def resume(app: App, intent: dict[str, Any]) -> None:
    """Do what was killed to its end: a save that dumped all is kept, else the app has just gone on."""
    if intent["verb"] != "checkpoint":
        resume_restart(app, intent)
        return
    try:
        finish(app, intent["tag"], intent["stop"], intent["meta"])
    finally:
        app.done()


def delete(app: App, tag: str) -> None:
    """Delete a checkpoint. Raises NotFoundError."""
    app.need()
    find(app, tag)
    gone = _place(app, tag).with_name(f".{tag}.gone")
    _place(app, tag).rename(gone)
    files.fsync_dir(gone.parent)
    existence.remove_tree(gone)
    app.emit("checkpoint.deleted", tag=tag)


def restart(app: App, tag: str, timeout: float, request: str | None = None, undo: bool = False) -> Checkpoint:
    """Back to checkpoint *tag*, memory and disk, and on from there; *timeout* is that of the stop of what runs now.

    With *undo* it is told as an undo. Raises DreError; where the restore itself failed, the app is on its disk of
    before, and runs again if it ran.
    """
    spec = app.need()
    saved = find(app, tag)
    criu.check(app.name, spec)
    _need_same(app, spec, saved)
    intent = {
        "verb": "checkpoint-restart",
        "tag": tag,
        "stage": "load",
        "timeout": timeout,
        "request": request,
        "undo": undo,
        "before": asdict(spec),
        "ran": app.state() in ("running", "frozen"),
    }
    app.begin(**intent)
    if undo:
        app.emit("undo.accepted", 4, tag=tag, request=request)
    resume_restart(app, intent)
    return saved


def _need_same(app: App, spec: Spec, saved: Checkpoint) -> None:
    """Raise DreError when what the saved processes hold of the app, or of its host, is not as it was."""
    here = f"{app.name}: cannot restart from checkpoint {saved.tag}"
    for what, then, now in (
        ("name", saved.spec.name, app.name),
        ("base", saved.spec.base, spec.base),
        ("address", saved.spec.ip, spec.ip),
        ("ids", saved.spec.ids, spec.ids),
    ):
        if then != now:
            raise DreError(f"{here}: its {what} was {then} and is {now}")
    changed = identity.changes(saved.base, identity.of(spec))
    if changed:
        raise DreError(f"{here}: its base {spec.base} has changed since: {changed}")
    if _sha256(lxcconfig.init_copy(app.conf)) != saved.init:
        raise DreError(f"{here}: LXC was upgraded since, and the init of its processes is no longer here")


def resume_restart(app: App, intent: dict[str, Any]) -> None:
    """Do, or go on with, a restart whose intent is written. A failure ends it; only a kill leaves the intent."""
    try:
        saved = find(app, intent["tag"])
        if intent["stage"] == "back":
            _go_back(app, intent)
            return
        if intent["stage"] == "load" or app.state() not in ("running", "frozen"):
            _load(app, saved, intent)
        _go_on(app)
        requests.complete(app.conf, intent["request"])
    except (DreError, OSError) as failure:
        if (app.intent() or intent)["stage"] == "load":
            raise  # nothing was changed
        app.begin(**{**intent, "stage": "back"})
        _go_back(app, intent)
        raise DreError(f"{failure}; it is as it was before, {app.state()}") from None
    finally:
        app.done()
    app.emit("undone" if intent["undo"] else "checkpoint.restarted", 4, tag=saved.tag, digest=saved.digest)
    existence.remove_tree(app.directory / "delta.old")


def _load(app: App, saved: Checkpoint, intent: dict[str, Any]) -> None:
    """Put the disk back, and the processes on it."""
    _verify(app, saved)
    fresh = app.directory / "delta.new"
    existence.remove_tree(fresh)
    fresh.mkdir(mode=0o755)
    packed = saved.path / "delta.tar"
    run([*MORTAL, *archive.UNPACK, "-C", str(fresh), "-f", str(packed)], timeout=snapshot.TAR_WAIT)
    lifecycle.stop(app, intent["timeout"])
    app.begin(**{**intent, "stage": "start"})
    old = app.directory / "delta.old"
    if old.exists():  # of this restart, killed before: what there is by now is of no worth
        existence.remove_tree(app.delta)
    else:
        app.delta.rename(old)
    fresh.rename(app.delta)
    _empty_work(app)
    spec = app.spec().restored(saved.spec)
    app.store(spec)
    lifecycle.make_ready(app, spec)
    shutil.copyfile(saved.path / "log", app.log)  # the program has it open, and CRIU wants the size it had
    criu.restore(app, saved.path / "images")


def _verify(app: App, saved: Checkpoint) -> None:
    for name, wanted in saved.files.items():
        try:
            found = _sha256(saved.path / name)
        except FileNotFoundError:
            found = "none"
        if found != wanted:
            raise DreError(
                f"{app.name}: checkpoint {saved.tag} is damaged: {name} has digest {found}, saved was {wanted}"
            )


def _go_on(app: App) -> None:
    """Let the restored processes go on, held by what the configuration says."""
    spec = app.spec()
    pid = app.init_pid()
    if pid is None:
        raise DreError(f"{app.name}: ended as soon as it was restored")
    device = limits.device_for(spec.limits, app.conf.app_lxc_path)
    limits.apply(Group.of(pid), Limits(), spec.limits, device)
    network.apply_isolation(app, spec)
    criu.release(app, pid)
    lifecycle.begun(app, spec)


def _go_back(app: App, intent: dict[str, Any]) -> None:
    """After a failed restore: the disk and the configuration of before, running if it ran."""
    lifecycle.stop(app, 0)
    old = app.directory / "delta.old"
    if old.exists():
        existence.remove_tree(app.delta)
        old.rename(app.delta)
        _empty_work(app)
    app.store(Spec.from_json(json.dumps(intent["before"])))
    if intent["ran"]:
        lifecycle.start(app)


def _empty_work(app: App) -> None:
    """The kernel wants an empty work directory with a new upper layer."""
    existence.remove_tree(app.directory / "work")
    (app.directory / "work").mkdir(mode=0o755)
    files.fsync_dir(app.directory)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack(app: App, tag: str, packed: Path) -> None:
    """Put the checkpoint into one file, for another host."""
    run(
        [*MORTAL, "tar", "--create", "--format=pax", "-C", str(_place(app, tag)), "-f", str(packed), "."],
        timeout=snapshot.TAR_WAIT,
    )


def unpack(packed: Path, into: Path) -> None:
    """Unpack what `pack` made into the new directory *into*. Raises DreError for anything else."""
    (into / "images").mkdir(parents=True, mode=0o700)
    try:
        with tarfile.open(packed, "r:") as archive_of_all:
            for member in archive_of_all:
                if member.isdir() and member.name in (".", "./images"):
                    continue
                content = archive_of_all.extractfile(member) if member.isreg() else None
                if content is None or not _PACKED.fullmatch(member.name):
                    raise DreError(f"not a checkpoint: it holds {ascii(member.name)}")
                with (into / member.name).open("xb") as new:
                    shutil.copyfileobj(content, new)
    except (tarfile.TarError, FileExistsError) as error:
        raise DreError(f"not a checkpoint: {error}") from None


def arrive(app: App, tag: str, unpacked: Path) -> None:
    """Make what `unpack` wrote the checkpoint *tag* of the app, which was made for it."""
    spec = app.spec()
    try:
        meta = json.loads((unpacked / "meta.json").read_text())
        kept = {key: meta[key] for key in ("created", "size", "digest", "files", "init", "kernel", "criu")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DreError(f"not a checkpoint: meta.json: {error!r}") from None
    meta = {**kept, "spec": asdict(spec), "base": identity.of(spec)}
    files.write_atomic(unpacked / "meta.json", json.dumps(meta) + "\n", 0o600)
    _place(app, tag).parent.mkdir(exist_ok=True, mode=0o700)
    unpacked.rename(_place(app, tag))
    files.fsync_dir(_place(app, tag).parent)
