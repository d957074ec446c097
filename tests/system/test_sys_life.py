# SPDX-License-Identifier: Apache-2.0
"""Systems are ordinary domains of libvirt: made, started, held, limited, cut off, saved and removed, as virsh sees it.

The disk here boots nothing, so no guest is asked; QEMU, disk and memory are real.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
from programs import program
from system_ground import BRIDGE, NETWORK, Host


@pytest.fixture(scope="module")
def host():
    with Host() as made:
        yield made


@pytest.fixture
def system(host):
    """The name of a stopped system."""
    host.dre("create", "s1", "--base", host.small(), "--memory", "64M", "--ip", f"{NETWORK}.5/24")
    yield "s1"
    host.dre("destroy", "--force", "s1", check=False)


def state(host, name="s1"):
    return host.virsh("domstate", name).strip()


def home(host, name="s1"):
    return pathlib.Path(host.place, "state/sys/state", name)


def link(host):
    """The host's end of the link."""
    return host.virsh("domiflist", "s1").split()[0]


def test_it_lives_as_virsh_sees_it(host, system):
    assert (state(host), host.dre("status", system, check=False).stdout) == ("shut off", "stopped\n")
    host.dre("start", system)
    assert state(host) == "running"
    row = json.loads(host.dre("status", system, "--json").stdout)
    assert (row["state"], row["ip"], row["memory_limit"]) == ("running", [f"{NETWORK}.5"], 64 << 20)
    assert f"guest={system}" in pathlib.Path(f"/proc/{row['pid']}/cmdline").read_text()
    host.dre("start", system)  # again: nothing to do
    host.dre("freeze", system)
    assert (state(host), host.dre("status", system, check=False).returncode) == ("paused", 1)
    assert "frozen" in host.dre("start", system, check=False).stderr
    host.dre("thaw", system)
    host.dre("thaw", system)
    assert state(host) == "running"
    refused = host.dre("destroy", system, check=False)
    assert (refused.returncode, "--force" in refused.stderr) == (1, True)
    host.dre("stop", system, "--timeout", "0")
    host.dre("stop", system)
    assert state(host) == "shut off"
    host.dre("destroy", system)
    assert host.dre("destroy", system, check=False).returncode == 3
    assert (host.virsh("list", "--all"), home(host).exists()) == ("", False)


def test_it_starts_where_the_directory_of_logs_has_gone(host, system):
    """Removed by whoever tidies /var/log, or never made on a disk of its own."""
    shutil.rmtree(host.place / "log")
    host.dre("start", system)
    assert (state(host), (host.place / "log/sys/s1.log").exists()) == ("running", True)
    host.dre("checkpoint", "save", system, "one")
    host.dre("stop", system, "--timeout", "0")
    shutil.rmtree(host.place / "log")
    host.dre("checkpoint", "restart", system, "one")
    assert state(host) == "running"


def test_one_that_virsh_made_is_handled_too(host):
    disk = host.place / "foreign.qcow2"
    host.call("qemu-img", "create", "-q", "-f", "qcow2", disk, "8M")
    xml = f"""<domain type='qemu'><name>foreign</name><memory unit='MiB'>64</memory>
      <os><type arch='x86_64' machine='q35'>hvm</type></os>
      <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
      <target dev='vda' bus='virtio'/></disk></devices></domain>"""
    (host.place / "foreign.xml").write_text(xml)
    host.virsh("define", host.place / "foreign.xml")
    assert [line.split()[:2] for line in host.dre("list").stdout.splitlines()] == [["foreign", "stopped"]]
    host.dre("start", "foreign")
    host.dre("checkpoint", "save", "foreign", "c1")
    assert host.dre("isolate", "foreign", check=False).returncode == 1
    done = host.dre("destroy", "--force", "foreign")
    assert (disk.exists(), str(disk) in done.stderr) == (True, True)


def test_limits_are_live_and_lasting(host, system):
    host.dre("start", system)
    host.dre("limit", system, "--cpu", "50", "--io", "2M", "--cpus", "0")
    for flag in ("--live", "--config"):
        assert re.search(r"vcpu_quota\s*: 50000\n", host.virsh("schedinfo", system, flag)), flag
        assert re.search(r"write_bytes_sec:\s*2097152\n", host.virsh("blkdeviotune", system, "vda", flag)), flag
    host.dre("limit", system, "--cpu", "none", "--io", "none")
    assert "cpu none" in host.dre("limit", system).stdout
    host.dre("limit", system, "--memory", "48M")  # which this guest never gives back
    assert f"memory {48 << 20}\n" in host.dre("limit", system).stdout
    assert "<currentMemory unit='KiB'>49152<" in host.virsh("dumpxml", "--inactive", system)
    more = host.dre("limit", system, "--memory", "1G", "--cpu", "20", check=False)
    assert more.returncode == 2  # and the other was not done either
    assert "cpu none" in host.dre("limit", system).stdout
    assert host.dre("limit", system, "--cpus", "4000", check=False).returncode == 2


