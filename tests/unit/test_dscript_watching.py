# SPDX-License-Identifier: Apache-2.0
"""Monitors of events are raised by what came within a time, cleared by time, and by nothing that is only claimed."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dscript"))

from dre import event  # noqa: E402
from dscriptlib import check, core  # noqa: E402
from dscriptlib.state import Answered, Happened, Passed, Replied, State, Tell, dump, undump  # noqa: E402

TEXT = """\
dscript: 1
name: x
monitors:
  - {id: guess, watch: event, type: ssh.failed, source: "/host:h*/sshd", fields: {user: root}, count: 3, within: 1m}
  - {id: broken-in, watch: sequence, first: ssh.failed, then: ssh.login, unless: ssh.reset, within: 30s}
  - {id: ghost, watch: sysmon, finding: hidden.process, system: pay1, within: 2m}
  - {id: backup, watch: evidence, type: shop.backup, missing: 1h}
responses:
  - {id: a, when: guess, steps: [{action: record, text: a}], then: call, at-most: {attempts: 9, per: 1d}}
  - {id: b, when: broken-in, steps: [{action: record, text: b}], then: call, at-most: {attempts: 9, per: 1d}}
  - {id: c, when: ghost, steps: [{action: isolate, system: pay1}], then: call, at-most: {attempts: 9, per: 1d}}
  - {id: d, when: backup, steps: [{action: notify, to: owner}], at-most: {attempts: 9, per: 1d}}
  - id: ask
    when: {event: shop.risk}
    steps:
      - {action: ask, to: operator, text: "may I?", default: refuse, timeout: 5m}
      - {action: restart, of: web1}
    at-most: {attempts: 9, per: 1d}
    then: call
  - {id: call, steps: [{action: notify, to: owner}]}
