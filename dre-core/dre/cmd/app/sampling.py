# SPDX-License-Identifier: Apache-2.0
"""dre-app stat and top: what apps use, once or again and again, for programs and for people."""

from typing import Any

from dre import cli, recovery, stat, verbs
from dre.cli import Context
from dre.cmd import repeating

COLUMNS = (
    ("NAME", "name", 12),
    ("STATE", "state", 8),
    ("CPU%", "cpu", 6),
    ("MEMORY", "memory", 11),
    ("LIMIT", "memory_limit", 11),
    ("PIDS", "pids", 5),
    ("READ/S", "io_read", 10),
    ("WRITE/S", "io_write", 10),
    ("RX/S", "net_rx", 10),
    ("TX/S", "net_tx", 10),
    ("HELD%", "throttled", 6),
    ("OOM", "oom_kills", 4),
    ("CPU-P", "cpu_pressure", 6),
    ("MEM-P", "memory_pressure", 6),
    ("IO-P", "io_pressure", 6),
)


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    repeating.add_repetition(cli.verb(table, "stat", _stat, "print use of cpu, memory, pids, io and net"), "NAME")
    top = cli.verb(table, "top", _top, "show what apps use, on a terminal, until q")
    text = "look again every S seconds (default: 2)"
    top.add_argument("--interval", type=verbs.kind(repeating.interval), default=2.0, metavar="S", help=text)
    top.add_argument("names", nargs="*", metavar="NAME", type=verbs.name)
    verbs.endless(top)


def _top(ctx: Context) -> None:
    cli.need_root("dre-app top")
    from dre import top

    top.show(_watch(ctx).look, ctx.args.interval)


def _watch(ctx: Context) -> stat.Watch:
    for name in ctx.args.names:
        recovery.look(ctx.conf, name).need()
    return stat.Watch(ctx.conf, ctx.args.names)


def _stat(ctx: Context) -> None:
    cli.need_root("dre-app stat")
    repeating.repeat(ctx, _watch(ctx).look, COLUMNS)
