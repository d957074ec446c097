# SPDX-License-Identifier: Apache-2.0
"""dre-sys list and status: what there is and what it does, nothing changed."""

from typing import Any

from dre import cli, verbs
from dre.cli import Context
from dre.system import look

LIST_COLUMNS = (("NAME", "name", 12), ("STATE", "state", 8), ("IP", "ip", 14), ("PID", "pid", 6))


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    cli.verb(table, "list", _list, "list all systems").set_defaults(names=[])
    status = cli.verb(table, "status", _status, "print the state; exit 0 when running, else 1")
    verbs.add_name(status)


def _list(ctx: Context) -> None:
    cli.need_root("dre-sys list")
    ctx.out.table(look.rows(ctx.conf) if ctx.out.as_json else look.briefs(ctx.conf), LIST_COLUMNS)


def _status(ctx: Context) -> int:
    from dre.system import recovery  # with all that it can end, more than the rest of a list

    cli.need_root("dre-sys status")
    system = recovery.look(ctx.conf, ctx.args.name)
    (row,) = look.rows(ctx.conf, [system.name])
    if ctx.out.as_json:
        ctx.out.json(row)
    else:
        ctx.out.line(row["state"])
    return 0 if row["state"] == "running" else 1
