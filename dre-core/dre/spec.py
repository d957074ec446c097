# SPDX-License-Identifier: Apache-2.0
"""What an app is made of, its Spec, and the properties that `create` takes as options and `set` as key=value.

PROPERTIES is the one table of both: a new property is a field of Spec, a line there, and what follows from it in
dre.lxcconfig or dre.lifecycle. Nothing here touches an app.
"""

import argparse
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dre import cgroup, properties, units
from dre.errors import UsageError
from dre.properties import NOW, REFUSED, Property, hook, yes

AUTO = "auto"  # in place of an address: one still to be chosen
DHCP = "dhcp"  # in place of an address: what the network gives at each start


@dataclass(frozen=True)
class Bind:
    """A directory or file of the host that the app sees at *target*."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Publish:
    """A port of the host that leads to one of the app; *address* is one of the host's, None all of them."""

    outside: int
    inside: int
    protocol: str = "tcp"
    address: str | None = None

    def __str__(self) -> str:
        return f"{f'{self.address}:' if self.address else ''}{self.outside}:{self.inside}/{self.protocol}"

    @property
    def port(self) -> str:
        """The port outside, as people write it."""
        return f"{self.outside}/{self.protocol}"

    def clashes(self, other: "Publish") -> bool:
        """Whether not both can be had."""
        apart = self.address and other.address and self.address != other.address
        return self.port == other.port and not apart


@dataclass(frozen=True)
class Spec:
    """What `create` fixed and `limit` changes. *base* is `host` or a tree's path; *ip* has its length, or is DHCP."""

    name: str
    base: str
    created: str
    ip: str | None = None
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()
    limits: cgroup.Limits = field(default_factory=cgroup.Limits)
    request: str | None = None
    isolated: bool = False
    snapshot_every: float | None = None  # seconds
    snapshot_keep: int = 4
    publish: tuple[Publish, ...] = ()
    sshd_port: int | None = None
    ssh_keys: tuple[str, ...] = ()  # lines of authorized_keys
    restart: str = "no"  # or on-failure:N
    halt: int | None = None  # its command is an init of its own, which ends at this signal
    autostart: bool = False
    after: tuple[str, ...] = ()  # apps that are to run before it
    ids: tuple[int, int] | None = None  # the first host id of the app's own, and how many; None: it never had any
    privileged: bool = True
    seccomp: str = "default"  # or the path of a profile

    @property
    def unprivileged(self) -> bool:
        """Whether the app has a user namespace, in which its root is not root of the host."""
        return not self.privileged

    def to_json(self) -> str:
        """The text of app.json."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Spec":
        """The Spec of an app.json; raises ValueError, KeyError or TypeError when it is not one."""
        data: dict[str, Any] = json.loads(text)
        data["command"] = tuple(data["command"])
        data["after"] = tuple(data.get("after", ()))
        data["binds"] = tuple(Bind(**item) for item in data["binds"])
        data["limits"] = cgroup.Limits(**data["limits"])
        # Read again as a user's word: it may come from an archive, and will be a rule of the packet filter.
        data["publish"] = tuple(publish(str(Publish(**item))) for item in data.get("publish", ()))
        data["ssh_keys"] = tuple(data.get("ssh_keys", ()))
        data["ids"] = tuple(data["ids"]) if data.get("ids") else None
        return cls(**data)

    def restored(self, saved: "Spec") -> "Spec":
        """This app with what a snapshot keeps of the configuration: all but what tells one app from another."""
        # Another app may have been given the port it had then, and a key may have been withdrawn.
        saved = replace(saved, publish=self.publish, sshd_port=self.sshd_port, ssh_keys=self.ssh_keys)
        # How often it is saved is how this host keeps it, and no part of what it was.
        saved = replace(saved, snapshot_every=self.snapshot_every, snapshot_keep=self.snapshot_keep)
        saved = replace(saved, autostart=self.autostart, after=self.after)
        own = {"name": self.name, "base": self.base, "created": self.created, "ip": self.ip, "request": self.request}
        # An undo must not connect again what was cut off, nor loosen what confines the app; and how this host serves
        # it is not in a snapshot.
        held = {"isolated": self.isolated, "ids": self.ids, "privileged": self.privileged, "seccomp": self.seccomp}
        return replace(saved, **own, **held, restart=self.restart)


def env(words: Iterable[str]) -> dict[str, str]:
    """Environment from `K=V` words. Raises UsageError."""
    result = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise UsageError(f"env {word!r}: expected NAME=VALUE")
        result[key] = _one_line(f"env {key}", value)
    return result


def bind(word: str) -> Bind:
    """A Bind from `SRC:DST[:ro]`. Raises UsageError."""
    source, _, rest = word.partition(":")
    target, _, mode = rest.partition(":")
    if mode not in ("", "ro", "rw") or not source.startswith("/") or not target.startswith("/") or target == "/":
        raise UsageError(f"bind {word!r}: expected SRC:DST or SRC:DST:ro with absolute paths")
    if ".." in Path(source).parts + Path(target).parts:
        raise UsageError(f"bind {word!r}: '..' is not allowed")
    _one_line("bind", word)
    if not Path(source).exists():
        raise UsageError(f"bind {word!r}: {source} does not exist")
    return Bind(os.path.normpath(source), os.path.normpath(target), mode == "ro")


def publish(word: str) -> Publish:
    """A Publish from `[HOSTADDR:]HOSTPORT:PORT[/tcp|udp]`. Raises UsageError."""
    import ipaddress  # slow, and most apps publish nothing

    found = re.fullmatch(r"(?:([0-9.]+):)?([0-9]{1,5}):([0-9]{1,5})(?:/(tcp|udp))?", word)
    try:
        if not found or not all(0 < int(found[group]) < 65536 for group in (2, 3)):
            raise ValueError
        address = str(ipaddress.IPv4Address(found[1])) if found[1] else None
    except ValueError:
        raise UsageError(f"publish {word!r}: expected [HOSTADDR:]HOSTPORT:PORT[/tcp|udp]") from None
    return Publish(int(found[2]), int(found[3]), found[4] or "tcp", address)


def command(words: Iterable[str]) -> tuple[str, ...]:
    """The program to run as the app's service. Raises UsageError."""
    argv = tuple(words)
    if any("\0" in word for word in argv):
        raise UsageError("the command holds a NUL character")
    return argv


