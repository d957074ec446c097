# SPDX-License-Identifier: Apache-2.0
"""What a step acts on, as it is at one moment: evidence of the state before an action and after it.

Never a reason for a step to fail: where nobody can say, the state is null and `why` says so.
"""

import json
from collections.abc import Mapping
from typing import Any

from dre import run
from dre.app import App
from dre.errors import DreError

from dscriptlib.steps import Kind, Setting, Values

State = Mapping[str, Any]
FIELDS = ("state", "pid", "cpu_limit", "memory_limit", "pids_limit", "memory", "isolated", "snapshots")
NEWEST = 4  # snapshots that are named
PATIENCE = 5.0  # seconds for dre-sys
WORDS = 200  # characters of a reason


def look(setting: Setting, kind: Kind, values: Values) -> State | None:
    """The state of what the step acts on; None where that is nothing that has one."""
    try:
        if kind.shows is not None:
            return kind.shows(setting, values)
        if "of" in values and kind.argv is not None:
            return _chosen(_app(setting, values["of"]))
        if "system" in values and kind.argv is not None:
            return _chosen(_system(setting, values["system"]))
    except (DreError, OSError, ValueError, KeyError, TypeError) as error:
        return {"state": None, "why": str(error)[:WORDS]}
    return None


def _app(setting: Setting, name: str) -> dict[str, Any]:
    found = App(setting.conf, name)
    found.need()
    row = found.row()
    pids = found.usage(row["pid"]).pids_limit if row["pid"] else found.spec().limits.pids
    return {**row, "pids_limit": pids}


def _system(setting: Setting, name: str) -> dict[str, Any]:
    done = run.run(["dre-sys", *setting.options, "status", name, "--json"], timeout=PATIENCE, check=False)
    lines = done.stdout.splitlines()
    if not lines:
        raise DreError(done.stderr.decode(errors="replace").strip() or f"{name}: dre-sys status says nothing")
    row: dict[str, Any] = json.loads(lines[-1])
    return row


def _chosen(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: row[key] for key in FIELDS if row.get(key) is not None}
    if isinstance(found.get("snapshots"), list):
        found["snapshots"] = found["snapshots"][-NEWEST:]
    return {"state": None, **found}
