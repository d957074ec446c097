# SPDX-License-Identifier: Apache-2.0
"""What dre-check says of hosts that are not this one: files as such kernels have them, in a scratch directory."""

import os
import pathlib
import shutil
import signal
import time

import pytest
from dre import cgroup, discover, hostcheck, nat, timekeeping
from dre.conf import Conf
from dre.errors import MissingError
from dre.hostcheck import MISSES, OK, WARNING
from dre.system import virt

HIERARCHIES = ("cpu", "cpuacct", "memory", "freezer", "blkio", "cpuset", "pids", "devices")


@pytest.fixture
def proc(monkeypatch, tmp_path):
    monkeypatch.setattr(hostcheck, "_PROC", tmp_path)
    return tmp_path


@pytest.fixture
def root(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)
    return tmp_path


def state(name, **settings):
    found = hostcheck.make(Conf(**settings), name, False)
    assert "\n" not in found.found
    return found


def unified(root, text):
    (root / "cgroup.controllers").write_text(text)
    return state("cgroup")


def test_version_2(root):
    assert unified(root, "cpuset cpu io memory hugetlb pids rdma\n").state == OK
    found = unified(root, "cpuset cpu io hugetlb pids\n")
    assert (found.state, found.found) == (MISSES, "version 2, without memory")
    assert "cgroup_enable=memory" in found.remedy
    assert unified(root, "cpu memory pids io\n").state == WARNING
    assert unified(root, "").state == MISSES


def test_version_1(root):
    for name in HIERARCHIES:
        (root / name).mkdir()
        (root / name / "cgroup.procs").touch()
    assert state("cgroup").found.startswith("version 1: ")
    (root / "unified").mkdir()
    (root / "unified/cgroup.procs").touch()
    assert (state("cgroup").state, state("cgroup").found[:30]) == (OK, "version 1 beside version 2: cp")
    (root / "pids/cgroup.procs").unlink()
    assert (state("cgroup").state, state("cgroup").found[-14:]) == (WARNING, ", without pids")
    (root / "freezer/cgroup.procs").unlink()
    assert state("cgroup").state == MISSES


def test_no_control_groups(root):
    found = state("cgroup")
    assert (found.state, found.code) == (MISSES, 0)
    assert "mount -t cgroup2" in found.remedy


@pytest.mark.parametrize(
    ("total", "free", "size", "expected", "room"),
    [
        (8 << 20, 4 << 20, 512 << 20, OK, 8),
        (1900 << 10, 1 << 20, 512 << 20, OK, 2),  # a host of 2G, less what its kernel keeps
        (1 << 20, 900 << 10, 512 << 20, WARNING, 1),
        (8 << 20, 4 << 20, 16 << 30, WARNING, 0),
    ],
)
def test_memory(proc, total, free, size, expected, room):
    (proc / "meminfo").write_text(f"MemTotal:       {total} kB\nMemFree:  1 kB\nMemAvailable:   {free} kB\nOdd\n: \n")
    found = state("memory", sys_default_memory=size)
    assert (found.state, f"room for {room} more" in found.found) == (expected, True)
    assert (found.remedy is None) == (expected == OK)


@pytest.mark.parametrize("text", ["", "MemTotal: x kB\n", "MemTotal: 1 kB\n", "\udcff\0"])
def test_memory_that_is_not_told(proc, text):
    (proc / "meminfo").write_bytes(text.encode(errors="surrogateescape"))
    found = state("memory")
    assert found.state == WARNING and found.code > 1


def test_memory_without_proc(proc):
    assert (state("memory").state, state("memory").code) == (WARNING, 6)


