# SPDX-License-Identifier: Apache-2.0
"""dre-sys clone, rename, export and import: a second system like the first, another name for one, and one as a file."""

import sys
from typing import Any

from dre import cli, verbs
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
    export = cli.verb(table, "export", _export, "write a stopped system to a file")
    export.add_argument("--tag", metavar="TAG", type=verbs.name, help="its snapshot TAG; it may run then")
    text = "only what its disk has changed of its image, which whoever imports it must have, too"
    export.add_argument("--without-image", action="store_true", help=text)
    export.add_argument("--no-compress", action="store_true", help="as a plain tar archive, not by zstd")
    verbs.add_name(export)
    export.add_argument("file", metavar="FILE|-", help="replaced when all is written; -: standard output")
    verbs.endless(export, lambda args: bool(args.file == "-"))
    take = verbs.changing(table, "import", _import, "make a system of what export wrote")
    text = "its name (default: the one it had)"
    take.add_argument("--as", dest="new", metavar="NEW", type=verbs.name, help=text)
    take.add_argument("file", metavar="FILE|-", help="-: standard input")
    verbs.endless(take, lambda args: bool(args.file == "-"))


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


def _export(ctx: Context) -> None:
    from dre import packing
    from dre.system import portable

    args = ctx.args
    cli.need_root("dre-sys export")
    with recovery.held(ctx.conf, args.name) as system, packing.target(args.file, sys.stdout.buffer) as out:
        portable.export(system, out, args.tag, compress=not args.no_compress, onto_image=args.without_image)


def _import(ctx: Context) -> None:
    from dre import packing
    from dre.system import portable, virt

    args = ctx.args
    with packing.opened(args.file, sys.stdin.buffer, portable.FORMAT, portable.ONTO) as incoming:
        name = args.new or incoming.name
        with recovery.held(ctx.conf, name) as system:
            kept = system.spec()
            if args.again and kept is not None and kept.request == args.request_id and system.find() is not None:
                return  # done by the call that was killed before it could say so
            kind, _ = virt.choose(ctx.conf, None)
            portable.take(system, incoming, kind, args.request_id, ctx.say)
