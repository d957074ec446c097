# SPDX-License-Identifier: Apache-2.0
"""dre-app limit: what an app may use."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from dre import recovery, relimit, verbs
from dre.cgroup import Limits
from dre.cli import Context
from dre.cmd import limit_options

KEYS = tuple(field.name for field in fields(Limits))


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    limit = verbs.changing(table, "limit", _limit, "set or print limits; `none` lifts one")
    verbs.add_name(limit)
    limit_options.add_options(limit, KEYS)


def show(ctx: Context, name: str, found: Limits, keys: Iterable[str] = KEYS) -> None:
    """Print the limits of an app or a group."""
    values = asdict(found)
    if found.memory is None:
        values["swap"] = None
    limit_options.show(ctx, name, values, keys)


def _limit(ctx: Context) -> None:
    name = ctx.args.name
    changes = limit_options.chosen(ctx.args, KEYS)
    if not changes:
        show(ctx, name, recovery.look(ctx.conf, name).need().limits)
        return
    with recovery.held(ctx.conf, name) as app:
        had = relimit.limit(app, changes)
    if had.memory != changes.get("memory", had.memory):
        ctx.say(f"{name}: the kernel rounded memory to {had.memory}")
