# SPDX-License-Identifier: Apache-2.0
"""dbox-audit: look at a whole log, and say which is the first entry that is not what was logged."""

import argparse
import contextlib
import gc
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dre import audit, cli, event, evidence, files, trust, units
from dre.audit import Mark, Report
from dre.conf import Conf
from dre.errors import FAILED, DreError, MissingError, UsageError
from dre.evidence import VerifyError

from dboxlib import anchors
from dboxlib.anchors import Judged

LARGEST = 16 * 1024 * 1024  # octets of certificates, and of a tree head that is known


class CheckError(DreError):
    """The log could not be looked at: this is no finding."""

    code = 2


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-audit."""
    parser = cli.parser("dbox-audit", "Check a whole log: every entry, every tree head, every signature.")
    parser.add_argument(
        "--client", metavar="N", type=units.name, default="auditor", help="client certificate (auditor)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--database", metavar="DB", help="a database (a path, or as DRE_DBOX_DATABASE) instead of HTTPS")
    where.add_argument("--export", metavar="FILE", help="what dbox-export wrote instead of HTTPS")
    parser.add_argument("--root", metavar="F", help="root certificate to trust (root.pem of DRE_DBOX_CERTS_DIR)")
    parser.add_argument(
        "--seen", metavar="F", nargs="+", default=[], help="receipts and tree heads kept elsewhere, which must fit"
    )
    parser.add_argument("--since-last", action="store_true", help="only what came since the last audit, for cron")
    parser.add_argument("--forget", action="store_true", help="begin anew: forget the tree head of the last audit")
    parser.add_argument("--strict", action="store_true", help="a gap in the numbers of a stream is a finding")
    parser.set_defaults(function=_audit)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-audit."""
    return cli.main(make_parser(), argv)


def _audit(ctx: cli.Context) -> int:
    warnings.simplefilter("ignore", UserWarning)  # cryptography muses about odd names; we judge them
    gc.disable()  # millions of rows come and go, none in a circle: looking for circles is a tenth of the time
    args = ctx.args
    if args.forget and args.since_last:
        raise UsageError("--forget and --since-last exclude each other")
    try:
        with _source(ctx) as source:
            report = audited(
                source,
                files.read(args.root or ctx.conf.dbox_certs_dir / "root.pem", LARGEST),
                [mark for name in args.seen for mark in marks(name, files.read(name, LARGEST))],
                memory := _Memory(ctx, source.origin),
                args.since_last,
                judge := _Judge(ctx.conf),
            )
    except CheckError:
        raise
    except DreError as error:
        if error.code != FAILED:
            raise
        raise CheckError(str(error)) from None
    bad = bool(report.findings) or (args.strict and bool(report.gaps))
    if not report.findings:
        memory.save(report)
    show(ctx, report, bad, judge.judged(report))
    if report.findings:
        _alarm(ctx, report)
    return 1 if bad else 0


@contextlib.contextmanager
def _source(ctx: cli.Context) -> Iterator[audit.Source]:
    args = ctx.args
    if args.export is not None:
        from dboxlib import export

        yield export.Export(Path(args.export))
        return
    if args.database is not None:
        try:
            from dboxlib import database, store
        except ImportError:
            raise MissingError("reading a database needs the D-Box itself; apt-get install dbox") from None

        yield database.Database(store.open(args.database, password_file=ctx.conf.dbox_database_password_file))
        return
    from dre.dbox import Client

    from dboxlib import sources

    client = Client(ctx.conf, args.client)
    try:
        yield sources.Server(client)
    finally:
        client.close()


class _Judge:
    """What the settings know of witnesses and of a time stamping authority, and how old an anchor may be."""

    def __init__(self, conf: Conf) -> None:
        from dre import witness

        self.conf = conf
        self.newest: tuple[str, int] | None = None  # the time that a third party said, of so many entries
        self.keys = dict[str, witness.Vkey]()
        if conf.dbox_witnesses is not None:
            text = files.read(conf.dbox_witnesses, LARGEST).decode(errors="replace")
            self.keys = {one.key.name: one.key for one in witness.parse_keys(text, str(conf.dbox_witnesses))}

    def __call__(self, anchor: audit.Anchor, note: evidence.Note) -> bool | None:
        """Whether *anchor* is right for the tree head *note*; None where nobody here knows who said it."""
        try:
            when = self._time(anchor, note)
        except (VerifyError, evidence.FormatError, UnicodeDecodeError):
            return False
        if when is not None:
            self.newest = max(self.newest or ("", 0), (when, anchor.size))
        return None if when is None else True

    def _time(self, anchor: audit.Anchor, note: evidence.Note) -> str | None:
        """When the third party said so, not when the D-Box claims it did. Raises VerifyError."""
        from dre import timestamp, witness

        if anchor.kind == "witness" and anchor.name in self.keys:
            lines = witness.signature_lines(anchor.octets.decode())
            signed = witness.cosignatures(evidence.Note(note.text, lines), [self.keys[anchor.name]])
            if not signed:
                raise VerifyError(f"no cosignature by {anchor.name}")
            return event.stamp(signed[0][1])
        if anchor.kind == "rfc3161" and self.conf.dbox_tsa_ca is not None:
            return timestamp.check(self.conf.dbox_tsa_ca, note.text, anchor.octets)
        return None

    def judged(self, report: Report) -> Judged | None:
        """The age of the newest anchor by the policy; None where it may lie before what was looked at."""
        if report.head is None or (report.begin and self.newest is None):
            return None
        return anchors.judge(self.conf, self.newest, report.head.size)