@pytest.mark.parametrize(("flags", "word"), [("fpu vmx", "VT-x"), ("fpu svm", "AMD-V"), ("fpu", "KVM")])
def test_kvm(proc, monkeypatch, flags, word):
    (proc / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(virt, "choose", lambda *_, **__: ("kvm", "tried"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state("virt").found == f"{word}: systems run under KVM: tried"
    assert state("virt").state == OK


@pytest.mark.parametrize(
    ("flags", "device", "why", "remedy"),
    [
        ("fpu vmx", False, "no device", "modprobe kvm_intel"),
        ("fpu svm", False, "no device", "modprobe kvm_amd"),
        ("fpu", False, "no device", "nested virtualisation"),
        ("fpu vmx", True, "it did not boot", "another kernel or host"),
        ("fpu vmx", True, virt.NOT_TRIED, "dre-base brings one"),
    ],
)
def test_emulator(proc, monkeypatch, flags, device, why, remedy):
    (proc / "cpuinfo").write_text(f"flags : {flags}\n")
    kvm = proc / "kvm"
    if device:
        kvm.touch()
    monkeypatch.setattr(virt, "KVM", kvm)
    monkeypatch.setattr(virt, "choose", lambda *_, **__: ("qemu", why))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = state("virt")
    assert found.state == WARNING and why in found.found and remedy in found.remedy
    assert state("virt", sys_virt="tcg").state == OK


def test_no_qemu(proc, monkeypatch):
    (proc / "cpuinfo").touch()

    def choose(*_, **__):
        raise MissingError("qemu-system-x86_64: no such program; apt-get install qemu-system-x86")

    monkeypatch.setattr(virt, "choose", choose)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = state("virt")
    assert (found.state, found.remedy, found.code) == (MISSES, "apt-get install qemu-system-x86", 0)


@pytest.mark.skipif(shutil.which(virt.QEMU) is None, reason="no QEMU")
def test_a_trial_of_who_only_looks_is_not_kept(monkeypatch, tmp_path):
    kvm = tmp_path / "kvm"
    kvm.touch()
    monkeypatch.setattr(virt, "KVM", kvm)
    monkeypatch.setattr(virt, "_boots", lambda kernel: (True, f"{kernel} booted"))
    settings = Conf(core_state_dir=tmp_path / "state", core_run_dir=tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    assert virt.choose(settings, pathlib.Path("/k"), keep=False) == ("kvm", "/k booted")
    assert sorted(tmp_path.rglob("*")) == before
    virt.choose(settings, pathlib.Path("/k"))
    monkeypatch.setattr(virt, "_boots", lambda kernel: pytest.fail("it is known"))
    assert virt.choose(settings, pathlib.Path("/other"), keep=False) == ("kvm", "/k booted")


def test_clock(monkeypatch, proc):
    monkeypatch.setattr(timekeeping, "told", lambda: timekeeping.Told(True, 0.001, 0.25))
    assert (state("clock").state, state("clock").found) == (OK, "kept right, at most 0.250 s off")
    monkeypatch.setattr(timekeeping, "told", lambda: timekeeping.Told(False, 16.0, 16.0))
    assert "apt-get install chrony" in state("clock").remedy
    (proc / "77").mkdir()
    (proc / "77/comm").write_text("chronyd\n")
    assert "chronyc tracking" in state("clock").remedy
    monkeypatch.setattr(time, "time", lambda: 86400.0)
    assert state("clock").state == MISSES


@pytest.mark.parametrize(("wanted", "expected"), [("lo", MISSES), ("", WARNING)])
def test_no_dhcp_server(monkeypatch, wanted, expected):
    """It is missing where containers are to be on that network, else only to be known."""
    monkeypatch.setattr(nat, "uplinks", lambda *_: ["lo"])
    monkeypatch.setattr(discover, "ask", lambda link: None)
    found = hostcheck.make(Conf(bridge_uplink=wanted, bridge_if="dret2none"), "dhcp", True)
    assert (found.state, found.found) == (expected, "lo: no DHCP server answers within 8 s")
    assert "DRE_BRIDGE_DHCP" in found.remedy


def test_uplink_that_is_down(monkeypatch, tmp_path):
    monkeypatch.setattr(hostcheck, "_NET", tmp_path)
    (tmp_path / "eth7").mkdir()
    (tmp_path / "eth7/operstate").write_text("down\n")
    found = state("dhcp", bridge_uplink="eth7", bridge_if="dret2none")
    assert (found.state, found.found) == (MISSES, "eth7 is down")


def endless(conf, discover):
    return WARNING, "x" * 1_000_000, None


def late(conf, discover):
    signal.pause()


def ended(conf, discover):
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(conf, discover):
    raise ZeroDivisionError


def child(conf, discover):
    """Says which process it started, and waits for that, which never ends."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    pathlib.Path(conf.core_run_dir, "child").write_text(str(pid))
    os.waitpid(pid, 0)


def test_what_goes_wrong_costs_its_own_line(monkeypatch, tmp_path):
    checks = {"late": (late, 0.3), "ended": (ended, 5.0), "wrong": (wrong, 5.0), "child": (child, 0.5)}
    checks["endless"] = (endless, 5.0)
    good = (lambda conf, discover: (OK, "well", None), 5.0)
    monkeypatch.setattr(hostcheck, "CHECKS", {**checks, "good": good})
    found = {item.check: item for item in hostcheck.look(Conf(core_run_dir=tmp_path), list(hostcheck.CHECKS), False)}
    assert {name: item.code for name, item in found.items()} == {
        **{"late": 5, "ended": 6, "wrong": 6, "child": 5, "endless": 0, "good": 0},
    }
    assert found["endless"].found == "x" * 1000
    assert (found["good"].state, found["late"].state) == (OK, WARNING)
    started = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while time.monotonic() < end and _runs(started):
        time.sleep(0.01)
    assert not _runs(started)


def _runs(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
