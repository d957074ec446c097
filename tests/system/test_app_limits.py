# SPDX-License-Identifier: Apache-2.0
"""Limits hold in the running app and after a restart, all that are given or none; the kernel is the witness."""

import json
import os
import pathlib
import subprocess

import pytest
from app_ground import BRIDGE, LXC, Ground, kernel

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
FILES = {
    "cpu": ("cpu", "cpu.max" if V2 else "cpu.cfs_quota_us"),
    "weight": ("cpu", "cpu.weight" if V2 else "cpu.shares"),
    "cpus": ("cpuset", "cpuset.cpus.effective" if V2 else "cpuset.cpus"),
    "memory": ("memory", "memory.max" if V2 else "memory.limit_in_bytes"),
    "pids": ("pids", "pids.max"),
}
if not V2 and os.path.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"):
    FILES["swap"] = ("memory", "memory.memsw.limit_in_bytes")
DEVICE = os.stat(LXC).st_dev
DISK = pathlib.Path("/sys/dev/block", f"{os.major(DEVICE)}:{os.minor(DEVICE)}")
THROTTLE = "io.max" if V2 else "blkio.throttle.write_bps_device"


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        ground("create", "t-limit")
        ground("start", "t-limit")
        yield ground


def init(app):
    return json.loads(app("status", "t-limit", "--json"))["pid"]


def limits(app):
    """The limits as the kernel has them for the app's init."""
    pid = init(app)
    return {key: kernel(pid, *file).split()[0] for key, file in FILES.items()}


def place(pid, controller):
    """The directory of the group that *pid* is in."""
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if V2 or controller in controllers.split(","):
            return pathlib.Path("/sys/fs/cgroup", "" if V2 else controller, path.lstrip("/"))
    raise AssertionError(f"process {pid} is in no group of {controller}")


def test_live_and_persistent(app):
    without = limits(app)
    every = ("--cpu", "50", "--weight", "300", "--cpus", "0", "--memory", "64M", "--swap", "8M", "--pids", "40")
    app("limit", "t-limit", *(every if "swap" in FILES else (*every[:8], *every[10:])))
    wanted = {"cpu": "50000", "weight": "300" if V2 else "3072", "cpus": "0", "memory": str(64 << 20), "pids": "40"}
    if "swap" in FILES:
        wanted["swap"] = str(72 << 20)
    assert limits(app) == wanted
    app("restart", "t-limit")
    assert limits(app) == wanted
    row = json.loads(app("limit", "t-limit", "--json"))
    assert (row["cpu_limit"], row["memory_limit"], row["pids_limit"]) == (50.0, 64 << 20, 40)
    assert (row["weight"], row["cpus"], row["io_limit"]) == (300, "0", None)
    app("limit", "t-limit", "--memory", "128M")  # up again, and the others stay
    assert (limits(app)["memory"], limits(app)["cpu"]) == (str(128 << 20), "50000")
    app("limit", "t-limit", *(word for option in FILES if option != "swap" for word in (f"--{option}", "none")))
    assert limits(app) == without
    assert set(app("limit", "t-limit").splitlines()) >= {"cpu none", "weight none", "memory none", "swap none"}
    assert app.events().count("app.limited") == 3


def test_create_takes_them(app):
    app("create", "t-limit2", "--cpus", "0", "--pids", "30", "--weight", "50")
    app("start", "t-limit2")
    pid = json.loads(app("status", "t-limit2", "--json"))["pid"]
    assert [kernel(pid, *FILES[key]) for key in ("cpus", "pids", "weight")] == ["0", "30", "50" if V2 else "512"]


