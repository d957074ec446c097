# SPDX-License-Identifier: Apache-2.0
"""Snapshots of apps, and undo: back to a snapshot and running again.

A snapshot is `delta.tar`, what the app changed of its base, and `meta.json` with the configuration of that time and
what the base was. On btrfs it is `tree`, a read-only subvolume of the app's whole directory, in place of the file. Its
digest is the SHA-256 of the tar file, which tar(1) makes of the subvolume too, so that sha256sum(1) can check it.
Memory is not in it, nor is what the app keeps in bound directories: that is how data outlive an undo. Wants the app's
lock, as dre.lifecycle does.
"""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from dre import archive, event, existence, files, identity, lifecycle, lxcconfig, requests, subvolume
from dre.app import App
from dre.errors import DreError, NotFoundError
from dre.run import MORTAL, run, talk
from dre.spec import Spec

TAR_WAIT = 3600.0
# The last is what tar says when a write ended early, which only a full disk does.
_FULL = (b"No space left on device", b"Disk quota exceeded", b"Wrote only")

Say = Callable[[str], object]


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
    description: str = ""
    scheduled: bool = False
    base: dict[str, Any] | None = None

    def packed(self) -> contextlib.AbstractContextManager[IO[bytes]]:
        """The packed delta, to be read."""
        return packed(self.path)

    def row(self) -> dict[str, Any]:
        """The fields that `snapshot list` gives."""
        shown = ("tag", "created", "size", "digest", "scheduled", "description")
        return {key: getattr(self, key) for key in shown}


def auto_tag() -> str:
    """The tag of a snapshot that was given none: the time, UTC, as a name."""
    now = time.time()
    return time.strftime("%Y%m%dt%H%M%S", time.gmtime(now)) + f"-{int(now * 1000) % 1000:03d}z"


def find(app: App, tag: str) -> Snapshot:
    """The snapshot *tag*. Raises NotFoundError."""
    path = app.home / "snapshot" / tag
    try:
        return read(path)
    except FileNotFoundError:
        raise NotFoundError(f"{app.name}: no snapshot {tag}") from None


