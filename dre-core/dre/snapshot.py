# SPDX-License-Identifier: Apache-2.0
"""Snapshots of stopped apps, and undo: back to a snapshot and running again.

A snapshot is `delta.tar`, what the app changed of its base, and `meta.json` with the configuration of that time. Its
digest is the SHA-256 of the tar file, so that sha256sum(1) can check it. Memory is not in it, nor is what the app
keeps in bound directories: that is how data outlive an undo. Wants the app's lock, as dre.lifecycle does.
"""

import contextlib
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dre import archive, event, files, lifecycle, requests
from dre.app import App
from dre.errors import DreError, NotFoundError
from dre.run import run
from dre.spec import Spec

TAR_WAIT = 3600.0


@dataclass(frozen=True)
class Snapshot:
    """A saved state of an app."""

    tag: str
    created: str
    size: int
    digest: str
    path: Path
    spec: Spec
    request: str | None = None

    def row(self) -> dict[str, Any]:
        """The fields that `snapshot list` gives."""
        return {"tag": self.tag, "created": self.created, "size": self.size, "digest": self.digest}


def auto_tag() -> str:
    """The tag of a snapshot that was given none: the time, UTC, as a name."""
    now = time.time()
    return time.strftime("%Y%m%dt%H%M%S", time.gmtime(now)) + f"-{int(now * 1000) % 1000:03d}z"


