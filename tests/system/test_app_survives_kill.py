# SPDX-License-Identifier: Apache-2.0
"""kill -9 of dre-app at any moment: the next call works, nothing is left behind, and the shared tree is untouched.

DRE_KILLS is how often each verb is killed (default 2; restart, freeze and thaw only from 10 on), at moments drawn from
the verb's own duration, as moments.py has it.
"""

import json
import os
import signal
import subprocess
import time

import app_ground
import pytest
from conftest import environment, program
from moments import Moments

KILLS = int(os.environ.get("DRE_KILLS", "2"))
NAME = "t-kill"
V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
UNLIMITED, LIMITED = ("max" if V2 else "-1", False, "max"), ("40000", True, "77")
VERBS = ("create", "start", "stop", "load", "undo", "destroy", "limit")
if KILLS >= 10:  # a restart is a stop and a start, which are killed in any case
    VERBS += ("restart", "freeze", "thaw")


class World:
    """One app on a small tree, and dre-app called as a user would."""

    def __init__(self, config, tree):
        self.config, self.tree = config, tree

    def popen(self, *argv):
        words = [program("dre-app"), "--config", self.config, *argv]
        # A session of its own: killing its group kills the command and its children, not LXC's monitor.
        return subprocess.Popen(words, env=environment(), start_new_session=True, stderr=subprocess.PIPE)

    def call(self, *argv, allowed=(0,)):
        done = self.popen(*argv)
        _, stderr = done.communicate(timeout=60)
        assert done.returncode in allowed, f"{argv}: {done.returncode}: {stderr.decode()}"
        return done.returncode

    def output(self, *argv):
        words = [program("dre-app"), "--config", self.config, *argv]
        return subprocess.run(words, env=environment(), capture_output=True, timeout=60).stdout.decode().strip()

    def kernel(self):
        """The limits of the running app: is one set, or none?"""
        pid = self.output("pid", NAME).split()[0]
        cpu = app_ground.kernel(pid, "cpu", "cpu.max" if V2 else "cpu.cfs_quota_us")
        memory = app_ground.kernel(pid, "memory", "memory.max" if V2 else "memory.limit_in_bytes")
        return cpu.split()[0], memory == str(100 << 20), app_ground.kernel(pid, "pids", "pids.max")

    def victim(self, verb):
        return {
            "create": ("create", NAME, "--base", str(self.tree)),
            "load": ("snapshot", "load", NAME, "good"),
            "undo": ("undo", NAME, "good"),
            "destroy": ("destroy", "--force", NAME),
            "limit": ("limit", NAME, "--cpu", "40", "--memory", "100M", "--pids", "77"),
        }.get(verb, (verb, NAME))

    def prepare(self, verb):
        """Bring the app into the state that *verb* begins with."""
        self.call("destroy", "--force", NAME, allowed=(0, 3))
        if verb == "create":
            return
        self.call(*self.victim("create"))
        delta = app_ground.LXC / NAME / "delta"
        (delta / "state").write_text("good\n")
        if verb == "start":
            return
        if verb in ("load", "undo"):
            self.call("snapshot", "save", NAME, "good")
            (delta / "state").write_text("bad\n")
            (delta / "more").write_text("bad\n")
        if verb != "load":
            self.call("start", NAME)
        if verb == "thaw":
            self.call("freeze", NAME)

    def after(self, verb):
        """The next call works, and the verb was done or was not."""
        if verb == "create":
            self.call(*self.victim(verb), allowed=(0, 1))
            assert self.output("status", NAME) == "stopped"
        elif verb == "start":
            self.call("start", NAME)
            assert self.output("exec", NAME, "--", "cat", "/state") == "good"
        elif verb == "stop":
            self.call("stop", NAME)
            assert self.output("status", NAME) == "stopped"
            self.call("start", NAME)
        elif verb == "restart":
            assert self.output("status", NAME) in ("running", "stopped")
            self.call("start", NAME)
            assert self.output("exec", NAME, "--", "cat", "/state") == "good"
            self.call("restart", NAME)
            assert self.output("status", NAME) == "running"
        elif verb in ("freeze", "thaw"):
            assert self.output("status", NAME) in ("running", "frozen")
            self.call(verb, NAME)
            assert self.output("status", NAME) == ("frozen" if verb == "freeze" else "running")
        elif verb == "load":
            assert self.output("status", NAME) == "stopped"
            delta = app_ground.LXC / NAME / "delta"
            assert ((delta / "state").read_text(), (delta / "more").exists()) in (("bad\n", True), ("good\n", False))
            self.call(*self.victim(verb))
            assert not (delta / "more").exists()
        elif verb == "undo":
            assert self.output("status", NAME) == "running"
            assert self.output("exec", NAME, "--", "cat", "/state") in ("good", "bad")
            self.call(*self.victim(verb))
            assert self.output("exec", NAME, "--", "cat", "/state") == "good"
        elif verb == "limit":
            stored = json.loads(self.output("limit", NAME, "--json"))  # reading ends what was begun
            assert (stored["cpu_limit"], stored["pids_limit"]) in ((None, None), (40, 77))
            assert self.kernel() == (LIMITED if stored["cpu_limit"] else UNLIMITED)
            self.call(*self.victim(verb))
            assert self.kernel() == LIMITED
        else:
            self.call("destroy", "--force", NAME, allowed=(0, 3))
            self.call("status", NAME, allowed=(3,))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    place = tmp_path_factory.mktemp("kill")
    config = place / "dre.conf"
    keys = {**app_ground.SETTINGS}
    for part in ("state", "run", "etc", "log"):
        keys[f"DRE_CORE_{part.upper()}_DIR"] = place / part
    keys["DRE_MONITOR_SINK"] = place / "run/events.sock"
    config.write_text("".join(f'{key}="{value}"\n' for key, value in keys.items()))
    config.chmod(0o644)
    made = World(str(config), app_ground.make_tree(place / "tree"))
    with app_ground.alone():
        yield made
        made.call("destroy", "--force", NAME, allowed=(0, 3))


