# SPDX-License-Identifier: Apache-2.0
"""An app moves to another host: the sending end, and what becomes of a move that was killed.

The stages of its intent: `pack` (stopped, its delta is packed), `send`, `commit` (the other side was asked to make and
start it) and `gone` (it did). Until `commit` the app is ours and goes back to what it was; in `commit` the other side
knows, and nothing is done here before it was asked; after that the app is theirs. Wants the app's lock.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dre import checkpoint, event, existence, lifecycle, manifest, requests, snapshot
from dre.app import App
from dre.errors import DreError, UsageError
from dre.peer import LOCAL, Line, LostError, Peer, Way


@dataclass(frozen=True)
class Wish:
    """How an app is to move: its *new* name there, what stays here, octets per second."""

    new: str
    keep: bool = False
    without_snapshots: bool = False
    rate: int | None = None
    live: bool = False


def migrate(
    app: App, way: Way, wish: Wish, stop_wait: float, request: str | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Move the app; returns its row there, with `down`, the seconds in which it did not run."""
    spec = app.need()
    state = app.state()
    if state not in ("running", "stopped", "crashed"):
        raise DreError(f"{app.name}: cannot migrate: it is {state}")
    if way.host == LOCAL and wish.new == app.name:
        raise DreError(f"{app.name}: is on this host; --as gives it another name")
    left = _left_behind(app)
    if left and not (wish.keep or wish.without_snapshots):
        raise DreError(
            f"{app.name}: {left} would be lost; --keep leaves the app here, stopped; --without-snapshots gives them up"
        )
    described = manifest.of(app, spec)
    meta = None
    if wish.live:
        if wish.new != app.name:
            raise UsageError(f"{app.name}: --live and --as exclude each other: its processes know its name")
        meta = checkpoint.begun(app, spec, request)
    with Line(way) as line:
        line.once().ask("check", "0" * 32, name=wish.new, app=described, live=wish.live)  # before anything is stopped
        intent = {
            "verb": "migrate",
            "stage": "pack",
            "way": asdict(way),
            "wish": asdict(wish),
            "id": "",
            "ran": state == "running",
            "request": request,
            "tag": f"migrate-{os.urandom(4).hex()}",
            "meta": meta,
        }
        app.begin(**intent)
        return _go(app, line, wish, intent, described, stop_wait, progress)


def _left_behind(app: App) -> str:
    count = len(app.snapshots())
    checkpoints = app.home / "checkpoint"
    more = len(list(checkpoints.iterdir())) if checkpoints.exists() else 0
    words = [f"its {count} snapshots" if count else "", f"its {more} checkpoints" if more else ""]
    return " and ".join(filter(None, words))


