# SPDX-License-Identifier: Apache-2.0
"""The actions a script may name: one module each, found by its file name, which defines STEP.

A step either is a call of dre-app, described by an argv, or acts within the engine's process. No value of an event
ever becomes part of an argv.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dre.conf import Conf
from dre.errors import UsageError

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of a step: the function that types its text (it raises UsageError), and whether it must be there."""

    type: Callable[[str], Any]
    required: bool = True


@dataclass(frozen=True)
class Told:
    """An event that a step wants to be recorded and sent to the monitor."""

    type: str
    data: Mapping[str, Any]
    sev: int = 6


@dataclass(frozen=True)
class Setting:
    """What a step that acts in the engine's process may know."""

    conf: Conf
    script: str
    response: str
    request: str
    events: tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """One action of the language."""

    keys: Mapping[str, Key]
    needs_proof: bool  # refused when the triggering event is only claimed
    argv: Callable[[Values], list[str]] | None = None  # arguments of dre-app
    act: Callable[[Setting, Values], list[Told]] | None = None
    problem: Callable[[Values], str | None] | None = None  # what the keys cannot say one by one
    ask_former: Callable[[Values], list[str]] | None = None  # arguments of dre-app that print what the step will change
    former: Callable[[Values, Mapping[str, Any]], dict[str, str]] | None = None
    compensate: Callable[[Values, Mapping[str, str]], list[str]] | None = None


def _load() -> dict[str, Kind]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").STEP for name in names}


def text(limit: int) -> Callable[[str], str]:
    """The type of a line of at most *limit* printable characters for people."""

    def convert(value: str) -> str:
        if not 0 < len(value) <= limit or not value.isprintable():
            raise UsageError(f"expected 1 to {limit} printable characters")
        return value

    return convert


KINDS: Mapping[str, Kind] = _load()
