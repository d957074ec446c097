# SPDX-License-Identifier: Apache-2.0
"""Looks at systems as a plan says: starts the programs, passes on what they find, keeps it as evidence.

    dre-lms, dre-libra, dre-foxykbd --stdout -> (pipe) -> this -> the monitor's intake, and the spool of the D-Box

What a guest made is read by those programs. Of them dre-lms, which looks all the time, goes on as a user of its own
once it has the memory of the guest; the others talk to libvirt at each look, and who may do that is as good as root.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import cli, dbox, event, files, glance
from dre.conf import Conf
from dre.errors import DreError, MissingError

from sysmonlib.plan import FOXY, LIBRA, LMS, Look

PROGRAMS = Path(__file__).resolve().parents[1]  # installed beside us
LOOKED, BLIND = "sysmon.looked", "sysmon.blind"
FINDINGS = ("sysmon.hidden.process", "sysmon.hidden.module", "sysmon.hidden.file", "sysmon.keylogger")
ALLOWED = frozenset((*FINDINGS, "sysmon.inconsistent", LOOKED))
CLIENT, STREAM = "sysmon", "sysmon"  # of the D-Box
AT_A_TIME = 4  # looks for each of which a process is started
BACK_OFF = (1.0, 30.0)  # seconds until a program that looks all the time is started again: first, and most
HEALTHY = 60.0  # seconds after which back-off begins anew
GRACE = 60.0  # seconds for which a look that goes on may be blind before it is told: a system may be started anew
AGAIN = 3600.0  # seconds after which it is told again that all is as it was
DRAIN = 5.0  # seconds between two deliveries to the D-Box
PATIENCE = {LMS: 60.0, LIBRA: 900.0, FOXY: 300.0}  # seconds that a program may say nothing; it is killed then
SLOWLY = 3600.0  # the same of dre-foxykbd --slow
ENDING = 3.0  # seconds that a program gets to end when asked to
_KEPT = 4096  # octets of what it says of errors


@dataclass
class Row:
    """A look, and what is known of it."""

    look: Look
    state: str = "waiting"  # looking, waiting; blind: the last one could not be had
    pid: int | None = None
    last: str | None = None  # the time of the last look that was had
    verdict: str | None = None
    found: int = 0  # findings since the service began
    reason: str | None = None  # why it is blind
    due: float = 0.0  # seconds since the epoch
    since: float | None = None  # time.monotonic() from which on it is blind
    told: tuple[str | None, float] = (None, 0.0)  # the verdict or reason that was told last, and when (monotonic)

    def shown(self) -> dict[str, Any]:
        """What `status` tells."""
        due = event.stamp(self.due) if self.state != "looking" and self.due else None
        return {
            "look": self.look.kind + ("-slow" if self.look.slow else ""),
            **{"system": self.look.system, "state": self.state, "pid": self.pid, "last": self.last},
            **{"verdict": self.verdict, "found": self.found, "due": due, "reason": self.reason},
        }

    def news(self, what: str, always: bool = False) -> bool:
        """Whether *what* is to be told, and note that it is."""
        now = time.monotonic()
        if not always and what == self.told[0] and now - self.told[1] < AGAIN:
            return False
        self.told = (what, now)
        return True


class Service:
    """Looks until it is told to end. Everything happens in one thread, but the delivery to the D-Box."""

    def __init__(self, conf: Conf, options: Sequence[str], looks: Sequence[Look], say: Callable[[str], None]) -> None:
        """*options* are those of ours that the programs are told, too."""
        self.conf, self.say = conf, say
        self._options = list(options)
        self._user: list[str] = []
        self.rows = [Row(look) for look in looks]
        self._recorder = dbox.Recorder(conf, CLIENT)
        self._begun = conf.core_state_dir / "sysmon" / "begun.json"
        self._times = _remembered(self._begun)
        # Of a system those for which a process is started come one after another: dre-libra makes it write, which is
        # what dre-foxykbd weighs. dre-lms only reads.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._many = asyncio.Semaphore(AT_A_TIME)
        self._complained = ""

    def become(self, user: str) -> None:
        """Have the programs become *user* where they can."""
        self._user = ["--user", user]

    # --- all of them ---

    async def run(self, renewed: Callable[[], Sequence[Look]]) -> None:
        """Look until SIGTERM or SIGINT; at SIGHUP go on with what *renewed()* gives, or, if that raises, as before."""
        told: asyncio.Queue[int] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, told.put_nowait, number)
        number = signal.SIGHUP
        try:
            while number == signal.SIGHUP:
                number = await self._until(told)
                if number == signal.SIGHUP:
                    try:
                        looks = renewed()
                    except DreError as error:
                        self.say(f"goes on with the plan as it was: {error}")
                    else:
                        known = {row.look: row for row in self.rows}
                        self.rows = [known.get(look) or Row(look) for look in looks]
        finally:
            place(self.conf).unlink(missing_ok=True)

    async def _until(self, told: "asyncio.Queue[int]") -> signal.Signals:
        """Look until a signal comes, which is returned."""
        wait = asyncio.ensure_future(told.get())
        tasks = [asyncio.ensure_future(self._watch(row)) for row in self.rows]
        tasks.append(asyncio.ensure_future(self._deliver()))
        self._show()
        try:
            done, _ = await asyncio.wait([wait, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # none of them ends but by an error of ours
        finally:
            for task in (wait, *tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return signal.Signals(wait.result())

    async def _deliver(self) -> None:
        """Hand what was recorded on to the D-Box, now and then."""
        while True:
            with contextlib.suppress(OSError):
                try:
                    await asyncio.to_thread(self._recorder.drain, DRAIN)
                    self._complained = ""
                except DreError as error:
                    if str(error) != self._complained:
                        self._complained = str(error)
                        self.say(f"D-Box: {error}; records wait")
            await asyncio.sleep(DRAIN)

    def _show(self) -> None:
        """Write down how everything is, for `status`."""
        told = {
            "pid": os.getpid(),
            "started": glance.started(os.getpid()),
            "looks": [row.shown() for row in self.rows],
        }
        with contextlib.suppress(OSError):  # nobody needs it more than the looks themselves
            self.conf.core_run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.write_atomic(place(self.conf), json.dumps(told) + "\n", durable=False)

    # --- one look ---

    async def _watch(self, row: Row) -> None:
        delay = BACK_OFF[0]
        while True:
            if row.look.lasting:
                begun = time.monotonic()
                await self._once(row)
                delay = BACK_OFF[0] if time.monotonic() - begun >= HEALTHY else delay
                row.due = time.time() + delay
                self._show()
                await asyncio.sleep(delay)
                delay = min(2 * delay, BACK_OFF[1])
                continue
            row.due = row.look.due(self._times.get(row.look.name))
            self._show()
            while (rest := row.due - time.time()) > 0:
                await asyncio.sleep(min(rest, 60.0))  # the clock may be put on
            async with self._turns[row.look.system], self._many:
                self._note(row)
                await self._once(row)

    def _note(self, row: Row) -> None:
        """That a look is begun: killed, and started again, we do not begin it anew before its time."""
        self._times[row.look.name] = time.time()
        kept = {look.name for look in (row.look for row in self.rows)}
        times = {name: moment for name, moment in self._times.items() if name in kept}
        try:
            self._begun.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.write_atomic(self._begun, json.dumps(times) + "\n")
        except OSError as error:
            self.say(f"{self._begun}: ignoring, as it only matters when we are killed: {error.strerror}")

    async def _once(self, row: Row) -> None:
        """Have one program look, pass on what it says, and tell if it cannot look."""
        look = row.look
        program = PROGRAMS / f"dre-{look.kind}"
        user = self._user if look.lasting else []
        argv = ["setpriv", "--pdeathsig", "KILL", str(program), *self._options, "--stdout", *user, *look.words()]
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=null, stdout=pipe, stderr=pipe, limit=2 * event.LIMIT
            )
        except OSError as error:
            self._blind(row, MissingError.code, f"setpriv: cannot be started: {error.strerror}")
            return
        said = asyncio.ensure_future(_last(process.stderr))
        row.pid = process.pid
        row.state = row.state if row.state == "blind" else "looking"
        self._show()
        reason: str | None = None
        number: int | None = signal.SIGTERM  # if we are to end
        try:
            reason = await self._listen(row, process)
            number = None if reason is None else signal.SIGKILL
        finally:
            await _end(process, number)
            row.pid = None
            if row.state == "looking":
                row.state = "waiting"
            words = ""
            with contextlib.suppress(TimeoutError):  # somebody else may hold its end
                async with asyncio.timeout(1.0):
                    words = await said
        if reason is None and process.returncode not in (0, 1):
            reason = words.removeprefix(f"{program.name}: ") or f"it ended with status {process.returncode}"
        elif reason is None and look.lasting:
            reason = "it ended"
        if reason is not None:
            self._blind(row, process.returncode or 0, reason)
        self._show()

    async def _listen(self, row: Row, process: asyncio.subprocess.Process) -> str | None:
        """Pass on each line until the end; why the program is not to be believed any more, or None."""
        assert process.stdout is not None
        patience = SLOWLY if row.look.slow else PATIENCE[row.look.kind]
        patience += 3 * (row.look.every or 0.0) if row.look.lasting else 0.0
        while True:
            try:
                async with asyncio.timeout(patience):
                    line = await process.stdout.readline()
            except TimeoutError:
                return f"it said nothing for {patience:g} seconds"
            except ValueError:
                return "it said a line that is no event"
            if not line:
                return None
            try:
                self._take(row, line)
            except event.EventError as error:
                return f"it said what is no event of it: {error}"

    def _take(self, row: Row, line: bytes) -> None:
        """Pass on an event of a program. Raises EventError where it may not say that."""
        told = event.parse(line)
        source = f"{event.host()}/sys:{row.look.system}"
        if told.type not in ALLOWED or told.source != source or "id" not in told.optional:
            raise event.EventError(f"{told.type} of {told.source}")
        if told.type == LOOKED:
            row.last, row.verdict, row.reason = told.time, str(told.data.get("verdict")), None
            row.state, row.since = "looking", None
            if row.news(row.verdict, always=not row.look.lasting):
                self._tell(line, told)
        else:
            row.found += 1
            self._tell(line, told)
        self._show()

    def _blind(self, row: Row, code: int, reason: str) -> None:
        now = time.monotonic()
        row.state, row.reason, row.since = "blind", cli.harmless(reason)[:400], row.since or now
        if (row.look.lasting and now - row.since < GRACE) or not row.news(row.reason):
            return
        self.say(f"{row.look.name}: cannot look: {row.reason}")
        data = {"system": row.look.system, "look": row.look.kind, "code": code, "reason": row.reason}
        source = f"{event.host()}/sys:{row.look.system}"
        told = event.Event(event.stamp(), source, BLIND, 4, data, {"id": event.new_id()})
        self._tell(event.new_line(told), told)

    def _tell(self, line: bytes, told: event.Event) -> None:
        """To the monitor, and to the D-Box."""
        if not event.send(self.conf.monitor_sink, line):
            event.spool(self.conf.core_state_dir / "spool" / "event", line)
        try:
            self._recorder.record(STREAM, line.rstrip(b"\n"), str(told.optional["id"]))
        except (DreError, OSError) as error:
            self.say(f"{told.type}: not recorded as evidence, ignoring that, as the monitor was told: {error}")


async def _last(stream: asyncio.StreamReader | None) -> str:
    """The last line that comes."""
    assert stream is not None
    kept = b""
    while block := await stream.read(_KEPT):
        kept = (kept + block)[-_KEPT:]
    return (kept.decode(errors="replace").strip().splitlines() or [""])[-1]


async def _end(process: asyncio.subprocess.Process, number: int | None) -> None:
    """Send *process* a signal, unless that is None, and wait for its end, for which it is killed if it must be."""
    if number is not None:
        _kill(process, number)
    try:
        async with asyncio.timeout(ENDING):
            await process.wait()
    except TimeoutError:
        _kill(process, signal.SIGKILL)
        await process.wait()


def _kill(process: asyncio.subprocess.Process, number: int) -> None:
    # Not by process.send_signal(), which asks for the status first and so takes it away from who waits for it.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _remembered(path: Path) -> dict[str, float]:
    try:
        return {str(name): float(moment) for name, moment in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # then each look is due now


def place(conf: Conf) -> Path:
    """Where the service tells how its looks are."""
    return conf.core_run_dir / "sysmon.json"


def status(conf: Conf) -> list[dict[str, Any]] | None:
    """How each look is; None when no service runs."""
    try:
        told = json.loads(place(conf).read_text())
    except FileNotFoundError:
        return None
    if glance.started(told["pid"]) != told["started"]:
        return None  # killed: the file tells of former times
    rows: list[dict[str, Any]] = told["looks"]
    return rows
