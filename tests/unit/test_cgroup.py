# SPDX-License-Identifier: Apache-2.0
"""Control groups of both versions, on imitated trees: which file is read and written, in which order."""

import pytest
from dre import cgroup
from dre.cgroup import Group, Limits
from dre.errors import DreError

V1 = "".join(
    f"{number}:{controllers}:/lxc.payload.web1-1\n"
    for number, controllers in enumerate(("cpu,cpuacct", "memory", "pids", "blkio"), 2)
)


@pytest.fixture
def v1(tmp_path):
    for controller, files in {
        "cpu": {"cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000"},
        "cpuacct": {"cpuacct.usage": "123456789"},
        "memory": {
            "memory.usage_in_bytes": "90000",
            "memory.limit_in_bytes": "9223372036854771712",
            "memory.memsw.limit_in_bytes": "9223372036854771712",
            "memory.stat": "cache 50000\ntotal_inactive_file 40000\n",
        },
        "pids": {"pids.current": "3", "pids.max": "max"},
        "blkio": {"blkio.throttle.io_service_bytes": "254:0 Read 100\n254:0 Write 20\nTotal 120\n"},
    }.items():
        group = tmp_path / controller / "lxc.payload.web1-1"
        group.mkdir(parents=True)
        for name, text in files.items():
            (group / name).write_text(text + "\n")
    (tmp_path / "memory/memory.memsw.limit_in_bytes").touch()
    return tmp_path


@pytest.fixture
def v2(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids io\n")
    group = tmp_path / "lxc.payload.web1"
    group.mkdir()
    for name, text in {
        "cpu.stat": "usage_usec 1234\nuser_usec 1000\n",
        "cpu.max": "max 100000",
        "memory.current": "90000",
        "memory.max": "200000",
        "memory.swap.max": "max",
        "memory.stat": "anon 50000\ninactive_file 40000\n",
        "pids.current": "3",
        "pids.max": "64",
        "io.stat": "254:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n",
    }.items():
        (group / name).write_text(text + "\n")
    return tmp_path


def test_v1_usage(v1):
    used = Group(V1, v1).usage()
    assert (used.cpu_ns, used.memory, used.memory_limit, used.cpu_limit) == (123456789, 50000, None, 50.0)
    assert (used.pids, used.pids_limit, used.io_read, used.io_write) == (3, None, 100, 20)


def test_v2_usage(v2):
    used = Group("0::/lxc.payload.web1/init.scope\n", v2).usage()
    assert (used.cpu_ns, used.memory, used.memory_limit, used.cpu_limit) == (1234000, 50000, 200000, None)
    assert (used.pids, used.pids_limit, used.io_read, used.io_write) == (3, 64, 100, 20)


def written(monkeypatch):
    """Names and values in the order they are written."""
    calls = []
    monkeypatch.setattr(
        Group, "_write", lambda self, controller, name, value, optional=False: calls.append((name, value))
    )
    return calls


def test_v1_memory_is_lowered_before_and_raised_after_swap(v1, monkeypatch):
    calls = written(monkeypatch)
    group = Group(V1, v1)
    limit, swap = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
    (group.file("memory", limit)).write_text("100000\n")
    group.set_memory(60000)
    assert [name for name, _ in calls] == [limit, swap]
    calls.clear()
    group.set_memory(200000)
    assert [name for name, _ in calls] == [swap, limit]
    calls.clear()
    group.set_memory(None)
    assert calls == [(swap, "-1"), (limit, "-1")]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_memory_in_use_is_refused_before_anything_is_written(version, request, monkeypatch):
    root = request.getfixturevalue(version)
    calls = written(monkeypatch)
    with pytest.raises(DreError, match="below the 50000 octets in use"):
        Group(V1 if version == "v1" else "0::/lxc.payload.web1\n", root).set_memory(49999)
    assert calls == []


def test_v2_limits(v2):
    group = Group("0::/lxc.payload.web1\n", v2)
    group.set_cpu(250.0)
    group.set_memory(100000)
    group.set_pids(None)
    here = v2 / "lxc.payload.web1"
    assert (here / "cpu.max").read_text().startswith("250000 100000")
    assert (here / "memory.max").read_text().startswith("100000")
    assert (here / "memory.swap.max").read_text().startswith("0")
    assert (here / "pids.max").read_text().startswith("max")
    group.set_cpu(None)
    assert (here / "cpu.max").read_text().startswith("max 100000")


def test_configuration_names_both_families(v1):
    lines = dict(cgroup.keys(Limits(cpu=0.5, memory=1000, pids=7), v1))
    assert lines["lxc.cgroup.cpu.cfs_quota_us"] == "1000"  # the kernel's least
    assert lines["lxc.cgroup2.cpu.max"] == "1000 100000"
    assert lines["lxc.cgroup.memory.memsw.limit_in_bytes"] == lines["lxc.cgroup2.memory.max"] == "1000"
    assert lines["lxc.cgroup.pids.max"] == lines["lxc.cgroup2.pids.max"] == "7"
    assert cgroup.keys(Limits(), v1) == []


def test_a_missing_swap_file_is_not_configured(v2):
    assert "lxc.cgroup.memory.memsw.limit_in_bytes" not in dict(cgroup.keys(Limits(memory=1000), v2))


def test_sweep_takes_the_numbered_remains_and_not_a_neighbour(v1):
    for name in ("payload.web1", "monitor.web1-1", "payload.web1-2", "payload.web1-x", "payload.web10", "pivot"):
        (v1 / "cpu" / f"lxc.{name}").mkdir(exist_ok=True)
    cgroup.sweep("web1", {"web1", "web1-2", "web10"}, v1)
    left = {path.name for path in (v1 / "cpu").iterdir()}
    # payload.web1-1 holds files, as a group with processes does.
    assert left == {"lxc.payload.web1-1", "lxc.payload.web1-2", "lxc.payload.web1-x", "lxc.payload.web10", "lxc.pivot"}
