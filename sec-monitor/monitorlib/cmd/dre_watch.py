# SPDX-License-Identifier: Apache-2.0
"""dre-watch: sample apps and web servers, emit watch.raised and watch.cleared."""

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

from dre import cli, event

from monitorlib.watch import Watch


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-watch."""
    parser = cli.parser("dre-watch", "Watch what the deployed scripts name, and emit an event for each crossing.")
    parser.add_argument("--stdout", action="store_true", help="print the events instead of sending them")
    parser.set_defaults(function=watch)
    return parser


def watch(ctx: cli.Context) -> None:
    """Run until SIGTERM."""

    def send(type: str, source: str, data: dict[str, Any], sev: int) -> None:
        event.emit(ctx.conf, type, source, data, sev)

    def show(type: str, source: str, data: dict[str, Any], sev: int) -> None:
        made = event.Event(event.stamp(), source, type, sev, data, {"id": event.new_id()})
        ctx.out.line(event.new_line(made).decode().rstrip("\n"))
        ctx.out.stream.flush()

    asked = ctx.args.stdout  # somebody looks; the service beside it keeps what is measured
    asyncio.run(Watch(ctx.conf, show if asked else send, ctx.say, keep=not asked).run())


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-watch."""
    return cli.main(make_parser(), argv)
