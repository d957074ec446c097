# SPDX-License-Identifier: Apache-2.0
"""The core decides the same from the same, keeps its guards whatever happens, and forgets nothing over a restart."""

import collections
import json
import pathlib
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dscript"))

from dre import event  # noqa: E402
from dscriptlib import check, core  # noqa: E402
from dscriptlib.core import Act, Answered, Happened, Passed, State, Tell  # noqa: E402
from dscriptlib.steps import KINDS  # noqa: E402

TEXT = b"""\
dscript: 1
name: web-overload
agreed: {case: cdshop, goal: G26, by: [owner]}
monitors:
  - {id: busy, watch: cpu, of: web1, above: 90%, clear: 70%, for: 3s}
  - {id: slow, watch: http, url: "http://10.231.0.11/", above: 300ms, clear: 200ms}
responses:
  - id: slow-down
    when: busy
    steps:
      - {action: limit, of: web1, cpu: 50%, revert: when-clear}
    at-most: {attempts: 3, per: 10m, cooldown: 60s}
    then: put-back
  - id: put-back
    when: [slow, {event: shop.overload, after: shop.release, within: 10m}]
    steps:
      - {action: limit, of: web1, memory: 1G, revert: on-failure}
      - {action: undo, of: web1, tag: good, expect: {watch: http, within: 20s}}
      - {action: record, text: back}
    if-failed: revert
    at-most: {attempts: 2, per: 1h}
    then: call-owner
  - {id: call-owner, steps: [{action: notify, to: owner}], at-most: {attempts: 4, per: 1h}}
"""
SCRIPT, FINDINGS = check.check(TEXT, "F")
assert not FINDINGS


class World:
    """The core with a shell that answers when the test says so; it also judges what the core decides."""

    def __init__(self, time=1000.0):
        self.state = State(SCRIPT.sha256)
        self.time = time
        self.number = 0
        self.open = []
        self.acts = []
        self.tells = []
        self.starts = collections.defaultdict(list)
        self.ends = {}
        self.runs = set()

    def give(self, given):
        before = json.dumps(self.state.dump())
        state, commands = core.decide(SCRIPT, self.state, given)
        assert json.dumps(self.state.dump()) == before, "the core changed its argument"
        restored = State.restore(json.loads(before))
        assert core.decide(SCRIPT, restored, given) == (state, commands), "same input, other decision"
        self.state = state
        new = []
        for command in commands:
            if isinstance(command, Tell):
                self.told(command)
            else:
                self.asked(command)
                new.append(command)
        self.open += new
        assert core.outstanding(SCRIPT, self.state) == sorted(
            self.open, key=core.outstanding(SCRIPT, self.state).index
        ), "what is open is exactly what a restart would ask again"
        return new

    def told(self, tell):
        self.tells.append(tell)
        if tell.type == "script.response.done":
            self.ends[tell.data["response"], bool(claimed(tell.data["events"]))] = self.now()

    def asked(self, act):
        self.acts.append(act)
        step = SCRIPT.response(act.response).steps[act.step]
        if KINDS[step.action].needs_proof:
            assert not claimed(act.events), f"{step.action} hangs on a claimed event"
        if act.run not in self.runs:
            self.runs.add(act.run)
            self.started(act)

    def started(self, act):
        key, limit, now = (act.response, bool(claimed(act.events))), SCRIPT.response(act.response).at_most, self.now()
        starts = self.starts[key]
        starts.append(now)
        assert sum(1 for time in starts if now < time + limit.per) <= limit.attempts, "too many attempts"
        if key in self.ends and len(starts) > 1:
            assert now >= self.ends[key] + limit.cooldown, "no cooldown"

    def now(self):
        return max(self.state.clock.values(), default=self.time)

    def event(self, type, proven=True, after=0.0, **data):
        self.time += after
        self.number += 1
        name = f"{'p' if proven else 'c'}{self.number}"
        made = event.Event(event.stamp(self.time), "/host:h", type, 5, data)
        return self.give(Happened(self.time, made, proven, (name,)))

    def watch(self, id, raised=True, **kwargs):
        return self.event("watch.raised" if raised else "watch.cleared", script="web-overload", id=id, **kwargs)

    def answer(self, act, error=None, after=0.1):
        self.time += after
        self.open.remove(act)
        former = {"cpu": "none"} if act.phase == "read" and not error else None
        return self.give(Answered(self.time, act.run, act.step, act.phase, error, former))

    def wait(self, seconds):
        """Let time pass as the engine would."""
        end = self.time + seconds
        for _ in range(200):
            due = core.next_time(SCRIPT, self.state)
            if due is None or due > end:
                break
            self.time = max(self.time, due)
            self.give(Passed(self.time))
        else:
            raise AssertionError("the core asks for time and does not use it")
        self.time = end


