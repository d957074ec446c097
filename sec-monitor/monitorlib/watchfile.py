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

EVERY = {"cpu": 0.5, "memory": 0.5, "liveness": 0.5, "http": 0.2}
_NUMBERS = {"above", "clear", "for", "missing", "every"}
_KEYS = {"id", "watch", "of", "url", *_NUMBERS}
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
    url = _url(item.get("url")) if watch == "http" else None
    if watch != "http" and of is None:
        raise UsageError("of is missing: the app to watch")
    # Liveness is a value of 0 (running) or 1 (not), and must be over for as long as `missing`.
    bounds = {"above": 0.5, "clear": 0.5} if watch == "liveness" else numbers
    hold = numbers.get("missing" if watch == "liveness" else "for", None if watch == "liveness" else 0.0)
    for key, value in (("missing", hold), ("above", bounds.get("above")), ("clear", bounds.get("clear"))):
        if value is None:
            raise UsageError(f"{key} is missing")
    if bounds["clear"] > bounds["above"]:
        raise UsageError(f"clear {bounds['clear']:g} is above {bounds['above']:g}")
    every = max(0.05, numbers.get("every", EVERY[watch]))
    name = units.name(str(item.get("id")))
    return Monitor(script, name, watch, of, url, bounds["above"], bounds["clear"], hold or 0.0, every)


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
