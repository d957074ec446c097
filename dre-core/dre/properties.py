# SPDX-License-Identifier: Apache-2.0
"""Properties of containers: what `create` takes as options and `set` as key=value, from one table per kind.

The tables stand in dre.spec, for apps, and dre.system.spec. Nothing here touches a container.
"""

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dre.errors import UsageError


def yes(word: str) -> bool:
    """The value of a flag. Raises UsageError."""
    if word not in ("yes", "no"):
        raise UsageError(f"{word!r}: expected yes or no")
    return word == "yes"


def shown(value: Any) -> list[str]:
    """The words that would set *value*, as most properties have them."""
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, dict):
        return [f"{key}={text}" for key, text in value.items()]
    if isinstance(value, (list, tuple)):
        return [str(item) for item in value]
    return [] if value is None else [str(value)]


LATER = ""  # a running app gets it at its next start
REFUSED = "refused"  # the app must be stopped first
NOW = "now"  # it is no matter of the running app: what is stored is all there is to do


@dataclass(frozen=True)
class Property:
    """One property: *convert* makes the field's value of the word given, or of all words where it takes *many*.

    A *flag* is `--KEY` of create and KEY=yes|no of set; *show* gives the words that would set a value.
    *live* says what `set` does about a running app: LATER, REFUSED, NOW, or `MODULE:FUNCTION`, called as
    function(app, old Spec, new Spec) once the new one is stored; it may be called again after a kill, and with both
    exchanged when a later one fails. *check*, also `MODULE:FUNCTION`, is called as function(app, Spec) by create and by
    set before anything is changed; it refuses by raising, and returns the Spec to store.
    """

    metavar: str
    help: str
    convert: Callable[[Any], Any]
    many: bool = False
    flag: bool = False
    show: Callable[[Any], list[str]] = shown
    live: str = LATER
    check: str = ""
    bare: str | None = None  # the word that the option without one stands for

    def value(self, given: Any) -> Any:
        """The field's value of what an option or a word gave. Raises UsageError."""
        return yes("yes" if given is True else given) if self.flag else self.convert(given)


def add_options(verb: argparse.ArgumentParser, table: Mapping[str, Property]) -> None:
    """Add an option for each property of *table*."""
    for key, item in table.items():
        if item.flag:
            verb.add_argument(f"--{key}", action="store_true", default=None, help=item.help)
        elif item.many:
            verb.add_argument(f"--{key}", action="append", metavar=item.metavar, help=item.help)
        elif item.bare:
            verb.add_argument(f"--{key}", nargs="?", const=item.bare, metavar=item.metavar, help=item.help)
        else:
            verb.add_argument(f"--{key}", metavar=item.metavar, help=item.help)


def from_options(
    args: argparse.Namespace, table: Mapping[str, Property], field_of: Callable[[str], str]
) -> dict[str, Any]:
    """The fields that options set; *field_of* names the one of a key. Raises UsageError."""
    given = {key: getattr(args, key.replace("-", "_")) for key in table}
    return {field_of(key): table[key].value(value) for key, value in given.items() if value is not None}


def from_words(words: Sequence[str], table: Mapping[str, Property], field_of: Callable[[str], str]) -> dict[str, Any]:
    """The fields that `key=value` words set; an empty value empties what takes many. Raises UsageError."""
    given: dict[str, list[str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in table:
            raise UsageError(f"{word!r}: expected key=value; keys are {', '.join(sorted(table))}")
        given.setdefault(key, []).append(value)
    found = {}
    for key, values in given.items():
        item = table[key]
        if len(values) > 1 and not item.many:
            raise UsageError(f"{key}: given {len(values)} times")
        words = [value for value in values if value] if item.many else values
        found[field_of(key)] = item.value(words if item.many else words[0])
    return found


def hook(name: str) -> Callable[..., Any]:
    """The function `MODULE:FUNCTION`, imported when it is needed."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
