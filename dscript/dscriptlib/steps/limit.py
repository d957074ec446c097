# SPDX-License-Identifier: Apache-2.0
"""`limit`: give a container less CPU time, memory or processes; its compensation puts the former limits back."""

import re
from collections.abc import Mapping
from typing import Any

from dre import units
from dre.errors import UsageError

from dscriptlib.steps import CONTAINER, Key, Kind, Values, container, of_one

# key of the step and option of dre-app and dre-sys → field of `limit NAME --json`
FIELDS = {"cpu": "cpu_limit", "memory": "memory_limit", "pids": "pids_limit"}


def _cpu(text: str) -> str:
    return f"{units.percent(text):g}"


def _memory(text: str) -> str:
    return str(units.size(text))


def _pids(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,6}", text):
        raise UsageError(f"{text!r} is not a number of processes")
    return text


def _problem(values: Values) -> str | None:
    if not FIELDS.keys() & values.keys():
        return "limit needs at least one of cpu, memory, pids"
    return "limit: pids are for apps only" if {"system", "pids"} <= values.keys() else of_one(values)


def _options(values: Mapping[str, str]) -> list[str]:
    return [word for key in FIELDS if key in values for word in (f"--{key}", values[key])]


def _former(values: Values, row: Mapping[str, Any]) -> dict[str, str]:
    """What the fields in *row* say about the limits that the step sets; `none` where there was no limit."""
    found = {}
    for key, name in FIELDS.items():
        if key in values:
            value = row.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise UsageError(f"limit: {name} is {value!r}, not a number")
            found[key] = "none" if value is None else f"{value:g}" if key == "cpu" else str(int(value))
    return found


STEP = Kind(
    keys={
        **CONTAINER,
        "cpu": Key(_cpu, required=False),
        "memory": Key(_memory, required=False),
        "pids": Key(_pids, required=False),
    },
    needs_proof=True,
    argv=lambda values: ["limit", container(values), *_options(values)],
    problem=_problem,
    ask_former=lambda values: ["limit", container(values), "--json"],
    former=_former,
    compensate=lambda values, former: ["limit", container(values), *_options(former)],
)
