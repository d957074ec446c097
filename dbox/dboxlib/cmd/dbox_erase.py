# SPDX-License-Identifier: Apache-2.0
"""dbox-erase: have the octets of an entry removed, as two admins want; what they were and why stays in the log."""

import argparse
import json
from collections.abc import Sequence

from dre import cli, units
from dre.dbox import Client
from dre.errors import DreError


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-erase."""
    parser = cli.parser(
        "dbox-erase", "Ask for the octets of an entry to be erased, or agree to it as the second admin."
    )
    parser.add_argument("index", metavar="INDEX", type=_index, help="number of the entry")
    parser.add_argument("--reason", metavar="R", required=True, help="why, the same from both; it stays in the log")
    parser.add_argument("--client", metavar="N", type=units.name, default="admin", help="client certificate (admin)")
    parser.set_defaults(function=_erase)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-erase."""
    return cli.main(make_parser(), argv)


def _index(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"expected the number of an entry, got {text!r}")
    return int(text)


def _erase(ctx: cli.Context) -> None:
    args = ctx.args
    client = Client(ctx.conf, args.client)
    body = json.dumps({"reason": args.reason}).encode()
    try:
        with client.online():
            fields = json.loads(client.request("POST", f"/v1/entries/{args.index}/erase", body))
    finally:
        client.close()
    if fields.get("state") not in ("asked", "erased"):
        raise DreError(f"the D-Box answered with the state {fields.get('state')!r}")
    if ctx.out.as_json:
        ctx.out.json(fields)
    elif fields["state"] == "erased":
        ctx.say(f"the octets of entry {args.index} are erased; entry {fields['entry']} says why")
    else:
        ctx.say(f"asked for with entry {fields['entry']}; now another admin has to give the same command")
