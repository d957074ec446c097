# SPDX-License-Identifier: Apache-2.0
"""`threshold`: another `above` or `below`, and `clear`, for a monitor of the script; compensated by the former.

It holds until it is taken back or changed again, over restarts, too; a new version of the script ends it.
"""

import re
from collections.abc import Mapping

from dre import units
from dre.errors import DreError, UsageError

from dscriptlib.model import Monitor, Script
from dscriptlib.steps import Key, Kind, Setting, Told, Values


def _amount(text: str) -> str:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?(%|ms|s|m|h|d)?", text):
        raise UsageError(f"{text[:60]!r} is not a value such as 90%, 300ms or 2500")
    return text


def _problem(values: Values) -> str | None:
    return None if ("above" in values) != ("below" in values) else "threshold needs 'above' or 'below', not both"


def _fits(script: Script, values: Values) -> str | None:
    monitor = next((one for one in script.monitors if one.id == values["monitor"]), None)
    if monitor is None:
        return f"threshold: unknown monitor {values['monitor']!r}"
    try:
        numbers = typed(monitor, {key: values[key] for key in ("above", "below", "clear") if key in values})
    except UsageError as error:
        return f"threshold of monitor {monitor.id!r}: {error}"
    side = "above" if "above" in numbers else "below"
    if (monitor.below is None) != (side == "above"):
        return f"threshold: monitor {monitor.id!r} is not raised {side} a value"
    if numbers["clear"] == numbers[side] or (numbers["clear"] < numbers[side]) != (side == "above"):
        return f"threshold of monitor {monitor.id!r}: it would never be clear"
    return None


def typed(monitor: Monitor, texts: Mapping[str, str]) -> dict[str, float]:
    """The values of *texts* in the unit of *monitor*. Raises UsageError."""
    from dscriptlib import tables

    measure = tables.WATCHES[monitor.watch][2]
    if measure is None:
        raise UsageError(f"a monitor of {monitor.watch} has none")
    return {key: measure(text) for key, text in texts.items()}


def _read(setting: Setting, values: Values) -> dict[str, str]:
    from dscriptlib import store

    return dict(store.thresholds(setting.conf, setting.script.name).get(values["monitor"], {}))


def _shows(setting: Setting, values: Values) -> dict[str, float]:
    """The bounds that dre-watch is told."""
    from dscriptlib import store

    compiled = store.compiled(setting.script, store.thresholds(setting.conf, setting.script.name))["monitors"]
    found = next(one for one in compiled if one["id"] == values["monitor"])
    return {key: found[key] for key in ("above", "below", "clear") if key in found}


def _act(setting: Setting, values: Values) -> list[Told]:
    _put(setting, values["monitor"], {key: values[key] for key in ("above", "below", "clear") if key in values})
    return []


def _put(setting: Setting, monitor: str, texts: Mapping[str, str]) -> None:
    from dscriptlib import store

    if wrong := _fits(setting.script, {"monitor": monitor, **texts}) if texts else None:
        raise DreError(wrong)
    store.change_threshold(setting.conf, setting.script, monitor, texts)


STEP = Kind(
    keys={
        "monitor": Key(units.name),
        "above": Key(_amount, required=False),
        "below": Key(_amount, required=False),
        "clear": Key(_amount),
    },
    needs_proof=True,
    act=_act,
    problem=_problem,
    read=_read,
    shows=_shows,
    take_back=lambda setting, values, former: _put(setting, values["monitor"], former),
    fits=_fits,
)
