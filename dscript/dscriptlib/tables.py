# SPDX-License-Identifier: Apache-2.0
"""The language as tables: which keys stand where, and the type of each. The loader and the JSON Schema read them."""

from collections.abc import Callable, Mapping

from dre import units

from dscriptlib import words
from dscriptlib.steps import KINDS, Key, nested, word

Table = Mapping[str, Key]
REVERTS = ("when-clear", "on-failure", "never")
FINDINGS = ("hidden.process", "hidden.module", "hidden.file", "hook", "keylogger", "inconsistent")  # sysmon.*


def _keys(table: Mapping[str, Callable[[str], object]], required: str = "") -> Table:
    return {key: Key(type, key in required.split()) for key, type in table.items()}


SCRIPT = _keys(
    {"dscript": word("1"), "name": units.name, "responses": nested, "agreed": nested, "monitors": nested},
    "dscript name responses",
)
AGREED = _keys(
    {**dict.fromkeys(("case", "goal", "evidence", "revision"), words.word), "by": nested, "parameters": nested}
)
# What no parameter stands for, as it makes the script what it is: kinds, and what holds its parts together.
FIXED = frozenset(("id", "watch", "action", "finding", "when", "then", "monitor", "default", "revert", "if-failed"))
RESPONSE = _keys(
    {
        "id": units.name,
        "steps": nested,
        "when": nested,
        "at-most": nested,
        "then": units.name,
        "if-failed": word("revert"),
        "goal": words.word,
    },
    "id steps",
)
TRIGGER = _keys({"event": words.event_type, "after": words.event_type, "within": words.some_time}, "event")
AT_MOST = _keys({"attempts": words.count, "per": words.some_time, "cooldown": units.duration}, "attempts per")
EXPECT = _keys({"watch": units.name, "within": words.some_time}, "watch within")
STEP = _keys({"timeout": words.some_time, "expect": nested, "revert": word(*REVERTS)})

# Every key of a monitor but `watch`; `above`, `below` and `clear` have the type of their kind.
MONITOR: Mapping[str, Callable[[str], object]] = {
    "id": units.name,
    "of": units.name,
    "system": units.name,
    "url": words.url,
    "path": words.path,
    "file": words.path,
    "argv": nested,
    "for": units.duration,
    "missing": words.some_time,
    "every": words.some_time,
    "type": words.event_type,
    "source": words.source,
    "fields": nested,
    "count": words.count,
    "within": words.some_time,
    "first": words.event_type,
    "then": words.event_type,
    "unless": words.event_type,
    "finding": word(*FINDINGS),
}
_SAMPLED = "for every missing"
# kind → required keys, others, type of above, below and clear where it has them
WATCHES: Mapping[str, tuple[str, str, Callable[[str], float] | None]] = {
    "cpu": ("of", "for", units.percent),
    "memory": ("of", "for", units.percent),
    "liveness": ("missing", "of system every", None),
    "http": ("url", "of for every", units.duration),
    "host-cpu": ("", _SAMPLED, units.percent),
    "host-memory": ("", _SAMPLED, units.percent),
    "disk": ("path", _SAMPLED, units.percent),
    "clock": ("", _SAMPLED, units.duration),
    "apache": ("url", f"of {_SAMPLED}", words.number),
    "mysql": ("file", f"of {_SAMPLED}", units.duration),
    "command": ("argv", f"of system {_SAMPLED}", words.number),
    "event": ("type within", "of system source fields count", None),
    "sequence": ("first then within", "of system unless", None),
    "sysmon": ("finding system within", "", None),
    "evidence": ("type missing", "of system source fields", None),
}
# How often dre-watch looks, in seconds, where `every` is not said.
EVERY: Mapping[str, float] = {
    **dict.fromkeys(("cpu", "memory", "liveness"), 0.5),
    "http": 0.2,
    **dict.fromkeys(("host-cpu", "host-memory"), 1.0),
    **dict.fromkeys(("disk", "clock", "apache", "mysql"), 5.0),
    "command": 10.0,
}
# Of those that may do without above and clear: what the first D-RE had.
USUAL = {
    **dict.fromkeys(("cpu", "memory", "host-cpu", "host-memory"), (90.0, 80.0)),  # percent
    "apache": (2500.0, 2000.0),  # accesses a minute
    "mysql": (1.0, 0.8),  # seconds
}


def monitor(kind: str, bound: str | None) -> Table:
    """The keys of a monitor of *kind*; with *bound*, `above` or `below`, that and clear must be there."""
    required, optional, measure = WATCHES[kind]
    keys: dict[str, Callable[[str], object]] = {"id": MONITOR["id"], "watch": word(kind)}
    keys.update({key: MONITOR[key] for key in required.split()})
    needed = f"id watch {required}"
    if measure is not None:
        keys.update(above=measure, below=measure, clear=measure)
        needed += f" {bound} clear" if bound else ""
    keys.update({key: MONITOR[key] for key in optional.split()})
    return _keys(keys, needed)


def step(action: str) -> Table:
    """The keys of a step of *action*."""
    timeout = {"timeout": Key(words.some_time)} if KINDS[action].asks else {}
    return {"action": Key(word(action)), **KINDS[action].keys, **STEP, **timeout}