def claimed(ids):
    return [name for name in ids if name.startswith("c")]


def names(acts):
    return [(act.response, SCRIPT.response(act.response).steps[act.step].action, act.phase) for act in acts]


def test_a_response_goes_through_its_steps_and_ends_restored():
    world = World()
    world.event("shop.release")
    assert world.watch("slow") != []  # this script also reacts to the monitor itself
    (read,) = world.open
    (limit,) = world.answer(read)
    (undo,) = world.answer(limit)
    assert names([read, limit, undo]) == [
        ("put-back", "limit", "read"),
        ("put-back", "limit", "act"),
        ("put-back", "undo", "act"),
    ]
    assert world.event("shop.overload") == []  # it runs already
    assert world.answer(undo, after=2) == []  # now it waits for the monitor
    (record,) = world.watch("slow", raised=False, after=3)
    world.answer(record)
    (done,) = world.tells
    assert done.type == "script.response.done"
    assert done.data["outcome"] == "done" and done.data["restored"] is True
    assert done.data["goal"] == "G26" and done.data["events"] == ["p2"]
    assert not world.state.busy()


def test_an_event_counts_only_within_its_time_after_the_other():
    world = World()
    assert world.event("shop.overload") == []
    world.event("shop.release")
    assert world.event("shop.overload", after=600.1) == []
    world.event("shop.release", after=1)
    (read,) = world.event("shop.overload", after=600)
    assert read.events == ("p5", "p4")


def test_a_failed_expectation_reverts_in_reverse_order_and_escalates():
    world = World()
    world.watch("slow")
    undo = world.answer(world.answer(world.open[0])[0])[0]
    world.answer(undo)
    world.wait(19)
    assert not world.tells
    world.wait(2)
    assert [tell.type for tell in world.tells] == ["script.step.failed"]
    (revert,) = world.open
    assert (revert.phase, revert.step, revert.former) == ("revert", 0, {"cpu": "none"})
    (notify,) = world.answer(revert)
    assert names([notify]) == [("call-owner", "notify", "act")]
    assert world.tells[-1].data["outcome"] == "failed" and world.tells[-1].data["restored"] is False
    assert "http was not clear within 20 s" in world.tells[-1].data["reason"]


def test_a_failed_limit_is_taken_back_as_it_may_have_happened():
    world = World()
    world.watch("slow")
    (limit,) = world.answer(world.open[0])
    (revert,) = world.answer(limit, error="no answer within 5 s")
    assert (revert.phase, revert.step) == ("revert", 0)


def test_a_limit_is_taken_back_when_the_monitor_is_clear():
    world = World()
    world.watch("busy")
    (limit,) = world.answer(world.open[0])
    assert world.answer(limit) == []
    assert world.tells[-1].data["restored"] is False and world.state.busy()
    (revert,) = world.watch("busy", raised=False, after=9)
    assert names([revert]) == [("slow-down", "limit", "revert")] and revert.former == {"cpu": "none"}
    world.answer(revert)
    assert not world.state.busy()


def test_a_second_limit_returns_to_the_state_before_the_first():
    world = World()
    world.watch("busy")
    world.answer(world.answer(world.open[0])[0])
    world.wait(61)  # still raised: it did not help, so it is tried again, without reading its own limit
    (again,) = world.open
    assert again.phase == "act"
    world.answer(again)
    (revert,) = world.watch("busy", raised=False)
    assert revert.former == {"cpu": "none"}
    world.answer(revert)
    assert not world.state.busy()


def test_a_monitor_that_stays_raised_uses_up_the_attempts_then_escalates_once():
    world = World()
    world.watch("busy")
    for _ in range(3):
        while world.open:
            world.answer(world.open[0])
        world.wait(70)
    assert len(world.starts["slow-down", False]) == 3
    assert [tell.data["reason"] for tell in world.tells if tell.type == "script.response.refused"] == [
        "3 attempts within 600 s are used up"
    ]
    assert names(world.open) == [("put-back", "limit", "read")]


