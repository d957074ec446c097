# SPDX-License-Identifier: Apache-2.0
"""What to do when: a pure function of (script, state, input) in event time.

It reads no clock, no file and no network, so that the engine, the simulation and tests share it, and so that
the state restored from the journal decides as the lost process would have. The engine acts on what it returns.
"""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

from dre.event import Event

from dscriptlib import watching
from dscriptlib.model import Monitor, Response, Script, Step
from dscriptlib.state import (
    Act,
    Answered,
    Book,
    Command,
    Given,
    Happened,
    Later,
    Passed,
    Replied,
    Run,
    State,
    Tell,
    line,
)
from dscriptlib.steps import KINDS

RAISED, CLEARED = "watch.raised", "watch.cleared"
IDS = 16  # most event ids that an action names as its reason
__all__ = ["Act", "Answered", "Happened", "Passed", "Replied", "State", "Tell", "adopt", "decide", "mentions"]
__all__ += ["next_time", "outstanding", "types"]


# --- the functions ---


def types(script: Script) -> frozenset[str]:
    """The types of all events that can matter to *script*; of the others nothing more need be looked at."""
    found = {RAISED, CLEARED}
    for response in script.responses:
        found.update(name for trigger in response.when for name in (trigger.event, trigger.after) if name)
    for monitor in script.monitors:
        if monitor.watch in watching.KINDS:
            found.update(watching.types(monitor))
    return frozenset(found)


def mentions(script: Script, event: Event) -> bool:
    """Whether *event* can matter to *script*."""
    if event.type in (RAISED, CLEARED) and _monitor(script, event) is not None:
        return True
    if any(watching.concerns(monitor, event) for monitor in script.monitors):
        return True
    return any(
        event.type in (trigger.event, trigger.after) for response in script.responses for trigger in response.when
    )


def decide(script: Script, state: State, given: Given) -> tuple[State, list[Command]]:
    """The state after *given* and what to do now. The arguments are not changed."""
    turn = _Turn(script, copy.deepcopy(state))
    if isinstance(given, Happened):
        turn.happened(given)
    elif isinstance(given, Answered):
        turn.answered(given)
    elif isinstance(given, Replied):
        turn.replied(given)
    else:
        turn.passed(given.time)
    turn.settle()
    return turn.state, turn.commands


def outstanding(script: Script, state: State) -> list[Act]:
    """What was asked for and never answered: after a crash it is asked again under the same request ids."""
    acts = [_act(run, _former(run)) for run in state.runs.values() if run.phase not in ("ask", "expect")]
    return acts + [_revert(later) for later in state.later if later.asked]


def asks(state: State, request: str) -> bool:
    """Whether a run waits, or will, for a person's answer to *request*."""
    return any(_question(run) == request for run in state.runs.values())


def adopt(script: Script, state: State) -> State:
    """*state* for another version of its script: guards and what was seen live on under the same ids."""
    state = copy.deepcopy(state)
    responses = {response.id for response in script.responses}
    monitors = {monitor.id for monitor in script.monitors}
    state.sha256 = script.sha256
    state.books = {key: book for key, book in state.books.items() if key.rstrip("?") in responses}
    state.raised = {key: ids for key, ids in state.raised.items() if key in monitors}
    state.windows = {key: window for key, window in state.windows.items() if key.rstrip("?") in monitors}
    return state


def next_time(script: Script, state: State) -> float | None:
    """When `Passed` can next make a difference, if no event comes before."""
    times = [run.deadline for run in state.runs.values() if run.deadline is not None]
    for response in script.responses:
        if (ready := _ready(script, state, response)) is not None:
            times.append(ready)
    now = state.clock.get(_key("now", True), 0.0)
    for monitor in script.monitors:
        if monitor.watch in watching.KINDS:
            changes = watching.due(monitor, watching.windows(monitor, state.windows, True), now)
            times += [] if changes is None else [changes]
    return min(times, default=None)


def _monitor(script: Script, event: Event) -> str | None:
    if event.data.get("script") != script.name:
        return None
    return next((monitor.id for monitor in script.monitors if monitor.id == event.data.get("id")), None)