def test_dedicated_processors_are_of_one_system_alone(host):
    online = sorted(os.sched_getaffinity(0))
    base = ("--base", host.small(), "--memory", "64M", "--dedicated-cpus")
    if len(online) < 2:
        assert host.dre("create", "s1", *base, check=False).returncode == 6
        pytest.skip("this host has one processor, which stays with it")
    host.dre("create", "s1", *base)
    try:
        host.dre("start", "s1")
        assert host.virsh("vcpupin", "s1").split() == ["0", str(online[-1])]
        pid = json.loads(host.dre("status", "s1", "--json").stdout)["pid"]
        allowed = {}
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
            allowed[status["Name"]] = status["Cpus_allowed_list"]
        assert allowed["CPU 0/TCG"] == str(online[-1])
        assert str(online[-1]) not in allowed["qemu-system-x86"]
        assert "dedicated" in host.dre("limit", "s1", "--cpus", "0", check=False).stderr
        more = host.dre("create", "s2", *base, "--vcpus", str(len(online) - 1), check=False)
        assert (more.returncode, "--dedicated-cpus" in more.stderr) == (6, True)
        assert host.virsh("list", "--all", "--name").split() == ["s1"]
    finally:
        host.dre("destroy", "--force", "s1")


def test_its_disk_grows_and_never_shrinks(host, system):
    def size():
        info = host.call("qemu-img", "info", "-U", "--output=json", home(host) / "disk.qcow2").stdout
        return json.loads(info)["virtual-size"]

    host.dre("snapshot", "save", system, "clean")
    host.dre("set", system, "disk-size=16M")
    assert size() == 16 << 20
    host.dre("start", system)
    host.dre("set", system, "disk-size=24M")
    assert (size(), f"Capacity:       {24 << 20}" in host.virsh("domblkinfo", system, "vda")) == (24 << 20, True)
    less = host.dre("set", system, "disk-size=8M", check=False)
    assert (less.returncode, size()) == (2, 24 << 20)
    host.dre("undo", system, "clean")
    assert state(host) == "running"


def test_isolation_survives_a_restart(host, system):
    host.dre("start", system)
    host.dre("isolate", system)
    for _ in range(2):
        assert host.virsh("domif-getlink", system, link(host)).split()[-1] == "down"
        table = subprocess.run(["nft", "list", "ruleset", "bridge"], capture_output=True, check=True).stdout.decode()
        assert link(host) in table
        host.dre("restart", system, "--timeout", "0")
    host.dre("rejoin", system)
    assert host.virsh("domif-getlink", system, link(host)).split()[-1] == "up"
    assert link(host) in os.listdir(f"/sys/class/net/{BRIDGE}/brif")


def test_saved_states_are_libvirts_and_each_can_be_gone_back_to(host, system):
    host.dre("snapshot", "save", system, "clean", "--description", "as made")
    host.dre("start", system)
    for tag in ("one", "two"):
        host.dre("checkpoint", "save", system, tag)
    assert host.virsh("snapshot-list", system, "--name").split() == ["clean", "one", "two"]
    taken = host.dre("checkpoint", "save", system, "clean", check=False)
    assert (taken.returncode, "clean already" in taken.stderr) == (1, True)
    host.dre("stop", system, "--timeout", "0")
    for tag in ("one", "two", "one"):
        host.dre("checkpoint", "restart", system, tag)
        assert (state(host), host.virsh("snapshot-current", system, "--name").strip()) == ("running", tag)
    host.dre("undo", system, "clean")
    assert (state(host), host.virsh("snapshot-current", system, "--name").strip()) == ("running", "clean")
    host.dre("checkpoint", "delete", system, "one")
    rows = [json.loads(line) for line in host.dre("checkpoint", "list", system, "--json").stdout.splitlines()]
    assert [row["tag"] for row in rows] == ["two"]
    info = json.loads(host.call("qemu-img", "info", "-U", "--output=json", home(host) / "disk.qcow2").stdout)
    assert sorted(item["name"] for item in info["snapshots"]) == ["clean", "two"]
    assert host.dre("undo", system, "one", check=False).returncode == 3


