# SPDX-License-Identifier: Apache-2.0
"""LXC's monitor killed, or stuck: the app is seen as crashed, starts again, and leaves nothing behind."""

import json
import os
import pathlib
import signal
import socket
import subprocess

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


def test_a_monitor_that_waits_for_a_dead_process_is_ended(run, settings):
    """As LXC's does for ever when the app's first process is killed within the start.

    In its place a shell of its name, with a dead child it has not waited for, holds its socket and never answers.
    """
    title = f"[lxc monitor] {app_ground.LXC} {NAME}"
    with Ground(run, settings) as app:
        app("create", NAME, "--ip", "none")
        with socket.socket(socket.AF_UNIX) as command:
            command.bind(f"\0{app_ground.LXC}/{NAME}/command")
            command.listen()
            argv = ["bash", "-c", 'exec -a "$0" sh', title]
            stuck = subprocess.Popen(argv, stdin=subprocess.PIPE, pass_fds=[command.fileno()])
        try:
            stuck.stdin.write(b"true &\nread word\n")
            stuck.stdin.flush()
            children = pathlib.Path(f"/proc/{stuck.pid}/task/{stuck.pid}/children")
            assert wait_for(lambda: children.read_text().split())
            assert app("list").split()[:2] == [NAME, "starting"]
            app("start", NAME)
            assert stuck.wait(10) == -signal.SIGKILL
        finally:
            stuck.kill()
            stuck.communicate()
        assert app("status", NAME) == "running"


def test_a_frozen_app_whose_monitor_was_killed_goes(run, settings):
    """On version 1 of control groups what is frozen cannot be killed, and nobody is left who would thaw it."""
    with Ground(run, settings) as app:
        before = picture(NAME)
        app("create", NAME, "--ip", "none")
        app("start", NAME)
        pid = json.loads(app("status", NAME, "--json"))["pid"]
        app("freeze", NAME)
        os.kill(parent(pid), signal.SIGKILL)
        if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            assert wait_for(lambda: parent(pid) == 1)
            app("thaw", NAME)
        assert wait_for(lambda: app("list").split()[1] == "crashed")
        app("start", NAME)
        pid = json.loads(app("status", NAME, "--json"))["pid"]
        app("freeze", NAME)
        os.kill(parent(pid), signal.SIGKILL)
        app("destroy", "--force", NAME)
        assert wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
        assert picture(NAME) == before
