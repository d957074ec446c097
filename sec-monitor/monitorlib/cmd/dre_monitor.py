# SPDX-License-Identifier: Apache-2.0
"""dre-monitor: run the stages of the monitor, and tell how they are."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from dre import cli, files
from dre.errors import DONE, FAILED, NotFoundError, TimedOutError, UsageError

from monitorlib import actions, detach, health, supervise
from monitorlib.tally import Tally

COLUMNS = [
    ("STAGE", "stage", 8),
    ("STATE", "state", 8),
    ("PID", "pid", 7),
    ("RESTARTS", "restarts", 8),
    ("UPTIME", "uptime", 8),
    *((key.upper(), key, 8) for key in health.FIELDS),
]


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-monitor."""
    parser = cli.parser("dre-monitor", "Run the application monitor: intake, re-order filter, sec and watch.")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb")
    made = cli.verb(verbs, "run", run, "Start the stages, and start again what dies.")
    made.add_argument(
        "--without",
        metavar="STAGE",
        action="append",
        default=[],
        help=f"leave a stage out: {' or '.join(supervise.OPTIONAL)}; may be given twice",
    )
    made.add_argument("--detach", action="store_true", help="go on in the background once all is ready (python-daemon)")
    cli.verb(verbs, "act", act, "Run the programs that rules ask for, by requests from stdin: a stage of `run`.")
    cli.verb(verbs, "status", status, "Tell how each stage is: 0 all well, 1 not all, 3 the monitor does not run.")
    return parser


def run(ctx: cli.Context) -> None:
    """Run until SIGTERM."""
    for name in ctx.args.without:
        if name not in supervise.OPTIONAL:
            raise UsageError(f"--without {name}: only {' and '.join(supervise.OPTIONAL)} can be left out")
    supervise.prefer_us()
    config = str(Path(ctx.args.config).resolve()) if ctx.args.config else None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(ctx.conf.core_run_dir / "lock" / "monitor", timeout=2.0))
        except TimedOutError:
            raise TimedOutError("another monitor is at work; dre-monitor status tells of it") from None
        supervisor = supervise.Supervisor(ctx.conf, config, ctx.args.without, ctx.say)
        if ctx.args.detach:
            detach.detach(ctx.conf, "dre-monitor")
        supervisor.run()


def act(ctx: cli.Context) -> None:
    """Run until SIGTERM."""
    tally = Tally(health.tally_file(ctx.conf, "act"))
    actions.Runner(ctx.conf, sys.stdin.fileno(), tally, ctx.say).run()


def status(ctx: cli.Context) -> int:
    """Print one line for each stage."""
    rows = supervise.status(ctx.conf)
    if rows is None:
        raise NotFoundError("the monitor does not run; start it with dre-monitor run")
    ctx.out.table(rows, COLUMNS)
    return DONE if all(map(health.is_well, rows)) else FAILED


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-monitor."""
    return cli.main(make_parser(), argv)
