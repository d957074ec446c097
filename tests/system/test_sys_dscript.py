# SPDX-License-Identifier: Apache-2.0
"""Actions on a system by the real dre-sys: libvirt and QEMU tell what became of it, not the engine.

The engine is a user of its own, as its service has it. What presses a power button that this guest has not takes a
minute each: DRE_FULL=1.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time

import dscriptkit
import pytest
from conftest import environment, program
from dre import event
from system_ground import BRIDGE, NETWORK, Host, There, need

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
AWAY = {  # over the network, HOST is told later
    "send": "{action: migrate, system: s3, to: HOST, timeout: 5m}",
    "move": "{action: migrate, system: s1, to: HOST, live: yes, copy-storage: yes, unencrypted: yes, timeout: 5m}",
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

    def __init__(self, host, steps=STEPS):
        self.host, self.place, self.number = host, host.place, 0
        host.dre("create", "s1", "--base", host.counting(), "--memory", "64M", "--ip", f"{NETWORK}.5/24")
        host.dre("start", "s1")
        responses = [RESPONSE.format(name=name, step=step) for name, step in steps.items()]
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
        return dscriptkit.records(self.place, kind)

    def do(self, name):
        """Let the engine do it; the state before and after, as the evidence has it."""
        self.begin(name)
        self.wait(lambda: self.ends(name), name, 330)
        (end,) = self.ends(name)
        assert end["error"] is None, end
        return end["before"], end["after"]

    def begin(self, name):
        """Let the engine begin it."""
        self.number += 1
        line = event.format(event.Event(event.stamp(), "/host:h", f"t.{name}", 5, {}, {"id": f"e{self.number}"}))
        with open(self.spool, "ab") as stream:
            stream.write(line)
        (self.place / "run/script").write_bytes(line)

    def ends(self, name):
        return [one for one in self.records("outcome") if one["response"] == f"do-{name}"]

    def state(self, name="s1"):
        return self.host.virsh("domstate", name).strip()

    def link(self):
        port = self.host.virsh("domiflist", "s1").split()[0]
        return self.host.virsh("domif-getlink", "s1", port).split()[-1]

    def counted(self, place=None):
        """The numbers that the guest has written to its console, of this host or of one whose files are in *place*."""
        path = (place or self.place) / "log/sys/s1.log"
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
    with at_work(host) as made:
        yield made


@contextlib.contextmanager
def at_work(host, steps=STEPS):
    """A World, and nothing of it afterwards."""
    made = World(host, steps)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        for name in ("s1", "s2", "s3"):
            host.dre("destroy", "--force", name, check=False)
        shutil.rmtree(host.place / "state/script")


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


def test_a_system_that_is_destroyed_in_mid_step_reaches_a_person(world):
    """By virsh, while a restart waits for a guest that does not heed its power button."""
    world.begin("lost")
    world.wait(lambda: world.records("intent"), "the step")
    time.sleep(1)
    assert world.state() == "running" and not world.records("outcome")
    # In this order it is never there, shut off, for the restart to start it.
    for words in (("undefine", "s1", "--snapshots-metadata", "--nvram"), ("destroy", "s1")):
        world.host.virsh(*words)
    world.wait(lambda: world.ends("lost"), "the end", 90)
    (end,) = world.ends("lost")
    # What dre-sys keeps of it is there until the next verb. That it is gone dre-sys says, or libvirt in mid-call.
    assert "exit status 3: s1: " in end["error"] and end["after"]["state"] in (None, "partial")
    world.wait((world.place / "log/notify.log").exists, "the owner")
    assert world.host.virsh("list", "--all", "--name").split() == []


def test_systems_move_to_another_host_by_ssh_as_a_script_says(host):
    """One that is stopped, with its disk, and one that runs, with its memory."""
    need("ssh", "sshd", "ssh-keygen")
    with There(host) as there:
        there.call("ip", "link", "add", BRIDGE, "type", "bridge")
        there.call("ip", "link", "set", BRIDGE, "up")
        name = there.begin_sshd()
        with at_work(host, {key: step.replace("HOST", name) for key, step in AWAY.items()}) as world:
            sent(world, there)
            moved(world, there)


def sent(world, there):
    """Cold: what was written to its disk is on its disk there."""
    host = world.host
    host.dre("create", "s3", "--base", host.counting(), "--memory", "64M", "--ip", f"{NETWORK}.6/24")
    disk, look = host.place / "state/sys/state/s3/disk.qcow2", ("qemu-io", "-r", "-c", "read -v 0 4k")
    host.call("qemu-io", "-c", "write -P 77 2k 1k", disk)
    here = host.call(*look, disk).stdout.splitlines()[:-2]  # without how long it took
    before, after = world.do("send")
    assert (before["state"], after["state"]) == ("stopped", None) and "s3" in after["why"]
    assert (
        there.virsh("list", "--all", "--name").split() == ["s3"] and there.virsh("domstate", "s3").strip() == "shut off"
    )
    assert there.call(*look, disk).stdout.splitlines()[:-2] == here and "4d 4d 4d" in "".join(here)
    assert not disk.parent.exists()


def moved(world, there):
    """Live: it counts on there, without a gap, and runs nowhere else."""
    world.wait(lambda: len(world.counted()) > 20, "that it counts")
    before, after = world.do("move")
    assert (before["state"], after["state"]) == ("running", None)
    assert world.host.virsh("list", "--all", "--name").split() == []
    assert there.virsh("list", "--name").split() == ["s1"]
    world.wait(lambda: len(world.counted(there.place)) > 20, "that it counts there")
    numbers = [*world.counted(), *world.counted(there.place)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    done = json.loads(world.ends("move")[0]["line"])["data"]
    assert (done["action"], done["system"]) == ("migrate", "s1")
