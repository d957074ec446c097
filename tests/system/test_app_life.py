# SPDX-License-Identifier: Apache-2.0
"""An app from create to destroy, with LXC's own tools, /proc and ping as witnesses."""

import json
import pathlib
import subprocess

import pytest
from app_ground import LXC, Ground, picture, wait_for

FIELDS = ["name", "state", "ip", "pid", "cpu", "memory", "memory_limit", "cpu_limit", "pids", "created"]
FIELDS += ["base", "snapshots", "isolated"]


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        yield ground


def lxc(program, *argv):
    return subprocess.run([program, "-n", "t-life", *argv], capture_output=True, text=True, timeout=60)


def process_state(pid):
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_life(app):
    before = picture("t-life")
    app("create", "t-life", "--ip", "10.231.101.77/24", "--env", "GREETING=good day")
    assert app("status", "t-life", code=1) == ""
    assert lxc("lxc-info", "-s", "-H").stdout.strip() == "STOPPED"
    app("start", "t-life")
    app("start", "t-life")  # again: 0
    row = json.loads(app("status", "t-life", "--json"))
    assert list(row) == FIELDS
    assert (row["state"], row["ip"], row["base"]) == ("running", ["10.231.101.77"], "host")
    assert lxc("lxc-info", "-p", "-H").stdout.strip() == str(row["pid"])
    assert lxc("lxc-attach", "--", "hostname").stdout == "t-life\n"
    assert "t-life" in subprocess.run(["lxc-ls"], capture_output=True, text=True).stdout
    assert subprocess.run(["ping", "-c1", "-W5", "10.231.101.77"], capture_output=True).returncode == 0
    assert app("exec", "t-life", "--", "sh", "-c", "echo $GREETING") == "good day"
    assert app("list").split()[:3] == ["t-life", "running", "10.231.101.77"]
    app("stop", "t-life")
    app("stop", "t-life")
    assert app("status", "t-life", code=1) == ""
    app("destroy", "t-life")
    app("destroy", "t-life", code=3)
    app("status", "t-life", code=3)
    assert picture("t-life") == before
    assert app.events() == ["app.created", "app.started", "app.stopped", "app.destroyed"]


def test_exec_passes_status_stdin_and_stdout(app):
    app("create", "t-life")
    assert "it is stopped" in app("exec", "t-life", "--", "true", code=1)
    app("start", "t-life")
    assert app("exec", "t-life", "--", "cat", stdin=b"through\0and back") == "through\0and back"
    app("exec", "t-life", "--", "sh", "-c", "exit 7", code=7)
    app("exec", "t-life", "--", "/no/such/program", code=127)


def test_freeze_and_thaw(app):
    app("create", "t-life")
    app("freeze", "t-life", code=1)
    app("start", "t-life")
    app("freeze", "t-life")
    app("freeze", "t-life")
    assert app("--json", "list").count('"frozen"') == 1
    assert "is frozen" in app("exec", "t-life", "--", "true", code=1)
    assert lxc("lxc-info", "-s", "-H").stdout.strip() == "FROZEN"
    app("thaw", "t-life")
    app("thaw", "t-life")
    assert lxc("lxc-info", "-s", "-H").stdout.strip() == "RUNNING"
    app("freeze", "t-life")
    app("stop", "t-life")  # a frozen one can be stopped


def test_pid_numbers(app):
    app("create", "t-life", "--", "sleep", "4711")
    app("start", "t-life")
    inside = app("exec", "t-life", "--", "sh", "-c", "cat /proc/2/cmdline")
    assert inside == "sleep\0004711\0"
    outside = json.loads(app("pid", "t-life", "2", "--json"))["outside"]
    assert pathlib.Path(f"/proc/{outside}/cmdline").read_text() == inside
    app("pid", "t-life", "4000", code=3)


def test_taken_name_leaves_the_app_untouched(app):
    app("create", "t-life", "--memory", "100M")
    app("start", "t-life")
    config = (LXC / "t-life/config").read_bytes()
    for more in (("--memory", "1M"), ("--publish", "20799:80"), ("--base", "nosuch")):
        assert "already" in app("create", "t-life", *more, code=1)
    assert (LXC / "t-life/config").read_bytes() == config
    assert app("exec", "t-life", "--", "echo", "here") == "here"


def test_container_of_others_is_neither_taken_nor_destroyed(app):
    foreign = LXC / "t-life"
    foreign.mkdir()
    (foreign / "config").write_text("lxc.uts.name = theirs\n")
    try:
        assert "did not make" in app("create", "t-life", code=1)
        app("destroy", "--force", "t-life", code=3)
        app("start", "t-life", code=3)
        assert (foreign / "config").read_text() == "lxc.uts.name = theirs\n"
    finally:
        (foreign / "config").unlink()
        foreign.rmdir()


def test_addresses(app):
    app("create", "t-life-a")
    app("create", "t-life-b")
    app("create", "t-life-c", "--ip", "none")
    assert [row.split()[2] for row in app("list").splitlines()] == ["10.231.101.2", "10.231.101.3", "-"]
    assert "is taken" in app("create", "t-life-d", "--ip", "10.231.101.3/24", code=1)
    for wrong in ("10.231.102.3/24", "10.231.101.255/24", "10.231.101.9", "nonsense/24"):
        app("create", "t-life-d", "--ip", wrong, code=2)
    app("status", "t-life-d", code=3)
    app("destroy", "t-life-a")
    app("create", "t-life-d")
    assert app("list").splitlines()[-1].split()[2] == "10.231.101.2"


def test_lxc_tools_start_and_stop_it(app):
    app("create", "t-life")
    assert lxc("lxc-start").returncode == 0
    assert app("status", "t-life") == "running"
    row = json.loads(app("stat", "t-life", "--json"))
    assert row["pids"] == 2
    assert lxc("lxc-stop").returncode == 0
    assert wait_for(lambda: not picture("t-life")["mounts"])
    assert app("--json", "list").count('"stopped"') == 1
    app("start", "t-life")
    assert app("exec", "t-life", "--", "echo", "again") == "again"


def test_program_that_ends_is_seen_as_crashed(app):
    app("create", "t-life", "--", "sh", "-c", "echo its last words; exit 3")
    app("start", "t-life")
    assert wait_for(lambda: '"crashed"' in app("--json", "list"))
    assert (app.place / "log/app/t-life.log").read_text() == "its last words\n"
    app("stop", "t-life")
    assert '"stopped"' in app("--json", "list")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["/no/such", "word"], "/no/such: not found"),
        (["no-such"], "no-such: not found"),
        (["/etc/passwd"], "/etc/passwd: Permission denied"),
    ],
)
def test_a_program_that_is_not_there_is_told(app, words, reason):
    """By the host's /bin/sh, which is dash."""
    app("create", "t-life", "--ip", "none", "--", *words)
    assert app("start", "t-life", code=1) == f"dre-app: t-life: cannot start: {reason}"
    assert wait_for(lambda: '"crashed"' in app("--json", "list"))
    assert f"t-life: cannot start: {reason}" in app("restart", "t-life", code=1)
    app("set", "t-life", "--", "/bin/true")
    app("start", "t-life")  # it is there, and has done its work
    assert wait_for(lambda: '"crashed"' in app("--json", "list"))
