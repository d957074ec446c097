# SPDX-License-Identifier: Apache-2.0
"""`migrate`: move a container to another host; the way back is a decision for people, so nothing compensates it."""

import re

from dre import units
from dre.errors import UsageError

from dscriptlib.steps import CONTAINER, Key, Kind, Values, container, of_one


def _host(text: str) -> str:
    # The pattern allows no option (a leading '-') and nothing that a shell of ssh would read.
    if not re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]{0,252}", text):
        raise UsageError(f"{text[:60]!r} is not a HOST or USER@HOST")
    return text


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise UsageError(f"expected yes or no, got {text[:60]!r}")
    return text == "yes"


def _argv(values: Values) -> list[str]:
    flags = [f"--{key}" for key in ("live", "copy-storage") if values.get(key)]
    renamed = ["--as", values["as"]] if "as" in values else []
    return ["migrate", *flags, *renamed, container(values), values["to"]]


STEP = Kind(
    keys={
        **CONTAINER,
        "to": Key(_host),
        "live": Key(_yes, required=False),
        "copy-storage": Key(_yes, required=False),
        "as": Key(units.name, required=False),
    },
    needs_proof=True,
    argv=_argv,
    problem=of_one,
)
