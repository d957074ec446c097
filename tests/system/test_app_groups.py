# SPDX-License-Identifier: Apache-2.0
"""Groups of processes without a container: limited, moved into, killed as one; /proc and the kernel are witnesses."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import time

import pytest
from app_ground import Ground, kernel, wait_for
from conftest import environment, program

V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
KILLS = int(os.environ.get("DRE_KILLS", "2"))
HOG = "while :; do :; done"


@pytest.fixture
def host(run, settings):
    with Ground(run, settings) as ground:
        ground.children = []
        try:
            yield ground
        finally:
            for child in ground.children:
                child.kill()
                child.wait()
            for name in re.findall(r"^t-grp\S*", ground("cgroup", "list"), re.MULTILINE):
                ground("cgroup", "delete", "--force", name)
            assert directories() == []


def spawn(host, *words):
    host.children.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    return host.children[-1].pid


def directories(name="t-grp*"):
    places = ["/sys/fs/cgroup", *(entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir())]
    return sorted(str(path) for place in places for path in pathlib.Path(place).glob(f"dre/{name}"))


def home(pid):
    """Where process *pid* is, by controller."""
    lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {key: path for line in lines for key in line.split(":")[1].split(",") for path in [line.split(":", 2)[2]]}


def used(pid):
    if V2:
        return int(kernel(pid, "cpu", "cpu.stat").split()[1]) / 1e6
    return int(kernel(pid, "cpuacct", "cpuacct.usage")) / 1e9


def test_life(host):
    before = directories("")
    host("cgroup", "create", "t-grp", "--cpu", "25", "--pids", "7", "--memory", "64M", "--cpus", "0", "--weight", "30")
    host("cgroup", "create", "t-grp", code=1)
    pid, other = spawn(host, "sleep", "60"), spawn(host, "sleep", "60")
    origin = home(pid)
    host("cgroup", "add", "t-grp", pid)
    for controller in ("",) if V2 else ("cpu", "memory", "pids", "freezer", "cpuset"):
        assert home(pid)[controller] == "/dre/t-grp"
    assert home(other) == origin
    wanted = {"cpu.max": "25000 100000", "memory.max": str(64 << 20), "cpu.weight": "30"} if V2 else {}
    wanted |= {} if V2 else {"cpu.cfs_quota_us": "25000", "memory.limit_in_bytes": str(64 << 20), "cpu.shares": "307"}
    wanted |= {"pids.max": "7", "cpuset.cpus": "0"}
    assert {name: kernel(pid, name.split(".")[0], name) for name in wanted} == wanted
    assert "Cpus_allowed_list:\t0\n" in pathlib.Path(f"/proc/{pid}/status").read_text()
    (row,) = map(json.loads, host("cgroup", "list", "--json").splitlines())
    assert (row["name"], row["pids"], row["processes"], row["cpu_limit"]) == ("t-grp", 1, [pid], 25)
    assert host("cgroup", "list").split()[:2] == ["t-grp", "1"]
    assert "--force" in host("cgroup", "delete", "t-grp", code=1)
    os.kill(pid, signal.SIGKILL)
    host.children[0].wait()
    host("cgroup", "delete", "t-grp")
    host("cgroup", "delete", "t-grp", code=3)
    host("cgroup", "limit", "t-grp", code=3)
    host("cgroup", "stat", "t-grp", code=3)
    assert set(directories("")) <= set(before)
    told = ["app.group.created", "app.group.joined", "app.group.deleted"]
    assert [kind for kind in host.events() if kind.startswith("app.group")] == told


HOLDER = "import time; input(); held = bytearray(20 << 20); time.sleep(60)"


def test_limits_are_read_from_the_kernel_and_set_together(host):
    host("cgroup", "create", "t-grp")
    holder = subprocess.Popen(["/usr/bin/python3", "-c", HOLDER], stdin=subprocess.PIPE)
    host.children.append(holder)
    pid = holder.pid
    host("cgroup", "add", "t-grp", pid)
    holder.stdin.write(b"go\n")  # what it has before it is moved stays accounted where it was
    holder.stdin.close()
    usage = "memory.current" if V2 else "memory.usage_in_bytes"
    assert wait_for(lambda: int(kernel(pid, "memory", usage)) >= 20 << 20, 60)
    assert set(host("cgroup", "limit", "t-grp").splitlines()) >= {"cpu none", "memory none", "pids none", "cpus none"}
    host("cgroup", "limit", "t-grp", "--cpu", "150", "--memory", "30M", "--pids", "9", "--cpus", "0")
    shown = json.loads(host("cgroup", "limit", "t-grp", "--json"))
    assert (shown["cpu_limit"], shown["memory_limit"], shown["swap_limit"]) == (150, 30 << 20, 0)
    assert (shown["pids_limit"], shown["cpus"], shown["weight"]) == (9, "0", None)
    place = next(path for path in directories("t-grp") if os.path.exists(f"{path}/pids.max"))
    pathlib.Path(place, "pids.max").write_text("11")  # by another hand
    assert "pids 11" in host("cgroup", "limit", "t-grp")
    host("cgroup", "limit", "t-grp", "--memory", "4M", "--cpu", "10", code=1)  # more is in use
    assert json.loads(host("cgroup", "limit", "t-grp", "--json"))["cpu_limit"] == 150
    host("cgroup", "limit", "t-grp", "--cpu", "none", "--memory", "none", "--pids", "none", "--cpus", "none")
    assert kernel(pid, "pids", "pids.max") == "max"
    host("cgroup", "limit", "t-grp", "--net", "5M", code=2)
    host("cgroup", "create", "t-grp2", "--cpus", "4000", code=2)


def test_quota_holds_for_all_of_it_together(host):
    host("cgroup", "create", "t-grp", "--cpu", "30")
    for path, weight in (("dre/cpu.weight", "10000"), ("cpu/dre/cpu.shares", "100000")):
        if os.path.exists(f"/sys/fs/cgroup/{path}"):  # so that it wants more than its quota on a busy machine too
            pathlib.Path("/sys/fs/cgroup", path).write_text(weight)
    pids = [spawn(host, "sh", "-c", HOG) for _ in range(2)]
    host("cgroup", "add", "t-grp", *pids)
    begun, before = time.monotonic(), used(pids[0])
    rows = list(map(json.loads, host("cgroup", "stat", "--json", "--interval", "1s", "--count", "2").splitlines()))
    assert 100 * (used(pids[0]) - before) / (time.monotonic() - begun) < 45  # one period more may be begun
    assert rows[0]["cpu"] is None and 0 < rows[1]["cpu"] < 45 and rows[1]["throttled"] > 0
    assert rows[1]["pids"] == 2
    assert set(rows[1]) >= {"memory", "memory_limit", "io_read", "io_write", "oom_kills", "pressure"}


THREADS = """
import threading, time
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
time.sleep(60)
"""


def test_all_threads_move(host):
    host("cgroup", "create", "t-grp")
    pid = spawn(host, "/usr/bin/python3", "-c", THREADS)
    assert wait_for(lambda: len(os.listdir(f"/proc/{pid}/task")) == 4, 60)
    host("cgroup", "add", "t-grp", pid)
    for task in os.listdir(f"/proc/{pid}/task"):
        assert home(f"{pid}/task/{task}")["" if V2 else "cpu"] == "/dre/t-grp"
    assert host("cgroup", "list", "--json").count(f"[{pid}]") == 1


def test_what_must_stay_is_refused_and_nothing_moves(host):
    host("cgroup", "create", "t-grp")
    host("create", "t-grp-app", "--ip", "none")
    host("start", "t-grp-app")
    inside = json.loads(host("status", "t-grp-app", "--json"))["pid"]
    pid = spawn(host, "sleep", "60")
    origin = home(pid)
    kthread = next(int(entry) for entry in os.listdir("/proc") if entry.isdigit() and is_kthread(entry))
    for bad, code in ((1, 4), (kthread, 4), (inside, 4), (4_000_000, 3)):
        host("cgroup", "add", "t-grp", pid, bad, code=code)
        assert home(pid) == origin
    assert "t-grp-app" in host("cgroup", "add", "t-grp", inside, code=4)
    host("cgroup", "add", "t-grp", "0", code=2)
    host("cgroup", "add", "t-none", pid, code=3)
    host("cgroup", "create", "../t-grp", code=2)


def is_kthread(pid):
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe") == ""
    with contextlib.suppress(OSError):
        return pid != "1" and pathlib.Path(f"/proc/{pid}/status").read_text().count("PPid:\t2\n") == 1
    return False


BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.1)
"""


