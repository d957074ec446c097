# SPDX-License-Identifier: Apache-2.0
"""kill -9 of exec at any moment: its program ends with it, and what stood behind its streams is as it was.

DRE_KILLS is how often it is killed in each way (default 2), in turn with the programs it has started, as a lost session
would be, and alone, as by the OOM killer.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import time

import app_ground
import pytest
from app_ground import LXC, Ground, picture, wait_for
from conftest import environment, program
from test_app_serve import Server

KILLS = int(os.environ.get("DRE_KILLS", "2"))
NAME = "t-exkill"


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        app_ground.make_tree(tmp_path / "tree")
        yield ground


def begin(app, *command, **streams):
    """exec at work, in a session of its own."""
    words = [program("dre-app"), "--config", app.config, "exec", NAME, "--", *command]
    return subprocess.Popen(words, env=environment(), start_new_session=True, **streams)


def leftovers(app):
    """Files of a half-done write, and those of apps that are gone."""
    found = [path for path in app.place.rglob("*") if path.name.endswith((".tmp", ".gone"))]
    gone = [path for path in app.place.rglob(f"*{NAME}*") if "lock" not in path.parts and "tree" not in path.parts]
    return [*found, *gone]


def processes(init):
    """All of the app of first process *init*, by their space of process numbers."""
    found, inside = {}, os.readlink(f"/proc/{init}/ns/pid")
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(place / "ns/pid") == inside:
                found[int(place.name)] = (place / "cmdline").read_bytes()
    return found


def by_pipe(app, *command):
    return begin(app, *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def by_files(app, *command):
    """LXC makes the file 0700, and dre-app, which stays, makes it what it was."""
    page = app.place / "page"
    page.touch()
    page.chmod(0o644)
    with page.open("w") as stdout:
        return begin(app, *command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.DEVNULL)


def by_serve(app, *command):
    server = Server(app.config)
    server.send("exec", NAME, "--", *command)
    return server.process


@contextlib.contextmanager
def at_work(app, way, begun):
    """exec of a program that says that it has begun, by the file *begun*, and does not end."""
    victim = way(app, "sh", "-c", f">/{begun.name}; sleep 3492 & sleep 3493")
    try:
        yield victim
    finally:
        victim.kill()
        for stream in (victim.stdin, victim.stdout):
            if stream:
                stream.close()
        victim.wait(60)


def until_begun(app, way, begun):
    """Seconds from the call of exec to the work of its program."""
    started = time.monotonic()
    with at_work(app, way, begun):
        assert wait_for(begun.exists)
        return time.monotonic() - started


@pytest.mark.parametrize("way", [by_pipe, by_files, by_serve])
def test_exec(app, way):
    """But what is in the background of the app, as services are, goes on."""
    before = picture(NAME)
    app("create", NAME, "--base", app.place / "tree", "--ip", "none", "--privileged")
    app("start", NAME)
    init = json.loads(app("status", NAME, "--json"))["pid"]
    assert wait_for(lambda: len(processes(init)) == 2), processes(init)  # the shell of its program may still be there
    app("exec", NAME, "--", "sh", "-c", "sleep 3491 >/dev/null 2>&1 & true")
    assert wait_for(lambda: len(processes(init)) == 3), processes(init)
    own = processes(init).keys()
    delta = LXC / NAME / "delta"
    longest = 1.3 * min(until_begun(app, way, delta / f"measured{number}") for number in range(3 if KILLS >= 10 else 1))
    reached = 0
    for number in range(KILLS):
        begun, delay = delta / f"begun{number}", random.uniform(0, longest)
        with at_work(app, way, begun) as victim:
            if number % 3 == 0:  # on a busy host few random moments would be as late as that
                assert wait_for(begun.exists)
            time.sleep(delay)
            assert victim.poll() is None
            if number % 2 and way is not by_serve:
                os.killpg(victim.pid, signal.SIGKILL)
        reached += begun.exists()
        assert wait_for(lambda: processes(init).keys() == own), f"{number}, {delay:.3f} s: {processes(init)}"
        if way is by_files:
            assert wait_for(lambda: (app.place / "page").stat().st_mode & 0o777 == 0o644), f"{number}, {delay:.3f} s"
        app("exec", NAME, "--", "true")
    print(f"{reached} of {KILLS} kills came when the program had begun, within {longest:.3f} s")
    app("destroy", "--force", NAME)
    assert picture(NAME) == before
    assert leftovers(app) == []
