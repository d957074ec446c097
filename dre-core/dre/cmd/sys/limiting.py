# SPDX-License-Identifier: Apache-2.0
"""dre-sys limit: what a system may use."""

from dataclasses import asdict
from typing import Any

from dre import verbs
from dre.cli import Context
from dre.cmd import limit_options
from dre.system import limits, recovery


def add(table: Any) -> None:
    """Add this verb to *table*."""
    limit = verbs.changing(table, "limit", _limit, "set or print limits; `none` lifts one")
    verbs.add_name(limit)
    limit_options.add_options(limit, limits.KEYS)


def _limit(ctx: Context) -> None:
    name = ctx.args.name
    changes = limit_options.chosen(ctx.args, limits.KEYS)
    if not changes:
        limit_options.show(ctx, name, asdict(limits.read(recovery.look(ctx.conf, name))), limits.KEYS)
        return
    with recovery.held(ctx.conf, name) as system:
        limits.change(system, changes)
