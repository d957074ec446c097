# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the engine while its steps are at work: each action happens once, each response comes to its end.

DRE_KILLS is how often it is killed (default 2), at moments drawn from the duration of the response, as moments.py has
it. The dre-app here is a fake that is slow and counts; test_dscript_undo.py has the real one.
"""

import collections
import json
import os
import subprocess
import time

from conftest import environment, program
from dre import event
from moments import Moments

KILLS = int(os.environ.get("DRE_KILLS", "2"))
UNDISTURBED = 3  # responses that are timed first; the shortest counts, for on a busy host any may take longer
SCRIPT = """\
dscript: 1
name: many
agreed: {goal: G1, by: [owner]}
responses:
  - id: work
    when: {event: t.go}
    steps:
      - {action: restart, of: a}
      - {action: limit, of: a, pids: 9, revert: on-failure}
      - {action: notify, to: owner}
      - {action: undo, of: a, tag: good}
    at-most: {attempts: 9999, per: 1d}
    then: call
  - {id: call, steps: [{action: notify, to: owner}]}
"""
# The effect is a line; like dre-app, it is done and remembered under a lock, whatever becomes of the caller.
FAKE = """\
#!/bin/bash
set -eu
[[ " $* " == *" --request-id "* ]] || { echo '{"pids_limit":null}'; exit; }
id=${*: -1}
exec 9>"$EFFECTS/$id.lock"
flock 9
[ ! -e "$EFFECTS/$id.done" ] || exit 0
sleep 0.05
echo "$*" >>"$EFFECTS/all"
sleep 0.02
touch "$EFFECTS/$id.done"
"""


class World:
    def __init__(self, tmp_path, config):
        self.tmp_path, self.config = tmp_path, config
        (tmp_path / "many.yaml").write_text(SCRIPT)
        (tmp_path / "effects").mkdir()
        fake = tmp_path / "bin" / "dre-app"
        fake.parent.mkdir()
        fake.write_text(FAKE)
        fake.chmod(0o755)
        spool = tmp_path / "state/spool/ingest"
        spool.mkdir(parents=True)
        self.spool = spool / "00000000000000000000.jsonl"
        self.env = environment()
        self.env.update(PATH=f"{fake.parent}:{self.env['PATH']}", EFFECTS=str(tmp_path / "effects"))
        self.process = None

    def start(self):
        words = [program("dscript"), "--config", self.config, "--quiet", "run", str(self.tmp_path / "many.yaml")]
        self.process = subprocess.Popen(words, env=self.env)

    def records(self):
        found = []
        for path in sorted((self.tmp_path / "state/script/journal").glob("*.log")):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    found.append(json.loads(line[9:]))
        return found

    def wait(self, condition, what, timeout=20):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            time.sleep(0.005)

    def go(self, number):
        """Send an event and return once the engine has made it its own."""
        line = event.format(event.Event(event.stamp(), "/host:h", "t.go", 5, {}, {"id": f"go{number}"}))
        with open(self.spool, "ab") as stream:
            stream.write(line)
        (self.tmp_path / "run/script").write_bytes(line)
        self.wait(lambda: sum(record["kind"] == "event" for record in self.records()) == number, "the event")

    def ended(self):
        return sum('"script.response.done"' in record.get("line", "") for record in self.records())


def test_each_action_happens_once_whenever_the_engine_is_killed(tmp_path, settings):
    world = World(tmp_path, settings())
    try:
        judge(world, kill(world))
    finally:
        world.process.kill()
        world.process.wait()


def kill(world):
    world.start()
    world.wait(lambda: any(record["kind"] == "start" for record in world.records()), "the engine")
    durations = []
    for number in range(1, UNDISTURBED + 1):
        world.go(number)
        begin = time.monotonic()
        world.wait(lambda number=number: world.ended() == number, "an undisturbed response")
        durations.append(time.monotonic() - begin)
    moments = Moments(min(durations), KILLS)
    while (delay := moments.draw()) is not None:
        number = UNDISTURBED + moments.kills
        world.go(number)
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < delay and world.ended() < number:
            time.sleep(min(0.005, delay - passed))
        world.process.kill()
        world.process.wait()
        if world.ended() < number:
            moments.hit()
        else:
            moments.missed(passed)
        world.start()
        world.wait(lambda number=number: world.ended() == number, "the response after the kill")
    world.wait(lambda: evidence(world)[-1:] == ["script.response.done"], "the evidence")
    return moments


def evidence(world):
    """Types of the events in the client's spool of the D-Box."""
    path = world.tmp_path / "state/spool/dbox/dscript/records-1"
    lines = [line for line in path.read_text().splitlines() if line.startswith("{")]
    by_id = {json.loads(line)["id"]: line for line in lines}  # one may be there twice, with the same id
    assert len(set(lines)) == len(by_id)
    return [json.loads(line)["type"] for line in by_id.values()]


def judge(world, moments):
    kills = moments.kills
    effects = (world.tmp_path / "effects/all").read_text().splitlines()
    doubled = [line for line, count in collections.Counter(effects).items() if count > 1]
    probes = sum(record["kind"] == "probe" for record in world.records())
    print(f"{len(effects)} effects, {probes} asked again")
    assert doubled == []
    assert len(effects) == 3 * (kills + UNDISTURBED)
    runs = [line.rsplit(" ", 1)[1].split("-")[0] for line in effects]
    assert sorted(collections.Counter(runs).values()) == [3] * (kills + UNDISTURBED)
    notices = (world.tmp_path / "log/notify.log").read_text().splitlines()
    assert len(notices) == len({line.split("request=")[1] for line in notices}) == kills + UNDISTURBED
    moments.judge()
    whole = ["t.go", *["script.step.begun", "script.step.done"] * 2]
    whole += ["script.step.begun", "script.step.done", "script.notify", "script.step.begun", "script.step.done"]
    assert evidence(world) == [*whole, "script.response.done"] * (kills + UNDISTURBED)