"""


class World:
    def __init__(self, text=TEXT):
        self.script, findings = check.check(text.encode(), "F")
        assert self.script, findings
        self.state, self.time, self.number = State(self.script.sha256), 1000.0, 0
        self.tells, self.open = [], []

    def give(self, given):
        again = undump(json.loads(json.dumps(dump(given))))
        assert again == given, "what the journal keeps is what was given"
        self.state = State.restore(json.loads(json.dumps(self.state.dump())))
        self.state, commands = core.decide(self.script, self.state, given)
        self.tells += [command for command in commands if isinstance(command, Tell)]
        self.open += [command for command in commands if not isinstance(command, Tell)]
        return [self.act(command) for command in commands if not isinstance(command, Tell)]

    def act(self, act):
        return f"{act.response} {self.script.response(act.response).steps[act.step].action}"

    def event(self, type, after=1.0, source="/host:h1/sshd", proven=True, **data):
        self.time += after
        self.number += 1
        made = event.Event(event.stamp(self.time), source, type, 5, data, {"id": f"e{self.number}"})
        assert core.mentions(self.script, made) or type == "ssh.failed"
        assert type in core.types(self.script)
        return self.give(Happened(self.time, made, proven, (f"e{self.number}",)))

    def answer(self, error=None):
        act = self.open.pop(0)
        self.time += 0.1
        return self.give(Answered(self.time, act.run, act.step, act.phase, error))

    def wait(self, seconds):
        end, acts = self.time + seconds, []
        for _ in range(50):
            due = core.next_time(self.script, self.state)
            if due is None or due > end:
                break
            self.time = max(self.time, due)
            acts += self.give(Passed(self.time))
        else:
            raise AssertionError("the core asks for time and does not use it")
        self.time = end
        return acts


def test_so_many_events_within_a_time_raise_it_and_the_time_clears_it():
    world = World()
    for _ in range(2):
        assert world.event("ssh.failed", after=20, user="root") == []
    assert world.event("ssh.failed", user="bob") == [] == world.event("ssh.failed", source="/host:h1/web", user="root")
    assert world.event("ssh.failed", after=30, user="root") == ["a record"]
    assert world.state.raised["guess"] == ["e5", "e2", "e1"]
    world.wait(9)
    assert "guess" not in world.state.raised  # the first one is more than a minute old
    assert [tell.type for tell in world.tells] == ["script.monitor.raised", "script.monitor.cleared"]


def test_events_spread_over_more_than_the_time_do_not_raise_it():
    world = World()
    for _ in range(6):
        assert world.event("ssh.failed", after=31, user="root") == []


def test_a_sequence_wants_its_order_its_time_and_nothing_in_between():
    world = World()
    assert world.event("ssh.login") == []
    world.event("ssh.failed")
    world.event("ssh.reset")
    assert world.event("ssh.login") == []
    world.event("ssh.failed")
    assert world.event("ssh.login", after=30.5) == []
    world.event("ssh.failed")
    assert world.event("ssh.login", after=30) == ["b record"]
    assert world.state.raised["broken-in"] == ["e8", "e7"]
    world.wait(30)
    assert "broken-in" not in world.state.raised


def test_a_finding_is_of_its_system_and_clear_when_it_stays_away():
    world = World()
    other = event.Event(event.stamp(1.0), "/host:h/sysmon", "sysmon.hidden.process", 5, {"system": "pay2"})
    assert not core.mentions(world.script, other)
    assert world.event("sysmon.hidden.process", source="/host:h/sysmon", system="pay1", pid=3) == ["c isolate"]
    world.wait(119)
    assert "ghost" in world.state.raised
    world.event("sysmon.hidden.process", source="/host:h/system:pay1", pid=3)
    world.wait(119)
    assert "ghost" in world.state.raised
    world.wait(2)
    assert "ghost" not in world.state.raised


def test_evidence_that_stays_away_is_missed_from_the_beginning_on():
    world = World()
    world.wait(1)  # the engine asks what the time is
    assert world.wait(3000) == []
    world.event("shop.backup")
    assert world.wait(3598) == []
    assert world.wait(3) == ["d notify"]
    assert "backup" in world.state.raised
    world.event("shop.backup")
    assert "backup" not in world.state.raised


def test_claims_reach_a_person_and_neither_raise_nor_hide_anything():
    world = World()
    assert world.event("sysmon.hidden.process", source="/host:h/system:pay1", proven=False) == ["call notify"]
    assert world.state.raised == {}
    world.event("ssh.failed")
    world.event("ssh.reset", proven=False)
    assert world.event("ssh.login") == ["b record"]
    world.event("ssh.failed", after=60, proven=False)
    assert world.event("ssh.login") == ["b record"] and "broken-in" not in world.state.raised


def test_a_question_waits_for_its_answer():
    world = World()
    assert world.event("shop.risk") == ["ask ask"]
    act = world.open[0]
    assert world.answer() == [] == world.wait(200)
    assert core.outstanding(world.script, world.state) == []  # it is not asked again after a crash
    assert world.give(Replied(world.time, "0" * 16 + "-0-act", True, "eve")) == []
    assert world.give(Replied(world.time, act.request, True, "bob")) == ["ask restart"]
    assert [(tell.type, tell.data["by"]) for tell in world.tells] == [("script.ask.approved", "bob")]
    assert world.give(Replied(world.time, act.request, False, "bob")) == []  # once answered it is over


def test_an_answer_may_come_before_the_question_is_known_to_have_gone_out():
    world = World()
    world.event("shop.risk")
    assert world.give(Replied(world.time, world.open[0].request, True, "bob")) == []
    assert world.answer() == ["ask restart"]


def test_a_refusal_and_a_default_of_refuse_end_in_a_person():
    world = World()
    world.event("shop.risk")
    request = world.open[0].request
    world.answer()
    assert world.give(Replied(world.time, request, False, "bob")) == ["call notify"]
    assert world.tells[-1].data["reason"] == "bob refused"
    world = World()
    world.event("shop.risk")
    world.answer()
    assert world.wait(299) == []
    assert world.wait(2) == ["call notify"]
    assert world.tells[-1].data["reason"] == "nobody answered within 300 s"


def test_a_default_of_approve_goes_on():
    world = World(TEXT.replace("default: refuse", "default: approve"))
    world.event("shop.risk")
    world.answer()
    assert world.wait(301) == ["ask restart"]
