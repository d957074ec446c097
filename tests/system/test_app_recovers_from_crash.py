# SPDX-License-Identifier: Apache-2.0
"""LXC's monitor killed: the app is seen as crashed, starts again, and leaves nothing behind."""

import json
import os
import pathlib
import signal

import app_ground
from app_ground import Ground, picture, wait_for

NAME = "t-crash"


def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_monitor_killed(run, settings, tmp_path):
    with Ground(run, settings) as app:
        before = picture(NAME)
        app("create", NAME, "--base", app_ground.make_tree(tmp_path / "tree"))
        app("start", NAME)
        pid = json.loads(app("status", NAME, "--json"))["pid"]
        os.kill(parent(pid), signal.SIGKILL)
        assert wait_for(lambda: '"crashed"' in app("--json", "list"))
        assert picture(NAME)["mounts"], "the monitor unmounted after all: this test has nothing to show"
        app("start", NAME)
        assert app("exec", NAME, "--", "cat", "/etc/release") == "from the tree"
        app("destroy", "--force", NAME)
        assert picture(NAME) == before
