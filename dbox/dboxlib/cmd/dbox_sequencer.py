# SPDX-License-Identifier: Apache-2.0
"""dbox-sequencer: the one writer of the log, in the foreground, until SIGTERM."""

import argparse
import sys
from collections.abc import Sequence

from dre import cli

from dboxlib import message, sequencer_process


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-sequencer."""
    parser = cli.parser("dbox-sequencer", "Number, sign and store what the servers in front of the D-Box hand in.")
    parser.set_defaults(function=_run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-sequencer."""
    return cli.main(make_parser(), argv)


def _run(ctx: cli.Context) -> int:
    def ready() -> None:
        sys.stderr.write(f"dbox-sequencer: listening on {message.place(ctx.conf)}\n")

    return sequencer_process.run(ctx.conf, ready)
