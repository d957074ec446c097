# SPDX-License-Identifier: Apache-2.0
"""The impure shell round the core: reads events, journals, does steps in threads, hands evidence on.

Order of things: a decision and the intents that follow from it are durable in one write before a step begins; its
outcome is durable before the next decision. After a crash every intent without an outcome is asked again under the
same request id, so that each action happens once.
"""

import contextlib
import os
import queue
import re
import select
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import event
from dre.conf import Conf
from dre.errors import DreError
from dre.event import Event, EventError
from dre.init import Init

from dscriptlib import answers, core, lines, store, trust
from dscriptlib import state as state_of
from dscriptlib.clock import Clock
from dscriptlib.doer import Doer, GoneError, Outcome
from dscriptlib.fifo import BadLines, Fifo
from dscriptlib.follower import Follower
from dscriptlib.journal import Journal, Record, records
from dscriptlib.model import Script
from dscriptlib.state import Act, Answered, Given, Happened, Passed, Replied, State, Tell

KNOWN = 4096  # events remembered, so that one that is sent again is not answered again
LOOK = 1.0  # seconds between looks at the directory of deployed scripts
Say = Callable[[str], None]
_HEAD = re.compile(rb'\{"time":"[^"\\]*","source":"[^"\\]*","type":"([^"\\]*)"')


@dataclass
class Slot:
    """A script in force, its state, and the version that waits until nothing of this one is running."""

    script: Script
    state: State
    waiting: Script | None = None
    known: tuple[Script | None, frozenset[str]] = (None, frozenset())

    def hears(self, happened: Event) -> bool:
        """Whether the script has to do with the event; the most have not, and are told by their type alone."""
        if self.known[0] is not self.script:
            self.known = (self.script, core.types(self.script))
        return happened.type in self.known[1] and core.mentions(self.script, happened)


class Watchdog(Init):
    """Tells systemd that we are ready and, each second, that we still work."""

    def __init__(self) -> None:
        super().__init__()
        self.said = -LOOK

    def alive(self) -> None:
        """A turn of the loop has ended."""
        if time.monotonic() - self.said >= LOOK:
            self.said = time.monotonic()
            self.say("WATCHDOG=1")


