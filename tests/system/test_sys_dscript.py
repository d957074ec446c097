# SPDX-License-Identifier: Apache-2.0
"""Actions on a system by the real dre-sys: libvirt and QEMU tell what became of it, not the engine.

The engine is a user of its own, as its service has it. What presses a power button that this guest has not takes a
minute each: DRE_FULL=1.
"""

import json
import os
import pathlib
import subprocess
import time

import pytest
from conftest import environment, program
from dre import event
from system_ground import NETWORK, Host

STEPS = {
    "freeze": "{action: freeze, system: s1}",
    "thaw": "{action: thaw, system: s1}",
    "isolate": "{action: isolate, system: s1}",
    "rejoin": "{action: rejoin, system: s1}",
    "limit": "{action: limit, system: s1, cpu: 50%}",
    "checkpoint": "{action: checkpoint, system: s1, tag: c1, timeout: 5m}",
    "undo": "{action: undo, system: s1, tag: c1, timeout: 5m}",
    "stop": "{action: stop, system: s1, timeout: 5m}",
    "snapshot": "{action: snapshot, system: s1, tag: p1, timeout: 5m}",
    "back": "{action: undo, system: s1, tag: p1, timeout: 5m}",
    "restart": "{action: restart, system: s1, timeout: 5m}",
    "migrate": "{action: migrate, system: s1, to: localhost, as: s2, timeout: 5m}",
    "lost": "{action: restart, system: s1, timeout: 1m}",
}
RESPONSE = """\
  - id: do-{name}
    when: {{event: t.{name}}}
    at-most: {{attempts: 9, per: 1h}}
    then: call
    steps: [{step}]
"""
CALL = "  - {id: call, steps: [{action: notify, to: owner}]}\n"


class World:
    """A system that runs, and an engine that is told what to do with it."""

    def __init__(self, host):
        self.host, self.place, self.number = host, host.place, 0
        host.dre("create", "s1", "--base", host.counting(), "--memory", "64M", "--ip", f"{NETWORK}.5/24")
        host.dre("start", "s1")
        responses = [RESPONSE.format(name=name, step=step) for name, step in STEPS.items()]
        (self.place / "steps.yaml").write_text("".join(["dscript: 1\nname: steps\nresponses:\n", *responses, CALL]))
        with (self.place / "dre.conf").open("a") as conf:
            conf.write(f'DRE_MONITOR_PIPES="{self.place}/run/script"\n')
        self.spool = self.place / "state/spool/ingest/00000000000000000000.jsonl"
        self.spool.parent.mkdir(parents=True, exist_ok=True)
        env = environment()
        env["PATH"] = f"{pathlib.Path(program('dre-sys')).parent}:{env['PATH']}"
        words = ["--config", host.conf, "--quiet", "run", "--user", "daemon", self.place / "steps.yaml"]
        argv = [*host.inside, program("dscript"), *words]
        self.process = subprocess.Popen(list(map(str, argv)), env=env)
        self.wait(lambda: self.records("start"), "the engine")

    def wait(self, condition, what, timeout=60):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            time.sleep(0.05)

    def records(self, kind):
        found = []
        for path in sorted((self.place / "state/script/journal").glob("*.log")):
            whole = path.read_bytes()
            found += [json.loads(line[9:]) for line in whole[: whole.rfind(b"\n") + 1].splitlines()]
        return [record for record in found if record["kind"] == kind]

    def do(self, name):
        """Let the engine do it; the state before and after, as the evidence has it."""
        self.number += 1
        line = event.format(event.Event(event.stamp(), "/host:h", f"t.{name}", 5, {}, {"id": f"e{self.number}"}))
        with open(self.spool, "ab") as stream:
            stream.write(line)
        (self.place / "run/script").write_bytes(line)
        self.wait(lambda: self.ends(name), name, 330)
        (end,) = self.ends(name)
        assert end["error"] is None, end
        return end["before"], end["after"]

    def ends(self, name):
        return [one for one in self.records("outcome") if one["response"] == f"do-{name}"]

    def state(self, name="s1"):
        return self.host.virsh("domstate", name).strip()

    def link(self):
        port = self.host.virsh("domiflist", "s1").split()[0]
        return self.host.virsh("domif-getlink", "s1", port).split()[-1]

    def counted(self):
        """The numbers that the guest has written to its console."""
        path = self.place / "log/sys/s1.log"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [int(line, 16) for line in lines if len(line) == 8]

    def resumed(self):
        """The first number after it began to count from a smaller one, or that its console begins with."""
        self.wait(lambda: len(self.counted()) > 1, "that it counts")
        numbers = self.counted()
        return next((new for old, new in zip(numbers, numbers[1:], strict=False) if new < old), numbers[0])

    def list(self, kind, name="s1"):
        return self.host.dre(kind, "list", name).stdout.split()


@pytest.fixture(scope="module")
def host():
    with Host() as made:
        yield made


@pytest.fixture
def world(host):
    made = World(host)
    yield made
    made.process.kill()
    made.process.wait()
    for name in ("s1", "s2"):
        host.dre("destroy", "--force", name, check=False)


def states(seen):
    return [one["state"] for one in seen]


def test_each_action_is_done_to_the_system(world):
    assert states(world.do("freeze")) == ["running", "frozen"] and world.state() == "paused"
    assert states(world.do("thaw")) == ["frozen", "running"] and world.state() == "running"
    up = world.link()
    world.do("isolate")
    down = world.link()
    world.do("rejoin")
    assert (up, down, world.link()) == ("up", "down", "up")
    before, after = world.do("limit")
    assert (before.get("cpu_limit"), after["cpu_limit"]) == (None, 50)
    assert "vcpu_quota     : 50000" in world.host.virsh("schedinfo", "s1")

    world.do("checkpoint")
    saved = world.counted()[-1]
    world.wait(lambda: world.counted()[-1] > saved + 20, "that it counts on")
    reached = world.counted()[-1]
    assert "c1" in world.list("checkpoint") and world.state() == "running"
    before, after = world.do("undo")
    assert states((before, after)) == ["running", "running"] and before["pid"] != after["pid"]
    # Its memory is that of then: it counts on from there, neither from 1 nor from where it was.
    assert world.state() == "running" and 1 < world.resumed() <= reached

    if os.environ.get("DRE_FULL") == "1":
        before, after = world.do("restart")
        assert before["pid"] != after["pid"] and world.state() == "running"
        assert states(world.do("stop")) == ["running", "stopped"] and world.state() == "shut off"
        world.do("snapshot")
        assert "p1" in world.list("snapshot")
        assert states(world.do("back")) == ["stopped", "running"] and world.state() == "running"

    before, after = world.do("migrate")
    assert before["state"] == "running" and after["state"] is None and "s1" in after["why"]
    assert world.host.virsh("list", "--all", "--name").split() == ["s2"] and world.state("s2") == "running"
    with pytest.raises(AssertionError, match="no such system"):
        world.do("lost")  # it has another name now, which the script does not know
    world.wait((world.place / "log/notify.log").exists, "the owner")
