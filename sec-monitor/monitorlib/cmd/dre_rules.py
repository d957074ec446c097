# SPDX-License-Identifier: Apache-2.0
"""dre-rules: read rule files of SEC, say whether they are acceptable, what they would do, and put them in force."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from dre import cli
from dre.errors import DONE, FAILED, UsageError

from monitorlib import changing, replay, rulecheck, ruleset
from monitorlib.cmd import dre_rules_page, dre_rules_versions
from monitorlib.cmd.dre_correlate import watched
from monitorlib.correlate import Correlator


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-rules."""
    parser = cli.parser("dre-rules", "Check, try and put in force the rules of the event correlator.")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")
    made = cli.verb(verbs, "check", check, "Say whether rule files are acceptable; nothing in them is run.")
    made.add_argument("file", metavar="FILE", nargs="+")
    made = cli.verb(verbs, "test", test, "Run rules on recorded events, and say what they would write, and why.")
    made.add_argument("file", metavar="FILE", nargs="+")
    made.add_argument("--events", metavar="EVENTS", required=True, help="event lines in time order; - for stdin")
    dre_rules_versions.add(verbs)
    dre_rules_page.add(verbs)
    return parser


def check(ctx: cli.Context) -> int:
    """0 when all files are acceptable; 1 with FILE:LINE: REASON for each finding."""
    findings = [finding for book in _read(ctx) for finding in book.findings]
    _tell(ctx, findings)
    return FAILED if findings else DONE


def test(ctx: cli.Context) -> int:
    """Replay: 0, with what the rules would write; 1 when they are refused, or take too much memory; 5: too long."""
    pipes = [path.name for path in ctx.conf.monitor_pipes]
    books = _read(ctx)
    findings = [finding for book in books for finding in book.findings]
    if not findings:
        rules, findings = ruleset.compile(books, set(pipes))
    if findings:
        _tell(ctx, findings)
        return FAILED
    with contextlib.ExitStack() as stack:
        events = sys.stdin.fileno()
        if ctx.args.events != "-":
            try:
                events = stack.enter_context(Path(ctx.args.events).open("rb")).fileno()
            except OSError as error:
                raise UsageError(f"{ctx.args.events}: {error.strerror}") from None
        rows = stack.enter_context(
            contextlib.closing(replay.replay(Correlator(rules, pipes, explain=True), events, watched))
        )
        for row in rows:
            _written(ctx, row)
    return DONE


def _read(ctx: cli.Context) -> list[rulecheck.Book]:
    """What the files that were named hold. Raises UsageError when one cannot be read."""
    pipes = {path.name for path in ctx.conf.monitor_pipes}
    books = []
    for file in ctx.args.file:
        try:
            with Path(file).open("rb") as stream:
                books.append(changing.book(file, stream.read(rulecheck.LIMIT + 1), pipes))
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
    return books


def _tell(ctx: cli.Context, findings: list[rulecheck.Finding]) -> None:
    for finding in findings:
        if ctx.args.json:
            ctx.out.json({"file": finding.file, "line": finding.line, "reason": finding.reason})
        else:
            ctx.out.line(str(finding))


def _written(ctx: cli.Context, row: dict[str, object]) -> None:
    """Print one row of the replay; what it says of the events as a whole is talk."""
    if "pipe" not in row:
        if row["refused"]:
            ctx.say(f"left out {row['refused']} of {row['lines']} lines, which are no events")
        if row["slow"]:
            ctx.say(f"patterns took too long for {row['slow']} lines, which they did not match")
    elif ctx.args.json:
        ctx.out.json(row)
    else:
        ids = row["events"]
        assert isinstance(ids, list)
        columns = (row["time"], row["rule"], row["pipe"], ",".join(map(str, ids)) or "-", row["output"])
        ctx.out.line(cli.harmless("\t".join(map(str, columns))))


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-rules."""
    return cli.main(make_parser(), argv)
