# SPDX-License-Identifier: Apache-2.0
"""kill -9 of dre-sys at any moment: the next call works, nothing half made stays, no earlier saved state is lost.

DRE_KILLS is how often each verb is killed (default 1; from 10 on more verbs). The guest boots nothing: what libvirt,
QEMU and the disk hold is what counts.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import time

import pytest
from conftest import environment, program
from system_ground import NETWORK, Host

KILLS = int(os.environ.get("DRE_KILLS", "1"))
NAME = "t-kill"
VERBS = ("create", "restart")
if KILLS >= 10:
    VERBS += (
        "checkpoint",
        "start",
        "undo",
        "clone",
        "rename",
        "move",
        "destroy",
        "stop",
        "snapshot",
        "load",
        "limit",
        "isolate",
        "rejoin",
        "delete",
        "set",
        "freeze",
        "thaw",
    )


@pytest.fixture(scope="module")
def host():
    with Host() as made:
        made.small()
        yield made


def victim(host, verb):
    return {
        "create": ("create", NAME, "--base", host.small(), "--memory", "64M", "--ip", f"{NETWORK}.5/24"),
        "destroy": ("destroy", "--force", NAME),
        "stop": ("stop", "--timeout", "0", NAME),
        "checkpoint": ("checkpoint", "save", NAME, "second"),
        "restart": ("checkpoint", "restart", NAME, "first"),
        "undo": ("undo", NAME, "clean"),
        "snapshot": ("snapshot", "save", NAME, "second"),
        "load": ("snapshot", "load", NAME, "clean"),
        "delete": ("checkpoint", "delete", NAME, "first"),
        "limit": ("limit", NAME, "--cpu", "40", "--io", "3M"),
        "set": ("set", NAME, f"ip={NETWORK}.6/24"),
        "clone": ("clone", NAME, "t-other"),
        "rename": ("rename", NAME, "t-other"),
        "move": ("migrate", NAME, "localhost", "--as", "t-other"),
    }.get(verb, (verb, NAME))


RUNNING = (
    "move",
    "checkpoint",
    "restart",
    "undo",
    "stop",
    "limit",
    "isolate",
    "rejoin",
    "delete",
    "freeze",
    "thaw",
    "destroy",
)


def prepare(host, verb):
    """Bring the system into the state that *verb* begins with; with a snapshot *clean* and a checkpoint *first*."""
    for name in (NAME, "t-other"):
        host.dre("destroy", "--force", name, check=False)
    if verb == "create":
        return
    host.dre(*victim(host, "create"))
    host.dre("snapshot", "save", NAME, "clean")
    if verb not in ("start", "set"):
        host.dre("start", NAME)
        host.dre("checkpoint", "save", NAME, "first")
        if verb in ("rejoin", "thaw"):
            host.dre({"rejoin": "isolate", "thaw": "freeze"}[verb], NAME)
        if verb not in RUNNING:
            host.dre("stop", "--timeout", "0", NAME)


def tags(host, name=NAME):
    """The saved states, of which libvirt's list and the disk must tell the same."""
    listed = sorted(host.virsh("snapshot-list", name, "--name").split())
    disk = pathlib.Path(host.place, "state/sys/state", name, "disk.qcow2")
    info = json.loads(host.call("qemu-img", "info", "-U", "--output=json", disk).stdout)
    assert sorted(item["name"] for item in info.get("snapshots", [])) == listed
    return listed


def pid(host):
    return json.loads(host.dre("status", NAME, "--json", check=False).stdout)["pid"]


