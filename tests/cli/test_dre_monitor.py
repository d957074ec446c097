# SPDX-License-Identifier: Apache-2.0
"""dre-monitor: what it refuses before it starts anything, status without a monitor, and going on in the background."""

import os
import select
import signal
import socket
import stat
import subprocess

import pytest
from dre import event
from programs import environment, program


def test_only_some_stages_can_be_left_out(run, settings):
    done = run("dre-monitor", "run", "--without", "ingest", "--config", settings())
    assert done.returncode == 2 and b"--without ingest" in done.stderr


def test_status_without_a_monitor_is_3(run, settings, tmp_path):
    assert run("dre-monitor", "status", "--config", settings()).returncode == 3
    (tmp_path / "run").mkdir(exist_ok=True)
    # The file of one that was killed, whose pid another process has by now.
    (tmp_path / "run" / "monitor.json").write_text('{"pid": 1, "started": -1, "stages": []}')
    assert run("dre-monitor", "status", "--config", settings()).returncode == 3


def test_rules_and_pipes_that_cannot_be_used_are_refused(run, settings, tmp_path):
    rules = tmp_path / "etc" / "rules.d"
    rules.mkdir(parents=True)
    (rules / "a.sec").write_text("type=Single\nptype=PerlFunc\npattern=x\n")
    done = run("dre-monitor", "run", "--config", settings())
    assert done.returncode == 1 and b"a.sec:2: ptype" in done.stderr
    (rules / "a.sec").unlink()
    done = run("dre-monitor", "run", "--config", settings(DRE_MONITOR_PIPES="/run/a-b;c"))
    assert done.returncode == 1 and b"cannot name it" in done.stderr
    assert not (tmp_path / "run" / "events.sock").exists()


def test_detached_it_runs_in_a_session_of_its_own_until_it_is_ended(run, settings, tmp_path):
    conf = settings(DRE_MONITOR_CORRELATOR="dre")
    argv = ("dre-monitor", "run", "--detach", "--without", "watch", "--without", "correlate", "--config", conf)
    done = run(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    place = tmp_path / "run" / "dre-monitor.pid"
    pid = int(place.read_text())
    end = os.pidfd_open(pid)
    try:
        assert os.getsid(pid) not in (pid, os.getsid(0)), "no session leader: it never gets a terminal"
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.readlink(f"/proc/{pid}/fd/2") == str(tmp_path / "log" / "dre-monitor.log")
        done = run(*argv)
        assert done.returncode == 5 and b"another monitor is at work; dre-monitor status" in done.stderr
    finally:
        signal.pidfd_send_signal(end, signal.SIGTERM)
        ended = select.select([end], [], [], 30)[0]
        os.close(end)
    assert ended and not place.exists()


@pytest.mark.parametrize("intake", ["well", "ill"])
def test_systemd_learns_that_the_monitor_is_ready_when_it_takes_events(settings, tmp_path, intake):
    run = tmp_path / "run"
    run.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(run / "events.sock"))  # as an intake that was killed leaves it
    if intake == "ill":
        (tmp_path / "state/spool").mkdir(parents=True)
        (tmp_path / "state/spool/event").touch()  # where it wants a directory
    argv = ["run", "--without", "watch", "--without", "correlate"]
    argv += ["--config", settings(DRE_MONITOR_CORRELATOR="dre")]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as init:
        init.bind(str(tmp_path / "notify"))
        init.settimeout(10)
        given = {**environment(), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen([program("dre-monitor"), *argv], env=given, stderr=subprocess.PIPE)
        try:
            assert init.recv(100) == b"READY=1"
            fifos = {path.name for path in run.iterdir() if stat.S_ISFIFO(path.stat().st_mode)}
            assert fifos == {"events", "ordered", "script", "actions"}
            line = event.new_line(event.Event(event.stamp(), "/host:h/x", "app.started", 6, {}, {"id": "one"}))
            assert event.send(run / "events.sock", line, wait=10.0) == (intake == "well")
            init.settimeout(0.5)
            with pytest.raises(TimeoutError):
                init.recv(100)  # once is enough
        finally:
            process.terminate()
            said = process.communicate(timeout=30)[1]
    assert (b"ingest: ended with status 1" in said) == (intake == "ill"), said
