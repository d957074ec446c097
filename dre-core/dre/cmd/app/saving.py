# SPDX-License-Identifier: Apache-2.0
"""dre-app snapshot and undo: states of an app that it can be put back to."""

import argparse
import importlib
from typing import Any

from dre import cli, recovery, requests, schedule, snapshot, verbs
from dre.cli import Context
from dre.cmd import printing, state_options
from dre.errors import NotFoundError

SNAPSHOT_COLUMNS = (
    ("TAG", "tag", 12),
    ("CREATED", "created", 24),
    ("SIZE", "size", 10),
    ("DIGEST", "digest", 64),
    ("DESCRIPTION", "description", 1),
)
UNDO_STOP_WAIT = 2.0
INNER = ("save", "load", "list", "delete", "prune", "run")


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    undo = verbs.changing(table, "undo", _undo, "back to a snapshot and running again")
    verbs.add_timeout(undo, UNDO_STOP_WAIT)
    add_changed_base(undo)
    verbs.add_name(undo)
    undo.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: the newest")
    _add_snapshot(verbs.family(table, "snapshot", "states of the files of apps", *INNER))


def _add_snapshot(table: Any) -> None:
    save = verbs.changing(table, "save", _save, "save a stopped app")
    state_options.add_description(save)
    save.add_argument("--freeze", action="store_true", help="save a running one, frozen while its files are copied")
    verbs.add_name(save)
    save.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: named by the time, and printed")
    load = verbs.changing(table, "load", _load, "put a stopped app back to a snapshot")
    add_changed_base(load)
    delete = verbs.changing(table, "delete", _delete, "delete a snapshot")
    verbs.add_name(load)
    load.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: the newest")
    verbs.add_name(delete)
    delete.add_argument("tag", metavar="TAG", type=verbs.name)
    verbs.add_name(cli.verb(table, "list", _snapshots, "list the snapshots of an app, oldest first"))
    prune = verbs.changing(table, "prune", _prune, "delete all snapshots of an app but the newest, and print which")
    prune.add_argument("--keep", metavar="N", type=verbs.count, required=True, help="how many stay")
    verbs.add_name(prune)
    verbs.changing(table, "run", _run, "save the apps whose --snapshot-every has passed, and print which")


def add_changed_base(verb: argparse.ArgumentParser) -> None:
    """Add --changed-base."""
    text = "go on although the tree it is based on has changed since"
    verb.add_argument("--changed-base", action="store_true", help=text)


def _undo(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as app:
        if args.again and requests.completed(ctx.conf, args.request_id):
            return  # the lock gave us the app only after the killed undo had been ended
        if args.tag and args.tag not in app.snapshots() and (app.home / "checkpoint" / args.tag).exists():
            checkpoint = importlib.import_module("dre.checkpoint")  # few undos need it
            checkpoint.restart(app, args.tag, args.timeout, args.request_id, undo=True)
            return
        snapshot.undo(app, args.tag, args.timeout, args.request_id, changed_base=args.changed_base, say=ctx.say)


def _save(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as app:
        saved = snapshot.save(app, args.tag, args.request_id, description=args.description, freeze=args.freeze)
    if ctx.out.as_json:
        ctx.out.json(saved.row())
    elif args.tag is None:
        ctx.out.line(saved.tag)


def _load(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        snapshot.load(app, ctx.args.tag, changed_base=ctx.args.changed_base, say=ctx.say)


def _delete(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        try:
            snapshot.delete(app, ctx.args.tag)
        except NotFoundError:
            if not ctx.args.again or not app.exists():
                raise


def _snapshots(ctx: Context) -> None:
    cli.need_root("dre-app snapshot list")
    ctx.out.table([item.row() for item in snapshot.every(recovery.look(ctx.conf, ctx.args.name))], SNAPSHOT_COLUMNS)


def _prune(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        for tag in snapshot.prune(app, ctx.args.keep):
            printing.tag(ctx, app.name, tag)


def _run(ctx: Context) -> None:
    def work(name: str) -> None:
        with recovery.held(ctx.conf, name) as app:
            saved = schedule.run(app)
        if saved:
            printing.tag(ctx, name, saved.tag)

    verbs.each(ctx, schedule.due(ctx.conf), work)
