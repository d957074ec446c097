# SPDX-License-Identifier: Apache-2.0
"""dre-app snapshot and undo: states of an app that it can be put back to."""

from typing import Any

from dre import cli, recovery, requests, snapshot, verbs
from dre.cli import Context
from dre.errors import NotFoundError

SNAPSHOT_COLUMNS = (("TAG", "tag", 12), ("CREATED", "created", 24), ("SIZE", "size", 10), ("DIGEST", "digest", 64))
UNDO_STOP_WAIT = 2.0


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    undo = verbs.changing(table, "undo", _undo, "back to a snapshot and running again")
    verbs.add_timeout(undo, UNDO_STOP_WAIT)
    verbs.add_name(undo)
    undo.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: the newest")
    _add_snapshot(verbs.family(table, "snapshot", "snapshots of stopped apps", "save", "load", "list", "delete"))


def _add_snapshot(table: Any) -> None:
    save = verbs.changing(table, "save", _save, "save a stopped app")
    verbs.add_name(save)
    save.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: named by the time, and printed")
    for name, function, text in (
        ("load", _load, "put a stopped app back to a snapshot"),
        ("delete", _delete, "delete a snapshot"),
    ):
        verb = verbs.changing(table, name, function, text)
        verbs.add_name(verb)
        verb.add_argument("tag", metavar="TAG", type=verbs.name)
    verbs.add_name(cli.verb(table, "list", _snapshots, "list the snapshots of an app, oldest first"))


def _undo(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as app:
        if args.again and requests.completed(ctx.conf, args.request_id):
            return  # the lock gave us the app only after the killed undo had been ended
        snapshot.undo(app, args.tag, args.timeout, args.request_id)


def _save(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        saved = snapshot.save(app, ctx.args.tag, ctx.args.request_id)
    if ctx.out.as_json:
        ctx.out.json(saved.row())
    elif ctx.args.tag is None:
        ctx.out.line(saved.tag)


def _load(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        snapshot.load(app, ctx.args.tag)


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
