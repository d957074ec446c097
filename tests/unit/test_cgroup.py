# SPDX-License-Identifier: Apache-2.0
"""Control groups of both versions, on imitated trees: which file is read and written, in which order."""

import pytest
from dre import cgroup
from dre.cgroup import Group, HeldGroup
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
        "cpu.stat": "usage_usec 1234\nuser_usec 1000\nnr_periods 40\nnr_throttled 10\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.00 total=9\nfull avg10=0.25 avg60=0.00 total=1\n",
        "cgroup.events": "populated 1\nfrozen 1\n",
        "cpu.max": "max 100000",
        "memory.current": "90000",
        "memory.max": "200000",
        "memory.swap.max": "max",
        "memory.stat": "anon 50000\ninactive_file 40000\n",
        "memory.events": "low 0\noom 3\noom_kill 2\n",
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


def test_sweep_takes_the_numbered_remains_and_not_a_neighbour(v1):
    for name in ("payload.web1", "monitor.web1-1", "payload.web1-2", "payload.web1-x", "payload.web10", "pivot"):
        (v1 / "cpu" / f"lxc.{name}").mkdir(exist_ok=True)
    cgroup.sweep("web1", {"web1", "web1-2", "web10"}, v1)
    left = {path.name for path in (v1 / "cpu").iterdir()}
    # payload.web1-1 holds files, as a group with processes does.
    assert left == {"lxc.payload.web1-1", "lxc.payload.web1-2", "lxc.payload.web1-x", "lxc.payload.web10", "lxc.pivot"}


def test_strain_is_what_the_kernel_tells(v1, v2):
    told = Group("0::/lxc.payload.web1\n", v2).strain()
    assert (told.periods, told.throttled, told.oom_kills) == (40, 10, 2)
    told = Group("0::/lxc.payload.web1\n", v2).pressure()
    assert told == {"cpu": {"some": 1.5, "full": 0.25}, "memory": {}, "io": {}}


def test_pressure_of_a_hybrid_host_is_in_its_version_2(v1):
    assert Group(V1, v1).pressure() is None
    group = v1 / "unified/lxc.payload.web1-1"
    group.mkdir(parents=True)
    (group / "memory.pressure").write_text("some avg10=3.00 avg60=0.00 avg300=0.00 total=9\n")
    group = Group(V1 + "0::/lxc.payload.web1-1\n", v1)
    assert group.pressure() == {"cpu": {}, "memory": {"some": 3.0}, "io": {}}
    assert (group.strain().periods, group.strain().oom_kills) == (0, None)


def test_whether_a_process_that_ends_is_held_is_not_known(v1):
    for ending, error in (("6:freezer:/\n", ProcessLookupError), ("", DreError)):
        with pytest.raises(error):
            Group("4:memory:/\n" + ending, v1).frozen()


def test_a_held_group_reads_again_and_closes(v2):
    group = HeldGroup("0::/lxc.payload.web1\n", v2)
    assert group.usage().pids == 3
    pulse = group.pulse()
    assert group.pulse() == pulse
    cpu = v2 / "lxc.payload.web1/cpu.stat"
    cpu.write_text(cpu.read_text().replace("usage_usec ", "usage_usec 1"))
    assert group.pulse() != pulse
    with open(v2 / "lxc.payload.web1/pids.current", "r+") as file:
        file.write("7")
    (v2 / "lxc.payload.web1/pids.current").rename(v2 / "away")
    assert group.usage().pids == 7
    assert group.frozen()
    group.close()
    with pytest.raises(FileNotFoundError):
        group.usage()
