# SPDX-License-Identifier: Apache-2.0
"""dre-reorder: stdin to stdout, event lines put back in time order."""

import argparse
import contextlib
import fcntl
import gc
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from dre import cli, event, units
from dre.errors import UsageError

from monitorlib.pipes import write_lines
from monitorlib.reorder import DIVERT, DROP, MARK, Place, Reorder, Stats
from monitorlib.tally import Tally

BLOCK = 1 << 17  # of input; it and its lines stay in the cache of a processor
STATS_PERIOD = 60.0
TALLY_PERIOD = 0.25
GARBAGE = 50_000  # new objects until cycles are looked for: lines are in none, and looking took a tenth of the time
OLDEST_PERIOD = 0.25  # finding the oldest held line looks at all of them; an older answer only costs repetition


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-reorder."""
    parser = cli.parser("dre-reorder", "Put event lines from stdin back in time order, to stdout.")
    parser.add_argument("--window", metavar="D", help="how long to wait for late events (default: DRE_MONITOR_WINDOW)")
    parser.add_argument(
        "--replay", action="store_true", help="time is that of the events (a recorded file), not the wall clock"
    )
    parser.add_argument(
        "--late",
        metavar=("mark|drop|divert", "FD"),
        nargs="+",
        default=[MARK],
        help='pass late events on with "late", drop them, or write them to the file descriptor FD',
    )
    parser.add_argument(
        "--skew", metavar="D", default="1s", help="by how much a clock may be wrong (default 1s; 0s: any)"
    )
    parser.add_argument("--early", action="store_true", help="do not wait when all sources have sent something younger")
    parser.add_argument("--idle", metavar="D", help="for --early: how long a silent source counts (default 10s)")
    parser.add_argument("--max", metavar="N", type=int, default=1_000_000, help="most events held (default 1000000)")
    parser.add_argument("--resume", metavar="FILE", help="note in FILE how far we are, for dre-ingest --resume FILE")
    parser.set_defaults(function=reorder)
    return parser


def reorder(ctx: cli.Context) -> None:
    """Run until the end of input."""
    window = ctx.conf.monitor_window if ctx.args.window is None else units.duration(ctx.args.window)
    if ctx.args.max < 1:
        raise UsageError(f"--max {ctx.args.max}: at least 1 is needed")
    for name in ("resume", "early"):
        if getattr(ctx.args, name) and ctx.args.replay:
            raise UsageError(f"--{name} and --replay exclude each other")
    if ctx.args.idle and not ctx.args.early:
        raise UsageError("--idle is for --early")
    late, aside = _late(ctx.args.late)
    note = _Note(Path(ctx.args.resume)) if ctx.args.resume else None
    filter = Reorder(
        window,
        ctx.args.max,
        late,
        ctx.args.replay,
        note.before if note else None,
        skew=units.duration(ctx.args.skew),
        early=ctx.args.early,
        idle=units.duration(ctx.args.idle or "10s"),
    )
    gc.set_threshold(GARBAGE)
    _Loop(filter, note, ctx.say, aside).run()


def _late(words: list[str]) -> tuple[str, int]:
    """What happens to late events, and the file descriptor for them (-1: none). Raises UsageError."""
    if words in ([MARK], [DROP]):
        return words[0], -1
    if words[0] != DIVERT or len(words) != 2 or not words[1].isdecimal():
        raise UsageError(
            f"--late {' '.join(words)}: expected mark, drop, or divert and the number of a file descriptor"
        )
    try:
        if fcntl.fcntl(int(words[1]), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise UsageError(f"--late divert {words[1]}: cannot be written to")
    except (OSError, OverflowError):
        raise UsageError(f"--late divert {words[1]}: no such file descriptor is open") from None
    return DIVERT, int(words[1])


class _Loop:
    """Reads, lets the filter decide, writes."""

    def __init__(self, filter: Reorder, note: "_Note | None", say: Callable[[str], None], aside: int) -> None:
        self.filter = filter
        self.note = note
        self.say = say
        self.aside = aside  # the file descriptor for late events
        self.done = Stats()  # before the last report
        self.tell_due = 0.0
        self.source = sys.stdin.fileno()
        self.out = sys.stdout.fileno()

    def run(self) -> None:
        half = b""
        report = time.monotonic() + STATS_PERIOD
        while True:
            block = self._read()
            if block == b"":
                break
            if block:
                lines = (half + block).split(b"\n")
                half = lines.pop()
                self._take(lines)
            self._write(self.filter.due(time.time()))
            if self.note:
                self.note.update(self.filter)
                self._tell(self.note)
            if time.monotonic() >= report:
                self._report()
                report = time.monotonic() + STATS_PERIOD
        if half:
            self._take([half])
        self._write(self.filter.rest())
        self._last_words()
        if self.note:
            self.note.update(self.filter, last=True)

    def _read(self) -> bytes | None:
        """A block; empty at the end of input; None when something is due before any comes."""
        if not self.filter.replay:
            ready, _, _ = select.select([self.source], [], [], min(1.0, self.filter.wait(time.time())))
            if not ready:
                return None
        return os.read(self.source, BLOCK)

    def _take(self, lines: list[bytes]) -> None:
        self._write(self.filter.take(lines, time.time()))
        if self.filter.diverted:
            write_lines(self.aside, b"\n".join(self.filter.diverted) + b"\n")
            self.filter.diverted.clear()
        for source, skew in self.filter.clocks.changed:
            self._clock(source.decode(errors="replace"), skew)
        self.filter.clocks.changed.clear()

    def _clock(self, source: str, skew: float) -> None:
        """Tell that a clock is wrong, or (*skew* 0) right again."""
        data = {"source": source, "skew": round(skew, 3)}
        if self.filter.replay:
            self.say(f"clock of {source}: {skew:+.3f} s behind" if skew else f"clock of {source}: right again")
        else:
            self.filter.add(_line("monitor.clock.skew", 4 if skew else 6, data))

    def _write(self, lines: list[bytes]) -> None:
        if lines:
            write_lines(self.out, b"\n".join(lines) + b"\n")

    def _stats_line(self, stats: Stats) -> bytes:
        data = {**asdict(stats), "held": self.filter.held, "lag": round(self.filter.lag(time.time()), 3)}
        return _line("monitor.reorder.stats", 6, data)

    def _report(self) -> None:
        if not self.filter.replay:
            stats, self.filter.stats = self.filter.stats, Stats()
            self.done = Stats(*(had + new for had, new in zip(_counts(self.done), _counts(stats), strict=True)))
            self.filter.add(self._stats_line(stats))

    def _tell(self, note: "_Note") -> None:
        """Tell `dre-monitor status` how we do, now and then."""
        if time.monotonic() < self.tell_due:
            return
        self.tell_due = time.monotonic() + TALLY_PERIOD
        had, new = self.done, self.filter.stats
        note.tally.write(
            {
                "in": had.taken + had.refused + new.taken + new.refused,
                "out": had.released + new.released,
                "late": had.late + new.late,
                "refused": had.refused + new.refused,
                "dropped": had.dropped + new.dropped,
                "held": self.filter.held,
                "lag": round(max(0.0, self.filter.lag(time.time()) - self.filter.window), 1),
            }
        )

    def _last_words(self) -> None:
        stats = self.filter.stats
        if stats.late or stats.dropped or stats.diverted or stats.forced or stats.skewed or stats.refused:
            self.say(", ".join(f"{key} {value}" for key, value in asdict(stats).items()))
            if not self.filter.replay:
                self._write([self._stats_line(stats)])


def _counts(stats: Stats) -> tuple[int, ...]:
    return tuple(asdict(stats).values())


def _line(type: str, sev: int, data: Mapping[str, object]) -> bytes:
    """An event of our own, without its newline."""
    made = event.Event(event.stamp(), event.host() + "/monitor", type, sev, data, {"id": event.new_id()})
    return event.format(made).rstrip(b"\n")


class _Note:
    """The --resume file: oldest, consumed and passed on one line, overwritten in place by one short write."""

    def __init__(self, path: Path) -> None:
        self.before = Place()
        self.tally = Tally(path.with_suffix(".tally"))
        with contextlib.suppress(OSError, ValueError):
            oldest, consumed, passed = path.read_text().split()
            event.seconds(passed)
            self.before = Place(int(oldest), int(consumed), passed.encode())
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self._oldest = self.before.oldest
        self._written = b""
        self._due = 0.0

    def update(self, filter: Reorder, last: bool = False) -> None:
        """Note how far *filter* is; called after its output was written."""
        if not filter.started or not filter.passed:
            return
        if last or time.monotonic() >= self._due:
            self._oldest = filter.oldest()
            self._due = time.monotonic() + OLDEST_PERIOD
        text = b"%020d %020d %s\n" % (self._oldest, filter.position, filter.passed)
        if text != self._written:
            os.pwrite(self._fd, text, 0)
            self._written = text


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-reorder."""
    return cli.main(make_parser(), argv)
