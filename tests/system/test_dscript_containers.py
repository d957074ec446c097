# SPDX-License-Identifier: Apache-2.0
"""Each action on an app by the real dre-app: LXC, the kernel and ping tell what became of it, not the engine.

The engine is a user of its own, as its service has it.
"""

import json
import os
import pathlib
import shutil
import subprocess
import time

import dscriptkit
import pytest
from app_ground import LXC, Ground, kernel, make_tree, wait_for
from checkpoint_ground import Counting, need_criu
from conftest import environment, program
from dre import event
from migrate_ground import There

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME, MOVED, ADDRESS = "t-steps", "t-steps-moved", "10.231.101.64"
STEPS = {
    "freeze": [f"{{action: freeze, of: {NAME}}}"],
    "thaw": [f"{{action: thaw, of: {NAME}}}"],
    "isolate": [f"{{action: isolate, of: {NAME}}}"],
    "rejoin": [f"{{action: rejoin, of: {NAME}}}"],
    "limit": [f"{{action: limit, of: {NAME}, cpu: 50%, memory: 64M, pids: 50}}"],
    "restart": [f"{{action: restart, of: {NAME}, timeout: 60s}}"],
    "stop": [f"{{action: stop, of: {NAME}, timeout: 60s}}"],
    "snapshot": [f"{{action: snapshot, of: {NAME}, tag: s1, timeout: 60s}}"],
    "undo": [f"{{action: undo, of: {NAME}, tag: s1, timeout: 60s}}"],
    "checkpoint": [f"{{action: checkpoint, of: {NAME}, tag: c1, timeout: 120s}}"],
    "return": [f"{{action: undo, of: {NAME}, tag: c1, timeout: 120s}}"],
    "migrate": [f"{{action: migrate, of: {NAME}, to: localhost, as: {MOVED}, timeout: 60s}}"],
    "send": [f"{{action: migrate, of: {NAME}, to: there, timeout: 120s}}"],
    "move": [f"{{action: migrate, of: {NAME}, to: there, live: yes, timeout: 300s}}"],
    # What was done before a step that fails is taken back, the last first.
    "fail": [
        f"{{action: limit, of: {NAME}, pids: 20}}",
        f"{{action: freeze, of: {NAME}}}",
        "{action: restart, of: t-nowhere}",
    ],
}
# The two bridges of this one host have the same network then, so the program is asked from inside.
ASK = "import socket; s = socket.create_connection(('127.0.0.1', 8080)); s.sendall(b'?'); print(s.recv(99).decode())"

RESPONSE = """\
  - id: do-{name}
    when: {{event: t.{name}}}
    if-failed: revert
    at-most: {{attempts: 9, per: 1h}}
    then: call
    steps: [{steps}]
"""
CALL = "  - {id: call, steps: [{action: notify, to: owner}]}\n"


def script():
    responses = [RESPONSE.format(name=name, steps=", ".join(steps)) for name, steps in STEPS.items()]
    return "".join(["dscript: 1\nname: steps\nresponses:\n", *responses, CALL])


class World:
    """An app, and an engine that is told what to do with it; *there* is another host."""

    def __init__(self, ground, there=None):
        self.ground, self.place = ground, ground.place
        (self.place / "steps.yaml").write_text(script())
        self.spool = self.place / "state/spool/ingest/00000000000000000000.jsonl"
        self.spool.parent.mkdir(parents=True)
        env = environment()
        directories = {str(pathlib.Path(program(name)).parent) for name in ("dre-app", "dscript")}
        env["PATH"] = ":".join([*([str(knowing(there))] if there else []), *sorted(directories), env["PATH"]])
        words = ["--config", ground.config, "--quiet", "run", "--user", "daemon", str(self.place / "steps.yaml")]
        self.process = subprocess.Popen([program("dscript"), *words], env=env, stderr=subprocess.DEVNULL)
        assert wait_for(lambda: self.records("start"))
        self.number = 0

    def __repr__(self):
        """For the report of a test that fails."""
        return f"a world where {[one['error'] for one in self.records('outcome')]} came of its steps"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()

    def records(self, kind):
        return dscriptkit.records(self.place, kind)

    def done(self):
        return [one for one in self.records("tell") if '"type":"script.response.done"' in one["line"]]

    def do(self, name):
        """Let the engine do it; what its response said at its end."""
        return self.begin(name)()

    def begin(self, name):
        """Let the engine begin it; what waits for the end and returns what the response said."""
        self.number += 1
        line = event.format(event.Event(event.stamp(), "/host:h", f"t.{name}", 5, {}, {"id": f"e{self.number}"}))
        with open(self.spool, "ab") as stream:
            stream.write(line)
        before = len(self.done())
        (self.place / "run/script").write_bytes(line)

        def ended():
            assert wait_for(lambda: len(self.done()) > before, 330), name
            told = json.loads(self.done()[before]["line"])["data"]
            assert told["response"] == f"do-{name}"
            return told["outcome"]

        return ended

    def seen(self):
        """The state before the last action and after it, as the evidence has them."""
        data = json.loads(self.records("outcome")[-1]["line"])["data"]
        return data["before"], data["after"]

    def state(self):
        done = subprocess.run(["lxc-info", "-n", NAME, "-sH"], capture_output=True, text=True)
        return done.stdout.strip()

    def pid(self):
        return int(subprocess.run(["lxc-info", "-n", NAME, "-pH"], capture_output=True, text=True).stdout)

    def notices(self):
        log = self.place / "log/notify.log"
        return log.read_text().count("\n") if log.exists() else 0