def measured(world, verb):
    """The shortest of three runs, for a longer one would draw moments after the end; of one where few are drawn."""
    times = []
    for _ in range(3 if KILLS >= 10 else 1):
        world.prepare(verb)
        begun = time.monotonic()
        world.call(*world.victim(verb))
        times.append(time.monotonic() - begun)
    return min(times)


@pytest.mark.parametrize("verb", VERBS)
def test_kill(world, verb, record_property):
    world.prepare("start")
    world.call("start", NAME)  # makes the bridge
    world.call("destroy", "--force", NAME)
    before = app_ground.picture(NAME)
    tree_before = app_ground.tree_digest(world.tree)
    moments = Moments(measured(world, verb), KILLS)
    while (delay := moments.draw()) is not None:
        world.prepare(verb)
        begun = time.monotonic()
        victim = world.popen(*world.victim(verb))
        try:
            victim.wait(delay)
            moments.missed(time.monotonic() - begun)
        except subprocess.TimeoutExpired:
            # In turn with the programs it has started, as a lost session would, and alone, as the OOM killer would.
            os.killpg(victim.pid, signal.SIGKILL) if moments.kills % 2 else victim.kill()
        victim.communicate(timeout=60)
        if victim.returncode == -signal.SIGKILL:
            moments.hit()
        try:
            world.after(verb)
            world.call("destroy", "--force", NAME, allowed=(0, 3))
            assert app_ground.picture(NAME) == before
        except AssertionError as error:
            raise AssertionError(f"{verb} number {moments.kills}, killed at {delay:.3f} s: {error}") from None
    assert app_ground.tree_digest(world.tree) == tree_before
    print(f"{verb}: ", end="")
    record_property("hits", moments.hits)
    moments.judge()
