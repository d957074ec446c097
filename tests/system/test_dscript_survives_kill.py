# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the engine while its steps are at work: each action happens once, each response comes to its end.

DRE_KILLS is how often it is killed (default 3; 300 for the proof before a release), at moments drawn from the duration
of the response, as moments.py has it. Each third time what supervises a program of `run` is killed, too: then nobody
can know whether the program did its work, and a person must be told; with it, what acts for an engine that is a user
of its own. DRE_FULL=1 has an engine that is root, too. The dre-app here is a fake that is slow and counts;
test_dscript_undo.py and test_dscript_containers.py have the real one.
"""

import collections
import itertools
import json
import os
import pathlib
import subprocess
import time

import pytest
from conftest import environment, program
from dre import event
from moments import Moments

KILLS = int(os.environ.get("DRE_KILLS", "3"))
UNDISTURBED = 3  # responses that are timed first; the shortest counts, for on a busy host any may take longer
ENGINES = [["--user", "daemon"], []][: 2 if os.environ.get("DRE_FULL") == "1" else 1]
FEW = (KILLS + UNDISTURBED) // 2  # attempts of the response that is called for more often than it may
SCRIPT = f"""\
dscript: 1
name: many
agreed: {{goal: G1, by: [owner]}}
responses:
  - id: work
    when: {{event: t.go}}
    steps:
      - {{action: restart, of: a}}
      - {{action: limit, of: a, pids: 9, revert: on-failure}}
      - {{action: run, argv: [job], user: root, timeout: 20s}}
      - {{action: notify, to: owner}}
      - {{action: undo, of: a, tag: good}}
    at-most: {{attempts: 9999, per: 1d}}
    then: call
  - id: few
    when: {{event: t.go}}
    steps: [{{action: restart, of: b}}]
    at-most: {{attempts: {FEW}, per: 1d}}
    then: call
  - {{id: call, steps: [{{action: notify, to: owner}}]}}
"""
# The effect is a line; like dre-app, it is done and remembered under a lock, whatever becomes of the caller.
FAKE = """\
#!/bin/bash
set -eu
[[ " $* " != *" --serve "* ]] || exec /usr/bin/python3 -c '
import json, subprocess, sys
for line in sys.stdin:
    asked = json.loads(line)
    done = subprocess.run([sys.argv[1], *asked["argv"]], stdout=subprocess.PIPE)
    rows = [json.loads(row) for row in done.stdout.splitlines()]
    print(json.dumps({"id": asked["id"], "code": done.returncode, "rows": rows, "error": ""}), flush=True)
' "$0"
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
JOB = """\
#!/bin/sh
sleep 0.05
echo "$DRE_SCRIPT_REQUEST" >>{jobs}
sleep 0.02
"""
STEP = ["script.step.begun", "script.step.done"]
TOLD = ["script.step.begun", "script.step.done", "script.notify"]  # in the order of their words
WHOLE = sorted([*STEP * 4, *TOLD, "script.run.output", "script.response.done"])
# The program's end is not known: its step has failed, the limit is put back, and the owner is told.
UNKNOWN = sorted([*STEP * 3, "script.step.begun", "script.step.failed", "script.response.done"])


class World:
    def __init__(self, tmp_path, config, options):
        self.tmp_path, self.config, self.options = tmp_path, config, options
        (tmp_path / "many.yaml").write_text(SCRIPT)
        (tmp_path / "effects").mkdir()
        fake = tmp_path / "bin" / "dre-app"
        job = tmp_path / "etc/actions.d/job"
        for path, text in ((fake, FAKE), (job, JOB.format(jobs=tmp_path / "jobs"))):
            path.parent.mkdir(parents=True)
            path.write_text(text)
            path.chmod(0o755)
        spool = tmp_path / "state/spool/ingest"
        spool.mkdir(parents=True)
        self.spool = spool / "00000000000000000000.jsonl"
        self.env = environment()
        self.env.update(PATH=f"{fake.parent}:{self.env['PATH']}", EFFECTS=str(tmp_path / "effects"))
        self.process = None
        self.read, self.offsets = [], collections.Counter()

    def start(self):
        words = [program("dscript"), "--config", self.config, "--quiet", "run", *self.options]
        words.append(str(self.tmp_path / "many.yaml"))
        self.process = subprocess.Popen(words, env=self.env)

    def kill(self, all):
        """Kill the engine; *all*: and the supervisor of a program, with which the program ends."""
        with_it = supervisors(self.process.pid) if all else []
        self.process.kill()
        for pid in with_it:
            subprocess.run(["kill", "-9", str(pid)], stderr=subprocess.DEVNULL)  # it may have ended by itself
        self.process.wait()

    def records(self):
        """All records; each octet of the journal is read once."""
        for path in sorted((self.tmp_path / "state/script/journal").glob("*.log")):
            with path.open("rb") as stream:
                stream.seek(self.offsets[path.name])
                whole = stream.read()
            whole = whole[: whole.rfind(b"\n") + 1]
            self.offsets[path.name] += len(whole)
            self.read += [json.loads(line[9:]) for line in whole.splitlines()]
        return self.read

    def wait(self, condition, what, timeout=120):
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
        """How many events have been answered to the end."""
        states = [record["states"]["many"] for record in self.records() if "many" in record.get("states", {})]
        came = sum(record["kind"] == "event" for record in self.read)
        return came - bool(states and states[-1]["runs"])