def audited(
    source: audit.Source,
    root: bytes,
    known: Sequence[Mark] = (),
    memory: "_Memory | None" = None,
    since_last: bool = False,
    judge: audit.Judge = lambda anchor, note: None,
) -> Report:
    """The report of an audit of *source* under *root*."""
    before = memory.read() if memory else None
    here = list(known)
    if before is not None and not since_last:
        here.append(Mark(before.head, "the last audit", evidence.parse_note(before.note)))
    if since_last and before is None:
        since_last = False  # the first one looks at everything
    try:
        keys = trust.load(root, source.chain())
        return audit.Auditor(source, keys, here, before if since_last else None, judge).run()
    except VerifyError as error:
        if isinstance(error, evidence.TamperedError):
            raise
        report = Report(source.origin, source.octets)
        report.findings.append(audit.Finding("certificate", 0, str(error)))
        return report


def marks(name: str, octets: bytes) -> list[Mark]:
    """The tree head of a receipt or of a note, kept elsewhere. Raises FormatError."""
    try:
        note = evidence.parse_receipt(octets).note
    except evidence.FormatError:
        try:
            note = evidence.parse_note(octets.decode())
        except (UnicodeDecodeError, evidence.FormatError):
            raise evidence.FormatError(f"{name}: neither a receipt nor a tree head") from None
    return [Mark(evidence.parse_head(note.text), name, note)]


class _Memory:
    """The file in which an audit remembers where it ended."""

    def __init__(self, ctx: cli.Context, origin: str) -> None:
        self.path = ctx.conf.core_state_dir / "audit" / f"{origin.replace('/', '_')}.json"
        self.forget = ctx.args.forget

    def read(self) -> audit.Memory | None:
        """What the last audit left, None when there was none. Raises FormatError."""
        if self.forget or not self.path.exists():
            return None
        try:
            return audit.parse_memory(self.path.read_text())
        except evidence.FormatError as error:
            raise evidence.FormatError(f"{self.path}: {error}") from None

    def save(self, report: Report) -> None:
        """Remember where *report* ended; an older log does not replace what a newer one left."""
        if report.memory is not None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.write_atomic(self.path, report.memory.format(), 0o600)


def show(ctx: cli.Context, report: Report, bad: bool, judged: Judged | None = None) -> None:
    """Print the findings, the gaps, and one line about all."""
    for finding in report.findings:
        fields: dict[str, Any] = {"finding": finding.kind, "index": finding.index, "text": finding.text}
        if finding.proof:
            fields["proof"] = list(finding.proof)
        ctx.out.json(fields) if ctx.out.as_json else ctx.out.line(f"{finding.kind} {finding.index}: {finding.text}")
        for note in finding.proof if not ctx.out.as_json and len(finding.proof) == 2 else ():
            ctx.out.line("".join(f"    {line}\n" for line in note.splitlines()).rstrip("\n"))
    if ctx.args.quiet and not bad:
        return
    for gap in report.gaps:
        if ctx.out.as_json:
            ctx.out.json({"gap": gap.stream, "writer": gap.writer, "first": gap.first, "last": gap.last})
        else:
            ctx.out.line(f"gap: stream {gap.stream} of {gap.writer[:16]} lacks {gap.first} to {gap.last}")
    _summary(ctx, report, bad, judged)


def _summary(ctx: cli.Context, report: Report, bad: bool, judged: Judged | None) -> None:
    head, newest = report.head, report.anchored
    fields = {
        "clean": not bad,
        "first_bad": report.first_bad,
        "log": report.origin,
        "size": head.size if head else None,
        "time": head.time if head else None,
        "since": report.begin,
        "entries": report.entries,
        "heads": report.heads,
        "erased": report.erased,
        "octets": report.octets,
        "gaps": len(report.gaps),
        "anchors": len(report.anchors),
        "anchored": newest.size if newest else None,
        "anchor_state": judged.state if judged else None,
        "anchor_reason": judged.reason if judged else None,
    }
    if ctx.out.as_json:
        ctx.out.json(fields)
        return
    what = f"{report.entries} entries, {report.heads} tree heads" + (
        f", from {report.begin} on" if report.begin else ""
    )
    what += f", anchored up to {newest.size}" if newest else ""
    what += "" if report.octets else "; octets were not looked at"
    what += f"; amber: {judged.reason}" if judged and judged.state == anchors.AMBER else ""
    if report.first_bad is not None:
        ctx.out.line(f"first bad index {report.first_bad} of log {report.origin} ({what})")
    elif bad:
        ctx.out.line(f"{len(report.gaps)} gaps in log {report.origin} ({what})")
    else:
        ctx.out.line(f"clean: log {report.origin}: {what}")


def _alarm(ctx: cli.Context, report: Report) -> None:
    """Tell the monitor; a finding is nothing to be read next week in a log file."""
    data = {
        "log": report.origin,
        "entry": report.first_bad,
        "reason": report.findings[0].text[:500],
        "by": "dbox-audit",
    }
    try:
        event.emit(ctx.conf, "dbox.tampered", event.host() + "/dbox", data, 1)
    except (DreError, OSError) as error:
        sys.stderr.write(f"{ctx.prog}: dbox.tampered not sent: {error}\n")
