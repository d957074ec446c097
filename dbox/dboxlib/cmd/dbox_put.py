# SPDX-License-Identifier: Apache-2.0
"""dbox-put: send octets to the D-Box as entries, and print their receipts."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dre import cli, evidence, units
from dre.dbox import LARGEST, Record, Recorder
from dre.errors import DreError, TimedOutError, UsageError
from dre.evidence import Receipt

BATCH = 1000  # entries that become durable together
OCTETS = 1024 * 1024
COLUMNS: list[cli.Column] = [("STREAM", "stream", 8), ("SEQ", "seq", 6), ("LENGTH", "length", 8)]
Numbered = dict[tuple[str, int], None]


def make_parser() -> argparse.ArgumentParser:
    """The parser of dbox-put."""
    parser = cli.parser("dbox-put", "Append octets to the D-Box as entries and print their receipts.")
    parser.add_argument("files", metavar="FILE", nargs="*", help="each file becomes one entry; without one, stdin does")
    parser.add_argument("--client", metavar="N", type=units.name, default="writer", help="client certificate (writer)")
    parser.add_argument("--stream", metavar="S", type=units.name, default="app", help="stream of the entries (app)")
    parser.add_argument(
        "--timeout", metavar="T", type=units.duration, default=10.0, help="how long to try to reach the D-Box (10s)"
    )
    parser.add_argument("--request-id", metavar="ID", help="made again with the same ID, nothing is recorded twice")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--batch", action="store_true", help="each line of stdin, without its newline, is one entry")
    what.add_argument("--omprog", action="store_true", help="speak rsyslog's omprog protocol: lines ID TEXT, answer OK")
    what.add_argument("--drain", action="store_true", help="record nothing; deliver what waits in the spool")
    what.add_argument("--pending", action="store_true", help="record nothing; list what waits in the spool")
    parser.add_argument("-0", "--null", action="store_true", help="with --batch: entries end in NUL, not in a newline")
    parser.set_defaults(function=_put)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dbox-put."""
    return cli.main(make_parser(), argv)


def _put(ctx: cli.Context) -> None:
    args = ctx.args
    alone = next((f"--{name}" for name in ("batch", "omprog", "drain", "pending") if getattr(args, name)), "")
    if alone and args.files:
        raise UsageError(f"{alone} takes no FILE")
    if args.null and not args.batch:
        raise UsageError("--null goes with --batch")
    if args.request_id is not None and alone not in ("", "--batch"):
        raise UsageError(f"{alone} takes no --request-id")
    if args.omprog:
        from dboxlib import omprog

        return omprog.run(ctx)
    recorder = Recorder(ctx.conf, args.client)
    if args.pending:
        for record in recorder.spool.pending():
            ctx.out.row({"stream": record.stream, "seq": record.seq, "length": len(record.octets)}, COLUMNS)
        return None
    _deliver(ctx, recorder, {} if args.drain else _record(ctx, recorder))
    return None


def _record(ctx: cli.Context, recorder: Recorder) -> Numbered:
    """Spool everything that was given; the numbers, in order."""
    stream, request = ctx.args.stream, ctx.args.request_id
    wanted: Numbered = {}
    at = 0
    for parts in _parts(ctx):
        several = request and (ctx.args.batch or len(ctx.args.files) > 1)
        names = [f"{request}/{number}" if several else request for number in range(at + 1, at + 1 + len(parts))]
        wanted.update(((stream, seq), None) for seq in recorder.record_all(stream, parts, names if request else ()))
        at += len(parts)
    return wanted


def _parts(ctx: cli.Context) -> Iterator[list[bytes]]:
    """Entries, as many at a time as become durable together."""
    if ctx.args.batch:
        yield from _chunks(_lines(b"\0" if ctx.args.null else b"\n"))
    elif ctx.args.files:
        # All are read before the first is recorded: a wrong name must not leave half of them in the log.
        for name in ctx.args.files:
            _file(name, first_look=True)
        for name in ctx.args.files:
            yield [_file(name)]
    else:
        octets = sys.stdin.buffer.read(LARGEST + 1)
        if not octets:
            raise UsageError("nothing on stdin: an entry has at least one octet")
        yield [octets]


def _file(name: str, first_look: bool = False) -> bytes:
    try:
        with Path(name).open("rb") as stream:
            octets = stream.read(1 if first_look else LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None
    if not octets:
        raise UsageError(f"{name}: empty: an entry has at least one octet")
    if len(octets) > LARGEST:
        raise UsageError(f"{name}: more than {LARGEST} octets")
    return octets


def _lines(end: bytes) -> Iterator[bytes]:
    """The parts of stdin between *end*s; empty ones are no entries. Raises UsageError for one that is too long."""
    rest = b""
    while octets := os.read(sys.stdin.fileno(), OCTETS):
        *whole, rest = (rest + octets).split(end)
        yield from filter(None, whole)
        if len(rest) > LARGEST:
            raise UsageError(f"a line of more than {LARGEST} octets")
    if rest:
        yield rest


def _chunks(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    chunk, octets = list[bytes](), 0
    for line in lines:
        chunk.append(line)
        octets += len(line)
        if len(chunk) == BATCH or octets >= OCTETS:
            yield chunk
            chunk, octets = [], 0
    if chunk:
        yield chunk


def _deliver(ctx: cli.Context, recorder: Recorder, wanted: Numbered) -> None:
    """Empty the spool and print the receipts of what was *wanted*, in its order."""
    waiting = dict(wanted)

    def told(record: Record, receipt: Receipt) -> None:
        if (record.stream, record.seq) in waiting:
            del waiting[record.stream, record.seq]
            _print(ctx, record.stream, record.seq, receipt.index, receipt.format())

    try:
        for stream, seq in list(waiting) if ctx.args.request_id is not None else ():
            octets = recorder.receipt(stream, seq)  # this request was made, and delivered, before
            if octets is None:
                break
            told(Record(stream, seq, b"", 0, ""), evidence.parse_receipt(octets))
        recorder.drain(ctx.args.timeout, told)
        for stream, seq in list(waiting):
            octets = recorder.receipt(stream, seq)  # somebody else delivered it at the same time
            if octets is not None:
                told(Record(stream, seq, b"", 0, ""), evidence.parse_receipt(octets))
    except DreError as error:
        kind = type(error)
        raise kind(f"{error}{_waits(recorder, waiting)}") from None
    if waiting or (ctx.args.drain and recorder.pending()):
        raise TimedOutError(f"not delivered within {ctx.args.timeout:g} s{_waits(recorder, waiting)}")


def _waits(recorder: Recorder, waiting: Numbered) -> str:
    if not waiting:
        return ""
    stream, seq = next(iter(waiting))
    if len(waiting) == 1:
        return f"; the record waits as {stream} {seq} in {recorder.directory}, and goes with the next one"
    return f"; {len(waiting)} records wait, from {stream} {seq} on, in {recorder.directory}, and go with the next one"


def _print(ctx: cli.Context, stream: str, seq: int, index: int, receipt: str) -> None:
    if ctx.out.as_json:
        ctx.out.json({"stream": stream, "seq": seq, "index": index, "receipt": receipt})
    elif not ctx.args.quiet:
        sys.stdout.write(receipt)
