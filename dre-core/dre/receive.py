# SPDX-License-Identifier: Apache-2.0
"""The receiving end of a migration: JSON lines from a sender who is not trusted, an archive, and one app made of it.

A transfer has an id and a directory, so that it outlives its connection: `check` asks whether such an app would be
taken, `offer` says what comes and learns how much of it is here, `data` brings the rest, `commit` makes and starts the
app, `abort` makes sure that it never will. Each may be asked again. Until it is committed it is the sender's to decide.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from dre import archive, checkpoint, criu, event, existence, files, lifecycle, manifest, network, recovery, units
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, NotPermittedError, UsageError
from dre.manifest import Allowed

LINE = 1 << 20
BLOCK = 1 << 20
KEEP = 7 * 86400.0  # seconds for which a transfer that was not ended is kept
WAIT = 3600.0
_ARRIVED = "arrived"  # tag of the checkpoint that a live app goes on from
_ID = re.compile(r"[0-9a-f]{32}")


class Receiver:
    """One connection."""

    def __init__(self, conf: Conf, allowed: Allowed, source: IO[bytes], answers: IO[bytes]) -> None:
        self.conf, self.allowed, self.source, self.answers = conf, allowed, source, answers
        self.verbs: dict[str, Callable[[Transfer, dict[str, Any]], dict[str, Any]]] = {
            "check": self.check,
            "offer": self.offer,
            "data": self.data,
            "commit": self.commit,
            "status": self.status,
            "abort": self.abort,
            "forget": self.forget,
        }

    def serve(self) -> None:
        """Answer until the sender is gone."""
        _forget_old(self.conf)
        while line := self.source.readline(LINE):
            answer: dict[str, Any]
            if not line.endswith(b"\n"):
                return  # cut off, or longer than anything we understand
            try:
                answer = {"code": 0, **self._answer(line)}
            except DreError as error:
                answer = {"code": error.code, "error": str(error)}
            except OSError as error:
                answer = {"code": 1, "error": f"{error.filename or 'receive'}: {error.strerror or error}"}
            self.answers.write(json.dumps(answer).encode() + b"\n")
            self.answers.flush()

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(line)
            verb, identity = self.verbs[asked["verb"]], asked["id"]
            if not _ID.fullmatch(identity):
                raise ValueError("id")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError("not a request of a migration") from None
        transfer = Transfer(self.conf, identity)
        with files.lock(self.conf.core_run_dir / "lock" / f"receive-{identity}", WAIT):
            try:
                return verb(transfer, asked)
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(f"not a request of a migration: {error!r}") from None

    def check(self, transfer: "Transfer", asked: dict[str, Any]) -> dict[str, Any]:
        """Say whether such an app would be taken."""
        app = App(self.conf, units.name(asked["name"]))
        if app.exists() or os.path.lexists(app.directory):
            raise DreError(f"{app.name}: there is such an app already")
        spec = manifest.accept(app, asked["app"], self.allowed)
        if asked.get("live"):
            if not self.allowed.live:
                raise NotPermittedError(
                    f"{app.name}: comes with its memory, which is not taken here without --allow-live"
                )
            criu.check(app.name, spec)
            with network.reserved(self.conf):
                network.address(app, asked["app"]["ip"] or "none")  # its memory knows no other
        return {}

    def offer(self, transfer: "Transfer", asked: dict[str, Any]) -> dict[str, Any]:
        """Note what comes, and say how much of its archive is here."""
        if transfer.stage() in ("aborted", "committed"):
            return {"stage": transfer.stage(), "offset": 0}
        self.check(transfer, asked)
        size, digest = int(asked["size"]), str(asked["digest"])
        if not 0 < size < 1 << 50 or not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError("size or digest")
        transfer.place.mkdir(parents=True, exist_ok=True, mode=0o700)
        room = shutil.disk_usage(transfer.place).free
        if size * 2 > room + transfer.received():
            raise DreError(f"no room: {size} octets come, twice that is needed, {room} are free")
        kept = {key: asked[key] for key in ("name", "size", "digest", "app", "start")} | {
            "live": bool(asked.get("live"))
        }
        files.write_atomic(transfer.place / "offer.json", json.dumps({**kept, "from": str(asked["from"])[:255]}), 0o600)
        return {"stage": "offered", "offset": min(transfer.received(), size)}

    def data(self, transfer: "Transfer", asked: dict[str, Any]) -> dict[str, Any]:
        """Take octets of the archive from the place where it ended so far; verify the whole."""
        offer = transfer.offer()
        offset, length = int(asked["offset"]), int(asked["length"])
        if offset != min(transfer.received(), offer["size"]) or length != offer["size"] - offset:
            # What follows is not a line: this connection cannot go on.
            raise SystemExit(1)
        with open(transfer.part, "ab") as part:
            part.truncate(offset)
            try:
                while length > 0:
                    octets = self.source.read1(min(length, BLOCK))  # type: ignore[attr-defined]
                    if not octets:
                        raise SystemExit(1)  # the sender is gone; what came stays
                    part.write(octets)
                    length -= len(octets)
            finally:
                part.flush()
                os.fsync(part.fileno())
        return {"digest": transfer.verified(offer)}

    def commit(self, transfer: "Transfer", asked: dict[str, Any]) -> dict[str, Any]:
        """Make the app, and start it when it is to run. From the answer on it is ours."""
        if transfer.stage() == "aborted":
            raise DreError("this migration was given up")
        offer = transfer.offer()
        with recovery.held(self.conf, offer["name"]) as app:
            if transfer.stage() != "committed":
                if not transfer.owns(app):
                    self._make(transfer, app, offer)
                if offer["start"]:
                    self._start(transfer, app, bool(offer["live"]))
                app.emit("migrated", 5, arrived=True, id=transfer.id, **{"from": offer["from"]})
                transfer.end("committed")
            return {"row": app.row()}

    def _make(self, transfer: "Transfer", app: App, offer: dict[str, Any]) -> None:
        transfer.verified(offer)
        spec = manifest.accept(app, offer["app"], self.allowed)
        live = bool(offer["live"])
        if live:
            existence.remove_tree(transfer.moment)
            checkpoint.unpack(transfer.part, transfer.moment)
        with network.reserved(self.conf):
            wished = offer["app"]["ip"]
            ip = (wished or "none") if live else manifest.address(app, wished)

        def fill(delta: Path) -> None:
            with open(transfer.moment / "delta.tar" if live else transfer.part, "rb") as packed:
                found = archive.unpack_checked(packed, delta, allow_setuid=self.allowed.setuid)
            if not live and found.digest != offer["digest"]:
                raise DreError(f"{app.name}: what was unpacked has digest {found.digest}, sent was {offer['digest']}")

        fields = {key: value for key, value in vars(spec).items() if key not in ("name", "created", "request")}
        existence.create(app, existence.new_spec(app, request=transfer.request, **fields), ip, fill)

    def _start(self, transfer: "Transfer", app: App, live: bool) -> None:
        try:
            if not live:
                lifecycle.start(app)
            elif app.state() != "running":  # else it was killed after that
                if transfer.moment.exists():
                    checkpoint.arrive(app, _ARRIVED, transfer.moment)
                checkpoint.restart(app, _ARRIVED, 0)
            if live:
                checkpoint.delete(app, _ARRIVED)
        except DreError:
            lifecycle.stop(app, 0)
            existence.destroy(app)
            raise

    def status(self, transfer: "Transfer", asked: dict[str, Any]) -> dict[str, Any]:
        """How far it is."""
        return {"stage": transfer.stage()}

    def abort(self, transfer: "Transfer", asked: dict[str, Any]) -> dict[str, Any]:
        """Give it up, for good, unless it was committed."""
        if transfer.stage() == "committed":
            return {"stage": "committed"}
        if transfer.stage() == "offered":
            with recovery.held(self.conf, transfer.offer()["name"], doomed=True) as app:
                if transfer.owns(app):
                    lifecycle.stop(app, 0)
                    existence.destroy(app)
        transfer.place.mkdir(parents=True, exist_ok=True, mode=0o700)
        transfer.end("aborted")
        return {"stage": "aborted"}

    def forget(self, transfer: "Transfer", asked: dict[str, Any]) -> dict[str, Any]:
        """Forget what was committed; the sender has noted it."""
        if transfer.stage() == "committed":
            existence.remove_tree(transfer.place)
        return {}


class Transfer:
    """The directory of one transfer: offer.json, delta.part, and `committed` or `aborted` at its end."""

    def __init__(self, conf: Conf, identity: str) -> None:
        self.id = identity
        self.place = _incoming(conf) / identity
        self.part = self.place / "delta.part"
        self.moment = self.place / "checkpoint"  # what came with memory, unpacked
        self.request = f"migrate:{identity}"

    def offer(self) -> dict[str, Any]:
        """What was offered. Raises NotFoundError."""
        try:
            found: dict[str, Any] = json.loads((self.place / "offer.json").read_text())
        except FileNotFoundError:
            raise NotFoundError("no such migration: it was not offered") from None
        return found

    def received(self) -> int:
        """How many octets of the archive are here."""
        return self.part.stat().st_size if self.part.exists() else 0

    def stage(self) -> str:
        """none, offered, committed or aborted."""
        for end in ("committed", "aborted"):
            if (self.place / end).exists():
                return end
        return "offered" if (self.place / "offer.json").exists() else "none"

    def owns(self, app: App) -> bool:
        """Whether *app* was made by this transfer."""
        return app.exists() and app.spec().request == self.request

    def verified(self, offer: dict[str, Any]) -> str:
        """The digest of the archive. Raises DreError, and takes it away, when it is not what was offered."""
        with self.part.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != offer["digest"]:
            self.part.unlink()
            raise DreError(f"{offer['name']}: arrived with digest {found}, sent was {offer['digest']}")
        return found

    def end(self, how: str) -> None:
        """Note durably how it ended; the archive is needed no more."""
        files.write_atomic(self.place / how, f"{event.stamp()}\n", 0o600)
        self.part.unlink(missing_ok=True)
        existence.remove_tree(self.moment)


def _incoming(conf: Conf) -> Path:
    return conf.core_state_dir / "app" / "incoming"


def _forget_old(conf: Conf) -> None:
    """Remove transfers that nobody came back to."""
    for place in _old(_incoming(conf)):
        existence.remove_tree(place)


def _old(incoming: Path) -> Iterator[Path]:
    if incoming.exists():
        for place in incoming.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if place.stat().st_mtime < time.time() - KEEP:
                    yield place
