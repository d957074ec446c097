# SPDX-License-Identifier: Apache-2.0
"""stop lets a program end in its own time, up to --timeout, and then ends it."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from app_ground import LXC, Ground, make_tree, picture, wait_for

NAME = "t-stop"
SLOW = "trap 'sleep 2; echo saved >/saved; exit 0' TERM; echo ready >/ready; while :; do sleep 0.1; done"
READY = "echo ready >/ready; while :; do sleep 0.1; done"
DEAF = "trap '' TERM; echo ready >/ready; while :; do sleep 0.1; done"

# In the mount namespace of process 1 of the app, as user 2, until somebody hears it.
SAY = """
import ctypes, os, socket, sys, time
assert ctypes.CDLL(None).setns(os.open(f"/proc/{sys.argv[1]}/ns/mnt", os.O_RDONLY), 0) == 0
os.setresuid(*[int(sys.argv[2])] * 3)
speaker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
print("inside", flush=True)
while True:
    try:
        speaker.sendto(sys.argv[3].encode(), "/run/dre-notify/socket")
        break
    except (FileNotFoundError, ConnectionRefusedError, PermissionError):
        time.sleep(0.02)
"""

full = pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="waits as long as it may: DRE_FULL=1")


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        yield ground


def begin(app, script, *options):
    app("create", NAME, "--ip", "none", *options, "--", "sh", "-c", script)
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


def catches(status, number):
    """Whether the process has a handler for the signal, as its file in /proc says."""
    caught = re.search(r"^SigCgt:\t(\w+)$", pathlib.Path(status).read_text(), re.M)[1]
    return bool(int(caught, 16) >> number - 1 & 1)


def told(app):
    """The data of the last stop, as the event has them."""
    lines = (app.place / "state/spool/event/emitted.jsonl").read_text().splitlines()
    return [event["data"] for event in map(json.loads, lines) if event["type"] == "app.stopped"][-1]


@pytest.mark.parametrize("kind", ["--privileged", "--unprivileged"])
def test_what_its_programs_say_as_they_end_is_told(app, tmp_path, kind):
    tree = make_tree(tmp_path / "tree")
    begin(app, f"echo $DAWARE_SAVE_MS >/ms; {DEAF}", "--base", tree, kind)
    assert (LXC / NAME / "delta/ms").read_text() == "10000\n"
    assert "ead-only" in app("exec", NAME, "--", "sh", "-c", "(echo >/run/dre-notify/mine) 2>&1; true")
    row = json.loads(app("status", NAME, "--json"))
    first = os.stat(f"/proc/{row['pid']}/root/").st_uid
    words = "STOPPING=1\nSTATUS=begun\nSTATUS=half \x1b[31mdone\nFOO=1"
    saying = subprocess.Popen(
        [sys.executable, "-c", SAY, str(row["pid"]), str(first + 2), words], stdout=subprocess.PIPE
    )
    assert saying.stdout.readline() == b"inside\n"
    app("stop", NAME, "--timeout", "1s")
    assert saying.wait(timeout=10) == 0
    data = told(app)
    assert (data["said"], data["killed"], data["seconds"] >= 1) == ("half ?[31mdone", True, True)
    assert not (LXC / NAME / "notify/socket").exists()


def test_nothing_said_is_nothing_told(app):
    begin(app, READY)
    (LXC / NAME / "notify").rmdir()  # as of an app that was started by an older version
    app("stop", NAME)
    data = told(app)
    assert data.keys() == {"name", "seconds", "killed"} and data["killed"] is False


@pytest.mark.skipif(os.environ.get("DRE_TEST_INSTALLED") != "1", reason="wants the installed daware-run")
def test_how_a_d_aware_program_saved_is_told(app):
    script = "echo ready >/ready; exec daware-run --on-save 'echo $DAWARE_SAVE_MS >/left' -- sleep infinity"
    begin(app, script)
    pid = json.loads(app("status", NAME, "--json"))["pid"]
    assert wait_for(lambda: catches(f"/proc/{pid}/root/proc/2/status", signal.SIGTERM))
    app("stop", NAME)
    assert 0 < int((LXC / NAME / "delta/left").read_text()) <= 10000
    data = told(app)
    assert data["said"].startswith("all is saved: 0 in ") and data["killed"] is False