def profile(word: str) -> str:
    """`default`, or the path of a seccomp profile; dre.confine looks at the file. Raises UsageError."""
    if word != "default" and (not word.startswith("/") or ".." in Path(word).parts):
        raise UsageError(f"seccomp {word!r}: expected default or the absolute path of a profile")
    return word if word == "default" else os.path.normpath(_one_line("seccomp", word))


def restart(word: str) -> str:
    """What to do when the app ends by itself: `no` or `on-failure:N`. Raises UsageError."""
    if word != "no" and not re.fullmatch(r"on-failure:[1-9][0-9]{0,5}", word):
        raise UsageError(f"restart {word!r}: expected no, or on-failure:N with N above 0")
    return word


def names(words: Iterable[str]) -> tuple[str, ...]:
    """Names of apps, separated by commas too, each once. Raises UsageError."""
    return tuple(dict.fromkeys(units.name(name) for word in words for name in word.split(",")))


def restarts(word: str) -> int:
    """The N of `on-failure:N`, 0 for `no`."""
    return int(word.partition(":")[2] or 0)


def interval(word: str) -> float | None:
    """Seconds between two snapshots, or None of `none`. Raises UsageError."""
    if word == "none":
        return None
    seconds = units.duration(word)
    if seconds < 300:
        raise UsageError(f"snapshot-every {word}: the timer looks every five minutes: 5m or more")
    return seconds