def _key(name: str, proven: bool) -> str:
    return name if proven else f"{name}?"


def _act(run: Run, former: Mapping[str, str] | None = None) -> Act:
    step = run.undoing[0] if run.phase == "revert" else run.step
    return Act(run.id, run.response, step, run.phase, tuple(run.events), former, run.about)


def _question(run: Run) -> str | None:
    """The request under which the step of *run* has been asked for, while it is at it."""
    return f"{run.id}-{run.step}-act" if run.phase in ("act", "ask") else None


def _former(run: Run) -> Mapping[str, str] | None:
    return run.formers.get(str(run.undoing[0]), {}) if run.phase == "revert" else None


def _revert(later: Later) -> Act:
    return Act(later.run, later.response, later.step, "revert", tuple(later.events), later.former)


def _ready(script: Script, state: State, response: Response) -> float | None:
    """When *response* may try again because its monitor is still raised after the cooldown."""
    book = state.books.get(response.id)
    limit = response.at_most
    if not limit or not limit.cooldown or not book or book.ended is None or _running(state, response, True):
        return None
    if not any(trigger.monitor in state.raised for trigger in response.when):
        return None
    ready = book.ended + limit.cooldown
    if book.exhausted and len(book.attempts) >= limit.attempts:
        ready = max(ready, book.attempts[-limit.attempts] + limit.per)
    return ready


def _running(state: State, response: Response, proven: bool) -> bool:
    return any(run.response == response.id and run.proven is proven for run in state.runs.values())


def _keeps_former(response: Response, step: Step) -> bool:
    """Whether *step* may have to be compensated, so that what it changes must be read before."""
    if not KINDS[step.action].reversible or step.revert == "never":
        return False
    return step.revert is not None or response.if_failed == "revert"


