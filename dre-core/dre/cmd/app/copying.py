# SPDX-License-Identifier: Apache-2.0
"""dre-app clone and rename: a second app like the first, and another name for one."""

from typing import Any

from dre import copying, recovery, verbs
from dre.cli import Context
from dre.cmd.app.saving import add_changed_base


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    clone = verbs.changing(table, "clone", _clone, "make a second app like a stopped one")
    clone.add_argument("--tag", metavar="TAG", type=verbs.name, help="like its snapshot TAG; it may run then")
    add_changed_base(clone)
    rename = verbs.changing(table, "rename", _rename, "give a stopped app another name")
    for verb in (clone, rename):
        verbs.add_name(verb)
        verb.add_argument("new", metavar="NEW", type=verbs.name)


def _clone(ctx: Context) -> None:
    args = ctx.args
    with recovery.held_all(ctx.conf, (args.name, args.new)) as (source, new):
        if args.again and new.exists() and new.spec().request == args.request_id:
            return  # done by the call that was killed before it could say so
        copying.clone(source, new, args.tag, args.request_id, changed_base=args.changed_base, say=ctx.say)


def _rename(ctx: Context) -> None:
    args = ctx.args
    with recovery.held_all(ctx.conf, (args.name, args.new)) as (old, new):
        if args.again and new.exists() and not old.exists():
            return  # the locks gave us both only after the killed rename had been ended
        copying.rename(old, new)
