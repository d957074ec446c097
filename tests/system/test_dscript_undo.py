# SPDX-License-Identifier: Apache-2.0
"""With the real dre-app: an event limits an app and puts it back to its good snapshot, once, also across kill -9."""

import json
import pathlib
import re
import subprocess
import time

import dscriptkit
import pytest
from app_ground import LXC, Ground, make_tree, wait_for
from conftest import environment, program
from dre import event

NAME = "t-script"
SCRIPT = f"""\
dscript: 1
name: back
agreed: {{goal: G26, by: [owner]}}
monitors:
  - {{id: slow, watch: cpu, of: {NAME}, above: 90%, clear: 70%}}
responses:
  - id: put-back
    when: {{event: shop.overload}}
    steps:
      - {{action: limit, of: {NAME}, cpu: 50%, revert: when-clear}}
      - {{action: undo, of: {NAME}, tag: good, timeout: 60s, expect: {{watch: cpu, within: 60s}}}}
    at-most: {{attempts: 2, per: 1h}}
    then: call
  - {{id: call, steps: [{{action: notify, to: owner}}]}}
"""
# In place of dre-app: asks a dre-app --serve, and passes its answer on as the program would have given it.
SERVED = """\
#!/usr/bin/python3
import json, subprocess, sys
config, argv = sys.argv[1:3], sys.argv[3:]
line = json.dumps({{"id": 7, "argv": argv}}).encode()
done = subprocess.run(["{program}", *config, "--serve"], input=line, capture_output=True, check=True)
answer = json.loads(done.stdout)
assert config[0] == "--config" and answer["id"] == 7
for row in answer["rows"]:
    print(json.dumps(row))
if answer["error"]:
    print(answer["error"], file=sys.stderr)
sys.exit(answer["code"])
"""


class World:
    def __init__(self, ground):
        self.ground, self.place = ground, ground.place
        (self.place / "back.yaml").write_text(SCRIPT)
        directories = {str(pathlib.Path(program(name)).parent) for name in ("dre-app", "dscript")}
        self.env = environment()
        self.env["PATH"] = ":".join([*sorted(directories), self.env["PATH"]])
        self.spool = self.place / "state/spool/ingest/00000000000000000000.jsonl"
        self.spool.parent.mkdir(parents=True)
        self.process = None

    def serve(self):
        """From now on the engine's dre-app is one that asks --serve."""
        fake = self.place / "bin" / "dre-app"
        fake.parent.mkdir()
        fake.write_text(SERVED.format(program=program("dre-app")))
        fake.chmod(0o755)
        self.env["PATH"] = f"{fake.parent}:{self.env['PATH']}"

    def start(self):
        words = [program("dscript"), "--config", self.ground.config, "run", str(self.place / "back.yaml")]
        self.process = subprocess.Popen(words, env=self.env, stderr=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def records(self):
        return dscriptkit.records(self.place)

    def kinds(self):
        return [record["kind"] for record in self.records()]

    def outcomes(self):
        return [(r["phase"], r["step"], r["error"]) for r in self.records() if r["kind"] == "outcome"]

    def send(self, type, data, name):
        line = event.format(event.Event(event.stamp(), "/host:h", type, 5, data, {"id": name}))
        with open(self.spool, "ab") as stream:
            stream.write(line)
        (self.place / "run/script").write_bytes(line)

    def overload(self):
        assert wait_for(lambda: "start" in self.kinds())
        self.send("watch.raised", {"script": "back", "id": "slow"}, "raised")
        self.send("shop.overload", {"ids": "raised"}, "overload")

    def clear(self):
        self.send("watch.cleared", {"script": "back", "id": "slow"}, "cleared")

    def told(self, type):
        return [record["line"] for record in self.records() if f'"type":"{type}"' in record.get("line", "")]


@pytest.fixture
def world(run, settings):
    with Ground(run, settings) as ground:
        ground("create", NAME, "--base", str(make_tree(ground.place / "tree")))
        delta = LXC / NAME / "delta"
        (delta / "state").write_text("good\n")
        ground("limit", NAME, "--cpu", "80")
        ground("snapshot", "save", NAME, "good")
        (delta / "state").write_text("bad\n")
        ground("start", NAME)
        made = World(ground)
        try:
            yield made
        finally:
            if made.process:
                made.kill()


def judge(world):
    """The snapshot's file is back in the running app, the former limit too, and the undo happened once."""
    undone = [("read", 1, None), ("act", 1, None), ("act", 2, None)]
    assert wait_for(lambda: world.outcomes() == undone, 60), world.outcomes()
    world.clear()
    assert wait_for(lambda: len(world.outcomes()) == 4), world.outcomes()
    assert world.outcomes()[-1] == ("revert", 1, None)
    assert wait_for(lambda: world.told("script.response.done"))
    (done,) = world.told("script.response.done")
    assert json.loads(done)["data"]["restored"] is True
    lxc = subprocess.run(["lxc-info", "-n", NAME, "-sH"], capture_output=True, text=True)
    assert lxc.stdout.strip() == "RUNNING"
    assert (LXC / NAME / "delta" / "state").read_text() == "good\n"
    assert re.search(r"cpu.cfs_quota_us = 80000|cpu.max = 80000", (LXC / NAME / "config").read_text())
    assert world.ground.events().count("app.undone") == 1


@pytest.mark.parametrize("by", ["program", "serve"])
def test_an_event_puts_the_app_back(world, by):
    if by == "serve":
        world.serve()
    world.start()
    world.overload()
    judge(world)


def test_killed_in_the_middle_of_the_undo_it_is_still_done_once(world):
    world.start()
    world.overload()

    def undoing():
        return any(r["kind"] == "intent" and r["action"] == "undo" for r in world.records())

    assert wait_for(undoing)
    time.sleep(0.03)  # so that dre-app is at work, as a rule; the undo itself takes longer
    world.kill()
    assert len(world.outcomes()) == 2, "the undo had ended before the kill"
    world.start()
    assert wait_for(lambda: "probe" in world.kinds())
    judge(world)