def kept(word: str) -> int:
    """How many snapshots of a schedule stay. Raises UsageError."""
    if not word.isdecimal() or not 0 < int(word) <= 1000:
        raise UsageError(f"snapshot-keep {word!r}: expected a number from 1 to 1000")
    return int(word)


def _one_line(what: str, text: str) -> str:
    if not text.isprintable():
        raise UsageError(f"{what}: control characters are not allowed in {text!r}")
    return text


def _binds(words: Iterable[str]) -> tuple[Bind, ...]:
    return tuple(map(bind, words))


def _shown_binds(binds: Iterable[Bind]) -> list[str]:
    return [f"{item.source}:{item.target}{':ro' if item.read_only else ''}" for item in binds]


# The key is the option without its dashes; with `_` for `-` it is the field of Spec.
PROPERTIES: dict[str, Property] = {
    "env": Property("K=V", "environment of its processes", env, many=True),
    "restart": Property("on-failure:N|no", "start again after a crash, N times (default: no)", restart),
    "autostart": Property("", "start it with the system", yes, flag=True, live=NOW),
    "after": Property("APP[,APP...]", "start these before it", names, many=True, check="dre.order:check", live=NOW),
    "bind": Property("SRC:DST[:ro]", "show SRC of the host at DST", _binds, many=True, show=_shown_binds),
    "privileged": Property(
        "", "its root is root of the host", yes, flag=True, live=REFUSED, check="dre.confine:check_privileged"
    ),
    "seccomp": Property("default|FILE", "filter of its system calls", profile, check="dre.confine:check_seccomp"),
}
PROPERTIES["ip"] = Property(
    "ADDR/LEN|dhcp|none",
    "its address (default: the next free one)",
    lambda word: None if word == "none" else str(word),
    show=lambda value: [value or "none"],
    live=REFUSED,
    check="dre.network:check_address",
)
PROPERTIES["publish"] = Property(
    "[HOSTADDR:]HOSTPORT:PORT[/tcp|udp]",
    "let a port of the host lead to one of the app",
    lambda words: tuple(map(publish, words)),
    many=True,
    check="dre.publish:check_change",
    live="dre.publish:change",
)
PROPERTIES["snapshot-every"] = Property(
    "DURATION|none",
    "save a snapshot that often, while it runs too",
    interval,
    show=lambda value: [f"{value:g}s" if value else "none"],
)
PROPERTIES["snapshot-keep"] = Property("N", "how many of these snapshots stay (default: 4)", kept)
PROPERTIES["sshd-port"] = Property(
    "N|none",
    "have an sshd in it answer there (without N: DRE_DEFAULT_SSHD_PORT)",
    lambda word: hook("dre.sshd:port")(word),
    check="dre.sshd:check",
    bare="default",
)
PROPERTIES["ssh-key"] = Property(
    "FILE",
    "public keys that may log in (default: root's of the host)",
    lambda words: hook("dre.sshd:keys")(words),
    many=True,
    check="dre.sshd:check",
)
_FIELDS = {"ssh-key": "ssh_keys", "bind": "binds"}


def field_of(key: str) -> str:
    """The field of Spec that holds property *key*."""
    return _FIELDS.get(key, key.replace("-", "_"))


def add_options(verb: argparse.ArgumentParser) -> None:
    """Add an option for each property."""
    properties.add_options(verb, PROPERTIES)


def from_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of Spec that options set. Raises UsageError."""
    return properties.from_options(args, PROPERTIES, field_of)


def from_words(words: Sequence[str]) -> dict[str, Any]:
    """The fields of Spec that `key=value` words set; an empty value empties what takes many. Raises UsageError."""
    return properties.from_words(words, PROPERTIES, field_of)


def checked(app: Any, wanted: Spec, keys: Iterable[str]) -> Spec:
    """*wanted* after the checks of the properties *keys*. Raises what they raise."""
    for key in keys:
        if key in PROPERTIES and PROPERTIES[key].check:
            wanted = hook(PROPERTIES[key].check)(app, wanted)
    return wanted
