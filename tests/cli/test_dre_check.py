# SPDX-License-Identifier: Apache-2.0
"""dre-check from the outside: what it finds is what other programs and the kernel tell, and it changes nothing."""

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading

import pytest
from conftest import nobody

NAMES = ["virt", "memory", "dhcp", "cgroup", "libvirt", "clock"]


@pytest.fixture
def conf(settings):
    """Settings under which no check needs a hypervisor."""
    return settings(DRE_SYS_VIRT="tcg", DRE_SYS_URI="test:///default")


@pytest.fixture
def check(run, conf):
    """check(NAME…) → exit status and the findings by name."""

    def call(*names, config=conf, **kwargs):
        done = run("dre-check", "--config", config, "--json", *names, **kwargs)
        assert done.stderr == b""
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert all(list(row) == ["check", "state", "found", "remedy"] for row in rows)
        return done.returncode, {row["check"]: row for row in rows}

    return call


def told(*argv):
    return subprocess.run(argv, capture_output=True, text=True, timeout=30).stdout


def test_one_line_for_each_check_in_order(run, conf):
    done = run("dre-check", "--config", conf)
    lines = done.stdout.decode().splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert {line.split()[1] for line in lines} <= {"ok", "warning", "missing"}
    assert done.returncode == (1 if any(line.split()[1] == "missing" for line in lines) else 0)


def test_only_those_named_and_quiet_about_what_is_well(run, conf, tmp_path):
    done = run("dre-check", "--config", conf, "libvirt", "memory")
    assert [line.split()[0] for line in done.stdout.decode().splitlines()] == ["memory", "libvirt"]
    done = run("dre-check", "--config", conf, "--quiet", "libvirt")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_unknown_check(run, conf):
    done = run("dre-check", "--config", conf, "phase-of-moon")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"no such check: 'phase-of-moon'; there are virt, memory" in done.stderr


