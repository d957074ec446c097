# SPDX-License-Identifier: Apache-2.0
"""Limits on imitated control groups of both versions: which files, in which order, and what happens when one fails."""

import errno
from dataclasses import asdict, replace

import pytest
from dre import limits, relimit
from dre.cgroup import Group, Limits
from dre.errors import DreError, MissingError, UsageError
from hypothesis import given
from hypothesis import strategies as st

CONTROLLERS = ("cpu", "cpuset", "memory", "pids", "blkio")
V1 = "".join(f"{number}:{name}:/lxc.payload.web1\n" for number, name in enumerate(CONTROLLERS, 2))
V2 = "0::/lxc.payload.web1\n"
DEVICE = "254:0"
EVERYTHING = Limits(cpu=50.0, weight=200, cpus="0", memory=200_000, swap=4096, pids=9, io=1 << 20)


@pytest.fixture
def v1(tmp_path):
    for controller, files in {
        "cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "cpu.shares": "1024"},
        "cpuset": {"cpuset.cpus": "0-1"},
        "memory": {
            "memory.usage_in_bytes": "90000",
            "memory.limit_in_bytes": "9223372036854771712",
            "memory.memsw.limit_in_bytes": "9223372036854771712",
            "memory.stat": "cache 50000\ntotal_inactive_file 40000\n",
        },
        "pids": {"pids.max": "max"},
        "blkio": {"blkio.throttle.read_bps_device": "", "blkio.throttle.write_bps_device": ""},
    }.items():
        group = tmp_path / controller / "lxc.payload.web1"
        group.mkdir(parents=True)
        for name, text in files.items():
            for place in (group, group.parent):
                (place / name).write_text(text + "\n")
    return tmp_path


@pytest.fixture
def v2(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu cpuset io memory pids\n")
    (tmp_path / "cpuset.cpus.effective").write_text("0-1\n")
    group = tmp_path / "lxc.payload.web1"
    group.mkdir()
    for name, text in {
        "cpu.max": "max 100000",
        "cpu.weight": "100",
        "cpuset.cpus": "",
        "memory.current": "90000",
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.stat": "anon 50000\ninactive_file 40000\n",
        "pids.max": "max",
        "io.max": "",
    }.items():
        (group / name).write_text(text + "\n")
    return tmp_path


class Kernel:
    """Behind a Group's `write`: what was written, in order; *refused* files fail as a kernel does."""

    def __init__(self, monkeypatch, refused=""):
        self.calls = []
        self.refused = refused
        monkeypatch.setattr(Group, "write", self.write())

    def write(self):
        def write(group, controller, name, value):
            if name == self.refused:
                raise OSError(errno.EINVAL, "Invalid argument")
            self.calls.append((name, value))
            text = "9223372036854771712" if value == "-1" and "quota" not in name else value
            if controller == "blkio":
                text = "" if value.endswith(" 0") else value
            group.file(controller, name).write_text(text + "\n")

        return write


def world(version, request):
    return Group(V1 if version == "v1" else V2, request.getfixturevalue(version))


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        (
            "v1",
            {
                "cpu.cfs_period_us": "100000",
                "cpu.cfs_quota_us": "50000",
                "cpu.shares": "2048",
                "cpuset.cpus": "0",
                "memory.limit_in_bytes": "200000",
                "memory.memsw.limit_in_bytes": "204096",
                "pids.max": "9",
                "blkio.throttle.read_bps_device": "254:0 1048576",
                "blkio.throttle.write_bps_device": "254:0 1048576",
            },
        ),
        (
            "v2",
            {
                "cpu.max": "50000 100000",
                "cpu.weight": "200",
                "cpuset.cpus": "0",
                "memory.max": "200000",
                "memory.swap.max": "4096",
                "pids.max": "9",
                "io.max": "254:0 rbps=1048576 wbps=1048576",
            },
        ),
    ],
)
def test_all_limits_reach_their_files_and_are_lifted(version, wanted, request, monkeypatch):
    group = world(version, request)
    kernel = Kernel(monkeypatch)
    assert limits.apply(group, Limits(), EVERYTHING, DEVICE) == EVERYTHING
    assert dict(kernel.calls) == wanted
    kernel.calls.clear()
    limits.apply(group, EVERYTHING, Limits(), DEVICE)
    lifted = dict(kernel.calls)
    assert set(lifted) == set(wanted)
    assert lifted.get("cpu.shares", lifted.get("cpu.weight")) in ("1024", "100")
    assert lifted["cpuset.cpus"] == "0-1"