def test_force_kills_even_what_forks(host):
    host("cgroup", "create", "t-grp", "--pids", "30")
    gate = subprocess.Popen(["/bin/sh", "-c", 'read go; exec /usr/bin/python3 -c "$0"', BOMB], stdin=subprocess.PIPE)
    host.children.append(gate)
    host("cgroup", "add", "t-grp", gate.pid)
    gate.stdin.write(b"go\n")
    gate.stdin.close()
    assert wait_for(lambda: kernel(gate.pid, "pids", "pids.current") == "30", 60)
    host("cgroup", "delete", "--force", "t-grp")
    assert gate.wait(10) == -signal.SIGKILL
    assert directories("t-grp") == []


def test_a_command_inside_does_not_kill_itself(host):
    host("cgroup", "create", "t-grp")
    argv = [program("dre-app"), "--config", host.config, "cgroup", "delete", "--force", "t-grp"]
    waiting = ["/bin/sh", "-c", 'read go; exec "$@"', "sh", *argv]
    gate = subprocess.Popen(waiting, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    host.children.append(gate)
    host("cgroup", "add", "t-grp", gate.pid)
    _, said = gate.communicate(b"go\n", timeout=60)
    assert gate.returncode == 1 and b"from outside" in said
    host("cgroup", "delete", "t-grp")


LIMITED = ("--cpu", "40", "--pids", "9", "--memory", "60M")


def test_killed_verbs_are_ended_by_the_next(host):
    def begin(*words):
        argv = [program("dre-app"), "--config", host.config, "cgroup", *map(str, words)]
        return subprocess.Popen(argv, env=environment(), stderr=subprocess.DEVNULL)

    def killed(*words):
        victim = begin(*words)
        time.sleep(random.uniform(0.3, 1) * span)
        victim.kill()
        victim.wait()

    def shown():
        row = json.loads(host("cgroup", "limit", "t-grp", "--json"))
        return row["cpu_limit"], row["pids_limit"], row["memory_limit"] >> 20

    for _ in range(KILLS):
        begun = time.monotonic()
        host("cgroup", "create", "t-grp", *LIMITED)
        span = time.monotonic() - begun
        host("cgroup", "delete", "t-grp")
        killed("create", "t-grp", *LIMITED)
        assert begin("create", "t-grp", *LIMITED).wait(60) in (0, 1)  # 1: it was done
        assert shown() == (40, 9, 60)
        killed("limit", "t-grp", "--cpu", "20", "--pids", "5", "--memory", "50M")
        assert shown() in ((40, 9, 60), (20, 5, 50))
        pid = spawn(host, "sleep", "60")
        killed("add", "t-grp", pid)
        host("cgroup", "limit", "t-grp")
        moved = {home(pid)[key] == "/dre/t-grp" for key in ([""] if V2 else ["cpu", "pids", "memory"])}
        assert len(moved) == 1  # wholly, or not at all
        host("cgroup", "add", "t-grp", pid)
        killed("delete", "--force", "t-grp")
        assert begin("delete", "--force", "t-grp").wait(60) in (0, 3)  # 3: it was done
        assert directories("t-grp") == []
        assert host.children[-1].wait(10) == -signal.SIGKILL
