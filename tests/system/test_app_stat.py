# SPDX-License-Identifier: Apache-2.0
"""stat tells what the kernel counts, with rates from the second sample on, of apps that come and go meanwhile."""

import contextlib
import json
import os
import pathlib
import subprocess
import time

import pytest
from app_ground import Ground, kernel, wait_for
from conftest import environment, program

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
FIELDS = ["name", "state", "ip", "pid", "cpu", "memory", "memory_limit", "cpu_limit", "pids", "created", "base"]
FIELDS += ["snapshots", "io_read", "io_write", "net_rx", "net_tx", "throttled", "oom_kills", "pressure"]
RATES = ["cpu", "io_read", "io_write", "net_rx", "net_tx", "throttled"]


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        yield ground


@contextlib.contextmanager
def watching(app, *names, interval="0.1"):
    """`stat --json` at work beside us; gives a function that returns its next row."""
    argv = [program("dre-app"), "--config", app.config, "stat", "--json", "--interval", interval, *names]
    process = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE)

    def rows():
        line = process.stdout.readline()
        assert line, "stat has ended"
        return json.loads(line)

    rows.pid = process.pid
    try:
        yield rows
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def until(rows, condition):
    """The first row that meets *condition*; those of what was before we looked come first."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        row = rows()
        if condition(row):
            return row
    raise AssertionError(f"never: {row}")


def test_rates_are_there_from_the_second_sample_on(app):
    app("create", "t-stat", "--cpu", "20", "--weight", "10000", "--", "sh", "-c", "while :; do :; done")
    app("start", "t-stat")
    first, second = map(json.loads, app("stat", "--interval", "1s", "--count", "2", "--json").splitlines())
    assert set(first) >= set(FIELDS) and list(first) == list(second)
    assert all(first[key] is None for key in RATES) and None not in [second[key] for key in RATES]
    assert 0 < second["cpu"] <= 35  # the quota, and one period more may end in the second
    assert second["throttled"] > 0
    assert second["cpu_limit"] == 20
    assert all(json.loads(app("stat", "t-stat", "--json"))[key] is None for key in RATES)


def test_use_is_what_the_kernel_counts(app):
    app("create", "t-stat", "--memory", "60M")
    app("start", "t-stat")
    app("exec", "t-stat", "--", "dd", "if=/dev/zero", "of=/run/held", "bs=1M", "count=20")
    app("exec", "t-stat", "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1", code=137)
    row = json.loads(app("stat", "t-stat", "--json"))
    used = int(kernel(row["pid"], "memory", "memory.current" if V2 else "memory.usage_in_bytes"))
    assert 20 << 20 <= row["memory"] <= used + (1 << 20)
    assert (row["memory_limit"], row["oom_kills"], row["pids"]) == (60 << 20, 1, 2)
    group = pathlib.Path(f"/proc/{row['pid']}/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/")
    place = pathlib.Path("/sys/fs/cgroup", "" if V2 else "unified", group)
    if (place / "memory.pressure").exists():
        assert set(row["pressure"]) == {"cpu", "memory", "io"}
        assert set(row["pressure"]["memory"]) == {"some", "full"}
    else:
        assert row["pressure"] is None


def test_traffic_and_io(app):
    app("create", "t-stat")
    app("start", "t-stat")
    address = json.loads(app("status", "t-stat", "--json"))["ip"][0]
    with watching(app, "t-stat") as rows:
        until(rows, lambda row: row["net_rx"] is not None)
        subprocess.run(["ping", "-c2", "-i0.2", "-s", "1000", address], check=True, capture_output=True)
        until(rows, lambda row: row["net_rx"] > 1000)
        app("exec", "t-stat", "--", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=8", "oflag=direct")
        until(rows, lambda row: row["io_write"] > 1 << 20)


def test_apps_that_come_and_go_are_followed(app):
    app("create", "t-stat")
    with watching(app) as rows:
        fds = f"/proc/{rows.pid}/fd"
        until(rows, lambda row: row["state"] == "stopped")
        before = len(os.listdir(fds))
        app("start", "t-stat")
        started = until(rows, lambda row: row["state"] == "running")
        until(rows, lambda row: row["cpu"] is not None)
        assert len(os.listdir(fds)) > before
        app("freeze", "t-stat")
        until(rows, lambda row: row["state"] == "frozen")
        app("thaw", "t-stat")
        until(rows, lambda row: row["state"] == "running")
        app("limit", "t-stat", "--memory", "77M")
        until(rows, lambda row: row["memory_limit"] == 77 << 20)
        app("restart", "t-stat")
        until(rows, lambda row: row["state"] == "running" and row["pid"] != started["pid"])
        app("stop", "t-stat")
        until(rows, lambda row: row["state"] == "stopped" and row["memory"] is None)
        assert wait_for(lambda: len(os.listdir(fds)) == before)
        app("snapshot", "save", "t-stat", "good")
        until(rows, lambda row: row["snapshots"] == ["good"])
        subprocess.run(["lxc-start", "-n", "t-stat"], check=True)  # not by us
        until(rows, lambda row: row["state"] == "running")
        app("create", "t-stat2")
        until(rows, lambda row: row["name"] == "t-stat2")
        app("destroy", "--force", "t-stat")
        until(rows, lambda row: row["name"] == rows()["name"] == "t-stat2")
