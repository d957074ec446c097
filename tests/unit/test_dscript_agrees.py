# SPDX-License-Identifier: Apache-2.0
"""What `explain` says of the shipped scripts is what `simulate` shows: steps, order, attempts, cooldown, escalation."""

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dscript"))

from dre import event  # noqa: E402
from dscriptlib import check, explain, simulate  # noqa: E402
from dscriptlib.state import Act, Tell  # noqa: E402

BEGIN = 1_800_000_000.0
SCRIPTS = sorted((ROOT / "dscript" / "scripts").glob("*.yaml"))
UNITS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}


def spoken(script):
    """What the English sentences promise of each response, read from them alone."""
    told = {}
    for line in explain.explain(script, "en"):
        if found := re.match(r"Response ([a-z0-9-]+)", line):
            own = told[found[1]] = {"steps": [], "attempts": None, "per": None, "rest": 0.0, "then": None}
        elif found := re.match(r" {4}\d+\. (.*)", line):
            own["steps"].append(found[1])
        elif found := re.match(r"  At most (\d+) times within (\S+) (\S+)\.", line):
            own.update(attempts=int(found[1]), per=float(found[2]) * UNITS[found[3]])
        elif found := re.match(r"  After each time it is left alone for (\S+) (\S+)\.", line):
            own["rest"] = float(found[1]) * UNITS[found[2]]
        elif found := re.match(r"  If a step fails, the next one is ([a-z0-9-]+)\.", line):
            own["then"] = found[1]
    return told


def made(time, type, **data):
    made.count += 1
    return event.Event(event.stamp(time), "/host:h/x", type, 5, data, {"id": f"e{made.count}"})


made.count = 0


def cause(script, trigger, time, raised=True):
    """The events that trigger, and those that end it."""
    if trigger.monitor is None:
        before = [made(time - 1, trigger.after)] if trigger.after else []
        return [*before, made(time, trigger.event)] if raised else []
    monitor = next(item for item in script.monitors if item.id == trigger.monitor)
    if monitor.watch == "sysmon":
        return [made(time, f"sysmon.{monitor.finding}", system=monitor.system)] if raised else []
    if monitor.watch == "event":
        return [made(time, monitor.type, system=monitor.system, **dict(monitor.fields))] if raised else []
    return [made(time, "watch.raised" if raised else "watch.cleared", script=script.name, id=monitor.id)]


def clear(script, time):
    return [made(time, "watch.cleared", script=script.name, id=monitor.id) for monitor in script.monitors]


def acted(script, decisions, response=None):
    """The sentences of what was done, and of which response, in the order of time."""
    found = []
    for decision in decisions:
        for command in decision.commands:
            if isinstance(command, Act) and command.phase == "act" and response in (None, command.response):
                step = script.response(command.response).steps[command.step]
                found.append((command.response, explain.step_sentence(step, "en"), decision.time))
    return found


CASES = [(path, response.id) for path in SCRIPTS for response in check.check(path.read_bytes(), "F")[0].responses
         if response.when]  # fmt: skip


@pytest.fixture
def case(request):
    path, name = request.param
    script, _ = check.check(path.read_bytes(), path.name)
    return script, script.response(name), spoken(script)


named = pytest.mark.parametrize("case", CASES, ids=lambda item: f"{item[0].stem}/{item[1]}", indirect=True)


@named
def test_all_goes_as_it_is_said(case):
    script, response, said = case
    for trigger in response.when:
        events = [*cause(script, trigger, BEGIN), *clear(script, BEGIN + 5)]
        done = acted(script, simulate.of_events([script], events, reply=True, after=300))
        assert [sentence for _, sentence, _ in done] == said[response.id]["steps"]


@named
def test_what_fails_leads_to_what_is_said_and_to_a_person(case):
    script, response, said = case
    failing = [step.action for step in response.steps if step.action not in ("record", "notify", "emit")]
    if not failing:
        assert said[response.id]["steps"][-1].startswith(("Tell operator", "Put into the evidence"))
        return
    events = cause(script, response.when[0], BEGIN)
    done = acted(script, simulate.of_events([script], events, failing, True, 0))
    last = max(number for number, (name, _, _) in enumerate(done) if name == response.id)
    following = done[last + 1 :]
    then = said[response.id]["then"]
    assert [(name, sentence) for name, sentence, _ in following] == [(then, said[then]["steps"][0])]
    assert following[0][1].startswith("Tell ")


@named
def test_it_is_done_as_often_as_is_said_and_no_oftener(case):
    script, response, said = case
    own = said[response.id]
    assert own["attempts"] and own["per"]
    events, time = [], BEGIN
    while time < BEGIN + own["per"]:
        # Longer than the cooldown and what the monitors need to be clear again, and short enough to come too often.
        events += [*cause(script, response.when[0], time), *clear(script, time + 1)]
        time += max(own["rest"] + 65, own["per"] / (own["attempts"] + 3))
    decisions = list(simulate.of_events([script], events, reply=True, after=0))
    starts = [time for _, sentence, time in acted(script, decisions, response.id) if sentence == own["steps"][0]]
    assert len(starts) == min(own["attempts"], len(events))
    assert all(later - time >= own["rest"] for time, later in zip(starts, starts[1:], strict=False))
    refused = [command for decision in decisions for command in decision.commands if isinstance(command, Tell)
               and command.type == "script.response.refused"]  # fmt: skip
    assert len(refused) == 1  # told once, not each time


def test_every_shipped_script_is_here():
    assert {path.stem for path in SCRIPTS} == {name for name in {path.stem for path, _ in CASES}}
    stories = {"shop-overload", "shop-batch", "shop-memory", "shop-intruder"}
    assert stories | {"system-intruder", "system-watch", "container-watch", "apache-watch", "mysql-watch"} == {
        path.stem for path in SCRIPTS
    }
