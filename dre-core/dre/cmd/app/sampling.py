# SPDX-License-Identifier: Apache-2.0
"""dre-app stat and top: what apps use, once or again and again, for programs and for people."""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

from dre import cli, recovery, stat, units, verbs
from dre.cli import Context
from dre.errors import UsageError

LEAST = 0.1  # seconds between two looks
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
    add_repetition(cli.verb(table, "stat", _stat, "print use of cpu, memory, pids, io and net"), "NAME")
    top = cli.verb(table, "top", _top, "show what apps use, on a terminal, until q")
    text = "look again every S seconds (default: 2)"
    top.add_argument("--interval", type=verbs.kind(_interval), default=2.0, metavar="S", help=text)
    top.add_argument("names", nargs="*", metavar="NAME", type=verbs.name)
    verbs.endless(top)


def add_repetition(verb: argparse.ArgumentParser, metavar: str) -> None:
    """The arguments of a verb that prints again and again, of the names given or of all."""
    verb.add_argument("--interval", type=verbs.kind(_interval), metavar="S", help="look again every S seconds")
    text = "look N times (default: 1, with --interval no end)"
    verb.add_argument("--count", type=verbs.count, metavar="N", help=text)
    verb.add_argument("names", nargs="*", metavar=metavar, type=verbs.name)
    verbs.endless(verb, lambda args: args.interval is not None and args.count is None)


def _interval(text: str) -> float:
    value = units.duration(text)
    if value < LEAST:
        raise UsageError(f"{text!r} is less than {LEAST * 1000:g} ms")
    return value


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
    repeat(ctx, _watch(ctx).look, COLUMNS)


def repeat(ctx: Context, look: Callable[[], list[dict[str, Any]]], columns: Sequence[cli.Column]) -> None:
    """Print what *look* gives, as often as --interval and --count say."""
    args = ctx.args
    rounds = args.count or (1 if args.interval is None else None)
    interval = 1.0 if args.interval is None else args.interval
    ctx.out.header(columns)
    told: dict[str, tuple[dict[str, Any], str]] = {}
    due = time.monotonic()
    while True:
        for row in look():
            if row["name"] not in told or told[row["name"]][0] is not row:
                told[row["name"]] = row, _line(ctx, row, columns)
            ctx.out.stream.write(told[row["name"]][1])
        ctx.out.stream.flush()
        if rounds is not None:
            rounds -= 1
            if rounds == 0:
                return
        due = max(due + interval, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0))


def _line(ctx: Context, row: dict[str, Any], columns: Sequence[cli.Column]) -> str:
    """What the output makes of *row*; of hundreds of idle apps it stays the same."""
    text = io.StringIO()
    cli.Output(ctx.out.as_json, text).row(row if ctx.out.as_json else flat(row), columns)
    return text.getvalue()


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """*row* with the pressure that some processes feel as fields of its own, for columns."""
    pressure = row["pressure"] or {}
    return {**row, **{f"{kind}_pressure": felt.get("some") for kind, felt in pressure.items()}}
