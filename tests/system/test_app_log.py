# SPDX-License-Identifier: Apache-2.0
"""log: what the program printed, of this run and the one before, and LXC's own words when a start fails."""

import json
import subprocess

import app_ground
import pytest
from app_ground import Ground, wait_for
from conftest import environment, program

NAME = "t-log"


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        tree = app_ground.make_tree(tmp_path / "tree")
        text = "cat /mark; echo oops >&2; sleep 999"
        ground("create", NAME, "--privileged", "--base", tree, "--ip", "none", "--", "sh", "-c", text)
        yield ground


def mark(text):
    (app_ground.LXC / NAME / "delta/mark").write_text(text)


def test_this_run_and_the_one_before(app):
    app("log", "t-nobody", code=3)
    assert app("log", NAME) == ""
    mark("first\n\033[2J\n")
    app("start", NAME)
    assert wait_for(lambda: app("log", NAME) == "first\n\033[2J\noops", timeout=60)
    assert app("log", NAME, "--lines", "1") == "oops"
    assert json.loads(app("log", NAME, "--lines", "1", "--json")) == {"name": NAME, "line": "oops"}
    app("stop", NAME)
    mark("second\n")
    app("start", NAME)
    assert wait_for(lambda: app("log", NAME) == "second\noops", timeout=60)
    assert app("log", NAME, "--before") == "first\n\033[2J\noops"
    app("destroy", "--force", NAME)
    assert list((app.place / "log/app").iterdir()) == []


def test_follow_goes_on_through_a_restart_and_ends_with_the_app(app):
    mark("first\n")
    app("start", NAME)
    words = [program("dre-app"), "--config", app.config, "log", "--follow", NAME]
    with subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True) as follower:
        assert [follower.stdout.readline() for _ in range(2)] == ["first\n", "oops\n"]
        mark("second\n")
        app("restart", NAME)
        assert [follower.stdout.readline() for _ in range(2)] == ["second\n", "oops\n"]
        app("destroy", "--force", NAME)
        assert follower.wait(timeout=30) == 0


def test_the_reason_of_a_failed_start(app):
    mark("x\n")
    (app_ground.LXC / NAME / "command").unlink()  # derived anew at each start, and so no reason
    app("start", NAME)
    app("stop", "--timeout", "1", NAME)
    (app_ground.LXC / NAME / "lower").unlink()
    assert "cannot start" in app("start", NAME, code=1)
    assert "lxc.hook.pre-start" in app("log", "--lxc", NAME)
