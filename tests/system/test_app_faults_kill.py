# SPDX-License-Identifier: Apache-2.0
"""kill -9 of a changing verb on a stopped app, after any single change of the file system: the old state or the new.

strace kills at the Nth system call that changes a name. DRE_KILLS is how many of these moments are tried of each verb
(default 2; all when it is 50). The other verbs are killed
- start, stop, restart, freeze, thaw, undo, and limit of a running app: in test_app_survives_kill.py, by the clock
- clone, rename, import: in test_app_copy_survives_kill.py
- checkpoint save and restart, and delete of what CRIU made: in test_app_checkpoint_survives_kill.py
- migrate, receive: in test_app_migrate_survives_kill.py
- set, isolate, rejoin, adopt of an app with all it may have: in test_app_set.py, _isolate.py, _adopt.py
- start and stop of an app with ports of the host: in test_app_publish.py; cgroup: in test_app_groups.py
- push and pull: in test_app_push_is_confined.py
- exec: in test_app_exec_survives_kill.py; keep, autostart, autostop: in test_app_services_survive_kill.py
- snapshots that are subvolumes: in test_app_on_btrfs.py.
LXC's monitor and an app's first process are killed under a verb in test_app_faults.py.
"""

import collections
import json
import os
import random
import shutil
import signal
import subprocess
import tarfile

import pytest
from conftest import environment, program

KILLS = int(os.environ.get("DRE_KILLS", "2"))
CALLS = "mkdir,rename,unlink,unlinkat,rmdir,symlink,?renameat2,?mkdirat"
NAME = "web1"
# The verb, what comes before it, its arguments. It may be asked again, and then has one of these exit codes.
VERBS = {
    "create": ((), ("create", NAME, "--ip", "none", "--base", "TREE", "--privileged"), (0, 1)),
    "destroy": (("create",), ("destroy", NAME), (0, 3)),
    "set": (("create",), ("set", NAME, "env=A=1", "env=B=2", "bind=/etc:/srv:ro", "--", "httpd", "-f"), (0,)),
    "limit": (("create",), ("limit", NAME, "--cpu", "40", "--memory", "64M", "--pids", "9"), (0,)),
    "isolate": (("create",), ("isolate", NAME), (0,)),
    "rejoin": (("create", "isolate"), ("rejoin", NAME), (0,)),
    "save": (("create", "push"), ("snapshot", "save", NAME, "good"), (0, 1)),
    "load": (("create", "push", "save", "other"), ("snapshot", "load", NAME, "good"), (0,)),
    "delete": (("create", "push", "save"), ("snapshot", "delete", NAME, "good"), (0, 3)),
    "prune": (("create", "save", "second"), ("snapshot", "prune", NAME, "--keep", "1"), (0,)),
    "forget": (("create", "checkpoint"), ("checkpoint", "delete", NAME, "good"), (0, 3)),
    "adopt": ((), ("adopt", NAME, "--ip", "none", "--privileged", "--", "sh"), (0,)),
    "push": ((), ("push", NAME, "FILE", "/etc/file"), (0,)),
    "other": ((), ("push", NAME, "OTHER", "/etc/file"), (0,)),
    "second": ((), ("snapshot", "save", NAME, "second"), (0, 1)),
}
BY_CLOCK = ("create", "destroy", "load")  # in test_app_survives_kill.py, and here when all moments are asked for
KILLED = [verb for verb in VERBS if verb not in ("push", "other", "second") and (KILLS >= 50 or verb not in BY_CLOCK)]


class World:
    """dre-app on scratch directories; nothing is started."""

    def __init__(self, config, place):
        self.config, self.place = config, place
        self.home, self.directory = place / "state/app/state", place / "lxc"
        words = {"TREE": place / "tree", "FILE": place / "file", "OTHER": place / "other"}
        self.words = {key: str(path) for key, path in words.items()}

    def run(self, *argv, before=()):
        words = [*before, program("dre-app"), "--config", self.config, *(self.words.get(word, word) for word in argv)]
        return subprocess.run(words, env=environment(), capture_output=True, timeout=60)

    def __call__(self, *argv, codes=(0,)):
        done = self.run(*argv)
        assert done.returncode in codes, f"{argv}: {done.returncode}: {done.stderr.decode()}"
        return done.stdout.decode()

    def prepare(self, verb):
        self("destroy", NAME, codes=(0, 3))
        if verb == "adopt":
            shutil.rmtree(self.directory / NAME, ignore_errors=True)  # not ours yet when it was killed at its begin
            shutil.copytree(self.place / "tree", self.directory / NAME / "rootfs")
            text = f"lxc.rootfs.path = dir:{self.directory / NAME / 'rootfs'}\nlxc.uts.name = {NAME}\n"
            (self.directory / NAME / "config").write_text(text)
        for earlier in VERBS[verb][0]:
            if earlier == "checkpoint":
                self.checkpoint()
            else:
                self(*VERBS[earlier][1])

    def checkpoint(self):
        """What looks like one: to make it takes CRIU, and to delete it does not."""
        place = self.home / NAME / "checkpoint/good"
        (place / "images").mkdir(parents=True)
        for name in ("images/core-1.img", "images/pages-1.img", "delta.tar", "log"):
            (place / name).write_text("good\n")
        meta = dict.fromkeys(("created", "digest", "init", "kernel", "criu"), "good") | {"size": 20, "base": {}}
        spec = json.loads((self.home / NAME / "app.json").read_text())
        (place / "meta.json").write_text(json.dumps({**meta, "spec": spec, "files": {}}))

    def killed_at(self, change, *argv):
        """Run dre-app, killed as it begins *change*; False when it does not come to that."""
        call, number = change  # strace counts each system call by itself
        inject = f"inject={call}:signal=KILL:when={number}"
        done = self.run(*argv, before=("strace", "-qq", "-o", self.place / "trace", "-e", inject))
        return done.returncode == -signal.SIGKILL

    def changes(self, *argv):
        """The changes that dre-app makes, in order: each the name of a system call and which of that name it is."""
        self.run(*argv, before=("strace", "-qq", "-o", self.place / "trace", "-e", f"trace={CALLS}"))
        found, seen = [], collections.Counter()
        for line in (self.place / "trace").read_text().splitlines():
            call = line.partition("(")[0]
            seen[call] += 1
            if line.endswith(" = 0"):
                found.append((call, seen[call]))
        return found

    def state(self):
        """All that the app is, as it lies on the disk once a verb that reads has ended what was begun."""
        done = self.run("status", NAME)
        if done.returncode == 3:
            return None
        assert done.stdout == b"stopped\n"
        spec = json.loads((self.home / NAME / "app.json").read_text())
        del spec["created"]
        tags = sorted(path.name for path in (self.home / NAME / "snapshot").glob("[!.]*"))
        tags += sorted(str(path) for path in (self.home / NAME / "checkpoint").glob("[!.]*/**/*"))
        files = {path.name: path.read_text() for path in (self.directory / NAME / "delta").rglob("*") if path.is_file()}
        derived = [(self.directory / NAME / name).read_text() for name in ("config", "command")]
        return [spec, tags, files, *derived]

    def halves(self):
        """Names on the disk that only a verb at work may have."""
        found = [path for depth in (".*", "*/.*", "*/snapshot/.*", "*/checkpoint/.*") for path in self.home.glob(depth)]
        found += [*self.home.glob("*/intent.json"), *self.directory.glob("*/.*")]
        return found + [path for part in ("new", "old") for path in self.directory.glob(f"*/delta.{part}")]


