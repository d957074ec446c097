# SPDX-License-Identifier: Apache-2.0
"""dre-sys clone and rename: a second system like the first, and another name for one."""

from typing import Any

from dre import verbs
from dre.cli import Context
from dre.system import copying, recovery


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    clone = verbs.changing(table, "clone", _clone, "make a second system like a stopped one")
    clone.add_argument("--tag", metavar="TAG", type=verbs.name, help="like its snapshot TAG; it may run then")
    rename = verbs.changing(table, "rename", _rename, "give a stopped system another name")
    for verb in (clone, rename):
        verbs.add_name(verb)
        verb.add_argument("new", metavar="NEW", type=verbs.name)


def _clone(ctx: Context) -> None:
    args = ctx.args
    with recovery.held_all(ctx.conf, (args.name, args.new)) as (source, new):
        kept = new.spec()
        if args.again and kept is not None and kept.request == args.request_id and new.find() is not None:
            return  # done by the call that was killed before it could say so
        copying.clone(source, new, args.tag, args.request_id)


def _rename(ctx: Context) -> None:
    args = ctx.args
    with recovery.held_all(ctx.conf, (args.name, args.new)) as (old, new):
        if args.again and new.find() is not None and old.find() is None:
            return  # the locks gave us both only after the killed rename had been ended
        copying.rename(old, new)
