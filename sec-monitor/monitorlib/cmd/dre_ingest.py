# SPDX-License-Identifier: Apache-2.0
"""dre-ingest: take events in by socket and FIFO, spool them, write them to stdout."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dre import cli, files

from monitorlib.intake import Intake


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-ingest."""
    parser = cli.parser("dre-ingest", "Take events in by socket and FIFO, spool them, and write them to stdout.")
    parser.add_argument(
        "--resume", metavar="FILE", help="go on from what the reader, dre-reorder --resume FILE, has not passed on"
    )
    parser.set_defaults(function=ingest)
    return parser


def ingest(ctx: cli.Context) -> None:
    """Run until SIGTERM."""
    # Two intakes would take each other's socket away; the one before may be about to end.
    with files.lock(ctx.conf.core_run_dir / "lock" / "ingest", timeout=2.0):
        resume = Path(ctx.args.resume) if ctx.args.resume else None
        Intake(ctx.conf, sys.stdout.fileno(), resume, ctx.say).run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-ingest."""
    return cli.main(make_parser(), argv)
