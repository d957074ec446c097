# SPDX-License-Identifier: Apache-2.0
"""dbox-get: read entries, receipts, signed digests and certificates from the D-Box."""

import argparse
import base64
import itertools
import json
import re
import sys
from collections.abc import Sequence

from dre import cli, evidence, units
from dre.dbox import Client
from dre.errors import UsageError

COLUMNS: list[cli.Column] = [
    ("INDEX", "index", 6),
    ("TIME", "time", 24),
    ("STREAM", "stream", 8),
    ("SEQ", "seq", 6),
    ("TYPE", "type", 20),
    ("WRITER", "writer", 64),
]
KEYS = ("stream", "type", "writer", "digest", "text", "after", "before", "since", "until", "limit")


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-get."""
    parser = cli.parser("dbox-get", "Read from the D-Box.")
    parser.add_argument("index", metavar="INDEX", nargs="?", type=_index, help="number of the entry; alone: its header")
    parser.add_argument("--client", metavar="N", type=units.name, default="reader", help="client certificate (reader)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--octets", action="store_true", help="the octets of the entry, unchanged")
    what.add_argument("--proof", action="store_true", help="a receipt of the entry under the newest tree head")
    what.add_argument("--signature", action="store_true", help="the signed digest of the entry (RSA, SHA-256)")
    what.add_argument("--certs", action="store_true", help="the certificates below the root, for dbox-verify --certs")
    what.add_argument("--handovers", action="store_true", help="changes of the sign key, for dbox-verify --handovers")
    what.add_argument("--head", action="store_true", help="the newest tree head")
    what.add_argument("--list", action="store_true", help="all entries, one per line")
    what.add_argument(
        "--search", metavar="KEY=VALUE", nargs="+", help=f"entries by {', '.join(KEYS)}; one per line, at most 1000"
    )
    parser.add_argument(
        "--anchored", action="store_true", help="with --proof: under the newest tree head that witnesses cosigned"
    )
    parser.set_defaults(function=_get)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-get."""
    return cli.main(make_parser(), argv)


def _index(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"expected the number of an entry, got {text!r}")
    return int(text)


def _get(ctx: cli.Context) -> None:
    args = ctx.args
    whole = args.certs or args.handovers or args.head or args.list or args.search
    if bool(whole) == (args.index is not None):
        raise UsageError("expected the INDEX of an entry, or one of --certs --handovers --head --list --search")
    if args.anchored and not args.proof:
        raise UsageError("--anchored goes with --proof")
    client = Client(ctx.conf, args.client)
    try:
        with client.online():
            # Every reading begins with the tree head: a log that was cut or replaced is found by whoever looks.
            note = evidence.parse_note(client.request("GET", "/v1/checkpoint").decode())
            head = client.see(note)
            _show(ctx, client, note, head)
    finally:
        client.close()


def _show(ctx: cli.Context, client: Client, note: evidence.Note, head: evidence.Head) -> None:
    args = ctx.args
    path = f"/v1/entries/{args.index}"
    if args.certs:
        _write(client.request("GET", "/v1/keys"))
    elif args.handovers:
        _write(client.request("GET", "/v1/handovers"))
    elif args.head:
        _write(note.format().encode())
    elif args.octets:
        _write(client.request("GET", f"{path}/octets"))
    elif args.proof:
        receipt = evidence.parse_receipt(client.request("GET", f"{path}/proof{'?anchored=yes' * args.anchored}"))
        client.see(receipt.note)
        _write(receipt.format().encode())
    elif args.signature:
        fields = json.loads(client.request("GET", f"{path}/signature"))
        ctx.out.json(fields) if ctx.out.as_json else _write(base64.b64decode(fields["signature"]))
    elif args.index is not None:
        fields = json.loads(client.request("GET", path))
        ctx.out.json(fields) if ctx.out.as_json else _write(str(fields["header"]).encode())
    else:
        _rows(ctx, client, _wanted(args.search or []), head.size)


def _wanted(terms: Sequence[str]) -> dict[str, str]:
    wanted = {}
    for term in terms:
        key, equals, wanted[key] = term.partition("=")
        if key not in KEYS or not equals:
            raise UsageError(f"expected KEY=VALUE with KEY one of {', '.join(KEYS)}, got {term!r}")
        if key in ("after", "before", "limit") and not re.fullmatch("[0-9]{1,18}", wanted[key]):
            raise UsageError(f"{key}: expected a number, got {wanted[key]!r}")
    return wanted


def _rows(ctx: cli.Context, client: Client, wanted: dict[str, str], size: int) -> None:
    """Print what is found: of --list everything below the tree head's size, of --search at most 1000."""
    ctx.out.header(COLUMNS)
    most = size if ctx.args.list else min(int(wanted.get("limit", "1000")), 1000)
    for row in itertools.islice(client.search(**wanted), most):
        if int(row["index"]) >= size:
            return
        ctx.out.row(row, COLUMNS)


def _write(octets: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(octets)
    sys.stdout.buffer.flush()