def test_a_renamed_system_keeps_its_saved_states(host, system):
    host.dre("start", system)
    host.dre("checkpoint", "save", system, "one")
    assert "stop it" in host.dre("rename", system, "s9", check=False).stderr
    host.dre("stop", system, "--timeout", "0")
    uuid = host.virsh("domuuid", system)
    host.dre("rename", system, "s9")
    try:
        assert (host.virsh("list", "--all", "--name").split(), host.virsh("domuuid", "s9")) == (["s9"], uuid)
        assert host.virsh("snapshot-list", "s9", "--name").split() == ["one"]
        host.dre("checkpoint", "restart", "s9", "one")
        assert (state(host, "s9"), home(host).exists()) == ("running", False)
        assert str(home(host, "s9") / "disk.qcow2") in host.virsh("domblklist", "s9")
    finally:
        host.dre("destroy", "--force", "s9")


def test_a_running_system_takes_another_name(host, system):
    host.dre("start", system)
    host.dre("checkpoint", "save", system, "one")
    host.dre("limit", system, "--cpu", "50")
    assert "stop it" in host.dre("rename", system, "s9", check=False).stderr
    host.dre("migrate", system, "localhost", "--as", "s9")
    try:
        assert (host.virsh("list", "--all", "--name").split(), state(host, "s9")) == (["s9"], "running")
        assert host.virsh("snapshot-list", "s9", "--name").split() == ["one"]
        assert re.search(r"vcpu_quota\s*: 50000\n", host.virsh("schedinfo", "s9"))
        assert (home(host).exists(), (home(host, "s9") / ".memory").exists()) == (False, False)
        assert pathlib.Path("/sys/class/net", host.virsh("domiflist", "s9").split()[0], "master").exists()
    finally:
        host.dre("destroy", "--force", "s9")


def test_a_clone_is_another_machine(host, system):
    host.dre("snapshot", "save", system, "clean")
    assert host.dre("clone", system, system, check=False).returncode == 1
    host.dre("clone", system, "s2")
    try:
        first, second = (json.loads(host.dre("status", name, "--json", check=False).stdout) for name in (system, "s2"))
        assert first["uuid"] != second["uuid"]
        assert (second["ip"] != first["ip"], second["snapshots"], second["base"]) == (True, [], first["base"])
        macs = {host.virsh("domiflist", name).split()[-1] for name in (system, "s2")}
        assert len(macs) == 2
        host.dre("start", system)
        assert "stop it" in host.dre("clone", system, "s3", check=False).stderr
        host.dre("clone", system, "s3", "--tag", "clean")
        host.dre("start", "s2", "s3")
        assert {state(host, name) for name in (system, "s2", "s3")} == {"running"}
        told = json.loads(host.call("qemu-img", "info", "-U", "--output=json", home(host, "s3") / "disk.qcow2").stdout)
        assert told["full-backing-filename"] == str(host.small())
    finally:
        host.dre("destroy", "--force", "s2", "s3", check=False)


def test_what_is_wrong_leaves_nothing(host, system):
    wrong = (
        (["--base", "/nonexistent"], 3),
        (["--base", "/etc/passwd"], 2),
        (["--memory", "1T"], 2),
        (["--ip", f"{NETWORK}.5/24"], 1),
        (["--nic", "nobridge0"], 3),
        (["--disk", "/etc/passwd"], 2),
        (["--disk-size", "4M"], 2),
    )
    for argv, status in wrong:
        base = [] if "--base" in argv else ["--base", host.small()]
        done = host.dre("create", "s2", *base, *argv, check=False)
        assert (done.returncode, len(done.stderr.splitlines()) <= 2) == (status, True), (argv, done.stderr)
        assert "emulator" not in done.stderr  # what it would have run under is of no interest then
    assert host.virsh("list", "--all", "--name").split() == [system]
    assert os.listdir(home(host).parent) == [system]
    assert host.dre("exec", system, "--", "true", check=False).returncode == 1  # it is stopped


