# SPDX-License-Identifier: Apache-2.0
"""dre-bridge: make, show and remove the bridge that containers are attached to."""

import argparse
import dataclasses
from collections.abc import Sequence

from dre import bridge, cli

COLUMNS: list[cli.Column] = [
    ("NAME", "name", 4),
    ("STATE", "state", 5),
    ("ADDRESS", "addresses", 7),
    ("NAT", "nat", 3),
    ("PORTS", "ports", 5),
    ("DNS", "dns", 3),
    ("DHCP", "dhcp", 4),
]


def up(ctx: cli.Context) -> None:
    cli.need_root("dre-bridge up")
    without = bridge.up(ctx.conf)
    if without:
        ctx.say(without)


def down(ctx: cli.Context) -> None:
    cli.need_root("dre-bridge down")
    bridge.down(ctx.conf, force=ctx.args.force)


def show(ctx: cli.Context) -> None:
    row = dataclasses.asdict(bridge.show(ctx.conf))
    if not ctx.out.as_json:
        row.update({key: {True: "yes", False: "no", None: None}[row[key]] for key in ("nat", "dns")})
    ctx.out.table([row], COLUMNS)


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("dre-bridge", "Make, show and remove the bridge that containers are attached to.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    cli.verb(verbs, "up", up, "make the bridge with its address and NAT, or repair it")
    remove = cli.verb(verbs, "down", down, "remove the bridge that up made")
    remove.add_argument("--force", action="store_true", help="remove it although interfaces are attached")
    cli.verb(verbs, "show", show, "print name, state, addresses, NAT and attached interfaces")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.main(make_parser(), argv)
