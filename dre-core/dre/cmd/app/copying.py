# SPDX-License-Identifier: Apache-2.0
"""dre-app clone, rename, export and import: a second app like the first, another name for one, and one as a file."""

import argparse
import sys
from typing import Any

from dre import cli, copying, recovery, verbs
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
    _add_export(cli.verb(table, "export", _export, "write a stopped app to a file"))
    _add_import(verbs.changing(table, "import", _import, "make an app of what export wrote"))


def _add_export(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--tag", metavar="TAG", type=verbs.name, help="its snapshot TAG; it may run then")
    verb.add_argument("--snapshots", action="store_true", help="with its snapshots")
    verb.add_argument("--no-compress", action="store_true", help="as a plain tar archive, not by zstd")
    verbs.add_name(verb)
    verb.add_argument("file", metavar="FILE|-", help="replaced when all is written; -: standard output")
    verbs.endless(verb, lambda args: bool(args.file == "-"))


def _add_import(verb: argparse.ArgumentParser) -> None:
    text = "its name (default: the one it had)"
    verb.add_argument("--as", dest="new", metavar="NEW", type=verbs.name, help=text)
    verb.add_argument("--allow-setuid", action="store_true", help="take programs with setuid, setgid or capabilities")
    verb.add_argument("--allow-privileged", action="store_true", help="take an app whose root is root of the host")
    text = "take bound directories and files at or below DIR of the host"
    verb.add_argument("--allow-bind", action="append", default=[], metavar="DIR", help=text)
    add_changed_base(verb)
    verb.add_argument("file", metavar="FILE|-", help="-: standard input")
    verbs.endless(verb, lambda args: bool(args.file == "-"))


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


def _export(ctx: Context) -> None:
    from dre import packing, portable

    args = ctx.args
    cli.need_root("dre-app export")
    with recovery.held(ctx.conf, args.name) as app, packing.target(args.file, sys.stdout.buffer) as out:
        portable.export(app, out, args.tag, snapshots=args.snapshots, compress=not args.no_compress)


def _import(ctx: Context) -> None:
    from dre import manifest, packing, portable

    args = ctx.args
    allowed = manifest.Allowed(args.allow_privileged, args.allow_setuid, tuple(args.allow_bind))
    with packing.opened(args.file, sys.stdin.buffer, portable.FORMAT) as incoming:
        name = args.new or incoming.name
        with recovery.held(ctx.conf, name) as app:
            if args.again and app.exists() and app.spec().request == args.request_id:
                return  # done by the call that was killed before it could say so
            portable.take(app, incoming, allowed, args.request_id, changed_base=args.changed_base, say=ctx.say)
    if args.new is None:
        ctx.out.line(name)
