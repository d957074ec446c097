# SPDX-License-Identifier: Apache-2.0
"""dbox-put: send what stands on stdin to the D-Box as one entry, and print its receipt."""

import argparse
import sys
from collections.abc import Sequence

from dre import cli, units
from dre.dbox import LARGEST, Recorder
from dre.errors import DreError, TimedOutError, UsageError


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-put."""
    parser = cli.parser("dbox-put", "Append the octets on stdin to the D-Box as one entry and print its receipt.")
    parser.add_argument("--client", metavar="N", type=units.name, default="writer", help="client certificate (writer)")
    parser.add_argument("--stream", metavar="S", type=units.name, default="app", help="stream of the entry (app)")
    parser.add_argument(
        "--timeout", metavar="T", type=units.duration, default=10.0, help="how long to try to reach the D-Box (10s)"
    )
    parser.set_defaults(function=_put)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-put."""
    return cli.main(make_parser(), argv)


def _put(ctx: cli.Context) -> None:
    octets = sys.stdin.buffer.read(LARGEST + 1)
    if not octets:
        raise UsageError("nothing on stdin: an entry has at least one octet")
    recorder = Recorder(ctx.conf, ctx.args.client)
    stream = ctx.args.stream
    seq = recorder.record(stream, octets)
    waits = f"the record waits as {stream} {seq} in {recorder.directory}, and goes with the next one"
    try:
        recorder.drain(ctx.args.timeout)
    except DreError as error:
        kind = type(error)
        raise kind(f"{error}; {waits}") from None
    receipt = recorder.receipt(stream, seq)
    if receipt is None:
        raise TimedOutError(f"not delivered within {ctx.args.timeout:g} s; {waits}")
    sys.stdout.write(receipt.decode())
