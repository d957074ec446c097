# SPDX-License-Identifier: Apache-2.0
"""set on a running app: it says what waits for the next start, and killed at any moment all is set or nothing is."""

import os
import random
import signal
import subprocess
import time

import app_ground
import pytest
from app_ground import LXC, Ground
from conftest import environment, program

KILLS = int(os.environ.get("DRE_KILLS", "2"))
NAME = "t-set"


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        (tmp_path / "data").mkdir()
        (tmp_path / "data/mark").write_text("bound\n")
        tree = app_ground.make_tree(tmp_path / "tree")
        ground("create", NAME, "--base", tree, "--ip", "none", "--env", "N=0")
        yield ground


def test_what_waits_for_the_next_start_is_said_and_comes_with_it(app):
    app("start", NAME)
    words = ["dre-app", "--config", app.config, "set", NAME, "env=N=1", f"bind={app.place}/data:/data", "autostart=yes"]
    done = app.run(*words)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.decode() == f"dre-app: {NAME}: env, bind: at the next start\n"
    assert app("exec", NAME, "--", "sh", "-c", "ls /data || echo none").endswith("none")
    app("restart", NAME)
    assert app("exec", NAME, "--", "sh", "-c", "echo $N; cat /data/mark") == "1\nbound"
    assert "privileged cannot change while it runs" in app("set", NAME, "env=N=2", "privileged=yes", code=1)
    assert "env N=1" in app("set", NAME).splitlines()


def test_killed_at_any_moment_all_is_set_or_nothing(app):
    def words(number):
        return [
            program("dre-app"),
            "--config",
            app.config,
            "set",
            NAME,
            f"env=N={number}",
            "--",
            "program",
            str(number),
        ]

    begun = time.monotonic()
    subprocess.run(words(0), env=environment(), check=True, capture_output=True)
    duration = time.monotonic() - begun
    for number in range(1, KILLS + 1):
        victim = subprocess.Popen(words(number), env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(duration * random.uniform(0.5, 1.1))  # the first half is the start of Python
        if victim.poll() is None:
            os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
        lines = app("set", NAME).splitlines()  # reading ends what is unfinished
        found = next(line for line in lines if line.startswith("env N="))[6:]
        assert found in (str(number - 1), str(number))
        assert f"command program {found}" in lines
        assert f"lxc.environment = N={found}\n" in (LXC / NAME / "config").read_text()
        assert (LXC / NAME / "command").read_text().endswith(f"exec program {found}\n")
        assert not list((app.place / f"state/app/state/{NAME}").glob("intent*"))
        subprocess.run(words(number), env=environment(), check=True, capture_output=True)