def find(app: App, tag: str) -> Snapshot:
    """The snapshot *tag*. Raises NotFoundError."""
    path = app.home / "snapshot" / tag
    try:
        meta = json.loads((path / "meta.json").read_text())
        spec = Spec.from_json(json.dumps(meta["spec"]))
        return Snapshot(tag, meta["created"], meta["size"], meta["digest"], path, spec, meta.get("request"))
    except FileNotFoundError:
        raise NotFoundError(f"{app.name}: no snapshot {tag}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DreError(f"{path}/meta.json: damaged: {error}") from None


def every(app: App) -> list[Snapshot]:
    """All snapshots, oldest first. Raises NotFoundError when there is no such app."""
    app.need()
    return [find(app, tag) for tag in app.snapshots()]


def newest(app: App) -> Snapshot:
    """The snapshot made last. Raises NotFoundError when there is none."""
    tags = app.snapshots()
    if not tags:
        raise NotFoundError(f"{app.name}: has no snapshot; dre-app snapshot save makes one of the stopped app")
    return find(app, tags[-1])


def save(app: App, tag: str | None, request: str | None = None) -> Snapshot:
    """Save the stopped app. Raises DreError when it runs or *tag* is taken."""
    spec = app.need()
    _need_stopped(app, "save a snapshot")
    tag = tag or auto_tag()
    place = app.home / "snapshot" / tag
    if place.exists():
        found = find(app, tag)
        if request is not None and found.request == request:
            return found
        raise DreError(f"{app.name}: there is a snapshot {tag} already")
    half = place.with_name(f".{tag}.new")
    half.mkdir(parents=True, mode=0o700)
    packed = half / "delta.tar"
    run([*lifecycle.MORTAL, *archive.PACK, "-C", str(app.delta), "-f", str(packed), "."], timeout=TAR_WAIT)
    meta = {
        "created": event.stamp(),
        "size": packed.stat().st_size,
        "digest": _digest(packed),
        "spec": asdict(spec),
        "request": request,
    }
    _durable(packed)
    files.write_atomic(half / "meta.json", json.dumps(meta, indent=1) + "\n", 0o600)
    half.rename(place)
    files.fsync_dir(place.parent)
    app.emit("snapshot.saved", tag=tag, digest=meta["digest"])
    return find(app, tag)


def load(app: App, tag: str) -> Snapshot:
    """Put the stopped app back to snapshot *tag*, which stays."""
    app.need()
    _need_stopped(app, "load a snapshot")
    saved = find(app, tag)
    app.begin(verb="load", tag=tag)
    resume_load(app, tag)
    return saved


def resume_load(app: App, tag: str) -> None:
    """Do a load whose intent is written."""
    try:
        saved = find(app, tag)
        _unpack(app, saved)
        _swap(app, saved)
    finally:
        _put_back(app)
        app.done()
    app.emit("snapshot.loaded", tag=tag, digest=saved.digest)
    lifecycle.remove_tree(app.directory / "delta.old")


def delete(app: App, tag: str) -> None:
    """Delete a snapshot. Raises NotFoundError."""
    app.need()
    find(app, tag)
    place = app.home / "snapshot" / tag
    gone = place.with_name(f".{tag}.gone")
    place.rename(gone)
    files.fsync_dir(place.parent)
    lifecycle.remove_tree(gone)
    app.emit("snapshot.deleted", tag=tag)


def undo(app: App, tag: str | None, timeout: float, request: str | None = None) -> Snapshot:
    """Back to snapshot *tag* (default the newest) and running again; *timeout* is that of the stop."""
    app.need()
    saved = find(app, tag) if tag else newest(app)
    intent = {"verb": "undo", "tag": saved.tag, "stage": "load", "timeout": timeout, "request": request}
    app.begin(**intent)
    app.emit("undo.accepted", 4, tag=saved.tag, request=request)
    resume_undo(app, intent)
    return saved


def resume_undo(app: App, intent: dict[str, Any]) -> None:
    """Do, or go on with, an undo whose intent is written. A failure ends it; only a kill leaves the intent."""
    tag = intent["tag"]
    try:
        saved = find(app, tag)
        if intent["stage"] == "load":
            _unpack(app, saved)  # while the app still runs: the longest part, and the one that can fail
            lifecycle.stop(app, intent["timeout"])
            _swap(app, saved)
            # From here the app may run and write, so the load must not be done a second time.
            app.begin(**{**intent, "stage": "start"})
        lifecycle.start(app)
        requests.complete(app.conf, intent["request"])
    finally:
        _put_back(app)
        app.done()
    app.emit("undone", 4, tag=tag, digest=saved.digest, request=intent["request"])
    lifecycle.remove_tree(app.directory / "delta.old")


def digest(app: App) -> str:
    """The digest that a snapshot of the app would have now: the recipe of the man page, run by tar itself."""
    app.need()
    # tar hands the archive to its "compressor" and passes on what that prints.
    argv = [*archive.PACK, "--use-compress-program=sha256sum", "-C", str(app.delta), "-f", "-", "."]
    done = run(argv, timeout=TAR_WAIT, check=False)
    if done.returncode not in (0, 1):  # 1: a file changed while it was read, as files of a running app do
        raise DreError(f"{app.name}: cannot read {app.delta}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.split()[0].decode()


def _need_stopped(app: App, what: str) -> None:
    state = app.state()
    if state not in ("stopped", "crashed"):
        raise DreError(f"{app.name}: cannot {what}: it is {state}; dre-app stop {app.name}")
    lifecycle.sweep(app)


def _unpack(app: App, saved: Snapshot) -> None:
    """Unpack into delta.new. Raises DreError, with the app untouched, when the archive is not what was saved."""
    packed = saved.path / "delta.tar"
    try:
        found = _digest(packed)
    except FileNotFoundError:
        found = "none"
    if found != saved.digest:
        raise DreError(f"{app.name}: snapshot {saved.tag} is damaged: digest {found}, saved was {saved.digest}")
    fresh = app.directory / "delta.new"
    lifecycle.remove_tree(fresh)
    fresh.mkdir(mode=0o755)
    run([*lifecycle.MORTAL, *archive.UNPACK, "-C", str(fresh), "-f", str(packed)], timeout=TAR_WAIT)


def _swap(app: App, saved: Snapshot) -> None:
    """Make delta.new the delta, and the saved configuration that of the app."""
    fresh, old, work = (app.directory / part for part in ("delta.new", "delta.old", "work"))
    if app.delta.exists():
        lifecycle.remove_tree(old)
        app.delta.rename(old)
    fresh.rename(app.delta)
    lifecycle.remove_tree(work)  # the kernel wants an empty one with a new upper layer
    work.mkdir(mode=0o755)
    files.fsync_dir(app.directory)
    app.store(app.spec().restored(saved.spec))


def _put_back(app: App) -> None:
    """After a failure between the two renames of _swap: the old delta is better than none."""
    old = app.directory / "delta.old"
    if not app.delta.exists() and old.exists():
        old.rename(app.delta)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _durable(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    with contextlib.closing(os.fdopen(fd, "rb")):
        os.fsync(fd)
