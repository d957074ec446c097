# SPDX-License-Identifier: Apache-2.0
"""dbox-verify: check offline that a receipt proves that octets are in the log of a D-Box."""

import argparse
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

from dre import cli, evidence, files, handover, trust
from dre.dbox import LARGEST
from dre.errors import UsageError

HANDOVERS = 64 * 1024 * 1024  # octets of all changes of a sign key in 30 years


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-verify."""
    parser = cli.parser("dbox-verify", "Check offline that RECEIPT proves that OCTETS are in the log of a D-Box.")
    parser.add_argument(
        "receipt",
        metavar="RECEIPT",
        help="file that dbox-put or dbox-get --proof printed; or, alone, a zip of the page",
    )
    parser.add_argument("octets", metavar="OCTETS", nargs="?", help="file with the octets of the entry; - is stdin")
    parser.add_argument("--root", metavar="F", help="root certificate to trust (root.pem of DRE_DBOX_CERTS_DIR)")
    parser.add_argument(
        "--certs", metavar="F", help="certificates below it, from dbox-get --certs (chain.pem of DRE_DBOX_CERTS_DIR)"
    )
    parser.add_argument("--handovers", metavar="F", help="changes of the sign key, from dbox-get --handovers")
    parser.add_argument(
        "--witnesses", metavar="F", help="demand a cosignature by one of the witnesses whose keys are in F"
    )
    parser.set_defaults(function=_verify, strict=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-verify."""
    return cli.main(make_parser(), argv)


def _verify(ctx: cli.Context) -> int:
    args = ctx.args
    warnings.simplefilter("ignore", UserWarning)  # cryptography muses about odd names; we judge them
    root = _certificates(ctx, "root")
    if args.octets is not None:
        receipt = files.read(args.receipt, evidence.LARGEST)
        return _entry(ctx, root, receipt, files.read(args.octets, LARGEST), _chain(ctx))
    begin = _begin(args.receipt)
    if begin.startswith(b"PK\x03\x04"):
        found = _unzip(args.receipt)
        chain = files.read(args.certs, LARGEST) if args.certs else found["chain.pem"]
        return _entry(ctx, root, found["entry.tlog-proof"], found["entry.octets"], chain)
    if begin[257:262] == b"ustar":
        return _export(ctx, root)
    if begin.startswith(evidence.PROOF.encode()):
        raise UsageError(f"{args.receipt}: a receipt alone: OCTETS is missing")
    raise UsageError(f"{args.receipt}: neither a receipt, nor a zip of an entry, nor an export")


def _chain(ctx: cli.Context) -> bytes:
    return _certificates(ctx, "certs")


def _certificates(ctx: cli.Context, option: str) -> bytes:
    """What the file that *option* names holds, or the one that a host with a D-Box has. Raises UsageError."""
    given = getattr(ctx.args, option)
    path = Path(given or ctx.conf.dbox_certs_dir / {"root": "root.pem", "certs": "chain.pem"}[option])
    if given is None and not path.exists():
        whence = {"root": "your copy of the log's root.pem", "certs": "what dbox-get --certs printed"}[option]
        raise UsageError(f"{path}: no such file; name {whence}: --{option} FILE")
    return files.read(path, LARGEST)


def _begin(name: str) -> bytes:
    try:
        with open(name, "rb") as stream:
            return stream.read(512)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None


def _unzip(name: str) -> dict[str, bytes]:
    """The three files in a zip of the page. Raises UsageError."""
    import zipfile  # a receipt comes without

    wanted = {"entry.tlog-proof": evidence.LARGEST, "entry.octets": LARGEST, "chain.pem": LARGEST}
    try:
        with zipfile.ZipFile(name) as archive:
            if sorted(archive.namelist()) != sorted(wanted):
                raise UsageError(f"{name}: expected {', '.join(wanted)} in it and nothing else")
            found = {}
            for member, most in wanted.items():
                with archive.open(member) as stream:
                    found[member] = stream.read(most + 1)
                if len(found[member]) > most:
                    raise UsageError(f"{name}: {member}: more than {most} octets")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name}: not a zip that can be read: {error}") from None
    return found


def _export(ctx: cli.Context, root: bytes) -> int:
    """Check a whole export: what dbox-audit does, without its memory."""
    from dboxlib import export
    from dboxlib.cmd import dbox_audit

    if ctx.args.certs:
        raise UsageError("--certs: an export has its certificates with it")
    report = dbox_audit.audited(export.Export(Path(ctx.args.receipt)), root)
    dbox_audit.show(ctx, report, bool(report.findings))
    return 1 if report.findings else 0


def _entry(ctx: cli.Context, root: bytes, proof: bytes, octets: bytes, chain: bytes) -> int:
    args = ctx.args
    try:
        receipt = evidence.parse_receipt(proof)
    except evidence.FormatError as error:
        raise UsageError(f"{args.receipt}: {error}") from None
    if not octets:
        raise UsageError(f"{args.octets or args.receipt}: empty: no entry has no octets")
    try:
        keys = trust.load(root, chain)
        if args.handovers is not None:
            handover.learn(keys, handover.parse(files.read(args.handovers, HANDOVERS)))
        header, head = keys.check(receipt, octets)
        anchored = _anchored(args.witnesses, receipt)
    except evidence.VerifyError as error:
        raise evidence.VerifyError(f"{args.receipt}: does not verify: {error}") from None
    fields = {
        "verified": True,
        "index": receipt.index,
        **header.__dict__,
        "head_size": head.size,
        "head_time": head.time,
        "anchored": [{"witness": name, "time": when} for name, when in anchored],
    }
    if ctx.out.as_json:
        ctx.out.json(fields)
    elif not args.quiet:
        what = f"{header.stream} {header.seq} of {header.time} by {header.writer[:16]}"
        by = "".join(f"; anchored by {name} at {when}" for name, when in anchored)
        ctx.out.line(f"verified: entry {receipt.index} of {header.log}: {what}{by}")
    return 0


def _anchored(keys: str | None, receipt: evidence.Receipt) -> list[tuple[str, str]]:
    """Who cosigned the tree head, and when; somebody must have where *keys* of witnesses are given."""
    if keys is None:
        return []
    from dre import event, witness

    known = witness.parse_keys(files.read(keys, LARGEST).decode(errors="replace"), keys)
    found = witness.cosignatures(receipt.note, [one.key for one in known])
    if not found:
        raise evidence.VerifyError(f"no cosignature by a witness of {keys}")
    return [(name, event.stamp(when)) for name, when in found]
