# SPDX-License-Identifier: Apache-2.0
"""dre-correlate: event lines from stdin, what SEC's rules recognise in them to the FIFOs that they name."""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from dre import cli
from dre.errors import DreError, UsageError

from monitorlib import rulecheck, ruleset
from monitorlib.correlate import Correlator, TooLongError
from monitorlib.memory import Output
from monitorlib.pipes import write_lines

BLOCK = 1 << 18
TOO_LONG = 0.25  # seconds of processor time: a pattern that takes twice as long for one line is given up


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-correlate."""
    parser = cli.parser(
        "dre-correlate", "Run rules of SEC in event time: event lines from stdin, detections to stdout."
    )
    parser.add_argument("file", metavar="FILE", nargs="*", help="rule files (default: all of /etc/dre/rules.d)")
    parser.add_argument("--explain", metavar="FILE", help="append to FILE, as JSON Lines, why each line was written")
    parser.set_defaults(function=correlate)
    return parser


def correlate(ctx: cli.Context) -> None:
    """Run until the end of input."""
    given = ctx.args.file or sorted(map(str, (ctx.conf.core_etc_dir / "rules.d").glob("*.sec")))
    pipes = [path.name for path in ctx.conf.monitor_pipes]
    correlator = Correlator(load(given, set(pipes), ctx.say), pipes, bool(ctx.args.explain))
    with watched(correlator):
        _Loop(correlator, _Sink(ctx.conf.monitor_pipes, ctx.args.explain), ctx.say).run()


def load(given: list[str], pipes: set[str], say: Callable[[str], None]) -> ruleset.Ruleset:
    """The rules of the files *given*. Raises DreError with the first thing that is refused; the others are said."""
    books = []
    findings: list[rulecheck.Finding] = []
    for name in given:
        try:
            book = rulecheck.parse(name, rulecheck.read(Path(name)), pipes)
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}") from None
        except ValueError as error:
            book = rulecheck.Book(name, findings=[rulecheck.Finding(name, 1, f"not a text in ASCII: {error}")])
        books.append(book)
        findings += book.findings
    rules = ruleset.Ruleset()
    if not findings:
        rules, findings = ruleset.compile(books, pipes)
    if findings:
        for finding in findings[1:]:
            say(str(finding))
        raise DreError(f"rules refused: {findings[0]}")
    if not given:
        raise UsageError("there are no rule files; name them, or put them into rules.d")
    return rules


@contextlib.contextmanager
def watched(correlator: Correlator) -> Iterator[None]:
    """Give a pattern up that takes too long for one line; Python's re looks for signals while it searches."""
    last = -1

    def alarm(signum: int, frame: FrameType | None) -> None:
        nonlocal last
        if correlator.trying and correlator.lines == last:
            last = -1
            raise TooLongError
        last = correlator.lines if correlator.trying else -1

    signal.signal(signal.SIGVTALRM, alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, TOO_LONG, TOO_LONG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)  # at its end Python takes the handler away first


class _Sink:
    """Writes what comes out: to stdout for the first FIFO of DRE_MONITOR_PIPES, to the others by their paths."""

    def __init__(self, pipes: tuple[Path, ...], explain: str | None) -> None:
        self._paths = {path.name: path for path in pipes}
        self._fds = {pipes[0].name: sys.stdout.fileno()}
        self._explain = -1
        if explain:
            self._explain = os.open(explain, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    def write(self, out: list[Output]) -> None:
        """Write the lines in *out* in their order."""
        begin = 0
        for end in range(1, len(out) + 1):
            if end == len(out) or out[end].pipe != out[begin].pipe:
                lines = b"".join(item.text + b"\n" for item in out[begin:end])
                write_lines(self._fd(out[begin].pipe), lines)
                begin = end
        if self._explain >= 0 and out:
            os.write(self._explain, b"".join(map(_explained, out)))

    def _fd(self, pipe: str) -> int:
        if pipe not in self._fds:
            path = self._paths[pipe]
            if not path.is_fifo():
                raise DreError(f"{path}: there is no such FIFO")
            self._fds[pipe] = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # never waits for a reader to open it
        return self._fds[pipe]


def _explained(item: Output) -> bytes:
    """The line of --explain for what was written."""
    row: dict[str, object] = {**(item.why or {}), "pipe": item.pipe, "output": item.text.decode(errors="replace")}
    return json.dumps(row).encode() + b"\n"


class _Loop:
    """Reads, lets the correlator decide, writes."""

    def __init__(self, correlator: Correlator, sink: _Sink, say: Callable[[str], None]) -> None:
        self.correlator = correlator
        self.sink = sink
        self.say = say

    def run(self) -> None:
        """Until the end of input."""
        half = b""
        while block := os.read(sys.stdin.fileno(), BLOCK):
            *lines, half = (half + block).split(b"\n")
            self._take(lines)
        if half:
            self._take([half])
        self._last_words()

    def _take(self, lines: list[bytes]) -> None:
        memory = self.correlator.memory
        self.correlator.feed(lines)
        self.sink.write(memory.out)
        memory.out.clear()
        for text in memory.logged:
            self.say(cli.harmless(text.decode(errors="replace")))
        memory.logged.clear()

    def _last_words(self) -> None:
        for rule in (rule for rules in self.correlator.rules.files for rule in rules if rule.slow):
            self.say(f"{rule.name}: the pattern took too long for {rule.slow} lines, which it did not match")
        if self.correlator.refused:
            self.say(f"left out {self.correlator.refused} lines that are no events")


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-correlate."""
    return cli.main(make_parser(), argv)
