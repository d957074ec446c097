# SPDX-License-Identifier: Apache-2.0
"""Whatever comes in whatever order: limits and cooldowns hold, undo goes backwards, and every escalation ends."""

import collections
import pathlib
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dscript"))

from dscriptlib.state import Act, Answered, Passed, Replied, Tell  # noqa: E402
from test_dscript_watching import World  # noqa: E402

TEXT = """\
dscript: 1
name: x
monitors:
  - {id: busy, watch: cpu, of: a, above: 90%, clear: 70%}
  - {id: guess, watch: event, type: t.failed, count: 2, within: 1m}
  - {id: row, watch: sequence, first: t.failed, then: t.login, unless: t.reset, within: 30s}
  - {id: ghost, watch: sysmon, finding: hidden.process, system: p, within: 40s}
  - {id: backup, watch: evidence, type: t.backup, missing: 10m}
responses:
  - id: first
    when: [busy, guess]
    steps:
      - {action: limit, of: a, cpu: 50%}
      - {action: isolate, of: a}
      - {action: freeze, of: a, revert: on-failure}
      - {action: stop, of: a, revert: when-clear, expect: {watch: busy, within: 20s}}
    if-failed: revert
    at-most: {attempts: 2, per: 5m, cooldown: 30s}
    then: second
  - id: second
    when: [row, ghost, {event: t.go, after: t.failed, within: 1m}]
    steps:
      - {action: isolate, system: p, revert: when-clear}
      - {action: ask, to: boss, text: go on, default: refuse, timeout: 2m}
      - {action: run, argv: [job]}
    if-failed: revert
    at-most: {attempts: 3, per: 10m, cooldown: 10s}
    then: third
  - {id: third, when: backup, steps: [{action: record, text: x}, {action: restart, of: a}], then: call,
     at-most: {attempts: 1, per: 1m}}
  - id: quick
    when: {event: t.quick}
    steps: [{action: record, text: x}]
    at-most: {attempts: 3, per: 2m, cooldown: 6s}
    then: call
  - {id: call, steps: [{action: notify, to: owner}]}
"""
EVENTS = [
    "t.quick",
    "t.quick",
    "t.failed",
    "t.login",
    "t.reset",
    "t.go",
    "t.backup",
    "busy",
    "calm",
    "sysmon.hidden.process",
]
MOVES = st.one_of(
    st.tuples(st.just("event"), st.sampled_from(EVENTS), st.sampled_from([True, True, True, False])),
    st.tuples(st.just("answer"), st.integers(0, 3), st.sampled_from([None, None, None, "it broke"])),
    st.tuples(st.just("reply"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.2, 5.0, 7.0, 25.0, 45.0, 130.0, 700.0])),
    st.tuples(st.just("answer all"), st.none()),
)


class Judge(World):
    """Sees every decision and judges it when it is made; that state and input survive as JSON is World's care."""

    def __init__(self):
        super().__init__(TEXT)
        self.runs, self.starts, self.ends = {}, collections.defaultdict(list), {}
        self.asked, self.reverting, self.failed = [], collections.defaultdict(list), []

    def give(self, given):
        before = len(self.tells), len(self.open)
        acts = super().give(given)
        for act in self.open[before[1] :]:
            self.begun(act)
        for tell in self.tells[before[0] :]:
            self.told(tell)
        return acts

    def now(self, proven):
        return self.state.clock.get("now" if proven else "now?", 0.0)

    def begun(self, act):
        assert isinstance(act, Act)
        if act.phase != "read":
            self.asked.append(act.request)
        if act.phase == "revert" and act.run in self.state.runs:
            assert all(act.step < step for step in self.reverting[act.run]), "not the last first"
            self.reverting[act.run].append(act.step)
        if act.run in self.runs:
            return
        run = self.state.runs[act.run]
        self.runs[act.run] = run.proven
        limit, key, now = self.script.response(act.response).at_most, (act.response, run.proven), self.now(run.proven)
        self.starts[key].append(now)
        if limit:
            counted = sum(1 for time in self.starts[key] if now < time + limit.per)
            assert counted <= limit.attempts, "more attempts than agreed"
            if key in self.ends and limit.cooldown:
                assert now >= self.ends[key] + limit.cooldown, "cooldown not held"

    def told(self, tell):
        assert isinstance(tell, Tell)
        if tell.type == "script.response.done":
            proven = self.runs.get(tell.data["run"], False)  # one that was refused at once has asked for nothing
            self.ends[tell.data["response"], proven] = self.now(proven)
            if tell.data["outcome"] == "failed":
                self.failed.append(tell.data["response"])

    def move(self, move, first, second=None):
        if move == "event":
            if first in ("busy", "calm"):
                type = "watch.raised" if first == "busy" else "watch.cleared"
                self.event(type, after=0.01, proven=second, script="x", id="busy")
            else:
                self.event(first, after=0.01, proven=second, source="/host:h/system:p")
        elif move == "answer" and self.open:
            self.ended(self.open.pop(first % len(self.open)), second)
        elif move == "reply":
            for run in list(self.state.runs.values()):
                self.give(Replied(self.time, f"{run.id}-{run.step}-act", first, "bob"))
        elif move == "wait":
            self.wait(first)
            self.give(Passed(self.time))
        elif move == "answer all":
            while self.open:
                self.ended(self.open.pop(0), None)

    def ended(self, act, error):
        former = {"cpu": "none"} if act.phase == "read" and not error else None
        self.give(Answered(self.time, act.run, act.step, act.phase, error, former))


@settings(max_examples=250, deadline=None)
@given(st.lists(MOVES, max_size=50))
def test_whatever_happens_what_was_agreed_holds(moves):
    world = Judge()
    for move in moves:
        world.time += 0.01
        world.move(*move)
    # Nobody answers questions any more, all is calm: everything comes to its end within the agreed times.
    world.move("event", "calm", True)
    for _ in range(40):
        world.move("answer all", None)
        world.move("event", "t.backup", True)
        world.move("wait", 45.0)
        if not world.state.busy() and not world.state.raised:
            break
    assert not world.state.busy(), world.state
    assert len(world.asked) == len(set(world.asked)), "asked for twice"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.2, 3.0, 7.0, 20.0, 40.0, 130.0]), st.booleans()), max_size=20))
def test_a_response_that_is_called_for_again_and_again_is_held_back(moves):
    world = Judge()
    for wait, proven in moves:
        world.move("event", "t.quick", proven)
        world.move("answer all", None)
        world.move("wait", wait)
    assert len(world.starts["quick", True]) > 0 or not any(proven for _, proven in moves)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["limit", "isolate", "freeze", "stop"]), st.booleans())
def test_a_failure_at_any_step_is_taken_back_backwards_and_reaches_a_person(failing, refuse):
    world = Judge()
    world.move("event", "busy", True)
    for _ in range(60):
        if not world.open:
            world.move("reply", not refuse)
            if not world.open:
                break
        act = world.open.pop(0)
        step = world.script.response(act.response).steps[act.step]
        fails = act.phase == "act" and step.action == failing or step.action in ("run", "restart")
        world.ended(act, "it broke" if fails else None)
    steps = ["limit", "isolate", "freeze", "stop"]
    first = next(steps for run, steps in world.reverting.items() if len(steps) > 0)
    assert first == list(range(steps.index(failing), -1, -1))
    assert world.failed[0] == "first" and "call" in [key[0] for key in world.starts]
