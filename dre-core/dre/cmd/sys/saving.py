# SPDX-License-Identifier: Apache-2.0
"""dre-sys snapshot, checkpoint and undo: states of a system that it can be put back to."""

from typing import Any

from dre import cli, requests, units, verbs
from dre.cli import Context
from dre.cmd import printing, state_options
from dre.errors import NotFoundError, UsageError
from dre.system import recovery, saved, schedule
from dre.system.saved import CHECKPOINT, SNAPSHOT

COLUMNS = (("TAG", "tag", 12), ("CREATED", "created", 24), ("SIZE", "size", 10), ("DESCRIPTION", "description", 1))
UNDO_STOP_WAIT = 2.0


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    undo = verbs.changing(table, "undo", _undo, "back to a snapshot or checkpoint and running again")
    verbs.add_timeout(undo, UNDO_STOP_WAIT)
    verbs.add_name(undo)
    undo.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: the newest")
    inner = ("save", "load", "list", "delete", "prune", "run")
    snapshot = verbs.family(table, "snapshot", "states of the disks of stopped systems", *inner)
    _add_save(snapshot, SNAPSHOT, "save a stopped system")
    load = verbs.changing(snapshot, "load", _load, "put a stopped system back to a snapshot")
    verbs.add_name(load)
    load.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: the newest")
    prune = verbs.changing(snapshot, "prune", _prune, "delete all snapshots of a system but the newest; print which")
    prune.add_argument("--keep", metavar="N", type=verbs.count, required=True, help="how many stay")
    verbs.add_name(prune)
    verbs.changing(snapshot, "run", _run, "save the systems whose --snapshot-every has passed, and print which")
    checkpoint = verbs.family(
        table, "checkpoint", "states of memory and disks of running systems", "save", "restart", "list", "delete"
    )
    _add_save(checkpoint, CHECKPOINT, "save a running system; it goes on")
    again = verbs.changing(checkpoint, "restart", _restart, "let a system go on from a checkpoint")
    verbs.add_name(again)
    again.add_argument("tag", nargs="?", metavar="TAG", type=verbs.name, help="default: the newest")
    for family, kind in ((snapshot, SNAPSHOT), (checkpoint, CHECKPOINT)):
        delete = verbs.changing(family, "delete", _delete, f"delete a {kind}")
        verbs.add_name(delete)
        delete.add_argument("tag", metavar="TAG", type=verbs.name)
        delete.set_defaults(kind=kind)
        listed = cli.verb(family, "list", _list, f"list the {kind}s of a system, oldest first")
        verbs.add_name(listed)
        listed.set_defaults(kind=kind)


def _add_save(family: Any, kind: str, help: str) -> None:
    save = verbs.changing(family, "save", _save, help)
    state_options.add_description(save)
    verbs.add_name(save)
    save.add_argument("tag", nargs="?", metavar="TAG", type=_tag, help="default: named by the time, and printed")
    save.set_defaults(kind=kind)


@verbs.kind
def _tag(text: str) -> str:
    if text == saved.BEFORE:
        raise UsageError(f"{text!r} is dre-sys's own")
    return units.name(text)


def _save(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as system:
        made = saved.save(system, args.kind, args.tag, args.description)
    if ctx.out.as_json:
        ctx.out.json(made.row())
    elif args.tag is None:
        ctx.out.line(made.tag)


def _load(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as system:
        saved.load(system, ctx.args.tag)


def _list(ctx: Context) -> None:
    cli.need_root(f"dre-sys {ctx.args.kind} list")
    found = saved.every(recovery.look(ctx.conf, ctx.args.name), ctx.args.kind)
    ctx.out.table([item.row() for item in found], COLUMNS)


def _delete(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as system:
        try:
            saved.delete(system, ctx.args.kind, ctx.args.tag)
        except NotFoundError:
            if not ctx.args.again or system.find() is None:
                raise


def _restart(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as system:
        if args.again and requests.completed(ctx.conf, args.request_id, "sys"):
            return  # the lock gave us the system only after the killed restart had been ended
        saved.restart(system, args.tag, args.request_id)


def _undo(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as system:
        if args.again and requests.completed(ctx.conf, args.request_id, "sys"):
            return
        made = saved.undo(system, args.tag, args.timeout, args.request_id)
    if args.tag is None:
        ctx.say(f"{args.name}: back to {made.kind} {made.tag}")


def _prune(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as system:
        for tag in saved.prune(system, ctx.args.keep):
            printing.tag(ctx, system.name, tag)


def _run(ctx: Context) -> None:
    def work(name: str) -> None:
        with recovery.held(ctx.conf, name) as system:
            made = schedule.run(system)
        if made:
            printing.tag(ctx, name, made.tag)

    verbs.each(ctx, schedule.due(ctx.conf), work)
