# SPDX-License-Identifier: Apache-2.0
"""dbox-import: make a log that can be read, searched and audited, but not written, from an export of it."""

import argparse
import contextlib
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from dre import cli, event, evidence, files, trust, units
from dre.errors import DreError, UsageError

from dboxlib import export, pki, store
from dboxlib.cmd.dbox_audit import LARGEST, audited, show
from dboxlib.store import Row, Store

ENTRIES = 4096  # in one transaction
CA = {2: "centre", 1: "manufacturer", 0: "owner"}  # by path length


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-import."""
    parser = cli.parser("dbox-import", "Make a read-only log from what dbox-export wrote, once it is verified.")
    parser.add_argument("file", metavar="FILE", nargs="?", help="the export")
    parser.add_argument("--database", metavar="PATH", help="the database to make")
    parser.add_argument("--root", metavar="F", help="root certificate to trust (root.pem of DRE_DBOX_CERTS_DIR)")
    parser.add_argument(
        "--legacy", metavar="DIR", help="instead: record what a D-Box with MD5 left, NAME.octets, NAME.sig and NAME.crt"
    )
    parser.add_argument("--client", metavar="N", type=units.name, default="writer", help="--legacy: who records it")
    parser.add_argument("--stream", metavar="S", type=units.name, default="legacy", help="--legacy: where (legacy)")
    parser.set_defaults(function=_import, strict=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-import."""
    return cli.main(make_parser(), argv)


def _import(ctx: cli.Context) -> int:
    warnings.simplefilter("ignore", UserWarning)
    args = ctx.args
    if (args.file is None) == (args.legacy is None):
        raise UsageError("expected FILE, or --legacy DIR")
    if args.legacy is not None:
        return _legacy(ctx)
    if args.database is None:
        raise UsageError("--database is missing: where the log is to be")
    target = Path(args.database.removeprefix("sqlite:"))
    if target.exists():
        raise DreError(f"{target}: is there already")
    source = export.Export(Path(args.file))
    report = audited(source, files.read(args.root or ctx.conf.dbox_certs_dir / "root.pem", LARGEST))
    if report.findings:
        show(ctx, report, True)
        return 1
    temporary = target.with_name(f".{target.name}.importing")
    _remove(temporary)
    try:
        store.create(f"sqlite:{temporary}", source.origin, source.title.box, _certificates(source.chain()))
        with contextlib.closing(store.open(f"sqlite:{temporary}", write=True)) as made:
            _fill(made, source)
            for anchor in source.anchors():
                made.keep_anchor(anchor.kind, anchor.name, anchor.size, anchor.time, anchor.octets)
            made.engine.rows("PRAGMA journal_mode=DELETE")  # nobody will write: a file alone is all of it
        temporary.chmod(0o444)
        temporary.rename(target)
    finally:
        _remove(temporary)
    ctx.say(f"{target}: {report.entries} entries of log {source.origin}")
    return 0


def _legacy(ctx: cli.Context) -> int:
    """Record old ones, each only if its MD5 signature is right; the others are named."""
    from dre.dbox import Recorder

    from dboxlib import legacy

    args = ctx.args
    if args.database or args.root:
        raise UsageError("--legacy goes with --client and --stream alone")
    good, wrong = [], []
    for old in legacy.find(Path(args.legacy)):
        try:
            good.append((old, legacy.check(old)))
        except DreError as error:
            wrong.append(str(error))
    recorder = Recorder(ctx.conf, args.client)
    for old, checked in good:
        parts = old.parts(checked)
        try:
            recorder.record_all(args.stream, parts, [f"{old.request()}/{number}" for number in range(len(parts))])
        except UsageError:  # the last one has the time of its import in it, and is there with another
            ctx.out.line(f"{old.name}: was imported before")
            continue
        ctx.out.line(f"{old.name}: {checked}; integrity {legacy.SINCE}")
    recorder.drain(60.0)
    if wrong:
        raise DreError("; ".join(wrong))
    return 0


def _remove(path: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def _fill(made: Store, source: export.Export) -> None:
    """Put in everything, each tree head with the entries it covers."""
    heads = source.heads(0)
    waiting = next(heads, None)
    when = event.stamp()
    for rows in _rows(source):
        end, ready = rows[-1][0].number + 1, []
        while waiting is not None and waiting[0] <= end:
            ready.append(waiting)
            waiting = next(heads, None)
        made.restore(rows, ready, when)
    if waiting is not None:  # of an empty log
        made.restore([], [waiting], when)


def _rows(source: export.Export) -> Iterator[list[tuple[Row, bool]]]:
    rows: list[tuple[Row, bool]] = []
    for number, text, salt, octets in source.rows():
        header = evidence.parse_header(text)
        time, leaf = store.milliseconds(header.time), hashlib.sha256(b"\0" + text).digest()
        row = Row(number, header.writer, header.stream, header.seq, time, bytes.fromhex(header.digest), leaf,
                  octets or b"", salt, text)  # fmt: skip
        rows.append((row, octets is None))
        if len(rows) == ENTRIES:
            yield rows
            rows = []
    if rows:
        yield rows


def _certificates(chain: bytes) -> list[tuple[str, str, str]]:
    """Kind, fingerprint and PEM of the certificates, the oldest first: they were written the newest first."""
    found = []
    for certificate in reversed(trust.certificates(chain, "certificates")):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        kind = "note" if isinstance(certificate.public_key(), ed25519.Ed25519PublicKey) else "sign"
        kind = CA.get(constraints.path_length or 0, "centre") if constraints.ca else kind
        found.append((kind, trust.fingerprint(certificate), pki.pem(certificate).decode()))
    return found
