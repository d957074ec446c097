# SPDX-License-Identifier: Apache-2.0
"""Two verbs on one app at once act as one after the other; a killed monitor or init, and many lives, leave nothing.

DRE_CYCLES is how many lives (default 20; a release does 1000), DRE_KILLS how often a kill is tried (default 1; from 5
on, all pairs of verbs and all verbs are).
"""

import contextlib
import itertools
import os
import pathlib
import random
import signal
import subprocess
import time

import app_ground
import pytest
from conftest import environment, program
from test_app_serve import Server, children, outputs

CYCLES = int(os.environ.get("DRE_CYCLES", "20"))
KILLS = int(os.environ.get("DRE_KILLS", "1"))
NAME = "t-fault"
VERBS = {
    "start": ("start", NAME),
    "stop": ("stop", NAME),
    "destroy": ("destroy", "--force", NAME),
    "save": ("snapshot", "save", NAME, "new"),
    "undo": ("undo", NAME, "good"),
    "limit": ("limit", NAME, "--pids", "77"),
    "restart": ("restart", NAME),
    "freeze": ("freeze", NAME),
    "exec": ("exec", NAME, "--", "true"),
}
RACING = ("start", "stop", "destroy", "save", "undo", "limit")
PAIRS = list(itertools.combinations_with_replacement(RACING, 2))
STRUCK = ["start", "stop", "undo", "exec", "restart", "limit", "freeze"]
if KILLS < 5:  # the rest when more is asked for
    PAIRS = [
        ("start", "stop"),
        ("start", "save"),
        ("stop", "undo"),
        ("destroy", "undo"),
        ("undo", "undo"),
        ("undo", "limit"),
    ]
    STRUCK = STRUCK[:4]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return app_ground.make_tree(tmp_path_factory.mktemp("faults") / "tree")


@pytest.fixture
def app(run, settings):
    with app_ground.Ground(run, settings) as ground:
        yield ground


def begin(app, verb):
    """The verb, at work."""
    words = [program("dre-app"), "--config", app.config, *VERBS[verb]]
    return subprocess.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def prepare(app, tree, running):
    """The app with a snapshot `good`, changed since."""
    app("create", NAME, "--base", tree)
    state = app_ground.LXC / NAME / "delta/state"
    state.write_text("good\n")
    app("snapshot", "save", NAME, "good")
    state.write_text("bad\n")
    if running:
        app("start", NAME)


class Model:
    """What verbs done one after the other make of an app."""

    def __init__(self, running):
        self.app, self.running, self.content, self.limited, self.tags = True, running, "bad\n", False, {"good"}

    def do(self, verb):
        """The exit code of the verb."""
        if not self.app:
            return 3
        if verb == "save":
            if self.running or "new" in self.tags:
                return 1
            self.tags.add("new")
        elif verb == "undo":
            self.running, self.content, self.limited = True, "good\n", False
        elif verb == "limit":
            self.limited = True
        elif verb == "destroy":
            self.app = False
        else:
            self.running = verb == "start"
        return 0

    def result(self):
        return (self.running, self.content, self.limited, self.tags) if self.app else None


def outcome(app):
    """The same, as the host has it."""
    if app.run("dre-app", "--config", app.config, "status", NAME).returncode == 3:
        return None
    shown = subprocess.run(["lxc-info", "-n", NAME, "-sH"], capture_output=True, text=True).stdout.strip()
    config = (app_ground.LXC / NAME / "config").read_text()
    tags = {line.split()[0] for line in app("snapshot", "list", NAME).splitlines()}
    content = (app_ground.LXC / NAME / "delta/state").read_text()
    return shown == "RUNNING", content, "pids.max = 77" in config, tags


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_at_once_are_one_after_the_other(app, tree, one, other):
    before = app_ground.picture(NAME)
    running = "save" not in (one, other)
    prepare(app, tree, running)
    allowed = []
    for order in ((0, 1), (1, 0)):
        model, codes = Model(running), [0, 0]
        for which in order:
            codes[which] = model.do((one, other)[which])
        allowed.append((codes, model.result()))
    both = [begin(app, verb) for verb in (one, other)]
    said = [process.communicate(timeout=90)[1] for process in both]
    found = ([process.returncode for process in both], outcome(app))
    assert found in allowed, said
    app.run("dre-app", "--config", app.config, "destroy", "--force", NAME)
    assert {**app_ground.picture(NAME), "links": 0} == {**before, "links": 0}
    assert not any(pathlib.Path(app.place, "state/app/state").iterdir())