def calls(host, *argv):
    """How often dre-sys speaks to libvirt."""
    trace = host.place / "trace"
    words = ("strace", "-f", "-qq", "-e", "trace=sendto,sendmsg,write,writev", "-yy", "-o", trace)
    host.call(*words, program("dre-sys"), "--config", host.conf, *argv)
    return sum("libvirt-sock" in line or "UNIX-STREAM" in line for line in trace.read_text().splitlines())


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_many_are_listed_and_looked_at_by_as_many_calls_as_one(host, system):
    alone = calls(host, "list"), calls(host, "stat")
    assert min(alone) > 0
    names = [f"n{number}" for number in range(19 if os.environ.get("DRE_FULL") == "1" else 5)]
    try:
        for name in names:
            host.dre("create", name, "--base", host.small(), "--memory", "64M")
        listed = [line.split() for line in host.dre("list").stdout.splitlines()]
        assert [words[:2] for words in listed] == [[name, "stopped"] for name in sorted([*names, system])]
        assert len({words[2] for words in listed}) == len(names) + 1  # each has an address of its own
        assert (calls(host, "list"), calls(host, "stat")) == alone
    finally:
        host.dre("destroy", *names)


def test_they_start_with_the_host_each_after_those_it_is_after(host):
    small = ("--base", host.small(), "--memory", "64M")
    host.dre("create", "base1", *small)
    host.dre("create", "web1", *small, "--after", "base1", "--autostart")
    host.dre("create", "idle1", *small)
    try:
        circle = host.dre("set", "base1", "after=web1", check=False)
        assert (circle.returncode, "after itself" in circle.stderr) == (2, True)
        assert host.dre("destroy", "base1", check=False).returncode == 1  # web1 is after it
        host.dre("autostart")
        assert {name: state(host, name) for name in ("base1", "web1", "idle1")} == {
            "base1": "running",
            "web1": "running",
            "idle1": "shut off",
        }
        ids = [int(host.virsh("domid", name)) for name in ("base1", "web1")]
        assert ids == sorted(ids)  # libvirt counts them as they start
        host.dre("autostop", "--timeout", "0")
        assert host.virsh("list", "--name").split() == []
    finally:
        host.dre("destroy", "--force", "base1", "web1", "idle1", check=False)


def test_a_schedule_saves_what_is_due_and_deletes_only_its_own(host, system):
    host.dre("snapshot", "save", system, "mine")
    assert host.dre("set", system, "snapshot-every=1m", check=False).returncode == 2
    host.dre("set", system, "snapshot-every=5m", "snapshot-keep=1")
    first = host.dre("snapshot", "run").stdout.split()
    assert (first[0], host.dre("snapshot", "run").stdout) == (system, "")  # not due again
    tags = [json.loads(line)["tag"] for line in host.dre("snapshot", "list", system, "--json").stdout.splitlines()]
    assert tags == ["mine", first[1]]
    assert host.dre("snapshot", "prune", system, "--keep", "1").stdout.split() == [system, "mine"]
    assert host.virsh("snapshot-list", system, "--name").split() == [first[1]]


def test_a_request_is_answered_twice_and_done_once(host, system):
    asked = ("snapshot", "save", system, "--request-id", "r1")
    first = host.dre(*asked).stdout
    assert (host.dre(*asked).stdout, host.virsh("snapshot-list", system, "--name").split()) == (first, [first.strip()])
    other = host.dre("snapshot", "save", system, "other", "--request-id", "r1", check=False)
    assert (other.returncode, "r1" in other.stderr) == (2, True)


@pytest.mark.skipif(shutil.which("xorriso") is None, reason="needs xorriso")
def test_the_seed_of_a_cloud_image_goes_with_its_name(host):
    host.dre("create", "s1", "--base", host.small(), "--memory", "64M", "--cloud-init", "--ip", f"{NETWORK}.5/24")
    try:
        told = []
        for name in ("s1", "s2"):
            seed = home(host, name) / "seed.iso"
            assert str(seed) in host.virsh("domblklist", name)
            read = ["xorriso", "-indev", seed, "-osirrox", "on", "-extract", "/meta-data", host.place / "meta"]
            host.call(*read)
            told.append(json.loads((host.place / "meta").read_text()))
            if name == "s1":
                host.dre("rename", "s1", "s2")
        assert [one["local-hostname"] for one in told] == ["s1", "s2"]
        assert told[0]["instance-id"] == told[1]["instance-id"]  # else it would make its host keys anew
    finally:
        host.dre("destroy", "--force", "s1", "s2", check=False)


