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
from dre import cli, event, evidence, trust
from dre.errors import DreError, UsageError

from dboxlib import export, pki, store
from dboxlib.cmd.dbox_audit import LARGEST, audited, read, show
from dboxlib.store import Row, Store

ENTRIES = 4096  # in one transaction
CA = {2: "centre", 1: "manufacturer", 0: "owner"}  # by path length


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-import."""
    parser = cli.parser("dbox-import", "Make a read-only log from what dbox-export wrote, once it is verified.")
    parser.add_argument("file", metavar="FILE", help="the export")
    parser.add_argument("--database", metavar="PATH", help="the database to make")
    parser.add_argument("--root", metavar="F", help="root certificate to trust (root.pem of DRE_DBOX_CERTS_DIR)")
    parser.set_defaults(function=_import, strict=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-import."""
    return cli.main(make_parser(), argv)


def _import(ctx: cli.Context) -> int:
    warnings.simplefilter("ignore", UserWarning)
    args = ctx.args
    if args.database is None:
        raise UsageError("--database is missing: where the log is to be")
    target = Path(args.database.removeprefix("sqlite:"))
    if target.exists():
        raise DreError(f"{target}: is there already")
    source = export.Export(Path(args.file))
    report = audited(source, read(args.root or ctx.conf.dbox_certs_dir / "root.pem", LARGEST))
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