def test_after_an_attempt_a_response_rests_for_its_cooldown():
    world = World()
    for after in (1, 50):
        world.watch("busy", after=after)
        while world.open:
            world.answer(world.open[0])
        world.watch("busy", raised=False)
        while world.open:
            world.answer(world.open[0])
    assert len(world.starts["slow-down", False]) == 1
    world.watch("busy", after=10)
    assert len(world.starts["slow-down", False]) == 2


def test_a_limit_set_while_the_former_one_is_taken_back_is_taken_back_too():
    world = World()
    world.watch("busy")
    while world.open:
        world.answer(world.open[0])
    (slow,) = world.watch("busy", raised=False)
    (again,) = world.watch("busy", after=61)
    world.answer(again)
    world.answer(slow)
    (revert,) = world.watch("busy", raised=False)
    assert (revert.phase, revert.former) == ("revert", {"cpu": "none"})


def test_claimed_events_reach_a_person_but_no_container():
    world = World()
    world.event("shop.release", proven=False)
    (notify,) = world.event("shop.overload", proven=True)  # rests on a release that is only claimed
    assert names([notify]) == [("call-owner", "notify", "act")]
    refused, done = world.tells
    assert refused.type == "script.step.refused" and refused.data["action"] == "limit"
    assert done.data["outcome"] == "failed"


def test_claimed_events_neither_use_up_attempts_nor_clear_a_monitor():
    world = World()
    world.event("shop.release")
    for _ in range(20):
        world.event("shop.overload", proven=False)
        while world.open:
            world.answer(world.open[0])
    world.event("shop.release", proven=False)
    world.watch("slow")
    undo = world.answer(world.answer(world.open[0])[0])[0]
    world.answer(undo)
    assert world.watch("slow", raised=False, proven=False) == []
    assert world.watch("slow", raised=False) != []


def test_a_new_version_keeps_guards_and_windows():
    world = World()
    world.event("shop.release")
    world.watch("slow")
    while world.open:
        world.answer(world.open[0])
    newer, _ = check.check(TEXT.replace(b"text: back", b"text: restored"), "F")
    state = core.adopt(newer, world.state)
    assert state.sha256 == newer.sha256 != world.state.sha256
    assert (state.books, state.seen, state.raised) == (world.state.books, world.state.seen, world.state.raised)


MOVES = st.one_of(
    st.tuples(st.just("watch"), st.sampled_from(["busy", "slow"]), st.booleans(), st.sampled_from([True, True, False])),
    st.tuples(st.just("event"), st.sampled_from(["shop.release", "shop.overload"]), st.booleans()),
    st.tuples(st.just("answer"), st.integers(0, 3), st.sampled_from([None, None, None, "it broke"])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 5.0, 21.0, 61.0, 700.0, 4000.0])),
    st.tuples(st.just("answer all")),
    st.tuples(st.just("restart")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(MOVES, max_size=60))
def test_guards_hold_whatever_happens(moves):
    world = World()
    for move, *values in moves:
        world.time += 0.01
        if move == "watch":
            id, raised, proven = values
            world.watch(id, raised=raised, proven=proven)
        elif move == "event":
            world.event(values[0], proven=values[1])
        elif move == "answer" and world.open:
            world.answer(world.open[values[0] % len(world.open)], error=values[1])
        elif move == "answer all":
            while world.open:
                world.answer(world.open[0])
        elif move == "wait":
            world.wait(values[0])
        elif move == "restart":
            world.state = State.restore(json.loads(json.dumps(world.state.dump())))
    # However it went, every run comes to an end once its steps are answered and its times are over.
    for id in ("busy", "slow"):
        world.watch(id, raised=False)
    for _ in range(60):
        while world.open:
            world.answer(world.open[0])
        world.wait(30)
        if not world.state.busy():
            break
    assert not world.state.busy()
    acted = [act.request for act in world.acts if act.phase != "read"]
    assert len(acted) == len(set(acted)), "an action was asked for twice"


def test_act_is_a_value():
    assert Act("r", "a", 0, "act", ()).request == "r-0-act"
