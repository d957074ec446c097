# SPDX-License-Identifier: Apache-2.0
"""dre-event: make one event from words, or convert events; print them or hand them to the intake."""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dre import cli, event
from dre.errors import DreError, UsageError

FROM = ("syslog", "journal", "snmptrap", "cloudevents", "dre1")
TO = ("syslog", "journal", "cloudevents", "dre1")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class _Parser(cli.Parser):
    """Lets options stand between TYPE and KEY=VALUE, which plain argparse refuses."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        self.given = words  # parse_known_args would keep them, but Python 3.13 does not call it on this way
        before = words[: words.index("--")] if "--" in words else words
        if not any(word.partition("=")[0] == "--cursor" for word in before):
            return self.parse_intermixed_args(words, namespace)
        made = self.parse_intermixed_args(before, namespace)
        made.arguments = words[len(before) + 1 :]  # journalctl's
        return made


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-event."""
    parser = _Parser(
        prog="dre-event",
        description="Make one event of D-RE, or convert those on standard input; print, or hand to the intake.",
    )
    cli.common(parser, top=True)
    parser.add_argument("type", metavar="TYPE", nargs="?", help="such as shop.release: <part>.<what>")
    parser.add_argument(
        "data",
        metavar="KEY=VALUE",
        nargs="*",
        help="what the event tells; a VALUE written as JSON writes numbers becomes one, any other a string",
    )
    parser.add_argument("--source", metavar="SOURCE", help="where it happened (default /host:<this host>)")
    parser.add_argument("--sev", metavar="N", type=int, help="severity as in syslog, 0 to 7 (default 6)")
    parser.add_argument("--goal", metavar="G", help="the D-Case node that the event bears on")
    parser.add_argument("--send", action="store_true", help="hand it to the intake instead of printing it")
    parser.add_argument("--from", dest="source_form", choices=FROM, help="convert standard input, which has this form")
    parser.add_argument("--to", dest="target_form", choices=TO, help="convert standard input to this form")
    parser.add_argument("--omprog", action="store_true", help="serve rsyslog's omprog; with --from syslog")
    parser.add_argument(
        "--cursor", metavar="FILE", type=Path, help="send the journal after what FILE tells; with --from journal"
    )
    parser.add_argument("--follow", action="store_true", help="go on for ever, as a service; with --cursor")
    parser.set_defaults(function=lambda ctx: run(ctx, parser))
    return parser


def run(ctx: cli.Context, parser: argparse.ArgumentParser) -> None:
    """Make one event, or convert."""
    args = ctx.args
    if args.omprog or args.cursor or args.follow:
        return feed(ctx, parser)
    if not args.source_form and not args.target_form:
        if args.type is not None:
            return make(ctx)
        if not args.send or sys.stdin.isatty():
            parser.error("the following arguments are required: TYPE")
    for word, given in (("TYPE", args.type), ("--source", args.source), ("--sev", args.sev), ("--goal", args.goal)):
        if given is not None:
            parser.error(f"{word} is for making one event, not for those on standard input")
    if args.send and args.target_form:
        parser.error("--send hands over events in our own form, not with --to")
    from monitorlib import convert  # late: making one event needs none of it

    return convert.convert(ctx, args.source_form or "plain", args.target_form or "plain")


def feed(ctx: cli.Context, parser: argparse.ArgumentParser) -> None:
    """Hand over what another's program gives."""
    args = ctx.args
    for word, given in (
        ("--to", args.target_form),
        ("--source", args.source),
        ("--sev", args.sev),
        ("--goal", args.goal),
    ):
        if given is not None:
            parser.error(f"{word} is not for --omprog, --cursor or --follow")
    if args.omprog:
        if args.source_form != "syslog" or args.type is not None or args.cursor or args.follow:
            parser.error("--omprog is for --from syslog alone")
        from monitorlib import omprog

        return omprog.run(ctx)
    if args.source_form != "journal" or not args.cursor:
        parser.error("--cursor and --follow are for --from journal --cursor FILE")
    from monitorlib import journal

    if args.type is not None:
        parser.error("what journalctl selects by stands behind --")
    return journal.send(ctx, args.cursor, args.follow, args.arguments)


def make(ctx: cli.Context) -> None:
    """Print the event, or send it, or spool it for the intake when that does not answer."""
    optional = {"id": event.new_id(), **({"goal": ctx.args.goal} if ctx.args.goal else {})}
    sev = 6 if ctx.args.sev is None else ctx.args.sev
    line = event.new_line(
        event.Event(event.stamp(), ctx.args.source or event.host(), ctx.args.type, sev, data(ctx.args.data), optional)
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