@pytest.fixture
def world(settings, tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; packaging/install-tools check brings it")
    (tmp_path / "lxc").mkdir()
    (tmp_path / "tree/bin").mkdir(parents=True)
    (tmp_path / "tree/bin/sh").touch()
    (tmp_path / "tree/etc").mkdir()
    (tmp_path / "file").write_text("good\n")
    (tmp_path / "other").write_text("bad\n")
    return World(settings(DRE_APP_LXC_PATH=tmp_path / "lxc", DRE_BRIDGE_IF="dret7"), tmp_path)


@pytest.mark.parametrize("verb", KILLED)
def test_kill(world, verb):
    _, argv, again = VERBS[verb]
    world.prepare(verb)
    before = world.state()
    world(*argv)
    after = world.state()
    assert before != after
    world.prepare(verb)
    changes = world.changes(*argv)
    assert changes
    hits = 0
    for moment in changes if KILLS >= 50 else random.sample(changes, min(KILLS, len(changes))):
        world.prepare(verb)
        hits += world.killed_at(moment, *argv)
        found = world.state()  # a verb that reads ends what was begun
        assert found in (before, after), f"{verb} killed at {moment} of {changes}: {found}"
        world(*argv, codes=again)
        assert world.state() == after, f"{verb} asked again after a kill at {moment} of {changes}"
        world("recover")
        assert world.halves() == [], f"{verb} killed at {moment} of {changes}"
    assert hits, "no kill hit"


@pytest.mark.parametrize("verb", ["load", "set", "destroy", "adopt"] if KILLS >= 50 else ["load"])
def test_kill_of_recover(world, verb):
    """What one verb left and recover was ending is ended by the next."""
    _, argv, _ = VERBS[verb]
    world.prepare(verb)
    before = world.state()
    world(*argv)
    after = world.state()
    world.prepare(verb)
    hits = 0
    left = world.changes(*argv)
    for moment in left if KILLS >= 50 else random.sample(left, len(left)):
        world.prepare(verb)
        world.killed_at(moment, *argv)
        ending = world.changes("recover")  # none where the verb had not begun, or had done all
        for second in random.sample(ending, min(2 if KILLS >= 50 else 1, len(ending))):
            world.prepare(verb)
            world.killed_at(moment, *argv)
            hits += world.killed_at(second, "recover")
            world("recover")
            assert world.halves() == [], f"{verb} killed at {moment}, recover at {second} of {ending}"
            assert world.state() in (before, after), f"{verb} killed at {moment}, recover at {second} of {ending}"
        if hits and KILLS < 50:
            break
    assert hits, "no kill hit"


def test_kill_of_export(world):
    """The app is as it was, and the file is whole or not there."""
    world.prepare("save")
    before, file = world.state(), world.place / "web1.tar"
    argv = ("export", "--no-compress", NAME, str(file))
    world(*argv)
    with tarfile.open(file) as tar:
        whole = [(member.name, member.size) for member in tar]
    file.unlink()
    changes = world.changes(*argv)
    hits = 0
    for moment in changes if KILLS >= 50 else random.sample(changes, min(KILLS, len(changes))):
        file.unlink(missing_ok=True)
        hits += world.killed_at(moment, *argv)
        if file.exists():
            with tarfile.open(file) as tar:
                assert [(member.name, member.size) for member in tar] == whole
        world(*argv)  # what it left does not keep the next from doing it
        assert world.state() == before
        world("recover")
        assert world.halves() == [], f"killed at {moment} of {changes}"
        assert not list(file.parent.glob("*web1.tar?*")), f"killed at {moment} of {changes}"
    assert hits, "no kill hit"