class Engine:
    """One engine. Everything but `_work` happens in the thread that calls `run`."""

    def __init__(
        self,
        conf: Conf,
        journal: Journal,
        doer: Doer,
        followers: Sequence[Follower],
        say: Say,
        only: Sequence[Script] | None = None,
        hands: int | None = None,
    ) -> None:
        """*followers* are the one to the D-Box and the one to the monitor; *only* replaces the deployed scripts.

        *hands* is a descriptor that can be read when the process that does the steps is gone.
        """
        self.conf, self.journal, self.doer, self.say = conf, journal, doer, say
        self.followers = followers
        self.only = only
        self.slots: dict[str, Slot] = {}
        self.heard: frozenset[bytes] = frozenset()  # the types of events that any of them hears
        self.listening: tuple[Script, ...] = ()
        self.gone: set[str] = set()  # scripts no longer deployed that still have something running
        self.outcomes: queue.SimpleQueue[tuple[str, Act, Outcome]] = queue.SimpleQueue()
        self.bad = BadLines()
        self.spool = trust.Spool(conf.core_state_dir / "spool" / "ingest")
        self.known: dict[tuple[Any, ...], None] = {}
        for record in records(journal.directory, journal.number - 2 * KNOWN):
            if record["kind"] == "event":
                self._new(event.parse(record["line"]))
        self.looked: tuple[float, store.Deployed | None] = (-LOOK, None)
        self.stopping = False
        self.hands = hands
        self.clock = Clock(max((state_of.State.restore(one).time() for one in journal.states.values()), default=0.0))
        self.waker, self.alarm = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def stop(self) -> None:
        """Let `run` return; safe in a signal handler. Steps at work are asked about at the next start."""
        self.stopping = True
        self._wake()

    def run(self, fifo: Fifo) -> None:
        """Answer events until stopped. Raises DreError when what does the steps is gone."""
        self._look()
        self._listen()
        self._write([self._record("start", scripts={name: slot.script.sha256 for name, slot in self.slots.items()})])
        self._resume()
        init = Watchdog()
        init.say("READY=1")
        poll = select.poll()
        poll.register(fifo.fd, select.POLLIN)
        poll.register(self.waker, select.POLLIN)
        if self.hands is not None:
            poll.register(self.hands, select.POLLIN)
        while not self.stopping:
            ready = poll.poll(self._patience() * 1000)
            if any(fd == self.hands for fd, _ in ready):
                raise DreError("the process that does the steps is gone; the next start asks what came of them")
            self._drain_waker()
            for line in fifo.lines():
                self.line(line)
            self.answers()
            self.replies()
            self.tick(self.clock.now())
            self._report_bad()
            self._look()
            self._listen()
            init.alive()
        self._write([self._record("stop")])

    # --- inputs ---

    def line(self, octets: bytes) -> None:
        """Decide about one line of the FIFO. A bad one is counted and does no harm."""
        arrived = time.time()
        head = _HEAD.match(octets)
        if head and head[1] not in self.heard:
            return  # most of them, so it has to be quick
        try:
            text = octets.decode()
            happened = event.parse(octets)
        except (EventError, UnicodeDecodeError) as error:
            self.bad.add(lines.clip(str(error)))
            return
        concerned = [slot for slot in self.slots.values() if slot.hears(happened)]
        if not concerned or not self._new(happened):
            return
        doubt = trust.doubt(self.conf, happened, self.spool.find)
        given = Happened(self.clock.of(event.seconds(happened.time)), happened, doubt is None, trust.rests_on(happened))
        record = self._record("event", seen=event.stamp(arrived), proven=doubt is None, doubt=doubt, line=text)
        self._decide(record, [(slot, given) for slot in concerned])

    def _listen(self) -> None:
        """Find out what is heard, where scripts have changed."""
        scripts = tuple(slot.script for slot in self.slots.values())
        if scripts != self.listening:
            self.listening = scripts
            self.heard = frozenset(name.encode() for script in scripts for name in core.types(script))

    def _new(self, happened: Event) -> bool:
        """Whether this event was not seen before: after a restart the monitor sends what it remembers once more."""
        identity = happened.optional.get("id")
        # A claim cannot make us take a proven event for one seen before.
        key = (identity, happened.type, bool(happened.optional.get("claimed")))
        if identity is None or key in self.known:
            return identity is None
        self.known[key] = None
        if len(self.known) > KNOWN:
            del self.known[next(iter(self.known))]
        return True

    def answers(self) -> None:
        """Take in what the threads have brought to an end."""
        while True:
            try:
                name, act, outcome = self.outcomes.get_nowait()
            except queue.Empty:
                return
            slot = self.slots[name]
            record, told = self._outcome(slot, act, outcome)
            given = Answered(self.clock.now(), act.run, act.step, act.phase, outcome.error, outcome.former)
            self._decide(record, [(slot, given)], told)

    def replies(self) -> None:
        """Take in what persons have answered; each answer goes once it is in the journal."""
        for reply in answers.waiting(self.conf):
            line = lines.replied(reply)
            record = self._record("answer", **vars(reply), line=line, send=line)
            given = Replied(self.clock.now(), reply.request, reply.word == "approved", reply.by)
            asked = [slot for slot in self.slots.values() if core.asks(slot.state, reply.request)]
            self._decide(record, [(slot, given) for slot in asked if reply.word != "acknowledged"])
            answers.taken(self.conf, reply)

    def tick(self, now: float) -> None:
        """Tell the core that time has passed, where that can matter."""
        for slot in list(self.slots.values()):
            due = core.next_time(slot.script, slot.state)
            if due is not None and now >= due:
                self._decide(self._record("tick", script=slot.script.name), [(slot, Passed(now))])

    # --- decisions ---

    def _decide(
        self,
        record: Record,
        inputs: Sequence[tuple[Slot, Given]],
        more: Sequence[Record] = (),
    ) -> None:
        """Let the core decide, make its decision durable, then do it."""
        written, acts, states = [record, *more], [], {}
        record["given"] = {slot.script.name: state_of.dump(given) for slot, given in inputs}
        record["decided"] = {}
        for slot, given in inputs:
            state, commands = core.decide(slot.script, slot.state, given)
            states[slot.script.name] = state
            record["decided"][slot.script.name] = state_of.shown(commands)
            for command in commands:
                if isinstance(command, Tell):
                    text = lines.told(slot.script, command)
                    written.append(self._record("tell", script=slot.script.name, line=text, send=text))
                else:
                    acts.append((slot, command))
                    written += self._intent(slot.script, command, "intent")
        record["states"] = {name: state.dump() for name, state in states.items()}
        self._write(written)
        for slot, _ in inputs:
            slot.state = states[slot.script.name]
        for slot, act in acts:
            self._begin(slot.script, act)

    def _intent(self, script: Script, act: Act, kind: str) -> list[Record]:
        if act.phase == "read":
            return []  # it changes nothing, so nobody need know whether it happened
        argv = self.doer.argv(script, act)
        step = script.response(act.response).steps[act.step]
        record: Record = self._record(
            kind,
            script=script.name,
            response=act.response,
            run=act.run,
            step=act.step + 1,
            phase=act.phase,
            action=step.action,
            argv=argv,
            request=act.request,
            deadline=event.stamp(time.time() + step.timeout),
        )
        if kind == "intent":
            record["line"] = lines.begun(script, act, argv)
        return [record]

    def _outcome(self, slot: Slot, act: Act, outcome: Outcome) -> tuple[Record, list[Record]]:
        record = self._record(
            "outcome",
            script=slot.script.name,
            response=act.response,
            run=act.run,
            step=act.step + 1,
            phase=act.phase,
            request=act.request,
            error=outcome.error,
            seconds=round(outcome.seconds, 3),
        )
        if act.phase != "read":
            record.update(before=outcome.before, after=outcome.after)
            record["line"], record["send"] = lines.ended(slot.script, act, outcome)
        told = []
        for item in outcome.told:
            own = {"script": slot.script.name, "response": act.response, "request": act.request}
            data: dict[str, Any] = {**own, **item.data, "events": list(act.events)}
            text = lines.line(slot.script.name, item.type, data, item.sev, lines.goal(slot.script, act))
            told.append(self._record("tell", script=slot.script.name, line=text, send=text))
        verb = f"failed: {outcome.error}" if outcome.error else f"done in {outcome.seconds:.2f} s"
        self.say(f"{slot.script.name}/{act.response}: {act.phase} of step {act.step + 1}: {verb}")
        return record, told

    def _record(self, kind: str, **values: Any) -> Record:
        return {"kind": kind, "time": event.stamp(), **values}

    def _write(self, written: list[Record]) -> None:
        """Make the records durable, then let the followers have their lines."""
        box, monitor = self.followers or (None, None)
        for record in self.journal.append(written):
            if box and "line" in record:
                box.hand(record["n"], record["line"].encode())
            if monitor and "send" in record:
                monitor.hand(record["n"], record["send"].encode())

    # --- steps ---

    def _begin(self, script: Script, act: Act, again: bool = False) -> None:
        if act.phase != "read":
            self.say(f"{script.name}/{act.response}: {' '.join(self.doer.argv(script, act))}")
        threading.Thread(target=self._work, args=(script, act, again), name=act.request, daemon=True).start()

    def _work(self, script: Script, act: Act, again: bool) -> None:
        try:
            outcome = self.doer.do(script, act, again)
        except GoneError:
            return  # the next start asks what came of it
        except Exception as error:  # whatever it was, the response must learn that its step did not succeed
            outcome = Outcome(f"{type(error).__name__}: {error}", 0.0)
        self.outcomes.put((script.name, act, outcome))
        self._wake()

    def _resume(self) -> None:
        """Ask again what the last engine asked and had no answer to."""
        for slot in self.slots.values():
            for act in core.outstanding(slot.script, slot.state):
                self._write(self._intent(slot.script, act, "probe"))
                self._begin(slot.script, act, again=True)

    # --- scripts ---

    def _look(self) -> None:
        """Load what was deployed since the last look."""
        now = time.monotonic()
        if now - self.looked[0] < LOOK:
            return
        if self.only is not None:
            if not self.slots:
                for script in self.only:
                    self._install(script)
        else:
            # The files and not their directory: its time of change is too coarse for two changes at once.
            found = store.deployed_files(self.conf)
            if found != self.looked[1]:
                self._load_deployed()
            self.looked = (now, found)
        for name in [name for name in self.gone if not self.slots[name].state.busy()]:
            del self.slots[name]
            self.gone.discard(name)
            self.say(f"{name}: not in force any more")
        for slot in self.slots.values():
            if slot.waiting is not None and not slot.state.busy():
                slot.state = core.adopt(slot.waiting, slot.state)
                slot.script, slot.waiting = slot.waiting, None
                self._adopted(slot)

    def _load_deployed(self) -> None:
        from dscriptlib import versions  # late: it loads what checks signatures

        names = set()
        for path in store.deployed(self.conf):
            try:
                script, _ = store.read(path)
                if store.version(self.conf, script.sha256) is None:
                    raise DreError(f"{path}: changed since it was deployed; deploy it again")
                versions.require(self.conf, script)
            except (DreError, OSError) as error:
                self.say(f"ignoring a script, the others go on: {error}")
                names.add(path.stem)  # what is running goes on as it was
                continue
            names.add(script.name)
            self.doer.watch(script)  # a crash within deploy may have left the former one
            self._install(script)
        self.gone = set(self.slots) - names

    def _install(self, script: Script) -> None:
        """Put *script* in force, at once or when what is running under its former version has ended."""
        slot = self.slots.get(script.name)
        if slot is not None:
            slot.waiting = script if script.sha256 != slot.script.sha256 else None
            return
        stored = self.journal.states.get(script.name)
        state = State.restore(stored) if stored else State(script.sha256)
        former = store.version(self.conf, state.sha256) if state.sha256 != script.sha256 else None
        if state.busy() and former is not None:
            self.slots[script.name] = Slot(former, state, script)
            return
        if state.busy() and state.sha256 != script.sha256:
            self.say(f"{script.name}: version {state.sha256[:12]} is gone; ignoring what was running under it")
            state.runs, state.later = {}, []
        self.slots[script.name] = Slot(script, core.adopt(script, state))
        self._adopted(self.slots[script.name])

    def _adopted(self, slot: Slot) -> None:
        record = self._record("script", script=slot.script.name, sha256=slot.script.sha256)
        self._write([{**record, "states": {slot.script.name: slot.state.dump()}}])
        self.say(f"{slot.script.name}: in force, version {slot.script.sha256[:12]}")

    # --- the loop's small things ---

    def _patience(self) -> float:
        times = [core.next_time(slot.script, slot.state) for slot in self.slots.values()]
        due = min((moment for moment in times if moment is not None), default=None)
        return LOOK if due is None else min(LOOK, max(0.001, due - self.clock.now()))

    def _report_bad(self) -> None:
        report = self.bad.due()
        if report is not None:
            count, reason = report
            text = lines.line("engine", "script.input.bad", {"count": count, "reason": reason}, 4)
            self._write([self._record("bad", count=count, reason=reason, line=text, send=text)])
            self.say(f"{count} lines were no events; the last: {reason}")

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full of alarms already
            os.write(self.alarm, b"\0")

    def _drain_waker(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.waker, 4096):
                pass


def scripts(paths: Sequence[Path]) -> list[tuple[Script, bytes]]:
    """The scripts in *paths*; two of one name are a mistake. Raises DreError."""
    read = [store.read(path) for path in paths]
    for position, (script, _) in enumerate(read):
        if script.name in {other.name for other, _ in read[:position]}:
            raise DreError(f"{paths[position]}: another file is named {script.name!r} too")
    return read
