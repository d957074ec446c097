# SPDX-License-Identifier: Apache-2.0
"""What is looked at, and when: /etc/dre/sysmon.yaml, read strictly. All that is wrong is told with its place."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dre import plainyaml, units
from dre.errors import NotFoundError, UsageError
from dre.plainyaml import Node, Reader, Refused, tree

LMS, LIBRA, FOXY = "lms", "libra", "foxykbd"
KINDS = (LMS, LIBRA, FOXY)
EVERY = {LMS: 1.0, LIBRA: 300.0}  # seconds, where nothing else is said
LEAST = {LMS: 0.1, LIBRA: 5.0, FOXY: 60.0}
MOST = 1000  # looks
_DAY = 24 * 60  # minutes
_T = TypeVar("_T")


@dataclass(frozen=True)
class Look:
    """One program, again and again at one system: *every* seconds, or each day *at* a minute of it, of local time."""

    kind: str
    system: str
    every: float | None
    at: int | None = None
    slow: bool = False
    mounts: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()  # the key `except`
    server: str | None = None

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.kind}{'-slow' if self.slow else ''} {self.system}"

    @property
    def lasting(self) -> bool:
        """Whether one process looks again and again; the others are started for each look."""
        return self.kind == LMS

    def words(self) -> list[str]:
        """What the program is told, besides whom to tell."""
        options = [word for path in self.mounts for word in ("--mount", path)]
        options += [word for path in self.apart for word in ("--except", path)]
        options += ["--server", self.server] if self.server else []
        options += ["--slow"] if self.slow else []
        return [self.system, *options, *(["--interval", f"{self.every:.3f}s"] if self.lasting else [])]

    def due(self, last: float | None) -> float:
        """When it is to be had next, in seconds since the epoch, if it was begun at *last*."""
        if self.at is None:
            return 0.0 if last is None else last + (self.every or 0.0)
        now = time.time()  # one that was missed is not made up for: it may have its time for a reason
        day = time.localtime(now)
        return next(
            moment
            for days in (0, 1, 2)
            if (moment := time.mktime((day.tm_year, day.tm_mon, day.tm_mday + days, 0, self.at, 0, 0, 0, -1))) > now
        )


def read(path: Path) -> tuple[list[Look], list[str]]:
    """The looks that the file *path* has, and what is wrong with it. Raises NotFoundError, UsageError."""
    try:
        octets = plainyaml.read(path)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    return parse(octets, str(path))


def parse(octets: bytes, file: str) -> tuple[list[Look], list[str]]:
    """The looks in *octets*, and each thing that is wrong as FILE:LINE:COLUMN: error: SENTENCE."""
    reader = _Reader()
    try:
        looks = _plan(reader, tree(octets))
    except Refused as refusal:
        reader.error(refusal.at, str(refusal))
        looks = []
    return looks, [f"{file}:{at.line}:{at.column}: error: {text}" for at, text in sorted(reader.errors)]


class _Reader(Reader):
    """Reads lists of values, too."""

    def values(self, entries: dict[str, Node], key: str, convert: Callable[[str], _T]) -> tuple[_T, ...]:
        """The typed values of *key*: a list of them, or one."""
        if key not in entries:
            return ()
        node = entries[key]
        found = [self.typed(item, key, convert) for item in ([node] if node.items is None else node.items)]
        return tuple(one for one in found if one is not None)


def _plan(reader: _Reader, root: Node) -> list[Look]:
    entries = reader.mapping(root, "the plan", ("sysmon", "looks"), ("sysmon", "looks"))
    reader.value(entries, "sysmon", _word("1"))
    items = entries["looks"].items if "looks" in entries else None
    if "looks" in entries and not items:
        reader.error(entries["looks"].at, "looks must be a list with at least one item")
    if items and len(items) > MOST:
        reader.error(entries["looks"].at, f"more than {MOST} looks")
        return []
    found: dict[str, Look] = {}
    for item in items or []:
        look = _look(reader, item)
        if look is not None:
            if look.name in found:
                reader.error(item.at, f"{look.name} is looked at twice")
            found[look.name] = look
    return list(found.values())


def _look(reader: _Reader, node: Node) -> Look | None:
    kind = next((value.text for key, value in node.entries or [] if key.text == "look"), None)
    own = {LMS: (), LIBRA: ("mount", "except", "server", "at"), FOXY: ("slow", "at")}.get(kind or "")
    if own is None:
        reader.error(node.at, f"a look needs 'look': one of {', '.join(KINDS)}")
        return None
    before = len(reader.errors)
    known = ("look", "system", "every", *own)
    entries = reader.mapping(
        node, f"a look of {kind}", known, ("look", "system", *(("mount",) if kind == LIBRA else ()))
    )
    system, every = reader.value(entries, "system", units.name), reader.value(entries, "every", units.duration)
    at = reader.value(entries, "at", _minute)
    if "at" in entries and "every" in entries:
        reader.error(entries["at"].at, "'at' is each day: without 'every'")
    elif "at" not in entries and "every" not in entries and kind not in EVERY:
        reader.error(node.at, f"a look of {kind} needs 'every' or 'at'")
    if every is not None and every < LEAST[str(kind)]:
        reader.error(entries["every"].at, f"every: at least {LEAST[str(kind)]:g}s is needed")
    mounts, apart = reader.values(entries, "mount", _path), reader.values(entries, "except", _path)
    server = reader.value(entries, "server", _address)
    slow = reader.value(entries, "slow", _word("yes", "no")) == "yes"
    if len(reader.errors) > before:
        return None
    every = EVERY.get(str(kind)) if at is None and every is None else every
    return Look(str(kind), str(system), every, at, slow, mounts, apart, server)


def _word(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise UsageError(f"expected {' or '.join(words)}, got {text[:40]!r}")
        return text

    return convert


def _minute(text: str) -> int:
    found = re.fullmatch(r"([0-9]{2}):([0-9]{2})", text, re.ASCII)
    minute = int(found[1]) * 60 + int(found[2]) if found and int(found[2]) < 60 else _DAY
    if minute >= _DAY:
        raise UsageError(f"{text[:40]!r} is not a time of day such as 03:17")
    return minute


def _path(text: str) -> str:
    if not text.startswith("/") or text.startswith("//") or not text.isprintable():
        raise UsageError(f"{text[:40]!r} is not the absolute path of a directory")
    return text


def _address(text: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise UsageError(f"{text[:60]!r} is not an address of IPv4 or IPv6") from None
