# SPDX-License-Identifier: Apache-2.0
"""dre-app cgroup: limits for processes without a container."""

from typing import Any

from dre import cli, groups, verbs
from dre.cgroup import Limits
from dre.cli import Context
from dre.cmd import limit_options, repeating
from dre.cmd.app import limiting, sampling

KEYS = tuple(key for key in limiting.KEYS if key != "net")  # a process has no link of its own
LIST_COLUMNS = (
    ("NAME", "name", 12),
    ("PIDS", "pids", 5),
    ("MEMORY", "memory", 11),
    ("LIMIT", "memory_limit", 11),
    ("CPU-LIMIT", "cpu_limit", 9),
    ("PIDS-LIMIT", "pids_limit", 10),
)
NO_COLUMNS = ("state", "net_rx", "net_tx")
STAT_COLUMNS = tuple(column for column in sampling.COLUMNS if column[1] not in NO_COLUMNS)
INNER = ("create", "delete", "list", "limit", "stat", "add")


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    inner = verbs.family(table, "cgroup", "limits for processes without a container", *INNER)
    create = verbs.changing(inner, "create", _create, "make a group, empty")
    _add_group(create)
    limit_options.add_options(create, KEYS)
    delete = verbs.changing(inner, "delete", _delete, "remove empty groups")
    delete.add_argument("--force", action="store_true", help="kill the processes in them first")
    delete.add_argument("names", nargs="+", metavar="GROUP", type=verbs.name)
    cli.verb(inner, "list", _list, "list all groups").set_defaults(names=[])
    limit = verbs.changing(inner, "limit", _limit, "set or print limits; `none` lifts one")
    _add_group(limit)
    limit_options.add_options(limit, KEYS)
    repeating.add_repetition(cli.verb(inner, "stat", _stat, "print use of cpu, memory, pids and io"), "GROUP")
    join = verbs.changing(inner, "add", _join, "move processes with all their threads into a group")
    _add_group(join)
    join.add_argument("pids", nargs="+", metavar="PID", type=verbs.count)


def _add_group(verb: Any) -> None:
    verb.add_argument("name", metavar="GROUP", type=verbs.name)


def _create(ctx: Context) -> None:
    with groups.held(ctx.conf, ctx.args.name) as group:
        groups.create(group, Limits(**limit_options.chosen(ctx.args, KEYS)))


def _delete(ctx: Context) -> None:
    def work(name: str) -> None:
        with groups.held(ctx.conf, name) as group:
            groups.delete(group, ctx.args.force)

    verbs.each(ctx, ctx.args.names, work)


def _list(ctx: Context) -> None:
    cli.need_root("dre-app cgroup list")
    ctx.out.table(groups.rows(), LIST_COLUMNS)


def _limit(ctx: Context) -> None:
    name = ctx.args.name
    changes = limit_options.chosen(ctx.args, KEYS)
    with groups.held(ctx.conf, name) as group:
        found = groups.limit(group, changes) if changes else group.need().limits()
    if not changes:
        limiting.show(ctx, name, found, KEYS)
    elif found.memory != changes.get("memory", found.memory):
        ctx.say(f"{name}: the kernel rounded memory to {found.memory}")


def _stat(ctx: Context) -> None:
    cli.need_root("dre-app cgroup stat")
    for name in ctx.args.names:
        groups.ProcessGroup(ctx.conf, name).need()
    repeating.repeat(ctx, groups.Watch(ctx.args.names).look, STAT_COLUMNS)


def _join(ctx: Context) -> None:
    with groups.held(ctx.conf, ctx.args.name) as group:
        groups.add(group, ctx.args.pids)
