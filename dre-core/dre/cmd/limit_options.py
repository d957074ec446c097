# SPDX-License-Identifier: Apache-2.0
"""The options of limits, which create and limit of apps, groups and systems take, and how limits are printed."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dre import limits, units, verbs
from dre.cli import Context
from dre.errors import UsageError

NAMES = {  # in --json; the first two are fields of every row of list and stat
    "cpu": "cpu_limit",
    "memory": "memory_limit",
    "swap": "swap_limit",
    "pids": "pids_limit",
    "io": "io_limit",
    "net": "net_limit",
}


def add_options(verb: argparse.ArgumentParser, keys: Iterable[str]) -> None:
    """Add an option for each limit of *keys*."""
    kinds: dict[str, tuple[Callable[[str], Any], str, str]] = {
        "cpu": (_percent, "PCT", "percent of one core"),
        "weight": (_weight, "N", "share of the processors when they are short, 1 to 10000 (everybody: 100)"),
        "cpus": (_cpus, "SET", "the processors it may run on, such as 0-1,3"),
        "memory": (_above(units.size), "SIZE", "memory"),
        "swap": (units.size, "SIZE", "what may be swapped out beyond memory (default: 0)"),
        "pids": (verbs.count, "N", "processes and threads"),
        "io": (_rate, "RATE", "octets per second read from its disk, and as many written"),
        "net": (_rate, "RATE", "octets per second received, and as many sent"),
    }
    for key in keys:
        convert, metavar, text = kinds[key]
        verb.add_argument(f"--{key}", type=_or_none(convert), metavar=f"{metavar}|none", help=text)


def chosen(args: argparse.Namespace, keys: Iterable[str]) -> dict[str, Any]:
    """The limits that were given as options, `none` as None."""
    given = {key: getattr(args, key) for key in keys}
    return {key: None if value == "none" else value for key, value in given.items() if value is not None}


def show(ctx: Context, name: str, values: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Print the limits: a line for each, or one object."""
    if ctx.out.as_json:
        ctx.out.json({"name": name, **{NAMES.get(key, key): values[key] for key in keys}})
        return
    for key in keys:
        ctx.out.line(f"{key} {'none' if values[key] is None else values[key]}")


def _or_none(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    return verbs.kind(lambda text: "none" if text == "none" else convert(text))


def _percent(text: str) -> float:
    value = units.percent(text)
    if value < 1:
        raise UsageError(f"{text!r}: the kernel takes no CPU limit below 1 percent")
    return value


def _weight(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 10000):
        raise UsageError(f"{text!r} is not a weight from 1 to 10000")
    return int(text)


def _cpus(text: str) -> str:
    found = limits.cpu_set(text)
    if not found:
        raise UsageError("a list of processors such as 0-1,3 is missing")
    return limits.cpu_text(found)


def _above(convert: Callable[[str], int]) -> Callable[[str], int]:
    def converted(text: str) -> int:
        value = convert(text)
        if value == 0:
            raise UsageError(f"{text!r} is not above 0")
        return value

    return converted


def _rate(text: str) -> int:
    return _above(units.size)(text.removesuffix("/s"))
