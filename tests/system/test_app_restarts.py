# SPDX-License-Identifier: Apache-2.0
"""--restart: what crashed is started again, whatever died; what was stopped or has done its work is not."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess

import app_ground
import pytest
from app_ground import Ground, picture
from conftest import environment, program

NAME = "t-restart"
# Ends as it is told by a file that the test writes; says how often it was started.
PROGRAM = "echo up; while ! [ -e /end ]; do sleep 0.05; done; read status </end; rm /end; exit $status"


def wait_for(condition):
    """With a long deadline: an emulated guest may be slow, and what is waited for comes in its own time."""
    return app_ground.wait_for(condition, timeout=90)


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        app_ground.make_tree(tmp_path / "tree")
        try:
            yield ground
        finally:
            end_keeper(ground)


def create(app, policy, *more):
    app(
        "create",
        NAME,
        "--base",
        app.place / "tree",
        "--ip",
        "none",
        "--restart",
        policy,
        *more,
        "--",
        "sh",
        "-c",
        PROGRAM,
    )


def keeper(app):
    """The process that holds the keeper's lock, asked of the kernel."""
    lock = app.place / "run/lock/keep"
    if not lock.exists():
        return None
    inode = lock.stat().st_ino
    for line in pathlib.Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return None


def end_keeper(app):
    pid = keeper(app)
    if pid:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself just now
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: keeper(app) is None)


def end(app, status):
    """Let the program end so; by a link, that it reads all or nothing."""
    app("exec", NAME, "--", "sh", "-c", f"echo {status} >/told; ln /told /end")


def init(app):
    return json.loads(app("status", NAME, "--json"))["pid"]


def parent(pid):
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def child(pid):
    """The app's shell, and its program: the newest process."""
    return max(int(row) for row in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def running_again(app, was):
    def found():
        rows = [json.loads(line) for line in app("list", "--json").splitlines()]
        return next((row["pid"] for row in rows if row["state"] == "running" and row["pid"] not in (None, was)), None)

    return wait_for(found)


def state(app):
    return json.loads(app("list", "--json"))["state"]


def test_whatever_dies_is_started_again(app):
    before = picture(NAME)
    create(app, "on-failure:5")
    app("start", NAME)
    for victim in (lambda pid: child(child(pid)), lambda pid: pid, parent):
        pid = init(app)
        assert wait_for(lambda: keeper(app)), "no keeper came with the start"
        os.kill(victim(pid), signal.SIGKILL)
        assert running_again(app, pid), f"{app('list')} {(app.place / 'log/dre-keep.log').read_text()}"
        assert app("exec", NAME, "--", "cat", "/etc/release") == "from the tree"
    assert wait_for(lambda: app("log", NAME).split() == ["up", "Killed", "up", "up", "up"]), app("log", NAME)
    told = [event for event in app.events() if event in ("app.crashed", "app.restarted")]
    assert told == ["app.crashed", "app.restarted"] * 3
    app("stop", NAME)
    assert state(app) == "stopped"
    app("destroy", NAME)
    assert picture(NAME) == before


def test_after_n_crashes_it_gives_up_until_an_ordered_start(app):
    create(app, "on-failure:1")
    app("start", NAME)
    first = init(app)
    end(app, 3)
    assert running_again(app, first)
    end(app, 4)
    assert wait_for(lambda: "app.gave-up" in app.events())
    assert state(app) == "crashed"
    lines = [json.loads(line) for line in (app.place / "state/spool/event/emitted.jsonl").read_text().splitlines()]
    crashes = [line["data"] for line in lines if line["type"] == "app.crashed"]
    assert [(data["status"], data["crashes"]) for data in crashes] == [(3, 1), (4, 2)]
    app("start", NAME)
    pid = init(app)
    end(app, 5)
    assert running_again(app, pid), "an ordered start does not count from the first again"


def test_an_end_with_0_and_an_ordered_stop_are_no_crash(app):
    create(app, "on-failure:3")
    app("start", NAME)
    end(app, 0)
    assert wait_for(lambda: state(app) == "stopped")
    app("start", NAME)
    app("stop", NAME)
    assert state(app) == "stopped"
    assert not {"app.crashed", "app.restarted"} & set(app.events())


def test_a_stop_waits_for_the_program_and_not_for_its_shell(app):
    slow = "trap 'sleep 0.5; echo done; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    app(
        "create",
        NAME,
        "--base",
        app.place / "tree",
        "--ip",
        "none",
        "--restart",
        "on-failure:1",
        "--",
        "sh",
        "-c",
        slow,
    )
    app("start", NAME)
    assert wait_for(lambda: app("log", NAME) == "up")
    app("stop", NAME)
    assert app("log", NAME).split()[-1] == "done"


def test_without_a_keeper_recover_does_it(app):
    create(app, "on-failure:3")
    app("start", NAME)
    pid = init(app)
    assert wait_for(lambda: keeper(app))
    end_keeper(app)
    os.kill(parent(pid), signal.SIGKILL)
    assert wait_for(lambda: state(app) == "crashed")
    app("recover")
    assert running_again(app, pid)
    assert "app.restarted" in app.events()


def test_a_keeper_killed_in_the_pause_is_followed_by_another(app):
    create(app, "on-failure:3")
    app("start", NAME)
    pid = init(app)
    assert wait_for(lambda: keeper(app))
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: "app.crashed" in app.events())
    end_keeper(app)
    with subprocess.Popen([program("dre-app"), "--config", app.config, "keep"], env=environment()) as second:
        try:
            assert running_again(app, pid)
            assert app.events().count("app.crashed") == 1, "told twice"
        finally:
            second.kill()


def test_the_end_of_all_is_the_end_of_one_that_is_to_be_started_again(app):
    create(app, "on-failure:3")
    app("start", NAME)
    assert wait_for(lambda: keeper(app))
    end_keeper(app)  # as long as none is there it stays between crash and start
    os.kill(init(app), signal.SIGKILL)
    assert wait_for(lambda: state(app) == "crashed")
    app("autostop")
    assert state(app) == "stopped"
    app("recover")
    assert state(app) == "stopped"


def test_a_chatty_program_does_not_fill_the_disk(run, settings, tmp_path):
    limit = 1 << 20
    with Ground(run, settings, DRE_APP_LOG_MAX="1M") as app:
        app_ground.make_tree(tmp_path / "tree")
        flood = "while :; do dd if=/dev/zero bs=64k count=8 2>/dev/null; sleep 0.1; done"
        app("create", NAME, "--base", tmp_path / "tree", "--ip", "none", "--", "sh", "-c", flood)
        log, older = (app.place / "log/app" / f"{NAME}.log{suffix}" for suffix in ("", ".old"))
        with subprocess.Popen([program("dre-app"), "--config", app.config, "keep"], env=environment()) as process:
            try:
                app("start", NAME)
                assert wait_for(lambda: older.exists() and older.stat().st_size >= limit)
                for _ in range(2):  # a look of the keeper later it is short again
                    assert wait_for(lambda: log.stat().st_size < limit), "the log was not cut"
                    assert wait_for(lambda: log.stat().st_size >= limit), "the flood has ended"
                assert older.stat().st_size <= 3 * limit
            finally:
                process.kill()