def _go(
    app: App,
    line: Line,
    wish: Wish,
    intent: dict[str, Any],
    described: dict[str, Any],
    stop_wait: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    down = time.monotonic()
    try:
        packed = _packed(app)
        packed.parent.mkdir(exist_ok=True, mode=0o700)
        if wish.live:
            checkpoint.take(app, intent["tag"], True, intent["meta"])
            checkpoint.pack(app, intent["tag"], packed)
        else:
            lifecycle.stop(app, stop_wait)
            snapshot.pack(app, packed)
        with packed.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        offer = {
            "name": wish.new,
            "app": described,
            "size": packed.stat().st_size,
            "digest": digest,
            "start": intent["ran"],
            "live": wish.live,
            "from": event.host(),
        }
        # The same for the same content: a transfer that was interrupted goes on where it ended.
        seed = f"{event.host()} {app.name} {app.spec().created} {wish.new} {digest}"
        intent = {**intent, "stage": "send", "id": hashlib.sha256(seed.encode()).hexdigest()[:32]}
        app.begin(**intent)
        intent = _send(app, line, wish, intent, offer, progress)
    except (DreError, OSError):
        _back(app, intent)
        raise
    row: dict[str, Any] = _commit(app, line, intent)["row"]
    seconds = round(time.monotonic() - down, 3)  # it runs there; what follows here is no longer its concern
    _leave(app, line, intent)
    return {**row, "host": line.way.host, "down": seconds if intent["ran"] else None}


def _packed(app: App) -> Path:
    return app.home / "migrate" / "delta.tar"


def _send(
    app: App, line: Line, wish: Wish, intent: dict[str, Any], offer: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, Any]:
    """Bring the archive over, on as many connections as it takes; returns the intent with its last id."""
    size = offer["size"]

    def told(octets: int) -> None:
        progress(f"{app.name}: {octets * 100 // size} % of {size >> 20} MiB at {line.way.host}")

    def work(peer: Peer) -> dict[str, Any]:
        nonlocal intent
        answer = peer.ask("offer", intent["id"], **offer)
        if answer["stage"] == "aborted":  # an earlier move of the same, which was given up for good
            intent = {**intent, "id": os.urandom(16).hex()}
            app.begin(**intent)
            answer = peer.ask("offer", intent["id"], **offer)
        digest = peer.send(intent["id"], _packed(app), int(answer["offset"]), wish.rate, told)
        if digest != offer["digest"]:
            raise DreError(f"{line.way.host}: has digest {digest}, sent was {offer['digest']}")
        return answer

    line.persistently(work)
    progress("")
    return intent


def _commit(app: App, line: Line, intent: dict[str, Any]) -> dict[str, Any]:
    """Let the other side take the app over; where it cannot, the app is ours again."""
    app.begin(**{**intent, "stage": "commit"})
    try:
        return line.persistently(lambda peer: peer.ask("commit", intent["id"]))
    except LostError as error:
        raise _undecided(app, line.way, error) from None
    except DreError as error:
        if _aborted(app, line, intent):
            _back(app, intent)
            raise
        raise DreError(f"{app.name}: is at {line.way.host} all the same, which said: {error}") from None


def _undecided(app: App, way: Way, error: DreError) -> DreError:
    return DreError(
        f"{app.name}: may run at {way.host} by now, so it is not started here: {error}; once {way.host} answers,"
        f" dre-app recover decides"
    )


def _aborted(app: App, line: Line, intent: dict[str, Any]) -> bool:
    """Whether the other side will never run the app; False when it has taken it over. Raises when it does not say."""
    try:
        stage = line.persistently(lambda peer: peer.ask("abort", intent["id"]))["stage"]
    except DreError as error:
        raise _undecided(app, line.way, error) from None
    return bool(stage == "aborted")


def _back(app: App, intent: dict[str, Any]) -> None:
    """The app is ours, and as it was before."""
    existence.remove_tree(app.home / "migrate")
    try:
        if intent["meta"]:
            _go_on(app, intent)
        elif intent["ran"]:
            lifecycle.start(app)
    finally:
        app.done()


def _go_on(app: App, intent: dict[str, Any]) -> None:
    """Let the app that was to move with its memory go on with it; where that fails, begin anew."""
    tag = intent["tag"]
    checkpoint.finish(app, tag, True, intent["meta"])
    if app.state() == "running":
        return  # nothing was saved, or it goes on already
    try:
        checkpoint.restart(app, tag, 0)
        checkpoint.delete(app, tag)
    except DreError:
        lifecycle.start(app)


def _leave(app: App, line: Line, intent: dict[str, Any]) -> None:
    """The app is theirs: nothing of it runs here any more, ever."""
    app.begin(**{**intent, "stage": "gone"})
    wish = intent["wish"]
    existence.remove_tree(app.home / "migrate")
    app.emit("migrated", 5, to=line.way.host, id=intent["id"], **{"as": wish["new"]})
    requests.complete(app.conf, intent["request"])
    if wish["keep"]:
        if intent["meta"]:
            checkpoint.delete(app, intent["tag"])
        app.store(replace(app.spec(), autostart=False))
        app.done()
    else:
        existence.destroy(app)
    with contextlib.suppress(DreError):  # it forgets by itself, later
        line.once().ask("forget", intent["id"])


def settled(app: App, intent: dict[str, Any]) -> None:
    """Wait for criu, which outlives a killed command."""
    if intent["meta"]:
        checkpoint.settled(app, {"verb": "checkpoint", "tag": intent["tag"]})


def resume(app: App, intent: dict[str, Any]) -> None:
    """End a move that was killed: not begun, or done. Raises DreError when only the other side knows, and is silent."""
    with Line(Way(**intent["way"])) as line:
        if intent["stage"] == "commit":
            if _aborted(app, line, intent):
                _back(app, intent)
            else:
                _leave(app, line, intent)
        elif intent["stage"] == "gone":
            _leave(app, line, intent)
        else:
            _back(app, intent)
