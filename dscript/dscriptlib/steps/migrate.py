# SPDX-License-Identifier: Apache-2.0
"""`migrate`: move a container to another host; the way back is a decision for people, so nothing compensates it."""

import re

from dre import units
from dre.errors import UsageError

from dscriptlib.steps import CONTAINER, Key, Kind, Values, container, of_one

FLAGS = ("live", "copy-storage", "shared-storage", "without-snapshots", "tls", "unencrypted")
HERE = "localhost"
SYSTEMS = ("shared-storage", "tls", "unencrypted")  # what dre-app does not know


def _host(text: str) -> str:
    # The pattern allows no option (a leading '-') and nothing that a shell of ssh would read.
    if not re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]{0,252}", text):
        raise UsageError(f"{text[:60]!r} is not a HOST or USER@HOST")
    return text


def _yes(text: str) -> bool:
    if text not in ("yes", "no"):
        raise UsageError(f"expected yes or no, got {text[:60]!r}")
    return text == "yes"


def _problem(values: Values) -> str | None:
    """What dre-app or dre-sys would refuse in any case, so that it is known before it is needed."""
    if wrong := of_one(values):
        return wrong
    said = [flag for flag in FLAGS if values.get(flag)]
    if values.get("to") == HERE and "as" not in values:
        return "migrate: on this host it needs another name, by 'as'"
    if "of" in values:
        foreign = [flag for flag in said if flag in SYSTEMS]
        if foreign:
            return f"migrate: {foreign[0]} is for systems only"
        return "migrate: an app cannot be moved live as another one" if {"live", "as"} <= {*said, *values} else None
    if values.get("to") == HERE:
        foreign = [flag for flag in said if flag != "live"]
        return f"migrate: {foreign[0]} means nothing on one host" if foreign else None
    if {"copy-storage", "shared-storage"} <= set(said):
        return "migrate: say copy-storage or shared-storage, and only one of them"
    if "live" not in said:
        return "migrate: tls is of what moves live" if "tls" in said else None
    if not {"copy-storage", "shared-storage"} & set(said):
        return "migrate: a system that moves live needs copy-storage or shared-storage"
    if "copy-storage" in said and not {"tls", "unencrypted"} & set(said):
        return "migrate: say how memory and disks cross the network: tls, or unencrypted"
    return None


def _argv(values: Values) -> list[str]:
    flags = [f"--{flag}" for flag in FLAGS if values.get(flag)]
    renamed = ["--as", values["as"]] if "as" in values else []
    return ["migrate", *flags, *renamed, container(values), values["to"]]


STEP = Kind(
    keys={
        **CONTAINER,
        "to": Key(_host),
        **{flag: Key(_yes, required=False) for flag in FLAGS},
        "as": Key(units.name, required=False),
    },
    needs_proof=True,
    argv=_argv,
    problem=_problem,
)
