# SPDX-License-Identifier: Apache-2.0
"""dbox-verify: check offline that a receipt proves that octets are in the log of a D-Box."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from dre import cli, evidence, trust
from dre.dbox import LARGEST
from dre.errors import UsageError


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-verify."""
    parser = cli.parser("dbox-verify", "Check offline that RECEIPT proves that OCTETS are in the log of a D-Box.")
    parser.add_argument("receipt", metavar="RECEIPT", help="file that dbox-put or dbox-get --proof printed")
    parser.add_argument("octets", metavar="OCTETS", help="file with the octets of the entry; - is stdin")
    parser.add_argument("--root", metavar="F", help="root certificate to trust (root.pem of DRE_DBOX_CERTS_DIR)")
    parser.add_argument(
        "--certs", metavar="F", help="certificates below it, from dbox-get --certs (chain.pem of DRE_DBOX_CERTS_DIR)"
    )
    parser.set_defaults(function=_verify)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-verify."""
    return cli.main(make_parser(), argv)


def _verify(ctx: cli.Context) -> int:
    args, certs = ctx.args, ctx.conf.dbox_certs_dir
    warnings.simplefilter("ignore", UserWarning)  # cryptography muses about odd names; we judge them
    try:
        receipt = evidence.parse_receipt(_read(args.receipt, evidence.LARGEST))
    except evidence.FormatError as error:
        raise UsageError(f"{args.receipt}: {error}") from None
    octets = _read(args.octets, LARGEST)
    if not octets:
        raise UsageError(f"{args.octets}: empty: no entry has no octets")
    root = _read(args.root or certs / "root.pem", LARGEST)
    chain = _read(args.certs or certs / "chain.pem", LARGEST)
    try:
        header, head = trust.load(root, chain).check(receipt, octets)
    except evidence.VerifyError as error:
        raise evidence.VerifyError(f"{args.receipt}: does not verify: {error}") from None
    fields = {
        "verified": True,
        "index": receipt.index,
        **header.__dict__,
        "head_size": head.size,
        "head_time": head.time,
    }
    if ctx.out.as_json:
        ctx.out.json(fields)
    elif not args.quiet:
        what = f"{header.stream} {header.seq} of {header.time} by {header.writer[:16]}"
        ctx.out.line(f"verified: entry {receipt.index} of {header.log}: {what}")
    return 0


def _read(name: str | Path, most: int) -> bytes:
    """The octets of a file. Raises UsageError: what cannot be read was not checked."""
    try:
        if str(name) == "-":
            octets = sys.stdin.buffer.read(most + 1)
        else:
            with open(name, "rb") as stream:
                octets = stream.read(most + 1)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    if len(octets) > most:
        raise UsageError(f"{name}: more than {most} octets")
    return octets