def supervisors(pid):
    """The children of *pid* that are interpreters of Python, and their children of that kind."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = path.read_text().rsplit(")", 1)
        except OSError:
            continue  # it has ended
        if int(fields.split()[1]) == pid and "python" in name.split("(", 1)[1]:
            found += [int(path.parent.name), *supervisors(int(path.parent.name))]
    return found


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.mark.parametrize("options", ENGINES, ids=["user", "root"][: len(ENGINES)])
def test_each_action_happens_once_whenever_the_engine_is_killed(tmp_path, settings, options):
    world = World(tmp_path, settings(), options)
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
        world.kill(all=moments.kills % 3 == 0)
        if world.ended() < number:
            moments.hit()
        else:
            moments.missed(passed)
        world.start()
        world.wait(lambda number=number: world.ended() == number, "the response after the kill")
    world.wait(lambda: len(evidence(world)) == sum("line" in record for record in world.records()), "the evidence")
    return moments


def evidence(world):
    """The events in the client's spool of the D-Box."""
    path = world.tmp_path / "state/spool/dbox/dscript/records-1"
    lines = [line for line in path.read_text().splitlines() if line.startswith("{")]
    by_id = {json.loads(line)["id"]: line for line in lines}  # one may be there twice, with the same id
    assert len(set(lines)) == len(by_id)
    return [json.loads(line) for line in by_id.values()]


def judge(world, moments):
    went = moments.kills + UNDISTURBED
    effects = [line.rsplit(" ", 1) for line in (world.tmp_path / "effects/all").read_text().splitlines()]
    jobs = (world.tmp_path / "jobs").read_text().splitlines()
    doubled = [key for key, count in collections.Counter([*jobs, *(id for _, id in effects)]).items() if count > 1]
    assert doubled == []
    told = collections.defaultdict(list)
    for item in evidence(world):
        if "run" in item["data"] or "request" in item["data"]:
            told[item["data"].get("run") or item["data"]["request"].split("-")[0]].append(item)
    kinds = collections.Counter()
    for run, items in told.items():
        response = items[0]["data"]["response"]
        kinds[response] += 1
        if response == "work":
            kinds[whole_or_unknown(run, items, effects, jobs)] += 1
    refused = sum(item["type"] == "script.response.refused" for item in itertools.chain(*told.values()))
    notices = (world.tmp_path / "log/notify.log").read_text().splitlines()
    probes = sum(record["kind"] == "probe" for record in world.records())
    print(f"{len(effects) + len(jobs) + len(notices)} actions, {probes} asked again, {kinds['unknown']} not known")
    assert kinds["work"] == went
    # Called for each time, done as often as was agreed; one that is used up says so once, and to a person.
    assert sum(" b " in f"{words} " for words, _ in effects) == FEW and refused == 1
    assert kinds["call"] == kinds["unknown"] + 1
    assert len(notices) == len({line.split("request=")[1].split()[0] for line in notices})
    assert len(notices) == kinds["whole"] + kinds["call"]
    moments.judge()


def whole_or_unknown(run, items, effects, jobs):
    """Whether this run of `work` did each of its actions once, or could not know of its program and told so."""
    types = sorted(item["type"] for item in items)
    done = [words for words, id in effects if id.startswith(f"{run}-")]
    ran = jobs.count(f"{run}-2-act")
    if types == WHOLE:
        assert len(done) == 3 and ran == 1
        return "whole"
    assert types == UNKNOWN, types
    (failed,) = [item for item in items if item["type"] == "script.step.failed"]
    assert failed["data"]["action"] == "run" and "is not known" in failed["data"]["reason"]
    assert len(done) == 3 and ran <= 1  # restart, limit, and that taken back
    return "unknown"
