# SPDX-License-Identifier: Apache-2.0
"""stop lets a program end in its own time, up to --timeout, and then ends it."""

import os
import time

import pytest
from app_ground import LXC, Ground, picture, wait_for

NAME = "t-stop"
SLOW = "trap 'sleep 2; echo saved >/saved; exit 0' TERM; echo ready >/ready; while :; do sleep 0.1; done"
READY = "echo ready >/ready; while :; do sleep 0.1; done"
DEAF = "trap '' TERM; echo ready >/ready; while :; do sleep 0.1; done"

full = pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="waits as long as it may: DRE_FULL=1")


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        yield ground


def begin(app, script):
    app("create", NAME, "--ip", "none", "--", "sh", "-c", script)
    app("start", NAME)
    assert wait_for((LXC / NAME / "delta/ready").exists)


def test_slow_program_ends_by_itself(app):
    begin(app, SLOW)
    app("stop", NAME, "--timeout", "20s")
    assert (LXC / NAME / "delta/saved").read_text() == "saved\n"


def test_deaf_program_is_killed(app):
    begin(app, DEAF)
    begun = time.monotonic()
    app("stop", NAME, "--timeout", "300ms")
    assert time.monotonic() - begun >= 0.3
    assert '"stopped"' in app("--json", "list")
    assert picture(NAME)["groups"] == picture(NAME)["mounts"] == []


@pytest.mark.parametrize("script", [READY, pytest.param(DEAF, marks=full)], ids=["ready", "deaf"])
def test_destroy_wants_force_for_a_running_app(app, script):
    begin(app, script)
    assert "--force" in app("destroy", NAME, code=1)
    assert app("status", NAME) == "running"
    app("destroy", NAME, "--force")
    app("status", NAME, code=3)