def after(host, verb, before):
    """What was begun is ended, or undone; *before* is QEMU's pid before."""
    host.dre("recover")
    homes = sorted(os.listdir(host.place / "state/sys/state"))
    assert homes == sorted(host.virsh("list", "--all", "--name").split())
    assert not list(host.place.glob("state/sys/state/*/intent.json"))
    if verb == "create":
        done = host.dre(*victim(host, verb), check=False)
        assert (done.returncode == 0) == (homes == [])
        return
    if verb == "destroy":
        assert host.dre("destroy", "--force", NAME, check=False).returncode == (0 if homes else 3)
        assert host.virsh("list", "--all", "--name").split() == []
        return
    kept = ["clean"] if verb in ("start", "set") else ["clean", "first"]
    if verb in ("rename", "move"):
        (name,) = homes
        assert tags(host, name) == kept
        if verb == "move":  # it has run all the time, but for the moment of the move
            assert host.virsh("domstate", name).strip() == "running"
            assert not list(host.place.glob("state/sys/state/*/.memory"))
        host.dre("start", name)
        return
    assert NAME in homes
    found = tags(host)
    if verb in ("checkpoint", "snapshot"):
        assert found in (kept, [*kept, "second"])
        assert pid(host) == before  # the running system is the same
        if "second" not in found:
            host.dre(*victim(host, verb))
        host.dre("checkpoint", "restart", NAME, "first")
    elif verb == "delete":
        assert found in (kept, ["clean"])
    else:
        assert found == kept
    if verb in ("start", "restart", "undo", "stop", "load", "isolate", "rejoin", "limit", "set", "freeze", "thaw"):
        host.dre(*victim(host, verb))  # again, and to its end
    if verb in ("restart", "undo", "start"):
        assert host.virsh("domstate", NAME).strip() == "running"
    if verb == "clone" and len(homes) == 1:
        host.dre(*victim(host, verb))
    host.dre("destroy", "--force", NAME)


@pytest.mark.parametrize("left", [[], [".intent.json.4711.tmp"]])
def test_a_create_killed_at_its_first_step_leaves_nothing(host, left):
    """Between the directory, the half written intent and the intent is a moment that a kill seldom meets."""
    home = host.place / "state/sys/state" / NAME
    for verb in (["recover"], victim(host, "create")):
        home.mkdir(parents=True)
        for name in left:
            (home / name).write_text('{"verb": "crea')
        host.dre(*verb)
        assert home.exists() == (verb != ["recover"])
    host.dre("destroy", NAME)
    home.mkdir()
    (home / "disk.qcow2").touch()  # what somebody may want is never taken for a rest
    host.dre("recover")
    assert (home / "disk.qcow2").exists()
    (home / "disk.qcow2").unlink()
    home.rmdir()


def popen(host, *argv):
    words = [*host.inside, program("dre-sys"), "--config", host.conf, *argv]
    # A session of its own: killing its group kills the command and its children, not libvirt and QEMU.
    return subprocess.Popen([str(word) for word in words], env=environment(), start_new_session=True)


@pytest.mark.parametrize("verb", VERBS)
def test_kill(host, verb, record_property):
    prepare(host, verb)
    begun = time.monotonic()
    host.dre(*victim(host, verb))
    duration = time.monotonic() - begun
    hits = 0
    for number in range(KILLS):
        prepare(host, verb)
        before = pid(host) if verb != "create" else None
        delay = random.uniform(0, duration)
        process = popen(host, *victim(host, verb))
        time.sleep(delay)
        if process.poll() is None:
            # In turn with the programs it has started, as a lost session would, and alone, as the OOM killer would.
            os.killpg(process.pid, signal.SIGKILL) if number % 2 else process.kill()
        process.wait(60)
        hits += process.returncode == -signal.SIGKILL
        try:
            after(host, verb, before)
        except AssertionError as error:
            raise AssertionError(f"{verb} number {number}, killed {delay:.3f} s of {duration:.3f} s: {error}") from None
    for name in (NAME, "t-other"):
        host.dre("destroy", "--force", name, check=False)
    print(f"{verb}: {hits} of {KILLS} kills hit while it ran ({duration:.3f} s)")
    record_property("hits", hits)
    assert KILLS < 10 or hits >= KILLS / 2, f"only {hits} of {KILLS} kills hit the running command"
