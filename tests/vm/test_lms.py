# SPDX-License-Identifier: Apache-2.0
"""dre-lms on a real guest: what a root-kit hides there is named from outside, and a busy guest is not accused."""

import json
import os
import re
import shutil
import subprocess

import pytest
from module_guest import BUILD, _needs, _unpacked
from programs import program

SCANS = 10_000 if os.environ.get("DRE_FULL") == "1" else 20
NAMES = {"list", "idr", "tree"}
# Processes come and go as fast as they can, with threads and in namespaces of their own; a module comes and goes.
STORM = """
for name in one two; do
    setsid sh -c 'while :; do (true); done' </dev/null >/dev/null 2>&1 &
done
setsid sh -c 'while :; do unshare --fork --pid true; modprobe dummy; rmmod dummy; done' </dev/null >/dev/null 2>&1 &
"""
# A task for each level of tests/vm/lms_rootkit; at the end the root-kit itself is hidden, too.
HIDE = """
for level in 1 2 3; do
    setsid sleep 1000$level </dev/null >/dev/null 2>&1 &
    echo $!
done
sleep 1
for level in 1 2 3; do
    insmod /root/hider.ko pid=$(pgrep -f -x "sleep 1000$level") level=$level
    rmmod hider
done
insmod /root/hider.ko hide=2
"""


@pytest.fixture
def kit(guest, tmp_path):
    """The root-kit for the kernel that runs in the guest, which has it as /root/hider.ko."""
    release = guest.ok(["uname", "-r"]).strip()
    first = f"linux-headers-{release}"
    headers = _unpacked([first, *_needs(first, "linux-(?:headers|kbuild)-")], "usr")
    shutil.copytree(os.path.join(os.path.dirname(__file__), "lms_rootkit"), tmp_path / "kit")
    argv = ["unshare", "--mount", "sh", "-euc", BUILD, "sh", headers, release, tmp_path / "kit"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    guest.push(tmp_path / "kit/hider.ko", "/root/hider.ko")


def lms(host, *argv, **kwargs):
    """dre-lms on the host of the guests."""
    return host.call(program("dre-lms"), "--config", host.conf, "guest1", *argv, check=False, **kwargs)


def found(host):
    """What it finds, by number or name: what that is missing in."""
    done = lms(host, "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row.get("pid", row.get("name")): set(row["views_missing"]) for row in rows}


def private(host):
    """Let the guest go on with memory that no other process can map."""
    place = "/run/dre-vm/guest1.save"
    host.virsh("save", "guest1", place)
    shared = host.virsh("save-image-dumpxml", place)
    (host.place / "private.xml").write_text(re.sub("<access mode='shared'/>", "<access mode='private'/>", shared))
    host.virsh("restore", place, "--xml", host.seen / "private.xml")


def test_what_is_hidden_is_named_and_a_busy_guest_is_not_accused(guest, ground, kit):
    guest.ok(STORM)
    done = lms(ground, "--interval", "20ms", "--count", SCANS, timeout=3600)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first, second, third = map(int, guest.ok(HIDE).split())
    assert guest.call(f"ps -p {second},{third}").returncode == 1  # inside there is no trace of them
    assert guest.call("grep hider /proc/modules || ls /sys/module/hider").returncode != 0
    hidden = {first: {"list"}, second: NAMES, third: NAMES, "hider": {"list", "sysfs", "tree"}}
    assert found(ground) == hidden
    seen = [json.loads(line) for line in lms(ground, "--ps", "--json").stdout.splitlines()]
    assert {row["pid"]: row["comm"] for row in seen if row["views_missing"]} == dict.fromkeys(
        (first, second, third), "sleep"
    )
    private(ground)
    assert found(ground) == hidden


def test_the_processes_of_a_guest_are_those_that_it_knows(guest, ground):
    def outside():
        done = lms(ground, "--ps", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return {(row["pid"], row["ppid"], row["comm"]) for row in map(json.loads, done.stdout.splitlines())}

    def inside():
        words = (line.split(None, 2) for line in guest.ok("ps -e -o pid=,ppid=,comm=").splitlines())
        return {(int(pid), int(ppid), name[:15]) for pid, ppid, name in words if not name.startswith("kworker")}

    first, seen, second, again = inside(), outside(), inside(), outside()
    assert first & second - seen == set()  # what was there all the time
    assert {row for row in seen & again if not row[2].startswith("kworker")} - second == set()
    assert len(seen) > 50


def test_a_system_that_does_not_run_or_is_none_is_not_clean(guest, ground):
    guest.stop()
    done = lms(ground)
    assert done.returncode == 6 and "does not run" in done.stderr
    assert ground.call(program("dre-lms"), "--config", ground.conf, "nosuch", check=False).returncode == 3