def test_v1_memory_is_lowered_before_and_raised_after_swap(v1, monkeypatch):
    group = Group(V1, v1)
    kernel = Kernel(monkeypatch)
    limit, both = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
    limits.apply(group, Limits(), Limits(memory=100_000), None)
    assert [name for name, _ in kernel.calls] == [limit, both]
    kernel.calls.clear()
    limits.apply(group, Limits(memory=100_000), Limits(memory=200_000), None)
    assert [name for name, _ in kernel.calls] == [both, limit]
    kernel.calls.clear()
    limits.apply(group, Limits(memory=200_000), Limits(), None)
    assert kernel.calls == [(both, "-1"), (limit, "-1")]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_memory_in_use_is_refused_before_anything_is_written(version, request, monkeypatch):
    group = world(version, request)
    kernel = Kernel(monkeypatch)
    with pytest.raises(DreError, match="below the 50000 octets in use"):
        limits.apply(group, Limits(), Limits(memory=49_999, cpu=5), None)
    assert kernel.calls == []


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_fails_last_takes_the_others_back(version, request, monkeypatch):
    group = world(version, request)
    directory = next(iter(group.paths.values())).parent if version == "v2" else group.root
    before = {path: path.read_text() for path in directory.rglob("*") if path.is_file()}
    Kernel(monkeypatch, refused="io.max" if version == "v2" else "blkio.throttle.write_bps_device")
    with pytest.raises(DreError, match="Invalid argument"):
        limits.apply(group, Limits(), EVERYTHING, DEVICE)
    after = {path: path.read_text() for path in directory.rglob("*") if path.is_file()}
    if version == "v2":  # which has no way back to no list
        assert after.pop(group.file("cpuset", "cpuset.cpus")) == "0-1\n"
        before.pop(group.file("cpuset", "cpuset.cpus"))
    assert {path: text.strip() for path, text in after.items()} == {p: text.strip() for p, text in before.items()}


def test_what_the_kernel_makes_of_a_value_is_told(v1, monkeypatch):
    group = Group(V1, v1)
    rounding = {"memory.limit_in_bytes": "98304", "memory.memsw.limit_in_bytes": "98304", "pids.max": "8"}

    def write(self, controller, name, value):
        self.file(controller, name).write_text(rounding.get(name, value) + "\n")

    monkeypatch.setattr(Group, "write", write)
    assert limits.apply(group, Limits(), Limits(memory=100_000), None).memory == 98304
    with pytest.raises(DreError, match=r"pids.max: the kernel made 8 of 7"):
        limits.apply(group, Limits(), Limits(pids=7), None)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_limits_are_read_back_as_they_were_set(version, request, monkeypatch):
    group = world(version, request)
    assert limits.read(group, DEVICE) == Limits()
    Kernel(monkeypatch)
    limits.apply(group, Limits(), EVERYTHING, DEVICE)
    assert limits.read(group, DEVICE) == EVERYTHING
    limits.apply(group, EVERYTHING, Limits(), DEVICE)
    assert limits.read(group, DEVICE) == Limits()


