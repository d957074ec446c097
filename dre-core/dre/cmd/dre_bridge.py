# SPDX-License-Identifier: Apache-2.0
"""dre-bridge: make, show and remove the bridge that containers are attached to."""

import argparse
import dataclasses
from collections.abc import Sequence

from dre import bridge, cli, units, verbs

COLUMNS: list[cli.Column] = [
    ("NAME", "name", 4),
    ("STATE", "state", 5),
    ("ADDRESS", "addresses", 7),
    ("NAT", "nat", 3),
    ("PORTS", "ports", 5),
    ("DNS", "dns", 3),
    ("DHCP", "dhcp", 4),
    ("UPLINK", "uplink", 6),
]


def up(ctx: cli.Context) -> None:
    cli.need_root("dre-bridge up")
    without = bridge.up(ctx.conf, ctx.args.uplink)
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


def attach(ctx: cli.Context) -> None:
    cli.need_root("dre-bridge attach")
    if ctx.args.bridge not in (None, ctx.conf.bridge_if):
        return
    from dre import attach  # late, for it knows containers

    for link in attach.attach(ctx.conf):
        ctx.say(f"{link} is in {ctx.conf.bridge_if} again")


def migrate_uplink(ctx: cli.Context) -> None:
    cli.need_root("dre-bridge migrate-uplink")
    from dre import uplinkmove

    said = uplinkmove.migrate(ctx.conf, ctx.args.interface, ctx.args.back, ctx.args.check, ctx.args.timeout)
    if said:
        ctx.say(said)


def recover(ctx: cli.Context) -> None:
    cli.need_root("dre-bridge recover")
    from dre import uplinkmove

    link = uplinkmove.recover(ctx.conf)
    if link:
        ctx.say(f"{link} has its addresses again")


def make_parser() -> argparse.ArgumentParser:
    parser = cli.parser("dre-bridge", "Make, show and remove the bridge that containers are attached to.")
    known = parser.add_subparsers(title="verbs", metavar="VERB")
    make = cli.verb(known, "up", up, "make the bridge with its address and NAT, or repair it")
    make.add_argument(
        "--uplink", metavar="IF", help="make the interface IF, without addresses, a port that leads outside"
    )
    remove = cli.verb(known, "down", down, "remove the bridge that up made")
    remove.add_argument("--force", action="store_true", help="remove it although interfaces are attached")
    cli.verb(known, "show", show, "print name, state, addresses, NAT and attached interfaces")
    move = cli.verb(known, "migrate-uplink", migrate_uplink, "move addresses and routes of an interface to the bridge")
    move.add_argument("interface", metavar="IF", help="interface of the host; it becomes a port of the bridge")
    move.add_argument("--back", action="store_true", help="move them from the bridge to IF, and take IF out of it")
    move.add_argument(
        "--check", metavar="HOST", help="who has to answer to ping afterwards (default: the gateway to ARP)"
    )
    move.add_argument(
        "--timeout",
        metavar="S",
        type=verbs.kind(units.duration),
        default=10.0,
        help="how long to wait for the answer before all is undone (default 10 s)",
    )
    cli.verb(known, "recover", recover, "take back a migrate-uplink that was killed")
    again = cli.verb(known, "attach", attach, "put running containers back on a bridge that was made anew")
    again.add_argument("bridge", metavar="BRIDGE", nargs="?", help="do nothing for another bridge than this")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.main(make_parser(), argv)