def test_what_fails_in_the_middle_takes_all_back(app, tmp_path):
    app("limit", "t-limit", "--cpu", "80", "--memory", "200M")
    before, stored = limits(app), app("limit", "t-limit", "--json")
    # The kernel refuses to write one file, in the midst of the others.
    file = place(init(app), "pids") / "pids.max"
    subprocess.run(["mount", "--bind", file, file], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", file], check=True)
        said = app("limit", "t-limit", "--cpu", "10", "--memory", "100M", "--pids", "9", code=1)
        assert "t-limit" in said and "pids.max" in said
        assert limits(app) == before
        assert app("limit", "t-limit", "--json") == stored
    finally:
        subprocess.run(["umount", file], check=True)
    app("limit", "t-limit", "--pids", "9")
    assert limits(app) == {**before, "pids": "9"}


def test_memory_below_present_use_is_refused_and_nothing_changes(app):
    app("limit", "t-limit", "--memory", "200M", "--cpu", "80")
    before = limits(app)
    # 60 MiB that cannot be dropped: a file in a tmpfs.
    app("exec", "t-limit", "--", "dd", "if=/dev/zero", "of=/run/full", "bs=1M", "count=60")
    assert "in use" in app("limit", "t-limit", "--memory", "20M", "--cpu", "10", code=1)
    assert limits(app) == before
    assert json.loads(app("limit", "t-limit", "--json"))["memory_limit"] == 200 << 20
    assert app("status", "t-limit") == "running"


@pytest.mark.skipif(not DISK.exists(), reason="the apps' file system lies on no block device")
def test_io_rate(app):
    disk = DISK.resolve()
    number = (disk.parent if (disk / "partition").exists() else disk).joinpath("dev").read_text().strip()
    app("limit", "t-limit", "--io", "4M")
    wanted = f"{number} rbps=4194304 wbps=4194304 riops=max wiops=max" if V2 else f"{number} 4194304"
    assert kernel(init(app), "io" if V2 else "blkio", THROTTLE) == wanted
    app("restart", "t-limit")
    assert kernel(init(app), "io" if V2 else "blkio", THROTTLE) == wanted
    app("limit", "t-limit", "--io", "none")
    assert number not in kernel(init(app), "io" if V2 else "blkio", THROTTLE)


def test_network_rate(app):
    address = json.loads(app("status", "t-limit", "--json"))["ip"][0]

    def rate():
        (link,) = os.listdir(f"/sys/class/net/{BRIDGE}/brif")
        shown = json.loads(subprocess.run(["tc", "-j", "qdisc", "show", "dev", link], capture_output=True).stdout)
        return [queue["options"]["rate"] for queue in shown if queue["kind"] == "tbf"]

    app("limit", "t-limit", "--net", "1M", "--pids", "50")
    assert rate() == [1 << 20]
    assert subprocess.run(["ping", "-c1", "-W5", address], capture_output=True).returncode == 0
    file = place(init(app), "pids") / "pids.max"
    subprocess.run(["mount", "--bind", file, file], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", file], check=True)
        app("limit", "t-limit", "--net", "2M", "--pids", "9", code=1)
    finally:
        subprocess.run(["umount", file], check=True)
    assert rate() == [1 << 20]
    app("restart", "t-limit")
    assert rate() == [1 << 20]
    assert json.loads(app("limit", "t-limit", "--json"))["net_limit"] == 1 << 20
    app("limit", "t-limit", "--net", "none")
    assert rate() == []


def test_bad_values(app):
    for option, value in (
        ("--cpu", "0"),
        ("--cpu", "0.5"),
        ("--cpu", "x"),
        ("--weight", "0"),
        ("--weight", "10001"),
        ("--cpus", "0,"),
        ("--cpus", "4000"),
        ("--memory", "many"),
        ("--memory", "-1"),
        ("--memory", "0"),
        ("--swap", "1M"),  # beyond which memory?
        ("--pids", "0"),
        ("--io", "0"),
        ("--io", "fast"),
    ):
        app("limit", "t-limit", f"{option}={value}", code=2)
    app("limit", "t-none", "--cpu", "5", code=3)
    app("create", "t-limit2", "--cpus", "4000", code=2)
    app("status", "t-limit2", code=3)