@pytest.fixture
def tmp_path(public_path):
    """Its user must get to what the engine keeps."""
    return public_path


@pytest.fixture
def world(run, settings, request):
    with Ground(run, settings) as ground:
        ground("create", NAME, *getattr(request, "param", ()), "--base", str(make_tree(ground.place / "tree")))
        (LXC / NAME / "delta/state").write_text("good\n")
        ground("start", NAME)
        with World(ground) as made:
            yield made


def knowing(there):
    """A directory with the ssh of this host, which reads the test's ssh_config in place of root's."""
    place = there.place / "bin"
    place.mkdir()
    (place / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {there.ssh_config} "$@"\n')
    (place / "ssh").chmod(0o755)
    return place


def answers(address):
    return subprocess.run(["ping", "-c", "1", "-W", "1", address], capture_output=True).returncode == 0


def test_each_action_is_done_to_the_app(world):
    assert world.state() == "RUNNING"
    assert (world.do("freeze"), world.state()) == ("done", "FROZEN")
    assert [one["state"] for one in world.seen()] == ["running", "frozen"]
    assert [one["pid"] for one in world.seen()] == [world.pid()] * 2
    assert (world.do("thaw"), world.state()) == ("done", "RUNNING")

    address = json.loads(world.ground("status", NAME, "--json"))["ip"][0]
    assert wait_for(lambda: answers(address))
    assert world.do("isolate") == "done" and not answers(address)
    assert [one["isolated"] for one in world.seen()] == [False, True]
    assert world.do("rejoin") == "done" and wait_for(lambda: answers(address))

    assert world.do("limit") == "done"
    assert kernel(world.pid(), "pids", "pids.max") == "50"
    v2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    memory = "memory.max" if v2 else "memory.limit_in_bytes"
    assert kernel(world.pid(), "memory", memory) == str(64 << 20)
    limits = [tuple(one.get(key) for key in ("cpu_limit", "memory_limit", "pids_limit")) for one in world.seen()]
    assert limits == [(None, None, None), (50, 64 << 20, 50)]

    before = world.pid()
    assert (world.do("restart"), world.state()) == ("done", "RUNNING")
    assert world.pid() != before and [one["pid"] for one in world.seen()] == [before, world.pid()]
    assert (world.do("stop"), world.state()) == ("done", "STOPPED")
    assert [one["state"] for one in world.seen()] == ["running", "stopped"]
    assert world.do("snapshot") == "done"
    assert [one.get("snapshots", []) for one in world.seen()] == [[], ["s1"]]
    (LXC / NAME / "delta/state").write_text("bad\n")
    assert (world.do("undo"), world.state()) == ("done", "RUNNING")
    assert (LXC / NAME / "delta/state").read_text() == "good\n"
    assert world.notices() == 0

    assert (world.do("fail"), world.state()) == ("failed", "RUNNING")  # it was frozen, and is thawed
    assert kernel(world.pid(), "pids", "pids.max") == "50"
    assert [(one["step"], one["phase"]) for one in world.records("intent")[-4:-1]] == [
        (3, "act"),
        (2, "revert"),
        (1, "revert"),
    ]
    assert wait_for(lambda: world.notices() == 1)


def test_an_app_is_moved_and_its_new_name_is_not_the_scripts(world):
    assert world.do("migrate") == "done"
    before, after = world.seen()
    assert (before["state"], after) == ("running", {"state": None, "why": f"{NAME}: no such app"})
    assert not (LXC / NAME).exists() and (LXC / MOVED / "delta/state").read_text() == "good\n"
    done = subprocess.run(["lxc-info", "-n", MOVED, "-sH"], capture_output=True, text=True)
    assert done.stdout.strip() == "RUNNING"
    assert world.do("freeze") == "failed" and wait_for(lambda: world.notices() == 1)


@pytest.mark.parametrize("world", [["--privileged"]], indirect=True)
def test_a_checkpoint_is_saved_or_why_it_cannot_be_reaches_a_person(world):
    checked = shutil.which("criu") and subprocess.run(["criu", "check"], capture_output=True).returncode == 0
    if checked:
        assert world.do("checkpoint") == "done" and "c1" in world.ground("checkpoint", "list", NAME)
    else:
        assert world.do("checkpoint") == "failed" and wait_for(lambda: world.notices() == 1)
        (end,) = [one for one in world.records("outcome") if one["response"] == "do-checkpoint"]
        assert "criu" in end["error"].lower()
    assert world.state() == "RUNNING"


def test_a_container_that_is_destroyed_meanwhile_reaches_a_person(world):
    world.ground("destroy", "--force", NAME)
    assert world.do("restart") == "failed"
    (end,) = [one for one in world.records("outcome") if one["response"] == "do-restart"]
    assert end["before"] == end["after"] == {"state": None, "why": f"{NAME}: no such app"}
    assert wait_for(lambda: world.notices() == 1)
    assert not (LXC / NAME).exists()


def test_an_app_that_is_destroyed_in_mid_step_reaches_a_person(run, settings):
    """By somebody who does not ask us, while a restart waits for an app that does not want to end."""
    stubborn = "trap '' TERM PWR HUP INT; while :; do sleep 1; done"
    with Ground(run, settings) as ground:
        ground("create", NAME, "--base", str(make_tree(ground.place / "tree")), "--", "sh", "-c", stubborn)
        ground("start", NAME)
        with World(ground) as world:
            ended = world.begin("restart")
            assert wait_for(lambda: world.records("intent"))
            time.sleep(1)
            assert world.state() == "RUNNING" and not world.records("outcome")
            subprocess.run(["lxc-destroy", "--force", "-n", NAME], check=True, capture_output=True, timeout=60)
            assert ended() == "failed"
            assert world.records("outcome")[0]["error"] and wait_for(lambda: world.notices() == 1)
            assert not (LXC / NAME).exists() and ground("list").split()[:2] == [NAME, "partial"]
            assert [one["step"] for one in world.records("intent") if one["response"] == "do-restart"] == [1]


def test_memory_goes_back_to_the_checkpoint_that_a_script_has_saved(run, settings):
    need_criu()
    with Counting(run, settings, NAME, ADDRESS) as ground, World(ground) as world:
        ground.ask("before")
        assert world.do("checkpoint") == "done"
        assert (ground.checkpoints / "c1").is_dir() and world.state() == "RUNNING"
        saved = ground.ask()
        assert saved[1] == "before"  # it went on
        ground.ask("after")
        assert wait_for(lambda: ground.ask()[2] > saved[2] + 200)
        reached = ground.ask()[2]
        assert world.do("return") == "done" and world.state() == "RUNNING"
        _, mark, count, offset = ground.ask()
        assert (mark, count < reached) == ("before", True)  # neither where it was, nor anew
        lines = (ground.delta / "lines").read_bytes()[:offset].split()
        assert [int(line) for line in lines] == list(range(1, len(lines) + 1)) and len(lines) >= count
        assert world.notices() == 0


def test_an_app_moves_to_another_host_by_ssh(run, settings):
    with Ground(run, settings) as ground:
        tree = make_tree(ground.place / "state/base/small")
        (ground.place / "state").chmod(0o711)
        os.utime(tree, (1, 1))
        ground("create", NAME, "--base", "small", "--memory", "200M")
        ground("start", NAME)
        ground("exec", NAME, "--", "sh", "-c", "echo kept >/kept; rm /etc/release")
        with There(run) as there, World(ground, there) as world:
            subprocess.run(["cp", "-a", tree, there.trees], check=True)
            assert world.do("send") == "done"
            before, after = world.seen()
            assert (before["state"], after) == ("running", {"state": None, "why": f"{NAME}: no such app"})
            assert (there.place / "sshd.log").read_text().count("Accepted publickey") == 1
            assert not (LXC / NAME).exists() and (there.lxc / NAME / "delta/kept").read_text() == "kept\n"
            asked = ["lxc-info", "-P", there.lxc, "-n", NAME, "-sH"]
            assert subprocess.run(asked, capture_output=True, text=True).stdout.strip() == "RUNNING"
            there.trust(None)  # who is not known any more gets nothing
            ground("create", NAME, "--base", "small")
            ground("start", NAME)
            there("destroy", "--force", NAME)
            assert world.do("send") == "failed" and world.state() == "RUNNING"
            errors = [one["error"] for one in world.records("outcome") if one["response"] == "do-send"]
            assert errors[0] is None and "its host key is not known" in errors[1] and wait_for(world.notices)
            assert there("list") == ""


def test_an_app_moves_to_another_host_with_its_memory(run, settings):
    need_criu()
    allowed = ("--allow-privileged", "--allow-live")
    with (
        Counting(run, settings, NAME, ADDRESS) as ground,
        There(run, *allowed, network="10.231.101.1/24") as there,
        World(ground, there) as world,
    ):
        ground.ask("kept-in-memory")
        before = ground.ask()
        assert world.do("move") == "done"
        word, count = there("exec", NAME, "--", "/usr/bin/python3", "-c", ASK).split()[1:3]
        assert (word, int(count) >= before[2]) == ("kept-in-memory", True)
        assert not (LXC / NAME).exists()