class _Turn:
    """One decision in the making, on a copy of the state."""

    def __init__(self, script: Script, state: State) -> None:
        self.script = script
        self.state = state
        self.commands: list[Command] = []
        self.about: str | None = None  # the event that is answered, if a step of the script hands events on
        self.hands_on = any(KINDS[step.action].hands_on for response in script.responses for step in response.steps)

    def now(self, proven: bool, time: float = 0.0) -> float:
        """The clock of proven or of claimed events, which never goes back; a claimed event cannot move the other."""
        key = _key("now", proven)
        self.state.clock[key] = max(self.state.clock.get(key, 0.0), time)
        return self.state.clock[key]

    def tell(self, type: str, sev: int, run: Run, **data: Any) -> None:
        told = {"script": self.script.name, "response": run.response, "run": run.id}
        if goal := self.script.goal(self.script.response(run.response)):
            told["goal"] = goal
        self.commands.append(Tell(type, sev, {**told, **data, "events": list(run.events)}))

    # --- inputs ---

    def happened(self, given: Happened) -> None:
        event, time = given.event, given.time
        self.now(given.proven, time)
        self.about = line(event) if self.hands_on else None
        ids = list(given.ids[:IDS])
        monitor = _monitor(self.script, event) if event.type in (RAISED, CLEARED) else None
        if monitor and given.proven:  # a claim neither raises nor clears: it could fake the success of a step
            if event.type == RAISED:
                self.state.raised[monitor] = ids
            else:
                self.state.raised.pop(monitor, None)
        for response in self.script.responses:
            for trigger in response.when:
                if trigger.monitor is not None and event.type == RAISED and trigger.monitor == monitor:
                    self.start(response, given.proven, ids)
                elif trigger.event is not None and trigger.event == event.type:
                    self.sequence(response, given, trigger.after, trigger.within)
        self.remember(event.type, given)
        for item in self.script.monitors:
            if watching.concerns(item, event):
                self.saw(item, given, ids)
        self.look()

    def saw(self, monitor: Monitor, given: Happened, ids: list[str]) -> None:
        """Put an event into the windows of a monitor. What is proven counts among the claimed, too, not the reverse."""
        time, type = given.time, given.event.type
        proven = watching.windows(monitor, self.state.windows, True)
        claimed = watching.windows(monitor, self.state.windows, False)
        before = watching.raised(monitor, claimed, time)
        if given.proven:
            self.state.windows[monitor.id] = watching.after(monitor, proven, time, type, ids, proven)
        claimed = watching.after(monitor, claimed, time, type, ids, claimed)
        self.state.windows[_key(monitor.id, False)] = claimed
        found = watching.raised(monitor, claimed, time)
        certain = watching.raised(monitor, watching.windows(monitor, self.state.windows, True), time)
        if found and not before and not certain and monitor.watch != "evidence":
            self.trigger(monitor, False, found[:IDS])

    def look(self) -> None:
        """Raise and clear the monitors of events as of now."""
        now = self.now(True)
        for monitor in self.script.monitors:
            if monitor.watch not in watching.KINDS:
                continue
            window = watching.windows(monitor, self.state.windows, True)
            if monitor.watch == "evidence" and not window:
                self.state.windows[monitor.id] = window = [[now, [], watching.LAST]]
            ids = watching.raised(monitor, window, now)
            if ids is not None and monitor.id not in self.state.raised:
                self.state.raised[monitor.id] = ids[:IDS]
                self.watched("raised", 4, monitor, ids[:IDS])
                self.trigger(monitor, True, ids[:IDS])
            elif ids is not None:
                self.state.raised[monitor.id] = ids[:IDS]
            elif monitor.id in self.state.raised:
                self.watched("cleared", 6, monitor, self.state.raised.pop(monitor.id))

    def watched(self, word: str, sev: int, monitor: Monitor, ids: list[str]) -> None:
        data = {"script": self.script.name, "id": monitor.id, "watch": monitor.watch, "events": ids}
        self.commands.append(Tell(f"script.monitor.{word}", sev, data))

    def trigger(self, monitor: Monitor, proven: bool, ids: list[str]) -> None:
        for response in self.script.responses:
            if any(trigger.monitor == monitor.id for trigger in response.when):
                self.start(response, proven, ids)

    def sequence(self, response: Response, given: Happened, after: str | None, within: float) -> None:
        """Start *response* on an event, if it needs no other one before it or that one came in time."""
        ids = list(given.ids[:IDS])
        if after is None:
            self.start(response, given.proven, ids)
            return
        for proven in (True, False):
            time, before = self.state.seen.get(_key(after, proven), (None, []))
            if time is not None and 0 <= given.time - time <= within:
                self.start(response, given.proven and proven, list(dict.fromkeys([*ids, *before]))[:IDS])
                return

    def remember(self, type: str, given: Happened) -> None:
        if any(type == trigger.after for response in self.script.responses for trigger in response.when):
            key = _key(type, given.proven)
            if given.time >= self.state.seen.get(key, [0.0])[0]:
                self.state.seen[key] = [given.time, list(given.ids[:IDS])]

    def passed(self, time: float) -> None:
        now = self.now(True, time)
        self.now(False, time)
        self.look()
        for run in list(self.state.runs.values()):
            if run.deadline is None or time < run.deadline:
                continue
            step = self.script.response(run.response).steps[run.step]
            if run.phase == "ask":
                self.decided(run, step.values["default"] == "approve", None)
            elif not self.clear(run):
                assert step.expect is not None
                self.fail(run, f"{step.expect.watch} was not clear within {step.expect.within:g} s")
        for response in self.script.responses:
            ready = _ready(self.script, self.state, response)
            if ready is not None and now >= ready:
                raised = next(
                    self.state.raised[trigger.monitor]
                    for trigger in response.when
                    if trigger.monitor and trigger.monitor in self.state.raised
                )
                self.start(response, True, list(raised))

    def answered(self, answer: Answered) -> None:
        run = self.state.runs.get(answer.run)
        if run is None:
            self.reverted_later(answer)
            return
        at = run.undoing[0] if run.phase == "revert" else run.step
        if (answer.step, answer.phase) != (at, run.phase):
            return  # an answer to something that is over
        self.now(run.proven, answer.time)
        if run.phase == "read":
            self.have_read(run, answer)
        elif run.phase == "act":
            self.acted(run, answer)
        elif run.phase == "revert":
            if answer.error:
                run.error = f"{run.error}; reverting step {at + 1} failed too: {answer.error}"
            run.undoing.pop(0)
            self.undo_next(run)

    def replied(self, reply: Replied) -> None:
        for run in list(self.state.runs.values()):
            if _question(run) == reply.request and KINDS[self.step(run).action].asks:
                self.now(run.proven, reply.time)
                run.reply = [reply.approved, reply.by]  # it may come before we know that the question has gone out
        for run in list(self.state.runs.values()):
            if run.phase == "ask" and run.reply is not None:
                self.decided(run, *run.reply)

    def decided(self, run: Run, approved: bool, by: str | None) -> None:
        """A question has its answer, of a person or, by None, the agreed one because nobody answered in time."""
        step = self.step(run)
        word = "approved" if approved else "refused"
        self.tell(f"script.ask.{word}", 5, run, step=run.step + 1, action=step.action, by=by)
        run.deadline, run.reply = None, None
        if approved:
            self.effect(run, step)
        else:
            reason = f"nobody answered within {step.timeout:g} s" if by is None else f"{by} refused"
            self.fail(run, reason, tried=False)

    def step(self, run: Run) -> Step:
        return self.script.response(run.response).steps[run.step]

    # --- a run from its start to its end ---

    def start(self, response: Response, proven: bool, events: list[str], about: str | None = None) -> None:
        if _running(self.state, response, proven):
            return
        now = self.now(proven)
        book = self.state.books.setdefault(_key(response.id, proven), Book())
        limit = response.at_most
        self.state.count += 1
        seed = f"{self.script.name}/{response.id}/{self.state.count}/{now:.3f}/{proven}/{','.join(events)}"
        run = Run(hashlib.sha256(seed.encode()).hexdigest()[:16], response.id, proven, events)
        run.about = about or self.about
        if limit is not None:
            # Sums as in _ready: with differences a time could be due there and too early here.
            book.attempts = [time for time in book.attempts if now < time + limit.per]
            if book.ended is not None and now < book.ended + limit.cooldown:
                return
            if len(book.attempts) >= limit.attempts:
                self.exhausted(run, book, response)
                return
            book.attempts.append(now)
        book.exhausted = False
        self.state.runs[run.id] = run
        self.begin(run)

    def exhausted(self, run: Run, book: Book, response: Response) -> None:
        """No attempt is left: turn to the next response, but once, not at every event."""
        if book.exhausted:
            return
        book.exhausted = True
        assert response.at_most is not None
        reason = f"{response.at_most.attempts} attempts within {response.at_most.per:g} s are used up"
        self.tell("script.response.refused", 3, run, reason=reason)
        self.escalate(run)

    def begin(self, run: Run) -> None:
        """Enter the step the run stands at."""
        response = self.script.response(run.response)
        step = response.steps[run.step]
        kind = KINDS[step.action]
        run.phase = "act"
        if kind.needs_proof and not run.proven:
            reason = f"{step.action} may not rest on an event that is only claimed"
            self.tell("script.step.refused", 3, run, step=run.step + 1, action=step.action, reason=reason)
            self.fail(run, reason, tried=False)
            return
        if _keeps_former(response, step):
            # What an earlier attempt has changed and not yet put back is not the state to return to.
            former = self.pending_former(step)
            if former is not None:
                run.formers[str(run.step)] = dict(former)
            elif kind.ask_former is None and kind.read is None:
                run.formers[str(run.step)] = {}
            else:
                run.phase = "read"
        self.commands.append(_act(run))

    def pending_former(self, step: Step, unasked: bool = False) -> Mapping[str, str] | None:
        for later in self.state.later:
            other = self.script.response(later.response).steps[later.step]
            if unasked and later.asked:
                continue  # it is being taken back at this moment, perhaps before the step acted again
            same = (other.action, other.target) == (step.action, step.target)
            if same and other.values.keys() == step.values.keys():
                return later.former
        return None

    def have_read(self, run: Run, answer: Answered) -> None:
        if answer.error or answer.former is None:
            self.fail(run, answer.error or "the former state could not be read", tried=False)
            return
        run.formers[str(run.step)] = dict(answer.former)
        run.phase = "act"
        self.commands.append(_act(run))

    def acted(self, run: Run, answer: Answered) -> None:
        if answer.error:
            self.fail(run, answer.error)
            return
        step = self.step(run)
        if not KINDS[step.action].asks:
            self.effect(run, step)
            return
        run.phase = "ask"
        run.deadline = self.now(run.proven) + step.timeout
        if run.reply is not None:
            self.decided(run, *run.reply)

    def effect(self, run: Run, step: Step) -> None:
        """The step is done; go on when it has the effect that it must have."""
        if step.expect is None:
            self.next(run)
            return
        run.phase = "expect"
        run.deadline = self.now(run.proven) + step.expect.within

    def next(self, run: Run) -> None:
        run.done.append(run.step)
        run.deadline = None
        if run.step + 1 < len(self.script.response(run.response).steps):
            run.step += 1
            self.begin(run)
        else:
            self.end(run)

    def fail(self, run: Run, error: str, tried: bool = True) -> None:
        """The run has failed: compensate what is to be compensated on failure, the last first, then escalate."""
        response = self.script.response(run.response)
        if run.phase == "expect":
            step = response.steps[run.step]
            self.tell("script.step.failed", 3, run, step=run.step + 1, action=step.action, reason=error)
        run.error = error
        run.deadline = None
        begun = [*run.done, run.step] if tried else run.done
        run.undoing = [index for index in reversed(begun) if self.on_failure(run, response, index)]
        self.undo_next(run)

    def on_failure(self, run: Run, response: Response, index: int) -> bool:
        revert = response.steps[index].revert
        wanted = revert == "on-failure" or (revert != "never" and response.if_failed == "revert")
        return wanted and str(index) in run.formers

    def undo_next(self, run: Run) -> None:
        if run.undoing:
            run.phase = "revert"
            self.commands.append(_act(run, _former(run)))
        else:
            self.end(run)

    def end(self, run: Run) -> None:
        response = self.script.response(run.response)
        del self.state.runs[run.id]
        self.state.books.setdefault(_key(run.response, run.proven), Book()).ended = self.now(run.proven)
        self.compensate_later(run, response)
        data: dict[str, Any] = {"outcome": "failed" if run.error else "done", "restored": None}
        if watched := self.script.watched(response):
            data["restored"] = not run.error and not any(monitor in self.state.raised for monitor in watched)
        if run.error:
            data["reason"] = run.error[:300]
        self.tell("script.response.done", 3 if run.error else 5, run, **data)
        if run.error:
            self.escalate(run)

    def compensate_later(self, run: Run, response: Response) -> None:
        """Remember the steps that are to be taken back when the monitors are clear, and have not been yet."""
        for index in run.done:
            step = response.steps[index]
            reverted = run.error is not None and self.on_failure(run, response, index)
            if step.revert == "when-clear" and not reverted and self.pending_former(step, unasked=True) is None:
                former = run.formers[str(index)]
                self.state.later.append(Later(run.id, run.response, index, run.proven, list(run.events), former))

    def escalate(self, run: Run) -> None:
        response = self.script.response(run.response)
        if response.then is not None:
            self.start(self.script.response(response.then), run.proven, run.events, run.about)

    def reverted_later(self, answer: Answered) -> None:
        for later in self.state.later:
            if later.asked and answer.phase == "revert" and (later.run, later.step) == (answer.run, answer.step):
                self.state.later.remove(later)
                if answer.error:
                    self.escalate(Run(later.run, later.response, later.proven, later.events))
                return

    # --- what becomes due without being asked ---

    def clear(self, run: Run) -> bool:
        step = self.script.response(run.response).steps[run.step]
        return not any(monitor in self.state.raised for monitor in self.script.expected(step))

    def settle(self) -> None:
        """Let steps pass whose expectation holds, and ask for the compensations whose monitors are clear."""
        for run in list(self.state.runs.values()):
            if run.phase == "expect" and self.clear(run):
                self.next(run)
        for later in self.state.later:
            response = self.script.response(later.response)
            running = any(run.response == later.response for run in self.state.runs.values())
            raised = any(monitor in self.state.raised for monitor in self.script.watched(response))
            if not (later.asked or running or raised):
                later.asked = True
                self.commands.append(_revert(later))
