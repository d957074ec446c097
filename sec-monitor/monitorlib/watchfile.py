# SPDX-License-Identifier: Apache-2.0
"""The files in watch.d, which `dscript deploy` writes: each the monitors of one script. Read strictly."""

import json
import re
import urllib.parse
from pathlib import Path
from typing import Any

from dre import units
from dre.errors import UsageError

from monitorlib.crossing import Monitor

EVERY = {
    "cpu": 0.5,
    "memory": 0.5,
    "liveness": 0.5,
    "http": 0.2,
    "host-cpu": 1.0,
    "host-memory": 1.0,
    "disk": 5.0,
    "clock": 5.0,
    "apache": 5.0,
    "mysql": 5.0,
    "command": 10.0,
}
OF_SYSTEM = 2.0  # seconds, where a system is asked
# What a kind needs to know what to watch; of `|` one.
_SUBJECT = {
    "cpu": "of",
    "memory": "of",
    "liveness": "of|system",
    "http": "url",
    "disk": "path",
    "apache": "url",
    "mysql": "file",
    "command": "argv",
}
_NUMBERS = {"above", "below", "clear", "for", "missing", "every"}
_KEYS = {"id", "watch", "of", "url", "system", "path", "file", "argv", *_NUMBERS}
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_URL = re.compile(r"http://[!-~]{1,1000}")
LIMIT = 1024 * 1024


def read(path: Path) -> list[Monitor]:
    """The monitors in *path*. Raises UsageError naming file, monitor and reason."""
    try:
        with path.open("rb") as stream:
            octets = stream.read(LIMIT + 1)
        if len(octets) > LIMIT:
            raise UsageError(f"longer than {LIMIT} octets")
        return _file(json.loads(octets))
    except (OSError, ValueError, RecursionError, UsageError) as error:
        raise UsageError(f"{path}: {error}") from None


def _file(fields: Any) -> list[Monitor]:
    if (
        not isinstance(fields, dict)
        or set(fields) != {"script", "monitors"}
        or not isinstance(fields["monitors"], list)
    ):
        raise UsageError("expected an object with script and monitors")
    script = units.name(str(fields["script"]))
    made: dict[str, Monitor] = {}
    for number, item in enumerate(fields["monitors"], 1):
        try:
            monitor = _monitor(script, item)
        except UsageError as error:
            raise UsageError(f"monitor {number}: {error}") from None
        if monitor.id in made:
            raise UsageError(f"monitor {number}: id {monitor.id} is taken")
        made[monitor.id] = monitor
    return list(made.values())


def _monitor(script: str, item: Any) -> Monitor:
    if not isinstance(item, dict):
        raise UsageError("expected an object")
    if unknown := set(item) - _KEYS:
        raise UsageError(f"unknown key {min(unknown)!r}")
    numbers = {key: _number(key, item[key]) for key in _NUMBERS & set(item)}
    watch = item.get("watch")
    if watch not in EVERY:
        raise UsageError(f"watch {watch!r} is none of {', '.join(EVERY)}")
    of = units.name(str(item["of"])) if item.get("of") is not None else None
    system = units.name(str(item["system"])) if item.get("system") is not None else None
    url = _url(item["url"]) if watch in ("http", "apache") and "url" in item else None
    path, file = (_path(key, item[key]) if key in item else None for key in ("path", "file"))
    argv = _argv(item["argv"], system is not None) if "argv" in item else ()
    given = {"of": of, "system": system, "url": url, "path": path, "file": file, "argv": argv}
    wanted = _SUBJECT.get(watch, "").split("|")
    if wanted != [""] and sum(bool(given[key]) for key in wanted) != 1:
        raise UsageError(f"{' or '.join(wanted)} is missing: what to watch" if len(wanted) == 1 else
                         f"one of {' and '.join(wanted)} is needed: what to watch")  # fmt: skip
    if system and watch not in ("liveness", "command"):
        raise UsageError(f"system is not for {watch}")
    # Liveness is a value of 0 (running) or 1 (not), and must be over for as long as `missing`.
    bounds = {"above": 0.5, "clear": 0.5} if watch == "liveness" else numbers
    hold = numbers.get("missing" if watch == "liveness" else "for", None if watch == "liveness" else 0.0)
    below = "below" in bounds
    if below and "above" in bounds:
        raise UsageError("above and below are not for the same monitor")
    bound, clear = bounds.get("below" if below else "above"), bounds.get("clear")
    if hold is None or bound is None or clear is None:
        key = "missing" if hold is None else "above or below" if bound is None else "clear"
        raise UsageError(f"{key} is missing")
    if clear <= bound if below else clear > bound:
        raise UsageError(f"clear {clear:g} is not above {bound:g}" if below else f"clear {clear:g} is above {bound:g}")
    every = max(0.05, numbers.get("every", OF_SYSTEM if system and watch == "liveness" else EVERY[watch]))
    name = units.name(str(item.get("id")))
    missing = numbers.get("missing") if watch != "liveness" else None
    return Monitor(script, name, watch, of, url, bound, clear, hold, every, system, path, file, argv, missing, below)


def _path(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > 1000:
        raise UsageError(f"{key} {value!r} is not an absolute path")
    return value


def _argv(value: Any, in_guest: bool) -> tuple[str, ...]:
    """The words of a command: a program of actions.d, in a guest a path, and its arguments."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(word, str) and "\0" not in word for word in value)
    ):
        raise UsageError(f"argv {value!r} is not a list of words")
    if len(value) > 64 or sum(map(len, value)) > 4096:
        raise UsageError("argv is too long")
    if in_guest:
        _path("argv", value[0])
    elif not _PROGRAM.fullmatch(value[0]):
        raise UsageError(f"argv {value[0]!r} is not the name of a program in actions.d")
    return tuple(value)


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise UsageError(f"{key} {value!r} is not a number from 0 on")
    return float(value)


def _url(url: Any) -> str:
    if not isinstance(url, str) or not _URL.fullmatch(url):
        raise UsageError(f"url {url!r} is not an http:// address")
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or parts.username is not None or parts.port == 0:
        raise UsageError(f"url {url!r} names no host that can be asked")
    return url
