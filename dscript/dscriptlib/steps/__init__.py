# SPDX-License-Identifier: Apache-2.0
"""The actions a script may name: one module each, found by its file name, which defines STEP.

A step either is a call of dre-app or, where it says `system`, of dre-sys, described by an argv, or acts within the
engine's process. A few call another program of D-RE. No value of an event ever becomes part of an argv.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dre import units
from dre.conf import Conf
from dre.errors import DreError, UsageError

from dscriptlib.model import Script

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


class FailedStep(DreError):
    """A step that failed and has something to tell all the same."""

    def __init__(self, words: str, told: Sequence[Told]) -> None:
        super().__init__(words)
        self.told = tuple(told)


@dataclass(frozen=True)
class Setting:
    """What a step that acts in the engine's process may know."""

    conf: Conf
    script: Script
    response: str
    request: str
    events: tuple[str, ...]
    about: str | None = None  # the line of the event that led to it
    timeout: float = 60.0
    options: tuple[str, ...] = ()  # that D-RE's programs are given


@dataclass(frozen=True)
class Kind:
    """One action of the language."""

    keys: Mapping[str, Key]
    needs_proof: bool  # refused when the triggering event is only claimed
    argv: Callable[[Values], list[str]] | None = None  # arguments of dre-app or dre-sys, or of:
    program: str | None = None  # one that knows no request ids, as asking twice does no more than asking once
    act: Callable[[Setting, Values], list[Told]] | None = None
    problem: Callable[[Values], str | None] | None = None  # what the keys cannot say one by one
    ask_former: Callable[[Values], list[str]] | None = None  # arguments that print what the step will change
    former: Callable[[Values, Mapping[str, Any]], dict[str, str]] | None = None
    compensate: Callable[[Values, Mapping[str, str]], list[str]] | None = None
    read: Callable[[Setting, Values], dict[str, str]] | None = None  # as ask_former and compensate, where `act` is
    take_back: Callable[[Setting, Values, Mapping[str, str]], None] | None = None
    shows: Callable[[Setting, Values], dict[str, Any]] | None = None  # the state of what is no container
    asks: bool = False  # then a person's answer is waited for
    hands_on: bool = False  # the event that led to it is given to what it does
    fits: Callable[[Script, Values], str | None] | None = None  # what is wrong with it in that script

    @property
    def reversible(self) -> bool:
        """Whether it can be taken back."""
        return self.compensate is not None or self.take_back is not None


CONTAINER = {"of": Key(units.name, required=False), "system": Key(units.name, required=False)}


def container(values: Values) -> str:
    """The name of the app or system that a step acts on."""
    return str(values.get("of") or values.get("system"))


def of_one(values: Values) -> str | None:
    """What is wrong when a step does not name one container."""
    return None if ("of" in values) != ("system" in values) else "say 'of', an app, or 'system', and only one of them"


def _takes_back(word: str) -> Callable[[Values, Mapping[str, str]], list[str]]:
    return lambda values, former: [word, container(values)]


def verb(*words: str, back: str | None = None, proof: bool = True, keys: Mapping[str, Key] | None = None) -> Kind:
    """A verb that dre-app and dre-sys have alike; *back* takes it back, *keys* are words after NAME."""
    own = keys or {}
    return Kind(
        keys={**CONTAINER, **own},
        needs_proof=proof,
        argv=lambda values: [*words, container(values), *(values[key] for key in own if key in values)],
        problem=of_one,
        compensate=None if back is None else _takes_back(back),
    )


class word:  # noqa: N801 - read as a type among the functions that are the other types
    """The type whose values are *choices*."""

    def __init__(self, *choices: str) -> None:
        self.choices = choices

    def __call__(self, value: str) -> str:
        if value not in self.choices:
            raise UsageError(f"expected {' or '.join(self.choices)}, got {value[:60]!r}")
        return value


def account(value: str) -> str:
    """The type of the name of a user of this host."""
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
        raise UsageError(f"{value[:60]!r} is not the name of a user")
    return value


def nested(value: str) -> str:
    """The type of a key that holds a list or a mapping, which the loader reads by itself."""
    raise AssertionError(value)


def _load() -> dict[str, Kind]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").STEP for name in names}


class text:  # noqa: N801
    """The type of a line of at most *limit* printable characters for people."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, value: str) -> str:
        if not 0 < len(value) <= self.limit or not value.isprintable():
            raise UsageError(f"expected 1 to {self.limit} printable characters")
        return value


KINDS: Mapping[str, Kind] = _load()
