# SPDX-License-Identifier: Apache-2.0
"""dre-app set: what an app is, changed after its create."""

import shlex
from typing import Any

from dre import recovery, setting, spec, verbs
from dre.cli import Context
from dre.cmd import printing
from dre.errors import UsageError


def add(table: Any) -> None:
    """Add this verb to *table*."""
    change = verbs.changing(table, "set", _set, "set or print properties and the program")
    verbs.add_name(change)
    keys = ", ".join(sorted(spec.PROPERTIES))
    change.add_argument("words", nargs="*", metavar="KEY=VALUE", help=f"keys: {keys}; -- CMD... sets its program")
    change.set_defaults(command=[])


def _set(ctx: Context) -> None:
    fields = _fields(ctx)
    if not fields:
        _print(ctx, recovery.look(ctx.conf, ctx.args.name).need())
        return
    with recovery.held(ctx.conf, ctx.args.name) as app:
        later = setting.change(app, fields)
    if later:
        ctx.say(f"{ctx.args.name}: {', '.join(later)}: at the next start")


def _fields(ctx: Context) -> dict[str, Any]:
    idle = "command=" in ctx.args.words
    fields = spec.from_words([word for word in ctx.args.words if word != "command="])
    if idle and ctx.args.command:
        raise UsageError("command: given twice")
    if idle or ctx.args.command:
        fields |= {"command": spec.command(ctx.args.command), "halt": None}  # a program, not an init
    return fields


def _print(ctx: Context, found: spec.Spec) -> None:
    row = {"name": found.name, "command": list(found.command)}
    printing.properties(ctx, row, found, spec.PROPERTIES, spec.field_of)
    if not ctx.out.as_json:
        ctx.out.line(f"command {shlex.join(found.command) or '-'}")