def test_memory_is_what_proc_says(check, settings):
    total = int(re.search(r"MemTotal: +(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) / (1 << 20)
    code, rows = check("memory")
    assert rows["memory"]["found"].startswith(f"{total:.1f}G, of which ")
    assert (code, rows["memory"]["state"]) == (0, "ok" if total > 1.75 else "warning")
    code, rows = check("memory", config=settings(DRE_SYS_DEFAULT_MEMORY="900T"))
    assert (code, rows["memory"]["state"]) == (0, "warning")
    assert "room for 0 more systems" in rows["memory"]["found"] and "DRE_SYS_DEFAULT_MEMORY" in rows["memory"]["remedy"]


def test_control_groups_are_those_that_are_mounted(check):
    kinds = set(told("findmnt", "-rno", "FSTYPE", "-t", "cgroup,cgroup2").split())
    _, rows = check("cgroup")
    found = rows["cgroup"]["found"]
    if not kinds:
        assert rows["cgroup"]["state"] == "missing"
    else:
        assert ("version 1" in found) == ("cgroup" in kinds) and ("version 2" in found) == ("cgroup2" in kinds)


@pytest.mark.skipif(not shutil.which("virsh"), reason="no virsh")
def test_libvirt_is_what_virsh_says(check):
    code, rows = check("libvirt")
    version = re.search(r"Using library: libvirt ([\d.]+)", told("virsh", "-c", "test:///default", "version"))[1]
    assert rows["libvirt"]["found"] == f"libvirt {version} answers at test:///default (TEST)"
    assert (code, rows["libvirt"]["state"]) == (0, "ok")


def test_libvirt_that_is_not_there(check, settings, tmp_path):
    config = settings(DRE_SYS_URI=f"qemu+unix:///system?socket={tmp_path}/none")
    code, rows = check("libvirt", config=config)
    assert (code, rows["libvirt"]["state"]) == (1, "missing")
    assert "no libvirt answers" in rows["libvirt"]["found"]
    assert re.search("libvirtd|libvirt-daemon-system", rows["libvirt"]["remedy"])


def test_libvirt_that_hangs_costs_its_own_line_only(check, settings, tmp_path):
    """A socket that takes connections and never says a word."""
    path = str(tmp_path / "mute")
    held = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        threading.Thread(target=lambda: held.append(server.accept()), daemon=True).start()
        config = settings(DRE_SYS_VIRT="tcg", DRE_SYS_URI=f"qemu+unix:///system?socket={path}")
        code, rows = check("memory", "libvirt", "clock", config=config, timeout=60)
    assert held
    assert code == 5
    assert (rows["libvirt"]["state"], rows["libvirt"]["remedy"]) == ("warning", None)
    assert "no answer within 5 s" in rows["libvirt"]["found"]
    assert {"memory", "clock"} <= set(rows)


def test_clock_is_what_the_kernel_was_told(check):
    """The witness is perl, which asks adjtimex(2) by its number and not through our module."""
    if os.uname().machine != "x86_64" or not shutil.which("perl"):
        pytest.skip("needs perl on x86_64")
    script = 'my $t = "\\0" x 256; print syscall(159, $t) == 5 ? "wrong" : "right"'
    kept = told("perl", "-e", script) == "right"
    code, rows = check("clock")
    assert (code, rows["clock"]["state"]) == (0, "ok" if kept else "warning")
    assert kept or rows["clock"]["remedy"]


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="no QEMU")
def test_virtualisation(check, settings):
    code, rows = check("virt")
    assert (code, rows["virt"]["state"]) == (0, "ok") and rows["virt"]["found"].startswith("TCG")
    if not pathlib.Path("/dev/kvm").exists():
        code, rows = check("virt", config=settings(DRE_SYS_VIRT="kvm"))
        assert (code, rows["virt"]["state"]) == (1, "missing")


@pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="no QEMU")
@pytest.mark.parametrize("works", [True, False])
def test_what_was_found_out_of_kvm_is_used(check, settings, tmp_path, works):
    device, qemu = pathlib.Path("/dev/kvm"), os.stat(shutil.which("qemu-system-x86_64"))
    if not os.access(device, os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm")
    here = {"kernel": list(os.uname()[2:4]), "qemu": [qemu.st_size, qemu.st_mtime_ns], "kvm": device.stat().st_rdev}
    (tmp_path / "state/sys").mkdir(parents=True)
    kept = tmp_path / "state/sys/virt.json"
    kept.write_text(json.dumps({"here": here, "works": works, "why": "it was tried"}))
    code, rows = check("virt", config=settings(DRE_SYS_VIRT="auto"))
    assert (code, rows["virt"]["state"]) == (0, "ok" if works else "warning")
    assert "it was tried" in rows["virt"]["found"]


@pytest.mark.parametrize("text", ["", "[]", '{"here":{},"works":1}', "\0" * 4096])
def test_hostile_notes_are_survived(run, settings, tmp_path, text):
    (tmp_path / "state/sys").mkdir(parents=True)
    (tmp_path / "state/sys/virt.json").write_text(text)
    done = run("dre-check", "--config", settings(DRE_SYS_VIRT="tcg"), "virt")
    assert done.stderr == b"" and done.stdout.startswith(b"virt ")


def test_uplink_that_is_not_there(check, settings):
    code, rows = check("dhcp", config=settings(DRE_BRIDGE_UPLINK="dret2none"))
    assert (code, rows["dhcp"]["state"]) == (1, "missing")
    assert rows["dhcp"]["found"] == "DRE_BRIDGE_UPLINK: dret2none: no such interface"


def test_lease_is_what_ip_says(check):
    routes = told("ip", "-4", "route", "show", "default").split()
    if "dev" not in routes:
        pytest.skip("no default route")
    _, rows = check("dhcp")
    leased = " dynamic " in told("ip", "-4", "addr", "show", "dev", routes[routes.index("dev") + 1])
    assert (" by DHCP for " in rows["dhcp"]["found"]) == leased


def test_without_root_it_says_what_it_could_not_see(run, settings):
    config = settings(DRE_BRIDGE_UPLINK="lo", DRE_SYS_VIRT="tcg")
    done = run("dre-check", "--config", config, "--discover", "dhcp", prefix=nobody())
    assert (done.returncode, done.stderr) == (4, b"")
    assert done.stdout.decode().rstrip().endswith("needs root; run it as root")


def test_nothing_is_written(run, conf, tmp_path):
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    run("dre-check", "--config", conf)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
