# SPDX-License-Identifier: Apache-2.0
"""dre-correlate: event lines from stdin, what SEC's rules recognise in them to the FIFOs that they name."""

import argparse
import contextlib
import gc
import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from dre import cli, event, files
from dre.errors import DreError, UsageError
from dre.event import LIMIT

from monitorlib import actions, rulecheck, ruleset, snapshot
from monitorlib.correlate import Correlator, TooLongError
from monitorlib.inbox import Inbox, Mark, end_with_parent, wait
from monitorlib.memory import Output
from monitorlib.pipes import write_lines
from monitorlib.tally import Tally

BLOCK = 1 << 18
STATE_OCTETS = 32 * 1024 * 1024  # of lines at most, and seconds at least, from one state to the next
STATE_PERIOD = 10.0
EXPLAINED = 16 * 1024 * 1024  # octets of the file of --explain
REPORT_PERIOD = 60.0
TALLY_PERIOD = 0.25
ASK_PERIOD = 1.0  # seconds at least from one watermark that is asked for to the next
RECENT = 20_000  # lines that are remembered, and as many before them, to know those that come once more
RECENT_OCTETS = 8 * 1024 * 1024  # of them that a new reader looks at
TOO_LONG = 0.25  # seconds of processor time: a pattern that takes twice as long for one line is given up


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-correlate."""
    parser = cli.parser(
        "dre-correlate", "Run rules of SEC in event time: event lines from stdin, detections to stdout."
    )
    parser.add_argument("file", metavar="FILE", nargs="*", help="rule files (default: all of /etc/dre/rules.d)")
    parser.add_argument("--state", metavar="DIR", help="keep in DIR what a kill must not lose; stdin is a pipe or FIFO")
    parser.add_argument(
        "--live", action="store_true", help="with --state: ask the intake for a dre.watermark when something is due"
    )
    parser.add_argument("--explain", metavar="FILE", help="append to FILE, as JSON Lines, why each line was written")
    parser.set_defaults(function=correlate)
    return parser


def correlate(ctx: cli.Context) -> None:
    """Run until the end of input."""
    given = ctx.args.file or sorted(map(str, (ctx.conf.core_etc_dir / "rules.d").glob("*.sec")))
    if not given and not ctx.args.state:  # a service without rules waits for some
        raise UsageError("there are no rule files; name them, or put them into rules.d")
    pipes = [path.name for path in ctx.conf.monitor_pipes]
    correlator = Correlator(load(given, set(pipes), ctx.say), pipes, bool(ctx.args.explain))
    sink = _Sink(
        ctx.conf.monitor_pipes, ctx.conf.core_run_dir / actions.FIFO if ctx.args.live else None, ctx.args.explain
    )
    with watched(correlator):
        if ctx.args.live and not ctx.args.state:
            raise UsageError("--live is for --state")
        if ctx.args.state:
            if not stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
                raise UsageError("--state needs a pipe or a FIFO as stdin")
            directory = Path(ctx.args.state)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with files.lock(directory / "lock", timeout=5.0):
                _Keeper(correlator, sink, ctx.say, directory, ctx.conf.monitor_sink if ctx.args.live else None).run()
        else:
            _Loop(correlator, sink, ctx.say).run()


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

    def __init__(self, pipes: tuple[Path, ...], acting: Path | None, explain: str | None) -> None:
        """*acting* is the FIFO for requests of programs; None: they are explained, and no more."""
        self._paths = {path.name: path for path in (*pipes, acting) if path}
        self._fds = {pipes[0].name: sys.stdout.fileno()}
        self._explain = explain
        self._explained = -1
        self._room = 0

    def write(self, out: list[Output], written: Callable[[int], None]) -> None:
        """Write the lines in *out* in their order, in pieces that a kill does not cut; tells how many each has."""
        begin = size = 0
        for end, item in enumerate(out):
            if end > begin and (item.pipe != out[begin].pipe or size + len(item.text) >= LIMIT):
                self._piece(out[begin:end], written)
                begin, size = end, 0
            size += len(item.text) + 1
        if out[begin:]:
            self._piece(out[begin:], written)

    def _piece(self, out: list[Output], written: Callable[[int], None]) -> None:
        if out[0].pipe != actions.FIFO or actions.FIFO in self._paths:
            write_lines(self._fd(out[0].pipe), b"".join(item.text + b"\n" for item in out))
        written(len(out))
        if self._explain:
            self._tell(self._explain, b"".join(map(_explained, out)))

    def _tell(self, path: str, octets: bytes) -> None:
        """Append to the file of --explain; when that is long, it becomes FILE.1 and another one begins."""
        if self._explained >= 0 and self._room <= 0:
            os.close(self._explained)
            Path(path).replace(f"{path}.1")
            self._explained = -1
        if self._explained < 0:
            self._explained = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640
            )
            self._room = EXPLAINED - os.fstat(self._explained).st_size
        self._room -= os.write(self._explained, octets)

    def _fd(self, pipe: str) -> int:
        if pipe not in self._fds:
            path = self._paths[pipe]
            if not path.is_fifo():
                raise DreError(f"{path}: there is no such FIFO")
            try:
                self._fds[pipe] = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # never waits for a reader to open it
            except PermissionError:  # we may only write; then somebody has to hold it open, as dre-monitor does
                self._fds[pipe] = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.set_blocking(self._fds[pipe], True)
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
        self.sink.write(memory.out, self._written)
        memory.out.clear()
        for text in memory.logged:
            self.say(cli.harmless(text.decode(errors="replace")))
        memory.logged.clear()

    def _written(self, count: int) -> None:
        """That many lines were written."""

    def _last_words(self) -> None:
        for rule in (rule for rules in self.correlator.rules.files for rule in rules if rule.slow):
            self.say(f"{rule.name}: the pattern took too long for {rule.slow} lines, which it did not match")
        if self.correlator.refused:
            self.say(f"left out {self.correlator.refused} lines that are no events")


class _Keeper(_Loop):
    """The same, so that a kill -9 at any moment loses nothing and doubles at most what was written last.

    Lines are in the inbox before they leave the pipe. From time to time all that is known is written to `state`, with
    how far it goes; a new reader takes it up and goes through the lines behind it again, without writing what was
    written. What the writer of the pipe, killed itself, sends once more is left out.
    """

    def __init__(
        self, correlator: Correlator, sink: _Sink, say: Callable[[str], None], directory: Path, intake: Path | None
    ) -> None:
        super().__init__(correlator, sink, say)
        self._intake = intake
        self._report_due = time.monotonic() + REPORT_PERIOD
        self._told: dict[str, int] = {}
        self._repeated = 0
        self._asked = 0.0  # time.monotonic() of the last watermark that was asked for
        self._state = directory / "state"
        self._mark = Mark(directory / "mark")
        self._inbox = Inbox(sys.stdin.fileno(), directory / "inbox", self._mark)
        self._count = 0  # of lines put out since the state directory was made
        self._saved = self._inbox.end  # the offset up to which the state goes
        self._due = time.monotonic() + STATE_PERIOD
        self._child = 0  # that writes the state
        self._saving = 0  # up to which offset
        self._note_due = 0.0
        self._before = self._mark.written  # by readers before us
        self._recent: tuple[set[bytes], set[bytes]] = (set(), set())
        self._tally = Tally(directory / "tally")
        self._ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Until the end of input, or until SIGTERM or SIGINT and there is nothing in the pipe."""
        signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._resume()
        gc.freeze()
        gc.disable()  # nothing here makes cycles, and to look for some among all that is known takes long
        ended = False
        while (lines := self._inbox.take()) is not None:
            if lines:
                self._take(self._new(lines))
            elif ended:
                break
            if self._inbox.end - self._saved > STATE_OCTETS or time.monotonic() >= self._due:
                self._save_beside()
            if time.monotonic() >= self._report_due:
                self._report()
            if not lines:
                self._note()
                ended = self._wait() or ended
            elif time.monotonic() >= self._note_due:
                self._note()
        if lines is None and (half := self._inbox.close()):
            self._take([half])
        self._written_beside(wait=True)
        self._save()
        self._last_words()

    def _note(self) -> None:
        """Tell `dre-monitor status` how we do: by the time of the events we lag while more of them wait."""
        self._note_due = time.monotonic() + TALLY_PERIOD
        lag = max(0.0, time.time() - self.correlator.memory.now) if self._inbox.waits else 0.0
        self._tally.write(
            {
                "in": self.correlator.lines,
                "out": self._mark.written - self._before,
                "refused": self.correlator.refused,
                "dropped": self._inbox.dropped,
                "lag": round(lag, 1),
            }
        )

    def _wait(self) -> bool:
        """Wait for input; True when a signal asks for the end."""
        pause = min(min(self._due, self._report_due) - time.monotonic(), self._ask())
        if not wait(sys.stdin.fileno(), self._ends[0], pause):
            return False
        return not {signal.SIGTERM, signal.SIGINT}.isdisjoint(os.read(self._ends[0], 4096))

    def _report(self) -> None:
        """Tell the intake what was done since the last report."""
        self._report_due = time.monotonic() + REPORT_PERIOD
        if not self._intake:
            return
        correlator = self.correlator
        now = {
            "taken": correlator.lines,
            "written": self._mark.written,
            "refused": correlator.refused,
            "dropped": self._inbox.dropped,
            "repeated": self._repeated,
            "slow": sum(rule.slow for rules in correlator.rules.files for rule in rules),
            "full": correlator.memory.full,
        }
        data = {key: value - self._told.get(key, 0) for key, value in now.items()}
        self._told = now
        lost = any(data[key] for key in ("refused", "dropped", "slow", "full"))
        data["operations"], data["contexts"] = correlator.count, len(correlator.memory.contexts)
        self._send("monitor.correlate.stats", 4 if lost else 6, data)

    def _send(self, type: str, sev: int, data: dict[str, int]) -> None:
        """Hand an event to the intake; when it is not there, it is left at that."""
        made = event.Event(event.stamp(), event.host() + "/monitor", type, sev, data, {"id": event.new_id()})
        if self._intake:
            event.send(self._intake, event.new_line(made))

    def _ask(self) -> float:
        """Ask for a watermark when something is due and no event comes; seconds until that may be so.

        It takes the way of all events, so it comes behind those before it, and stands in the record.
        """
        due = self.correlator.memory.timers.first
        if due is None or not self._intake:
            return STATE_PERIOD
        pause = max(due - time.time(), self._asked + ASK_PERIOD - time.monotonic())
        if pause > 0:
            return pause
        self._send("dre.watermark", 7, {})
        self._asked = time.monotonic()
        return ASK_PERIOD

    def _written(self, count: int) -> None:
        self._mark.written += count
        self._mark.update()

    def _take(self, lines: list[bytes]) -> None:
        super()._take(lines)
        self._count = self._mark.written

    def _new(self, lines: list[bytes]) -> list[bytes]:
        """*lines* without those that came a moment ago."""
        new = []
        for line in lines:
            if line in self._recent[0] or line in self._recent[1]:
                self._repeated += 1
                continue
            if len(self._recent[0]) >= RECENT:
                self._recent = (set(), self._recent[0])
            self._recent[0].add(line)
            new.append(line)
        return new

    def _resume(self) -> None:
        """Take up what a reader before us knew, and go through what it may not have dealt with."""
        files.remove_halves(self._state)
        try:
            state = json.loads(self._state.read_bytes())
        except FileNotFoundError:
            self._count = self._mark.written
            self._save()
            return
        except ValueError as error:
            raise DreError(f"{self._state}: damaged: {error}; remove it to begin anew") from None
        lost = snapshot.thaw(self.correlator, state)
        if lost:
            self.say(f"{lost} operations of rules that are no more were dropped")
        self._saved, self._count = state["offset"], state["written"]
        self._new(self._inbox.spooled(max(self._inbox.start, self._saved - RECENT_OCTETS), self._saved))
        memory = self.correlator.memory
        self.correlator.feed(self._new(self._inbox.spooled(self._saved, self._inbox.end)))
        del memory.out[: max(0, self._mark.written - self._count)]
        self._take([])
        self._save()

    def _save(self) -> None:
        """Write the state."""
        state = {"offset": self._inbox.end, "written": self._count, **snapshot.freeze(self.correlator)}
        files.write_atomic(self._state, json.dumps(state, separators=(",", ":")), mode=0o600)
        self._saved = self._inbox.end

    def _save_beside(self) -> None:
        """Have a child write the state as it is now, for that takes a while when much is known."""
        self._due = time.monotonic() + STATE_PERIOD
        if not self._written_beside(wait=self._inbox.end - self._saved > 2 * STATE_OCTETS):
            return
        self._saving, parent = self._inbox.end, os.getpid()
        self._child = os.fork()
        if not self._child:
            code = 1
            try:
                end_with_parent(parent)
                self._save()
                code = 0
            finally:
                os._exit(code)

    def _written_beside(self, wait: bool) -> bool:
        """Whether no child is writing the state any more. Raises DreError when one could not."""
        if self._child:
            pid, status = os.waitpid(self._child, 0 if wait else os.WNOHANG)
            if not pid:
                return False
            self._child = 0
            if status:
                raise DreError(f"{self._state}: cannot be written")
            self._saved = self._saving
        return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-correlate."""
    return cli.main(make_parser(), argv)
