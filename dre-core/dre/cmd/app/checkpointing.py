# SPDX-License-Identifier: Apache-2.0
"""dre-app checkpoint: moments of running apps, memory and disk, to go on from."""

from typing import Any

from dre import checkpoint, cli, recovery, requests, verbs
from dre.cli import Context
from dre.errors import NotFoundError

COLUMNS = (("TAG", "tag", 12), ("CREATED", "created", 24), ("SIZE", "size", 10), ("DIGEST", "digest", 64))
STOP_WAIT = 2.0


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    inner = ("save", "restart", "list", "delete")
    family = verbs.family(table, "checkpoint", "moments of running apps, memory and disk, by CRIU", *inner)
    save = verbs.changing(family, "save", _save, "save a running app, which goes on")
    save.add_argument("--stop", action="store_true", help="do not let it go on: it is stopped at that moment")
    verbs.add_name(save)
    save.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: named by the time, and printed")
    restart = verbs.changing(family, "restart", _restart, "back to a checkpoint, and on from there")
    verbs.add_timeout(restart, STOP_WAIT)
    delete = verbs.changing(family, "delete", _delete, "delete a checkpoint")
    verbs.add_name(restart)
    restart.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: the newest")
    verbs.add_name(delete)
    delete.add_argument("tag", metavar="TAG", type=verbs.name)
    verbs.add_name(cli.verb(family, "list", _list, "list the checkpoints of an app, oldest first"))


def _save(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        saved = checkpoint.save(app, ctx.args.tag, ctx.args.stop, ctx.args.request_id)
    if ctx.out.as_json:
        ctx.out.json(saved.row())
    elif ctx.args.tag is None:
        ctx.out.line(saved.tag)


def _restart(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as app:
        if args.again and requests.completed(ctx.conf, args.request_id):
            return  # the lock gave us the app only after the killed restart had been ended
        tag = args.tag
        if tag is None:
            found = checkpoint.newest(app)
            tag = found.tag
            ctx.say(f"{app.name}: to checkpoint {tag} of {found.created}")
        checkpoint.restart(app, tag, args.timeout, args.request_id)


def _delete(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        try:
            checkpoint.delete(app, ctx.args.tag)
        except NotFoundError:
            if not ctx.args.again or not app.exists():
                raise


def _list(ctx: Context) -> None:
    cli.need_root("dre-app checkpoint list")
    ctx.out.table([item.row() for item in checkpoint.every(recovery.look(ctx.conf, ctx.args.name))], COLUMNS)
