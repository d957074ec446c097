# SPDX-License-Identifier: Apache-2.0
"""A running system moves to another host and goes on there where it was; when that fails it goes on here.

The guest counts on its console and on its disk; what both hosts have of its console is one count without a gap.
"""

import json
import os
import pathlib
import random
import time

import pytest
from system_ground import BRIDGE, NETWORK, Host, There, need

FULL = os.environ.get("DRE_FULL") == "1"


@pytest.fixture(scope="module")
def hosts():
    with Host() as here, There(here) as there:
        there.call("ip", "link", "add", BRIDGE, "type", "bridge")
        there.call("ip", "link", "set", BRIDGE, "up")
        yield here, there


@pytest.fixture
def system(hosts):
    """The name of a running system that counts."""
    here, there = hosts
    here.dre("create", "m1", "--base", here.counting(), "--memory", "64M", "--ip", f"{NETWORK}.5/24", "--disk", "64M")
    here.dre("start", "m1")
    wait(lambda: len(counted(here)) > 20)
    yield "m1"
    for host in hosts:
        host.dre("destroy", "--force", "m1", check=False)
        log(host).unlink(missing_ok=True)


def log(host, name="m1"):
    return host.place / "log/sys" / f"{name}.log"


def counted(host, name="m1"):
    """The numbers that the guest has written to its console there; the last line may not be whole yet."""
    lines = log(host, name).read_bytes().split(b"\n")[:-1] if log(host, name).exists() else []
    return [int(line, 16) for line in lines if len(line) == 8]


def wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def migrate(here, there, *words, **kwargs):
    return here.dre("migrate", "m1", there.uri, "--live", "--copy-storage", "--unencrypted", *words, **kwargs)


def slowly(here, there, *words):
    """A move under way, that takes its time over the second disk."""
    moving = here.begin("migrate", "m1", there.uri, "--live", "--copy-storage", "--unencrypted", *words)
    wait(lambda: "Time elapsed" in here.call("virsh", "domjobinfo", "m1", check=False).stdout)
    return moving


def domains(*hosts):
    return [host.virsh("list", "--all", "--name").split() for host in hosts]


def left(host):
    """The files that are there."""
    return [path.name for path in (host.place / "state/sys/state").rglob("*")]


def whole(numbers):
    """One count without a gap."""
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def goes_on(host):
    seen = counted(host)[-1]
    wait(lambda: counted(host)[-1] > seen + 3)


def test_it_goes_on_there_without_a_gap(hosts, system):
    here, there = hosts
    row = json.loads(migrate(here, there, "--json").stdout)
    assert (row["name"], row["state"]) == (system, "running")
    assert 0 < row["down"] < row["silent"]
    goes_on(there)
    assert whole([*counted(here), *counted(there)])
    assert here.virsh("list", "--all", "--name").split() == []
    assert not (here.place / "state/sys/state/m1").exists()
    assert there.virsh("domstate", system).strip() == "running"
    assert there.virsh("domif-getlink", system, there.virsh("domiflist", system).split()[0]).split()[-1] == "up"
    assert (there.virsh("domiflist", system).split()[2], there.virsh("net-list", "--all").split()) == (BRIDGE, [])
    status = json.loads(there.dre("status", system, "--json").stdout)
    assert (status["ip"], status["checkpoints"]) == ([f"{NETWORK}.5"], [])
    there.dre("checkpoint", "save", system, "c1")
    there.dre("checkpoint", "restart", system, "c1")


def test_by_ssh_it_goes_as_well(hosts, system):
    here, there = hosts
    need("ssh", "sshd", "ssh-keygen")
    name = there.begin_sshd()
    words = ("--live", "--copy-storage", "--unencrypted", "--as", "m2")
    row = json.loads(here.dre("migrate", system, name, *words, "--json").stdout)
    try:
        assert (row["name"], row["host"], domains(here, there)) == ("m2", name, [[], ["m2"]])
        wait(lambda: counted(there, "m2"))
        assert whole([*counted(here), *counted(there, "m2")])
    finally:
        there.dre("destroy", "--force", "m2", check=False)


def filled(here):
    """Something on the second disk, that is worth seconds of sending."""
    here.dre("stop", "m1", "--timeout", "0")
    here.call("qemu-io", "-c", "write -P 9 0 40M", here.place / "state/sys/state/m1/disk2.qcow2")
    log(here).unlink()
    here.dre("start", "m1")
    wait(lambda: len(counted(here)) > 20)
    here.dre("checkpoint", "save", "m1", "mine")


