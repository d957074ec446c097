# SPDX-License-Identifier: Apache-2.0
"""Verbs that print rows again and again, of the containers named or of all: --interval, --count, and the loop."""

import argparse
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

from dre import cli, units, verbs
from dre.cli import Context
from dre.errors import UsageError

LEAST = 0.1  # seconds between two looks


def add_repetition(verb: argparse.ArgumentParser, metavar: str) -> None:
    """The arguments of a verb that prints again and again, of the names given or of all."""
    verb.add_argument("--interval", type=verbs.kind(interval), metavar="S", help="look again every S seconds")
    text = "look N times (default: 1, with --interval no end)"
    verb.add_argument("--count", type=verbs.count, metavar="N", help=text)
    verb.add_argument("names", nargs="*", metavar=metavar, type=verbs.name)
    verbs.endless(verb, lambda args: args.interval is not None and args.count is None)


def interval(text: str) -> float:
    """Seconds between two looks. Raises UsageError."""
    value = units.duration(text)
    if value < LEAST:
        raise UsageError(f"{text!r} is less than {LEAST * 1000:g} ms")
    return value


def repeat(ctx: Context, look: Callable[[], list[dict[str, Any]]], columns: Sequence[cli.Column]) -> None:
    """Print what *look* gives, as often as --interval and --count say."""
    args = ctx.args
    rounds = args.count or (1 if args.interval is None else None)
    interval = 1.0 if args.interval is None else args.interval
    ctx.out.header(columns)
    told: dict[str, tuple[dict[str, Any], str]] = {}  # of hundreds of idle apps most rows stay the same
    text = io.StringIO()
    made = cli.Output(ctx.out.as_json, text)
    due = time.monotonic()
    while True:
        lines = []
        for row in look():
            last, line = told.get(row["name"], (None, ""))
            if last is not row:
                made.row(row if made.as_json else flat(row), columns)
                line = text.getvalue()
                text.seek(0)
                text.truncate()
                told[row["name"]] = row, line
            lines.append(line)
        ctx.out.stream.write("".join(lines))
        ctx.out.stream.flush()
        if rounds is not None:
            rounds -= 1
            if rounds == 0:
                return
        due = max(due + interval, time.monotonic())
        time.sleep(max(due - time.monotonic(), 0))


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """*row* with the pressure that some processes feel as fields of its own, for columns."""
    pressure = row.get("pressure") or {}
    return {**row, **{f"{kind}_pressure": felt.get("some") for kind, felt in pressure.items()}}
