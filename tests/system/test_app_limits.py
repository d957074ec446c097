# SPDX-License-Identifier: Apache-2.0
"""Limits hold in the running app and after a restart; the kernel's own files are the witness."""

import json
import pathlib

import pytest
from app_ground import Ground

CGROUP = pathlib.Path("/sys/fs/cgroup")
V2 = (CGROUP / "cgroup.controllers").exists()


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        ground("create", "t-limit")
        ground("start", "t-limit")
        yield ground


def kernel(app):
    """cpu, memory and pids limit as the kernel has them for the app's init."""
    pid = json.loads(app("status", "t-limit", "--json"))["pid"]
    groups = {}
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":")
        for controller in controllers.split(","):
            groups[controller] = CGROUP / ("" if V2 else controller) / path.lstrip("/")
    if V2:
        group = groups[""]
        return [(group / name).read_text().split()[0] for name in ("cpu.max", "memory.max", "pids.max")]
    return [
        (groups["cpu"] / "cpu.cfs_quota_us").read_text().strip(),
        (groups["memory"] / "memory.limit_in_bytes").read_text().strip(),
        (groups["pids"] / "pids.max").read_text().strip(),
    ]


def test_live_and_persistent(app):
    without = kernel(app)
    app("limit", "t-limit", "--cpu", "50", "--memory", "64M", "--pids", "40")
    wanted = ["50000", str(64 << 20), "40"]
    assert kernel(app) == wanted
    app("restart", "t-limit")
    assert kernel(app) == wanted
    row = json.loads(app("limit", "t-limit", "--json"))
    assert row == {"name": "t-limit", "cpu_limit": 50.0, "memory_limit": 64 << 20, "pids_limit": 40}
    app("limit", "t-limit", "--memory", "128M")  # up again, and the others stay
    assert kernel(app) == ["50000", str(128 << 20), "40"]
    app("limit", "t-limit", "--cpu", "none", "--memory", "none", "--pids", "none")
    assert kernel(app) == without
    assert app("limit", "t-limit") == "cpu none\nmemory none\npids none"


def test_memory_below_present_use_is_refused_and_nothing_changes(app):
    app("limit", "t-limit", "--memory", "200M", "--cpu", "80")
    before = kernel(app)
    # 60 MiB that cannot be dropped: a file in a tmpfs.
    app("exec", "t-limit", "--", "dd", "if=/dev/zero", "of=/run/full", "bs=1M", "count=60")
    assert "in use" in app("limit", "t-limit", "--memory", "20M", "--cpu", "10", code=1)
    assert kernel(app) == before
    assert json.loads(app("limit", "t-limit", "--json"))["memory_limit"] == 200 << 20
    assert app("status", "t-limit") == "running"


def test_memory_hog_is_ended_and_the_app_lives(app):
    app("limit", "t-limit", "--memory", "50M")
    app("exec", "t-limit", "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1", code=137)
    assert app("status", "t-limit") == "running"


def test_pids(app):
    app("limit", "t-limit", "--pids", "8")
    bomb = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1 & done; wait"
    done = app.run("dre-app", "--config", app.config, "exec", "t-limit", "--", "sh", "-c", bomb)
    assert done.returncode != 0
    assert b"ork" in done.stderr  # "Cannot fork"


def test_bad_values(app):
    for option, value in (
        ("--cpu", "0"),
        ("--cpu", "0.5"),
        ("--cpu", "x"),
        ("--memory", "many"),
        ("--memory", "-1"),
        ("--pids", "0"),
    ):
        app("limit", "t-limit", f"{option}={value}", code=2)
    app("limit", "t-none", "--cpu", "5", code=3)