def test_what_goes_wrong_there_leaves_it_running_here(hosts, system):
    here, there = hosts
    filled(here)
    refused = migrate(here, there, check=False)
    assert (refused.returncode, "--without-snapshots" in refused.stderr) == (1, True)
    for harm, mend, expected, *late in (
        *([(there.cut, lambda: there.cut("up"), 1)] if FULL else []),
        (there.kill_libvirt, there.begin_libvirt, 1),
        (lambda: None, lambda: None, 5, "--timeout", "4"),  # it removes what the one before had to leave there
    ):
        moving = slowly(here, there, "--bandwidth", "1M", "--without-snapshots", *late)
        harm()
        status, said = moving.wait(timeout=120), moving.stderr.read().decode()
        assert status == expected, said
        assert len(said.splitlines()) == 1, said
        assert here.virsh("domstate", "m1").strip() == "running"
        assert here.virsh("snapshot-list", "m1", "--name").split() == ["mine"]
        goes_on(here)
        mend()
    assert whole(counted(here))
    assert domains(here, there) == [["m1"], []]
    assert left(there) == []


@pytest.mark.skipif(not FULL, reason="takes time: with DRE_FULL=1, as all of a release")
def test_a_full_disk_there_leaves_it_running_here(hosts, system):
    here, there = hosts
    filled(here)
    there.call("mount", "-t", "tmpfs", "-o", "size=8M", "none", here.place / "state")
    try:
        done = migrate(here, there, "--without-snapshots", check=False)
        assert done.returncode == 1, done.stderr
        assert domains(here, there) == [["m1"], []]
        assert there.call("find", here.place / "state", "-type", "f").stdout == ""
    finally:
        there.call("umount", here.place / "state")
    goes_on(here)
    assert whole(counted(here))


def alive(pid):
    """Whether a process runs; one that has ended may wait for its parent to look."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_dead_on_arrival_it_goes_on_here_from_just_before(hosts, system):
    here, there = hosts
    ours = json.loads(here.dre("status", system, "--json").stdout)["pid"]
    moving = here.begin("migrate", "m1", there.uri, "--live", "--copy-storage", "--unencrypted")
    while alive(ours):  # from now on it lives nowhere but there, and has half a second to show that it does
        time.sleep(0.005)
    os.kill(int((there.place / "host/run-libvirt/qemu/m1.pid").read_text()), 9)
    status, said = moving.wait(timeout=180), moving.stderr.read().decode()
    assert (status, "are lost" in said, "not alive there" in said) == (1, True, True), said
    assert domains(here, there) == [["m1"], []]
    assert left(there) == []
    last = counted(here)[-1]
    wait(lambda: counted(here)[-1] > last)
    numbers = counted(here)
    (at,) = (index for index in range(1, len(numbers)) if numbers[index] <= numbers[index - 1])
    assert whole(numbers[:at])
    assert whole(numbers[at:])
    assert numbers[at] > 10  # it did not begin anew
    assert here.virsh("snapshot-list", "m1", "--name").split() == []


@pytest.mark.parametrize("_", range(int(os.environ.get("DRE_KILLS", "1"))))
def test_killed_at_any_moment_it_runs_here_or_there(hosts, system, _):
    here, there = hosts
    moving = here.begin("migrate", "m1", there.uri, "--live", "--copy-storage", "--unencrypted")
    time.sleep(random.uniform(0.5, 4))
    moving.kill()
    moving.wait()
    done = here.dre("recover", check=False)
    assert done.returncode == 0 or "are lost" in done.stderr, done.stderr
    one, two = domains(here, there)
    assert [*one, *two] == ["m1"]
    assert left(here if two else there) == []
    goes_on(there if two else here)
    assert here.call("virsh", "-q", "snapshot-list", "m1", "--name", check=False).stdout.split() == []


def test_what_cannot_be_is_refused(hosts, system):
    here, there = hosts
    for words, status, reason in (
        (["--live", "--unencrypted"], 2, "--copy-storage"),
        (["--live", "--copy-storage", "--shared-storage", "--unencrypted"], 2, "--shared-storage"),
        (["--live", "--copy-storage"], 2, "--unencrypted"),
        (["--live", "--copy-storage", "--unencrypted", "--keep"], 2, "--keep"),
        (["--downtime", "1s", "--unencrypted"], 2, "--live"),
        (["--live", "--shared-storage", "--unencrypted"], 1, "shared storage"),  # libvirt sees that it is not
    ):
        done = here.dre("migrate", system, there.uri, *words, check=False)
        assert (done.returncode, reason in done.stderr) == (status, True), (words, done.stderr)
    here.dre("freeze", system)
    assert "frozen" in migrate(here, there, check=False).stderr
    here.dre("thaw", system)
    assert domains(here, there) == [["m1"], []]
    assert left(there) == []
    goes_on(here)
    assert whole(counted(here))