def test_what_virsh_undefined_is_removed_only_by_force(host, system):
    host.virsh("undefine", system)
    assert host.dre("list").stdout.split()[:2] == [system, "partial"]
    assert host.dre("create", system, "--base", host.small(), check=False).returncode == 1
    refused = host.dre("destroy", system, check=False)
    assert (refused.returncode, "--force" in refused.stderr, home(host).exists()) == (1, True, True)
    disk = home(host) / "disk.qcow2"
    user = [*host.inside, "qemu-io", "-c", "sleep 60000", str(disk)]
    with subprocess.Popen(user, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as other:
        while f":{disk.stat().st_ino} " not in pathlib.Path("/proc/locks").read_text():
            assert other.poll() is None
            time.sleep(0.05)
        assert "in use" in host.dre("destroy", "--force", system, check=False).stderr
        other.kill()
    host.dre("destroy", "--force", system)
    assert not home(host).exists()


def test_a_crash_of_qemu_is_seen(host, system):
    host.dre("start", system)
    os.kill(json.loads(host.dre("status", system, "--json").stdout)["pid"], 9)
    for _ in range(100):
        told = host.dre("status", system, check=False).stdout
        if told != "running\n":
            break
    assert told == "crashed\n"
    host.dre("start", system)
    assert state(host) == "running"


def test_a_name_means_an_app_or_a_system(host, system):
    def app(*argv):
        return host.call(program("dre-app"), "--config", host.conf, *argv, check=False)

    refused = app("create", system)
    assert (refused.returncode, "there is a system of that name" in refused.stderr) == (1, True), refused.stderr
    made = app("create", "t-both", "--ip", "none")
    assert made.returncode == 0, made.stderr
    try:
        for argv in (("create", "t-both", "--base", host.small()), ("rename", system, "t-both")):
            refused = host.dre(*argv, check=False)
            assert (refused.returncode, "there is an app of that name" in refused.stderr) == (1, True), refused.stderr
        assert host.virsh("list", "--all", "--name").split() == [system]
        # Nor does one take the other's name away, where both came here by other ways.
        names = host.place / "run/bridge" / BRIDGE / "hosts"
        host.dre("start", system)
        (names / system).write_text("10.231.107.99 s1.dre s1\n")
        host.dre("stop", system, "--timeout", "0")
        assert os.listdir(names) == [system]
        (names / system).unlink()
    finally:
        app("destroy", "--force", "t-both")


@pytest.mark.skipif(shutil.which("virt-install") is None, reason="needs virtinst")
def test_one_that_virt_install_made_is_handled_too(host):
    """What an administrator has typed before dre-sys came; its guest boots nothing and has no agent."""
    disk = host.place / "bought.qcow2"
    shutil.copy(host.counting(), disk)
    options = [
        "--import",
        "--name",
        "bought",
        "--memory",
        "64",
        "--vcpus",
        "1",
        "--virt-type",
        "qemu",
        "--cpu",
        "qemu64",
    ]
    options += ["--cpu", "qemu64", "--osinfo", "linux2020", "--disk", f"path={disk},format=qcow2", "--network", "none"]
    host.call("virt-install", *options, "--graphics", "none", "--noautoconsole", "--quiet")
    try:
        row = json.loads(host.dre("status", "bought", "--json").stdout)
        assert (row["state"], row["base"], row["uuid"]) == ("running", None, host.virsh("domuuid", "bought").strip())
        assert "guest=bought," in pathlib.Path(f"/proc/{row['pid']}/cmdline").read_text()
        refused = host.dre("exec", "bought", "--", "true", check=False)
        assert (refused.returncode, "agent" in refused.stderr) == (6, True), refused.stderr
        host.dre("limit", "bought", "--cpu", "50", "--io", "2M")
        assert re.search(r"vcpu_quota\s*: 50000\n", host.virsh("schedinfo", "bought", "--config"))
        host.dre("checkpoint", "save", "bought", "one")
        host.dre("freeze", "bought")
        host.dre("thaw", "bought")
        host.dre("stop", "bought", "--timeout", "0")
        assert host.virsh("domstate", "bought").strip() == "shut off"
        host.dre("checkpoint", "restart", "bought", "one")
        host.dre("start", "bought")
        assert host.virsh("domstate", "bought").strip() == "running"
        for argv in (("set", "bought", "autostart=yes"), ("isolate", "bought"), ("clone", "bought", "other")):
            refused = host.dre(*argv, check=False)
            assert (refused.returncode, "not made by dre-sys" in refused.stderr) == (1, True), refused.stderr
        host.dre("destroy", "--force", "bought")
        assert (host.virsh("list", "--all", "--name").split(), disk.exists()) == ([], True)
    finally:
        host.call("virsh", "-q", "destroy", "bought", check=False)
        host.call("virsh", "-q", "undefine", "bought", "--snapshots-metadata", check=False)
