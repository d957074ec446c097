# SPDX-License-Identifier: Apache-2.0
"""dre-event: make one event from words, and print it or hand it to the intake."""

import argparse
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from dre import cli, event
from dre.errors import DreError, UsageError

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class _Parser(cli.Parser):
    """Lets options stand between TYPE and KEY=VALUE, which plain argparse refuses."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self.parse_intermixed_args(args, namespace)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-event."""
    parser = _Parser(
        prog="dre-event", description="Make one event of D-RE: print its line, or hand it to the monitor's intake."
    )
    cli.common(parser, top=True)
    parser.add_argument("type", metavar="TYPE", help="such as shop.release: <part>.<what>")
    parser.add_argument(
        "data",
        metavar="KEY=VALUE",
        nargs="*",
        help="what the event tells; a VALUE written as JSON writes numbers becomes one, any other a string",
    )
    parser.add_argument("--source", metavar="SOURCE", help="where it happened (default /host:<this host>)")
    parser.add_argument("--sev", metavar="N", type=int, default=6, help="severity as in syslog, 0 to 7 (default 6)")
    parser.add_argument("--goal", metavar="G", help="the D-Case node that the event bears on")
    parser.add_argument("--send", action="store_true", help="hand it to the intake instead of printing it")
    parser.set_defaults(function=make)
    return parser


def make(ctx: cli.Context) -> None:
    """Print the event, or send it, or spool it for the intake when that does not answer."""
    optional = {"id": event.new_id(), **({"goal": ctx.args.goal} if ctx.args.goal else {})}
    line = event.new_line(
        event.Event(
            event.stamp(), ctx.args.source or event.host(), ctx.args.type, ctx.args.sev, data(ctx.args.data), optional
        )
    )
    if not ctx.args.send:
        ctx.out.line(line.decode().rstrip("\n"))
    elif not event.send(ctx.conf.monitor_sink, line):
        directory = ctx.conf.core_state_dir / "spool" / "event"
        if not event.spool(directory, line):
            raise DreError(f"{ctx.conf.monitor_sink}: nobody answers, and {directory} cannot take the event")
        ctx.say(f"{ctx.conf.monitor_sink}: nobody answers; spooled in {directory} for the intake to pick up")


def data(words: Sequence[str]) -> dict[str, Any]:
    """The data object of `key=value` *words*. Raises UsageError."""
    made: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise UsageError(f"{word!r} is not KEY=VALUE with a key of letters, digits, '_', '.' and '-'")
        if key in made:
            raise UsageError(f"{key}: given twice")
        made[key] = _number(text)
    return made


def _number(text: str) -> Any:
    """A number when *text* is the JSON form of one, so that it reads back as written (1.10 stays text), else *text*."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    same = isinstance(value, int | float) and not isinstance(value, bool) and json.dumps(value) == text
    return value if same and math.isfinite(value) else text


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-event."""
    return cli.main(make_parser(), argv)
