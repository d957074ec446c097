# SPDX-License-Identifier: Apache-2.0
"""dre-app limit: what an app may use."""

import argparse
from collections.abc import Callable
from typing import Any

from dre import lifecycle, recovery, units, verbs
from dre.cli import Context
from dre.errors import UsageError


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    limit = verbs.changing(table, "limit", _limit, "set or print limits; `none` lifts one")
    verbs.add_name(limit)
    add_options(limit)


def add_options(verb: argparse.ArgumentParser) -> None:
    """Add an option for each limit."""
    verb.add_argument("--cpu", type=_limit_of(_percent), metavar="PCT|none", help="percent of one core")
    verb.add_argument("--memory", type=_limit_of(units.size), metavar="SIZE|none", help="memory, swap included")
    verb.add_argument("--pids", type=_limit_of(verbs.count), metavar="N|none", help="processes and threads")


def chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The limits that were given as options, `none` as None."""
    given = {key: getattr(args, key) for key in ("cpu", "memory", "pids")}
    return {key: None if value == "none" else value for key, value in given.items() if value is not None}


def _limit_of(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    return verbs.kind(lambda text: "none" if text == "none" else convert(text))


def _percent(text: str) -> float:
    value = units.percent(text)
    if value < 1:
        raise UsageError(f"{text!r}: the kernel takes no CPU limit below 1 percent")
    return value


def _limit(ctx: Context) -> None:
    changes = chosen(ctx.args)
    if changes:
        with recovery.held(ctx.conf, ctx.args.name) as app:
            lifecycle.limit(app, changes)
        return
    limits = recovery.look(ctx.conf, ctx.args.name).need().limits
    row = {"name": ctx.args.name, "cpu_limit": limits.cpu, "memory_limit": limits.memory, "pids_limit": limits.pids}
    if ctx.out.as_json:
        ctx.out.json(row)
        return
    for key in ("cpu", "memory", "pids"):
        value = row[f"{key}_limit"]
        ctx.out.line(f"{key} {'none' if value is None else value}")