def read(path: Path) -> Snapshot:
    """The snapshot in directory *path*. Raises FileNotFoundError, or DreError where it is damaged."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        optional = {key: meta[key] for key in ("request", "description", "scheduled", "base") if key in meta}
        spec = Spec.from_json(json.dumps(meta["spec"]))
        return Snapshot(path.name, meta["created"], meta["size"], meta["digest"], path, spec, **optional)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
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


def save(
    app: App,
    tag: str | None,
    request: str | None = None,
    *,
    description: str = "",
    freeze: bool = False,
    scheduled: bool = False,
) -> Snapshot:
    """Save the stopped app, or with *freeze* a running one, which is frozen while its files are copied.

    Raises DreError, with nothing saved, when it runs, *tag* is taken or the disk is full.
    """
    spec = app.need()
    tag = tag or auto_tag()
    place = app.home / "snapshot" / tag
    if place.exists():
        found = find(app, tag)
        if request is not None and found.request == request:
            return found
        raise DreError(f"{app.name}: there is a snapshot {tag} already")
    if (app.home / "checkpoint" / tag).exists():  # undo TAG must mean one of them
        raise DreError(f"{app.name}: there is a checkpoint {tag} already")
    half = place.with_name(f".{tag}.new")
    more = {"request": request, "description": description, "scheduled": scheduled}
    try:
        half.mkdir(parents=True, mode=0o700)
        with _still(app, freeze):
            _keep(app, half)
        describe(half, spec, more)
        half.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _full(app, half.parent) from None
    finally:
        existence.remove_tree(half)
    files.fsync_dir(place.parent)
    saved = find(app, tag)
    app.emit("snapshot.saved", tag=tag, digest=saved.digest)
    return saved


def _keep(app: App, half: Path) -> None:
    """Put the delta of the app, which holds still, into the directory *half*."""
    own = subvolume.filesystem(app.directory) if subvolume.is_one(app.directory) else None
    if own is not None and subvolume.filesystem(half) == own:
        subvolume.snapshot(app.directory, half / "tree")
    else:
        pack(app, half / "delta.tar")


@contextlib.contextmanager
def packed(place: Path) -> Iterator[IO[bytes]]:
    """The archive of the snapshot in directory *place*, be it that file or what tar makes of the subvolume."""
    tree = place / "tree" / "delta"
    if not tree.exists():
        with (place / "delta.tar").open("rb") as stream:
            yield stream
        return
    argv = [*archive.PACK, "-C", str(tree), "-f", "-", "."]
    with open(os.memfd_create("said"), "w+b") as said, talk(argv, said) as child:
        assert child.stdout
        yield child.stdout
        child.stdout.close()  # of what was not read, tar then cannot say that it went well
        if child.wait() != 0:
            said.seek(0)
            raise DreError(f"cannot pack {tree}: {_first(said.read(), child.returncode)}")


def pack(app: App, packed: Path) -> None:
    """Pack the delta of the app, which holds still, into the file *packed*."""
    argv = [*archive.PACK, "-C", str(app.delta), "-f", str(packed), "."]
    write(app, argv, f"pack {app.delta}", packed.parent.parent)


def write(app: App, argv: Sequence[str], what: str, place: Path) -> None:
    """Run tar or cp, which writes to *place*. Raises DreError."""
    done = run([*MORTAL, *argv], timeout=TAR_WAIT, check=False)
    if any(words in done.stderr for words in _FULL):
        raise _full(app, place)
    if done.returncode != 0:
        raise DreError(f"{app.name}: cannot {what}: {_first(done.stderr, done.returncode)}")


def _first(said: bytes, status: int) -> str:
    """The first words of a tar that failed, for the last only say that it ends."""
    return next(iter(said.decode(errors="replace").strip().splitlines()), f"status {status}")


def _full(app: App, place: Path) -> DreError:
    return DreError(f"{app.name}: no space left in {place}; nothing was changed")


def describe(half: Path, spec: Spec, more: dict[str, Any]) -> None:
    """Write meta.json beside the delta in *half*, and make both durable."""
    if (half / "delta.tar").exists():
        _make_durable(half / "delta.tar")
    digest, size = _measure(half)
    meta = {
        "created": event.stamp(),
        "size": size,
        "digest": digest,
        "spec": asdict(spec),
        "base": identity.of(spec),
        **more,
    }
    files.write_atomic(half / "meta.json", json.dumps(meta, indent=1) + "\n", 0o600)


@contextlib.contextmanager
def _still(app: App, freeze: bool) -> Iterator[None]:
    """The app with nothing moving: it is stopped, or where *freeze* allows it frozen for as long as this lasts."""
    state = app.state()
    if not freeze or state in ("stopped", "crashed"):
        need_stopped(app, "save a snapshot", "; or --freeze")
        yield
    elif state == "frozen":
        yield  # by somebody else: so it stays
    else:
        app.begin(verb="save")
        try:
            lifecycle.freeze(app)
            yield
        finally:
            resume_save(app)


def resume_save(app: App) -> None:
    """End a save that froze the app: it runs again. What was half saved goes with the next tidying."""
    try:
        if app.state() == "frozen":
            lifecycle.thaw(app)
    finally:
        app.done()


def load(app: App, tag: str | None, *, changed_base: bool = False, say: Say = str) -> Snapshot:
    """Put the stopped app back to snapshot *tag* (default the newest), which stays."""
    saved = _chosen(app, tag, say)
    need_stopped(app, "load a snapshot")
    check_base(app, saved, changed_base, say)
    app.begin(verb="load", tag=saved.tag)
    resume_load(app, saved.tag)
    return saved


def _chosen(app: App, tag: str | None, say: Say) -> Snapshot:
    """The snapshot *tag*, or the newest, which is said then: it may not be the one that was meant."""
    app.need()
    if tag:
        return find(app, tag)
    saved = newest(app)
    hint = "made on schedule; name a TAG for one of before" if saved.scheduled else saved.description
    say(f"{app.name}: to snapshot {saved.tag} of {saved.created}{f' ({hint})' if hint else ''}")
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
    existence.remove_tree(app.directory / "delta.old")


def check_base(app: App, saved: Snapshot, allowed: bool, say: Say) -> None:
    """Raise DreError when the app's tree is not what it was at *saved*, unless that is *allowed*.

    The host changes with every upgrade of a package: to refuse then would be to have no undo. It is only said.
    """
    spec = app.spec()
    changed = identity.changes(saved.base, identity.of(spec)) if saved.base else None
    if changed is None:
        return
    text = f"{app.name}: its base {spec.base} has changed since snapshot {saved.tag}: {changed}"
    if spec.base != "host" and not allowed:
        raise DreError(f"{text}; --changed-base goes on")
    say(f"{text}; going on")


def delete(app: App, tag: str) -> None:
    """Delete a snapshot. Raises NotFoundError."""
    app.need()
    place = app.home / "snapshot" / tag
    if not place.is_dir():  # a damaged one goes, too
        raise NotFoundError(f"{app.name}: no snapshot {tag}")
    gone = place.with_name(f".{tag}.gone")
    place.rename(gone)
    files.fsync_dir(place.parent)
    existence.remove_tree(gone)
    app.emit("snapshot.deleted", tag=tag)


def prune(app: App, keep: int, *, scheduled: bool = False) -> list[str]:
    """Delete all snapshots but the newest *keep*, or of the *scheduled* ones; returns the tags that went.

    No unfinished verb needs one of them: it was ended before the lock was given.
    """
    tags = [saved.tag for saved in every(app) if saved.scheduled or not scheduled]
    doomed = tags[:-keep]
    for tag in doomed:
        delete(app, tag)
    return doomed


def undo(
    app: App,
    tag: str | None,
    timeout: float,
    request: str | None = None,
    *,
    changed_base: bool = False,
    say: Say = str,
) -> Snapshot:
    """Back to snapshot *tag* (default the newest) and running again; *timeout* is that of the stop."""
    saved = _chosen(app, tag, say)
    check_base(app, saved, changed_base, say)
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
    existence.remove_tree(app.directory / "delta.old")


def digest(app: App) -> str:
    """The digest that a snapshot of the app would have now: the recipe of the man page, run by tar itself."""
    app.need()
    # tar hands the archive to its "compressor" and passes on what that prints.
    argv = [*archive.PACK, "--use-compress-program=sha256sum", "-C", str(app.delta), "-f", "-", "."]
    done = run(argv, timeout=TAR_WAIT, check=False)
    if done.returncode not in (0, 1):  # 1: a file changed while it was read, as files of a running app do
        raise DreError(f"{app.name}: cannot read {app.delta}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.split()[0].decode()


def need_stopped(app: App, what: str, hint: str = "") -> None:
    """Raise DreError unless nothing of the app moves; *hint* is what else could be done."""
    state = app.state()
    if state not in ("stopped", "crashed"):
        raise DreError(f"{app.name}: cannot {what}: it is {state}; dre-app stop {app.name}{hint}")
    existence.sweep(app)


def _unpack(app: App, saved: Snapshot) -> None:
    """Unpack into delta.new. Raises DreError, with the app untouched, when the archive is not what was saved."""
    fresh = app.directory / "delta.new"
    existence.remove_tree(fresh)
    fresh.mkdir(mode=0o755)
    unpack(app, saved, fresh)


def unpack(app: App, saved: Snapshot, into: Path) -> None:
    """Unpack *saved* into the directory *into*. Raises DreError when the archive is not what was saved."""
    try:
        found = _measure(saved.path)[0]
    except FileNotFoundError:
        found = "none"
    if found != saved.digest:
        raise DreError(f"{app.name}: snapshot {saved.tag} is damaged: digest {found}, saved was {saved.digest}")
    tree = saved.path / "tree" / "delta"
    if tree.exists():
        argv = [*archive.COPY, "--", str(tree), str(into)]
    else:
        argv = [*archive.UNPACK, "-C", str(into), "-f", str(saved.path / "delta.tar")]
    write(app, argv, f"unpack snapshot {saved.tag}", into.parent)
    if app.spec().base == "host":
        lxcconfig.hide(app.conf, into)  # what the host has come to hide since, and what an imported one may have shown


def _swap(app: App, saved: Snapshot) -> None:
    """Make delta.new the delta, and the saved configuration that of the app."""
    fresh, old, work = (app.directory / part for part in ("delta.new", "delta.old", "work"))
    if app.delta.exists():
        existence.remove_tree(old)
        app.delta.rename(old)
    fresh.rename(app.delta)
    existence.remove_tree(work)  # the kernel wants an empty one with a new upper layer
    work.mkdir(mode=0o755)
    files.fsync_dir(app.directory)
    app.store(app.spec().restored(saved.spec))


def _put_back(app: App) -> None:
    """After a failure between the two renames of _swap: the old delta is better than none."""
    old = app.directory / "delta.old"
    if not app.delta.exists() and old.exists():
        old.rename(app.delta)


def _measure(place: Path) -> tuple[str, int]:
    """Digest and size of the archive of the snapshot in *place*."""
    total, size = hashlib.sha256(), 0
    with packed(place) as stream:
        while octets := stream.read(1 << 20):
            total.update(octets)
            size += len(octets)
    return total.hexdigest(), size


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _make_durable(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    with contextlib.closing(os.fdopen(fd, "rb")):
        os.fsync(fd)
