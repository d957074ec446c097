# SPDX-License-Identifier: Apache-2.0
"""dre-check: whether this host has what D-RE stands on, one line each with what would help."""

import argparse
from collections.abc import Sequence

from dre import cli, hostcheck, verbs
from dre.errors import FAILED, UsageError


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-check."""
    parser = cli.parser("dre-check", "See whether this host has what D-RE stands on. Nothing is changed.")
    names = ", ".join(hostcheck.CHECKS)
    parser.add_argument("checks", metavar="CHECK", nargs="*", type=verbs.kind(_known), help=f"only these of: {names}")
    parser.add_argument(
        "--discover", action="store_true", help="ask for a DHCP server on the uplink by a DHCPDISCOVER (root)"
    )
    parser.set_defaults(function=check)
    return parser


def _known(text: str) -> str:
    if text not in hostcheck.CHECKS:
        raise UsageError(f"no such check: {text!r}; there are {', '.join(hostcheck.CHECKS)}")
    return text


def check(ctx: cli.Context) -> int:
    """0: nothing is missing; 1: something is; another code of dre.errors: a check could not look."""
    wanted = [name for name in hostcheck.CHECKS if name in (ctx.args.checks or hostcheck.CHECKS)]
    states, codes = set(), {0}
    for item in hostcheck.look(ctx.conf, wanted, ctx.args.discover):
        states.add(item.state)
        codes.add(item.code)
        if ctx.args.quiet and item.state == hostcheck.OK and not ctx.out.as_json:
            continue
        if ctx.out.as_json:
            ctx.out.json({"check": item.check, "state": item.state, "found": item.found, "remedy": item.remedy})
        else:
            told = f"{item.found}; {item.remedy}" if item.remedy else item.found
            ctx.out.line(f"{item.check:<8}{item.state:<9}{cli.harmless(told)}")
        ctx.out.stream.flush()
    return FAILED if hostcheck.MISSES in states else max(codes)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.main(make_parser(), argv)
