# SPDX-License-Identifier: Apache-2.0
"""What of an app's definition goes to another host, and what that host takes of it.

Only the keys named here are taken, and each value is read as if somebody had typed it: what comes from elsewhere names
no hook, no file of this host and no device. Pure: nothing is made or changed here.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dre import identity, limits, network, spec
from dre.app import App
from dre.cgroup import Limits
from dre.errors import DreError, NotFoundError, NotPermittedError, UsageError
from dre.spec import Spec

# Of the properties those that mean the same everywhere. `after` names apps of a host and `seccomp` a file of it.
KEYS = ("env", "restart", "autostart", "publish", "snapshot-every", "snapshot-keep", "sshd-port", "ssh-key")
_KEY = re.compile(r"ssh-key=(?:ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]{40,}={0,2}(?: .*)?")
_WHOLE = ("cpu", "weight", "cpus", "memory", "swap", "pids", "io", "net")


@dataclass(frozen=True)
class Allowed:
    """What the receiving host takes, beyond what can do it no harm."""

    privileged: bool = False
    setuid: bool = False
    binds: tuple[str, ...] = ()
    live: bool = False
    anywhere: bool = False  # trees by their path, and binds of any directory: the sender is root of this very host


def of(app: App, found: Spec) -> dict[str, Any]:
    """What is sent of *found*, the Spec of *app*. Raises DreError when it cannot be had elsewhere."""
    if found.halt is not None:
        raise DreError(f"{app.name}: was adopted, and its base is its own; export it by its own means")
    if found.seccomp != "default":
        raise DreError(f"{app.name}: its seccomp profile {found.seccomp} is a file of this host")
    trees = str(app.conf.core_state_dir / "base") + "/"
    words = []
    for key in KEYS:
        item, value = spec.PROPERTIES[key], getattr(found, spec.field_of(key))
        if value != getattr(_PLAIN, spec.field_of(key)):
            words += [f"{key}={word}" for word in item.show(value)]
    return {
        "base": found.base.removeprefix(trees),
        "identity": identity.of(found),
        "command": list(found.command),
        "words": words,
        "limits": asdict(found.limits),
        "ip": found.ip,
        "privileged": found.privileged,
        "binds": spec.PROPERTIES["bind"].show(found.binds),
        "isolated": found.isolated,
        "arch": os.uname().machine,
    }


_PLAIN = Spec(name="", base="", created="")


def accept(app: App, data: Mapping[str, Any], allowed: Allowed) -> Spec:
    """The Spec that *data*, from a sender who is not trusted, is for the new app *app*; it has no address yet.

    Raises DreError, one line, for all that is not wanted here or cannot be.
    """
    try:
        return _accept(app, data, allowed)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"not the description of an app: {error!r}") from None


def _accept(app: App, data: Mapping[str, Any], allowed: Allowed) -> Spec:
    if data["arch"] != os.uname().machine:
        raise DreError(f"{app.name}: is of a {_text(data['arch'])} host, this is {os.uname().machine}")
    privileged = data["privileged"] is not False or data["base"] == "host"
    if privileged and not allowed.privileged:
        raise NotPermittedError(f"{app.name}: is privileged, which is not taken here without --allow-privileged")
    words = [_text(word) for word in data["words"]]
    for word in words:
        if word.partition("=")[0] not in KEYS:
            raise UsageError(f"{word.partition('=')[0]!r} is not taken from another host")
        if word.startswith("ssh-key=") and not (_KEY.fullmatch(word) and word.isprintable()):
            raise UsageError("ssh-key: not a public key")  # a file of this host it would be
    made = Spec(
        name=app.name,
        base=_base(app, _text(data["base"]), data["identity"], allowed),
        created="",
        command=spec.command(map(_text, data["command"])),
        limits=_limits(data["limits"]),
        privileged=privileged,
        isolated=data["isolated"] is True,
    )
    return replace(made, **spec.from_words(words), binds=_binds(app, data["binds"], allowed))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _base(app: App, name: str, sent: Mapping[str, Any], allowed: Allowed) -> str:
    trees = app.conf.core_state_dir / "base"
    if name == "host":
        base = name
    else:
        if "/" in name and not allowed.anywhere:
            raise NotFoundError(
                f"{app.name}: its base {name} is no tree of dre-base's; move it to {trees} there and here"
            )
        path = Path(name) if "/" in name else trees / name
        if name.startswith(".") or not path.is_dir():
            raise DreError(f"{app.name}: its base {name} is not here: no {path}")
        base = os.path.realpath(path)
    changed = identity.changes(dict(sent), identity.of(replace(_PLAIN, base=base)))
    if changed:
        raise DreError(f"{app.name}: the base {name} is another here: {changed}")
    return base


def _limits(data: Mapping[str, Any]) -> Limits:
    if set(data) - set(_WHOLE):
        raise UsageError(f"unknown limits {', '.join(sorted(set(data) - set(_WHOLE)))}")
    for key, value in data.items():
        kinds: tuple[type, ...] = (str,) if key == "cpus" else (int, float) if key == "cpu" else (int,)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise TypeError(f"limit {key} is {value!r}")
        if isinstance(value, (int, float)) and not 0 <= value < 1 << 62:
            raise ValueError(f"limit {key} is {value!r}")
    found = Limits(**data)
    if found.cpus is not None:
        limits.cpu_set(found.cpus)
    return found


def _binds(app: App, words: Sequence[Any], allowed: Allowed) -> tuple[spec.Bind, ...]:
    made = []
    for word in map(_text, words):
        source = os.path.realpath(word.partition(":")[0])
        inside = [place for place in allowed.binds if source == place or source.startswith(place.rstrip("/") + "/")]
        if not inside and not allowed.anywhere:
            raise NotPermittedError(
                f"{app.name}: it binds {word.partition(':')[0]}, which is not taken here without --allow-bind"
            )
        made.append(spec.bind(word))
    return tuple(made)


def address(app: App, wished: Any) -> str | None:
    """The address to give *app*: what it had, where that is one of this bridge's and free, else the next free one.

    Wants network.reserved. As network.address takes it.
    """
    if wished is None:
        return "none"
    try:
        return network.address(app, _text(wished))
    except DreError:
        return spec.AUTO