def monitors():
    """The processes of LXC that watch the app."""
    title = f"[lxc monitor] {app_ground.LXC} {NAME}".encode()
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().rstrip(b"\0") == title:
                found.append(int(entry.parent.name))
        except OSError:
            pass  # it ended
    return found


def inits():
    """The first processes of the app, as their parents' children."""
    found = []
    for pid in monitors():
        with contextlib.suppress(OSError):
            found += map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return found


def status(app):
    return app.run("dre-app", "--config", app.config, "status", NAME).stdout.decode().strip()


def await_end(app, killed):
    """Until those have ended, or are frozen and so cannot."""
    app_ground.wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in killed) or status(app) == "frozen")


def start(app, killed):
    """Start the app, thawed where that is needed: the freeze may hold it at any moment until it has ended."""
    done = app.run("dre-app", "--config", app.config, "start", NAME)
    if done.returncode == 1 and f"{NAME}: is frozen; dre-app thaw {NAME}" in done.stderr.decode():
        thawed = app.run("dre-app", "--config", app.config, "thaw", NAME)
        assert thawed.returncode == 0 or f"{NAME}: cannot thaw: it is crashed" in thawed.stderr.decode(), thawed.stderr
        await_end(app, killed)
        done = app.run("dre-app", "--config", app.config, "start", NAME)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("victims", [monitors, inits])
@pytest.mark.parametrize("verb", STRUCK)
def test_killed_under_a_verb(app, tree, verb, victims):
    """Whatever becomes of the verb, it ends; the next start works, and a destroy leaves nothing."""
    before = app_ground.picture(NAME)
    prepare(app, tree, verb != "start")
    for _ in range(KILLS):
        work = begin(app, verb)
        time.sleep(random.uniform(0.05, 0.3))
        hit = app_ground.wait_for(victims, 0.5) or []
        killed = [*hit, *(inits() if hit and victims is monitors else ())]  # the first process ends with its monitor
        for pid in hit:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        work.communicate(timeout=90)
        assert work.returncode >= 0
        await_end(app, killed)
        assert status(app) in ("running", "stopped", "crashed", "frozen")
        start(app, killed)
        app("exec", NAME, "--", "true")
        if verb == "start":
            app("stop", NAME)
    app("destroy", "--force", NAME)
    assert {**app_ground.picture(NAME), "links": 0} == {**before, "links": 0}


# What a first process is whose monitor was killed before it asked to die with that: it answers nobody.
LOST = f"""
import signal, socket
served = socket.socket(socket.AF_UNIX)
served.bind("\\0{app_ground.LXC}/{NAME}/command")
served.listen()
print(flush=True)
signal.pause()
"""


def test_a_first_process_that_lost_its_monitor_is_out_of_the_way_of_the_next_start(app, tree):
    app("create", NAME, "--base", tree)
    argv = ["bash", "-c", f'exec -a "[lxc monitor] {app_ground.LXC} {NAME}" /usr/bin/python3']
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", *argv], **pipes, text=True) as lost:
        lost.stdin.write(LOST)
        lost.stdin.close()
        lost.stdout.readline()
        try:
            assert status(app) == "starting"
            app("start", NAME)
            assert lost.wait(10) != 0
        finally:
            lost.kill()
    assert status(app) == "running"
    app("destroy", "--force", NAME)


def descriptors(server):
    """How many each process of --serve has open."""
    pids = [server.process.pid, *children(server)]
    return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]


def resident(server):
    """KiB of memory of the process that does the work."""
    (child,) = children(server)
    return int(pathlib.Path(f"/proc/{child}/status").read_text().split("VmRSS:")[1].split()[0])


def test_many_lives_leave_nothing(app, tree):
    server = Server(app.config)
    try:
        places = [pathlib.Path(app.place, part) for part in ("state/app/state", "log/app", "run/app")]
        before = app_ground.picture(NAME)
        for number in range(CYCLES):
            server("create", NAME, "--base", tree)
            server("start", NAME)
            assert outputs(server("exec", NAME, "--", "true")) == (0, b"", b"")
            server("stop", NAME)
            server("destroy", NAME)
            if number == 2:  # all is imported, and the bridge is up
                first, memory, picture = descriptors(server), resident(server), app_ground.picture(NAME)
                left = [sorted(os.listdir(place)) for place in places]
        assert descriptors(server) == first
        assert resident(server) < memory + 8192
        assert app_ground.picture(NAME) == picture
        assert {**picture, "links": 0} == {**before, "links": 0}
        assert [sorted(os.listdir(place)) for place in places] == left
        assert not any(NAME in entry for entry in sum(left, []))
    finally:
        server.process.stdin.close()
        server.process.wait(60)
        server.process.stdout.close()
