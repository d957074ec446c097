# SPDX-License-Identifier: Apache-2.0
"""The two kinds of variables in a rule of SEC, replaced as SEC replaces them: what a pattern matched, then %variables.

`$1 ${1} $+{name}` (in the second half of a pair also with % for the first pattern) become what was matched, once, when
the rule matches; `%name %{name}` become the value that they have when the action is carried out. Octets throughout.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

Values = Mapping[bytes, bytes | None]
_FORM = rb"(?:%s|([0-9]+)|\{([0-9]+)\}|\+\{([A-Za-z_][A-Za-z0-9_!]*|[0-9]+)\})"
_MATCHED = {sign: re.compile(re.escape(sign) + _FORM % re.escape(sign)) for sign in (b"$", b"%")}
_VARIABLE = re.compile(rb"%(?:(\.?[A-Za-z][A-Za-z0-9_]*|%)|\{(\.?[A-Za-z][A-Za-z0-9_]*)\})")
_QUOTED = re.compile(rb"([^A-Za-z0-9_])")
_CHARACTERS = {
    b"%": b"%",
    b".nl": b"\n",
    b".cr": b"\r",
    b".tab": b"\t",
    b".sp": b" ",
    **{b".chr%d" % code: bytes([code]) for code in range(32)},
}
_TIMES = {
    b"t": "%a %b %e %H:%M:%S %Y",
    b".sec": "%S",
    b".min": "%M",
    b".hour": "%H",
    b".hmsstr": "%H:%M:%S",
    b".mday": "%d",
    b".mdaystr": "%e",
    b".mon": "%m",
    b".monstr": "%b",
    b".year": "%Y",
    b".wday": "%w",
    b".wdaystr": "%a",
    b".tzname": "UTC",
    b".tzoff": "+0000",
    b".tzoff2": "+00:00",
}


def matched(text: bytes, values: Values, sign: bytes = b"$") -> bytes:
    """*text* with what was matched in place of its variables, which begin with *sign*; `$$` is one `$`."""
    if sign not in text:
        return text

    def value(match: re.Match[bytes]) -> bytes:
        return sign if match.lastindex is None else values.get(match[match.lastindex]) or b""

    return _MATCHED[sign].sub(value, text)


def masked(values: Values, sign: bytes) -> Values:
    """*values* in which a *sign* survives the next round."""
    if not any(value and sign in value for value in values.values()):
        return values
    return {name: value and value.replace(sign, sign * 2) for name, value in values.items()}


def quoted(value: bytes) -> bytes:
    """*value* as a regular expression that matches just it."""
    return _QUOTED.sub(rb"\\\1", value)


def variables(text: bytes, known: Mapping[bytes, bytes], description: bytes, now: int) -> bytes:
    """*text* with the values of its %variables; time is *now*, seconds since the epoch, in UTC."""
    if b"%" not in text:
        return text

    def value(match: re.Match[bytes]) -> bytes:
        name: bytes = match[1] or match[2]
        if name == b"s":
            return description
        if name == b"u":
            return b"%d" % now
        if name in _TIMES:
            return time.strftime(_TIMES[name], time.gmtime(now)).encode()
        return known.get(name, _CHARACTERS.get(name, b""))

    return _VARIABLE.sub(value, text)


def walk(actions: list[tuple[Any, ...]], change: Callable[[bytes], bytes]) -> list[tuple[Any, ...]]:
    """*actions* with *change* done to each of their texts, those of contexts' last actions included."""
    return [
        (
            action[0],
            *(change(part) if isinstance(part, bytes) else walk(part, change) if isinstance(part, list) else part
              for part in action[1:]),
        )
        for action in actions
    ]  # fmt: skip


def given(actions: list[tuple[Any, ...]], values: Values, sign: bytes = b"$") -> list[tuple[Any, ...]]:
    """*actions* with what was matched in place of its variables."""
    if not values:
        return actions
    safe = masked(values, b"%")
    return walk(actions, lambda text: matched(text, safe, sign))


def name_of(term: str, values: Values) -> bytes:
    name = term.encode("latin-1")
    return matched(name, values) if values else name


def names(terms: list[tuple[str, Any]], values: Values) -> list[bytes]:
    """The names of contexts in a condition."""
    found = []
    for kind, term in terms:
        if kind == "name":
            found.append(name_of(term, values))
        elif kind == "inner":
            found += names(term, values)
    return found


def renamed(terms: list[tuple[str, Any]], values: Values, sign: bytes) -> list[tuple[str, Any]]:
    """A condition with what was matched in place of its variables."""
    made: list[tuple[str, Any]] = []
    for kind, term in terms:
        if kind == "name":
            term = matched(term.encode("latin-1"), values, sign).decode("latin-1")
        elif kind == "inner":
            term = renamed(term, values, sign)
        made.append((kind, term))
    return made
