# SPDX-License-Identifier: Apache-2.0
"""dre-sys set: what a system is, changed after its create."""

from typing import Any

from dre import verbs
from dre.cli import Context
from dre.cmd import printing
from dre.system import recovery, setting, spec
from dre.system.spec import Spec


def add(table: Any) -> None:
    """Add this verb to *table*."""
    change = verbs.changing(table, "set", _set, "set or print properties")
    verbs.add_name(change)
    keys = ", ".join(sorted(spec.PROPERTIES))
    change.add_argument("words", nargs="*", metavar="KEY=VALUE", help=f"keys: {keys}")


def _set(ctx: Context) -> None:
    fields = spec.from_words(ctx.args.words)
    if not fields:
        _print(ctx, recovery.look(ctx.conf, ctx.args.name).ours())
        return
    with recovery.held(ctx.conf, ctx.args.name) as system:
        setting.change(system, fields)


def _print(ctx: Context, found: Spec) -> None:
    printing.properties(ctx, {"name": found.name}, found, spec.PROPERTIES, spec.field_of)