def test_configuration_names_both_families(v1):
    lines = dict(limits.keys(replace(EVERYTHING, cpu=0.5), DEVICE, v1))
    assert lines["lxc.cgroup.cpu.cfs_quota_us"] == "1000"  # the kernel's least
    assert lines["lxc.cgroup2.cpu.max"] == "1000 100000"
    assert lines["lxc.cgroup.memory.memsw.limit_in_bytes"] == "204096"
    assert lines["lxc.cgroup2.memory.max"] == "200000"
    assert lines["lxc.cgroup.pids.max"] == lines["lxc.cgroup2.pids.max"] == "9"
    assert lines["lxc.cgroup.cpuset.cpus"] == lines["lxc.cgroup2.cpuset.cpus"] == "0"
    assert lines["lxc.cgroup.blkio.throttle.read_bps_device"] == "254:0 1048576"
    assert limits.keys(Limits(), None, v1) == []
    # No rate is the rate that makes newer kernels count.
    assert {value for _, value in limits.keys(Limits(), DEVICE, v1)} == {"254:0 0"}


def test_a_file_that_this_kernel_lacks_is_not_configured(v2):
    (v2 / "lxc.payload.web1/memory.swap.max").unlink()
    lines = dict(limits.keys(Limits(memory=1000, io=5), DEVICE, v2))
    assert not [key for key in lines if "swap" in key or "memsw" in key or "blkio" in key]
    assert lines["lxc.cgroup2.io.max"] == "254:0 rbps=5 wbps=5"


def test_what_the_kernel_cannot_do_is_refused_with_its_reason(v1, v2):
    (v1 / "cgroup.controllers").unlink()
    (v1 / "blkio/blkio.throttle.write_bps_device").unlink()
    with pytest.raises(MissingError, match="cannot limit block i/o"):
        limits.check(Limits(io=5), DEVICE, v1)
    (v1 / "memory/memory.memsw.limit_in_bytes").unlink()
    with pytest.raises(MissingError, match="cannot limit swap"):
        limits.check(Limits(memory=5000, swap=5000), None, v1)
    limits.check(Limits(memory=5000), None, v1)
    with pytest.raises(UsageError, match="give --memory"):
        limits.check(Limits(swap=5000), None, v1)


def test_processors_that_the_host_has_not_are_refused(v1, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SYS", tmp_path / "sys")
    (tmp_path / "sys/devices/system/cpu").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-1,3\n")
    limits.check(Limits(cpus="1,3"), None, v1)
    with pytest.raises(UsageError, match="this host has 0-1,3"):
        limits.check(Limits(cpus="2"), None, v1)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_lists_of_processors_survive_both_ways(cpus):
    assert limits.cpu_set(limits.cpu_text(cpus)) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "3-1", "1,,2", "0-999999", "1 2", "١", "0-1;rm"])
def test_bad_lists_of_processors(text):
    with pytest.raises(UsageError):
        limits.cpu_set(text)


def test_the_disk_of_a_partition_and_of_a_subvolume(tmp_path, monkeypatch):
    sys = tmp_path / "sys"
    disk = sys / "devices/pci/block/vda"
    (disk / "vda3").mkdir(parents=True)
    (disk / "dev").write_text("259:0\n")
    (disk / "vda3/partition").write_text("3\n")
    (sys / "dev/block").mkdir(parents=True)
    (sys / "dev/block/259:3").symlink_to(disk / "vda3")
    (sys / "dev/block/259:0").symlink_to(disk)
    monkeypatch.setattr(limits, "SYS", sys)
    monkeypatch.setattr(limits, "_source", lambda place: "259:3")
    assert limits.device(tmp_path) == "259:0"  # the number of tmp_path is not in this /sys, as with btrfs
    monkeypatch.setattr(limits, "_source", lambda place: "")
    with pytest.raises(MissingError, match="no block device"):
        limits.device(tmp_path)
    assert limits.device_for(Limits(), tmp_path) is None


def test_swap_ends_with_the_memory_limit():
    old = Limits(memory=5000, swap=700)
    assert relimit.merged(old, {"memory": None}).swap == 0
    assert relimit.merged(old, {"memory": 9000}).swap == 700
    assert asdict(relimit.merged(old, {"cpu": 5.0}))["cpu"] == 5.0
