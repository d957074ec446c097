# SPDX-License-Identifier: Apache-2.0
"""An app as one file: a backup, or the way to a host that cannot be reached.

The file is a tar archive, compressed by zstd: `manifest.json`, `delta.tar`, and a `snapshot/TAG/delta.tar` for each
snapshot that goes with it. Whoever reads it trusts nothing in it: the definition is read by dre.manifest, the deltas by
dre.archive, and both must be what the manifest says of them.
"""

import contextlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from dre import archive, event, existence, identity, manifest, network, packing, snapshot, units
from dre.app import App
from dre.errors import DreError, UsageError
from dre.manifest import Allowed
from dre.spec import Spec

FORMAT = "dre-app/1"
_BLOCK = 1 << 20


def export(app: App, out: IO[bytes], tag: str | None, *, snapshots: bool, compress: bool) -> None:
    """Write the stopped app to *out*, or the state of its snapshot *tag*, with all its *snapshots* where asked."""
    spec = app.need()
    packed = app.home / ".export.tmp"  # goes with the next tidying when we are killed
    try:
        if tag is None:
            snapshot.need_stopped(app, "be exported", ", or export a snapshot with --tag")
            snapshot.pack(app, packed)
            delta, digest, size = _file(packed), snapshot.digest_of(packed), packed.stat().st_size
            base = identity.of(spec)
        else:
            saved = snapshot.find(app, tag)
            spec, delta, digest, size = spec.restored(saved.spec), saved.packed, saved.digest, saved.size
            base = saved.base or identity.of(spec)
        others = snapshot.every(app) if snapshots else []
        head = {
            "format": FORMAT,
            "name": app.name,
            "exported": event.stamp(),
            "app": {**manifest.of(app, spec), "identity": base},
            "delta": {"digest": digest, "size": size},
            "snapshots": [_about(app, item) for item in others],
        }
        members = [("delta.tar", delta, size)]
        members += [(f"snapshot/{item.tag}/delta.tar", item.packed, item.size) for item in others]
        with packing.compressor(out, compress) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            octets = json.dumps(head, indent=1).encode()
            packing.add(tar, "manifest.json", io.BytesIO(octets), len(octets))
            for name, opened, length in members:
                with opened() as content:
                    packing.add(tar, name, content, length)
    finally:
        packed.unlink(missing_ok=True)
    app.emit("exported", digest=digest, tag=tag)


def _file(path: Path) -> Callable[[], contextlib.AbstractContextManager[IO[bytes]]]:
    return lambda: path.open("rb")


def _about(app: App, saved: snapshot.Snapshot) -> dict[str, Any]:
    """A snapshot as the manifest describes it."""
    return {**saved.row(), "app": {**manifest.of(app, saved.spec), "identity": saved.base or {}}}


def take(
    app: App,
    incoming: packing.Incoming,
    allowed: Allowed,
    request: str | None,
    *,
    changed_base: bool,
    say: Callable[[str], object],
) -> Spec:
    """Make the new app *app* of an archive. Raises DreError, with nothing made, when it is not wanted or damaged."""
    try:
        described = dict(incoming.head["app"])
        if app.name != incoming.name:
            # Beside the app that it was: what only one can have stays with that.
            described["words"] = [
                word for word in described["words"] if not word.startswith(("publish=", "autostart="))
            ]
        spec = _accepted(app, described, allowed, changed_base, say)
        with network.reserved(app.conf):
            ip = manifest.address(app, described["ip"])
        expected, others = incoming.head["delta"]["digest"], list(incoming.head["snapshots"])
        saved = [(units.name(item["tag"]), item, _accepted(app, item["app"], allowed, True, str)) for item in others]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"not the description of an app: {error!r}") from None

    def fill(delta: Path) -> None:
        try:
            _unpack(app, incoming.member("delta.tar"), delta, expected, allowed)
            for tag, about, was in saved:
                _take_snapshot(app, incoming.member(f"snapshot/{tag}/delta.tar"), tag, about, was, allowed)
            if incoming.tar.next() is not None:
                raise DreError(f"{app.name}: refused: the archive holds more than it says")
        except tarfile.TarError as error:
            raise DreError(f"{app.name}: the archive is damaged: {error}") from None

    given = {key: value for key, value in vars(spec).items() if key not in ("name", "created", "request")}
    made = existence.create(app, existence.new_spec(app, request=request, **given), ip, fill)
    app.emit("imported", digest=expected, was=incoming.name)
    if made.ip != described["ip"]:
        say(f"{app.name}: its address is {made.ip}, for {described['ip']} is not free here")
    return made


def _accepted(
    app: App, described: dict[str, Any], allowed: Allowed, changed_base: bool, say: Callable[[str], object]
) -> Spec:
    """The Spec of what an archive describes. A changed base is judged as dre.snapshot judges it."""
    name = str(described["base"])
    here = Spec(
        name=app.name, created="", base=name if name == "host" else str(app.conf.core_state_dir / "base" / name)
    )
    now = identity.of(here)
    changed = identity.changes(described["identity"], now) if described["identity"] else None
    refused = changed and name != "host" and not changed_base
    made = manifest.accept(app, described if refused else {**described, "identity": now}, allowed)
    if changed:
        say(f"{app.name}: its base {name} is another here: {changed}; going on")
    return made


def _unpack(app: App, content: IO[bytes], into: Path, expected: str, allowed: Allowed) -> None:
    try:
        found = archive.unpack_checked(content, into, allow_setuid=allowed.setuid)
    except DreError as error:
        raise DreError(f"{app.name}: {error}") from None
    if found.digest != expected:
        raise DreError(f"{app.name}: the archive is damaged: digest {found.digest}, packed was {expected}")


def _take_snapshot(app: App, content: IO[bytes], tag: str, about: dict[str, Any], was: Spec, allowed: Allowed) -> None:
    """Store one snapshot. It is unpacked to be judged, for a load of it will trust it."""
    place = app.home / "snapshot" / tag
    half, trial = place.with_name(f".{tag}.new"), app.directory / "delta.new"
    half.mkdir(parents=True, mode=0o700)
    with (half / "delta.tar").open("xb") as packed:
        while octets := content.read(_BLOCK):
            packed.write(octets)
    trial.mkdir(mode=0o700)
    try:
        with (half / "delta.tar").open("rb") as packed:
            _unpack(app, packed, trial, str(about["digest"]), allowed)
    finally:
        existence.remove_tree(trial)
    created = event.stamp(event.seconds(str(about["created"])))
    description = str(about["description"])
    more = {
        "created": created,
        "description": description if description.isprintable() else ascii(description),
        "scheduled": about["scheduled"] is True,
        "base": about["app"]["identity"] or None,
    }
    snapshot.describe(half, replace(was, ip=None), more)
    half.rename(place)
