# SPDX-License-Identifier: Apache-2.0
"""A stopped system moves to another host by its libvirt alone: disks, saved states, image, and what dre-sys keeps.

The disk here boots nothing. The other host is in namespaces of its own, on a cable that can be cut.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import time

import pytest
from system_ground import NETWORK, Host, There


@pytest.fixture(scope="module")
def hosts():
    with Host() as here, There(here) as there:
        yield here, there


@pytest.fixture
def here(hosts):
    return hosts[0]


@pytest.fixture
def there(hosts):
    return hosts[1]


def image(host, name="img", octets=b"one"):
    """An image as dre-base makes them, with a kernel; its content is *octets*."""
    place = host.place / "state/base" / name
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(host.small(), place / "image.qcow2")
    host.call("qemu-io", "-c", f"write -P {octets[0]} 1M 64k", place / "image.qcow2")
    kernel = bytearray(octets * 1000)
    kernel[0x1F1:0x1F2], kernel[0x202:0x208] = b"\1", b"HdrS\x02\x02"  # Linux's boot protocol: QEMU looks for it
    (place / "vmlinuz").write_bytes(kernel)
    (place / "initrd.img").write_bytes(octets * 1000)
    digest = hashlib.sha256((place / "image.qcow2").read_bytes()).hexdigest()
    (place / "image.json").write_text(json.dumps({"name": name, "sha256": digest, "cmdline": "quiet"}))
    return place


@pytest.fixture
def system(hosts):
    """The name of a stopped system with a snapshot, and something on its disk."""
    here, there = hosts
    image(here)
    here.dre("create", "m1", "--base", "img", "--memory", "64M", "--ip", f"{NETWORK}.5/24", "--disk", "16M")
    here.dre("snapshot", "save", "m1", "clean")
    here.call("qemu-io", "-c", "write -P 77 2M 1M", home(here) / "disk.qcow2")
    yield "m1"
    for host in hosts:
        for name in ("m1", "m2"):
            host.dre("destroy", "--force", name, check=False)
        shutil.rmtree(host.place / "state/base", ignore_errors=True)


def home(host, name="m1"):
    return pathlib.Path(host.place, "state/sys/state", name)


def digests(place):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}


def migrate(here, there, *words, **kwargs):
    return here.dre("migrate", "m1", there.uri, "--unencrypted", *words, **kwargs)


def wait(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def left(host):
    """What is there: domains, pools, files."""
    places = (host.place / "state/sys/state", host.place / "state/base")
    files = [path.name for place in places for path in place.rglob("*")]
    return [*host.virsh("list", "--all", "--name").split(), *host.virsh("pool-list", "--all").split(), *files]


def test_all_of_it_moves(hosts, here, there, system):
    before, disks = image(here), digests(home(here))
    uuid = here.virsh("domuuid", system)
    row = json.loads(migrate(here, there, "--verify", "--json").stdout)
    assert (row["name"], row["state"], row["ip"]) == ("m1", "stopped", [f"{NETWORK}.5"])
    assert (here.virsh("list", "--all", "--name").split(), home(here).exists()) == ([], False)
    assert there.virsh("domuuid", system) == uuid
    assert there.virsh("snapshot-list", system, "--name").split() == ["clean"]
    found = digests(home(there))
    assert {name: found[name] for name in ("disk.qcow2", "disk2.qcow2")} == {
        name: disks[name] for name in ("disk.qcow2", "disk2.qcow2")
    }
    assert digests(there.place / "state/base/img") == digests(before)
    status = json.loads(there.dre("status", system, "--json", check=False).stdout)
    assert (status["state"], status["base"], status["snapshots"]) == ("stopped", "img", ["clean"])
    there.dre("snapshot", "load", system, "clean")
    there.dre("start", system)
    assert there.virsh("domstate", system).strip() == "running"
    there.dre("destroy", "--force", system)
    assert there.virsh("pool-list", "--all").split() == []


def test_another_image_of_that_name_stays_and_ours_goes_beside_it(here, there, system):
    ours, theirs = image(here), image(there, octets=b"another")
    kept, spec = digests(theirs), home(here) / "system.json"
    migrate(here, there)
    assert digests(theirs) == kept
    (other,) = (path for path in theirs.parent.iterdir() if path.name.startswith("img-"))
    assert digests(other) == digests(ours)
    chain = json.loads(
        there.call("qemu-img", "info", "--backing-chain", "--output=json", home(there) / "disk.qcow2").stdout
    )
    assert [pathlib.Path(one["filename"]).parent.name for one in chain] == ["m1", other.name]
    there.call("qemu-io", "-r", "-c", "read -P 77 2M 1M", home(there) / "disk.qcow2")
    there.dre("start", system)
    command = pathlib.Path(
        f"/proc/{json.loads(there.dre('status', system, '--json').stdout)['pid']}/cmdline"
    ).read_text()
    assert f"/{other.name}/vmlinuz\0" in command
    assert json.loads(there.dre("status", system, "--json").stdout)["base"] == other.name
    assert not spec.exists()


def test_what_a_warm_start_put_below_its_disk_goes_into_the_disk(here, there, system):
    layer, disk = here.place / "layer.qcow2", home(here) / "disk.qcow2"
    here.dre("snapshot", "delete", system, "clean")
    here.call("qemu-img", "create", "-q", "-f", "qcow2", "-b", image(here) / "image.qcow2", "-F", "qcow2", layer)
    here.call("qemu-io", "-c", "write -P 55 4M 64k", layer)
    here.call("qemu-img", "rebase", "-u", "-b", layer, "-F", "qcow2", disk)
    here.dre("snapshot", "save", system, "later")
    refused = migrate(here, there, check=False)
    assert (refused.returncode, "--without-snapshots" in refused.stderr) == (1, True)
    migrate(here, there, "--without-snapshots")
    there.call("qemu-io", "-r", "-c", "read -P 77 2M 1M", "-c", "read -P 55 4M 64k", home(there) / "disk.qcow2")
    chain = json.loads(
        there.call("qemu-img", "info", "--backing-chain", "--output=json", home(there) / "disk.qcow2").stdout
    )
    assert [pathlib.Path(one["filename"]).parent.name for one in chain] == ["m1", "img"]
    assert there.virsh("snapshot-list", system, "--name").split() == []
    there.dre("start", system)


def test_it_can_have_another_name_there_and_stay_here(here, there, system):
    migrate(here, there, "--as", "m2", "--keep")
    assert (here.virsh("list", "--all", "--name").split(), there.virsh("list", "--all", "--name").split()) == (
        ["m1"],
        ["m2"],
    )
    assert there.virsh("snapshot-list", "m2", "--name").split() == ["clean"]
    assert json.loads((home(there, "m2") / "system.json").read_text())["name"] == "m2"
    there.dre("undo", "m2", "clean")
    here.dre("start", "m1")
    refused = migrate(here, there, "--as", "m3", check=False)
    assert (refused.returncode, "is running" in refused.stderr) == (1, True)
    here.dre("stop", "m1", "--timeout", "0")
    refused = migrate(here, there, "--as", "m3", check=False)
    assert (refused.returncode, "this very machine" in refused.stderr) == (1, True)
    assert there.virsh("list", "--all", "--name").split() == ["m2"]


def test_what_cannot_be_is_refused_and_changes_nothing(here, there, system):
    before = digests(home(here))
    for words, status, reason in (
        ([there.uri], 2, "--unencrypted"),
        (["qemu+ssh://h/system?command=/bin/sh"], 2, "command"),
        (["xen:///"], 2, "URI"),
        (["-oProxyCommand=x"], 2, ""),
        (["localhost"], 2, "--as"),
        (["localhost", "--as", "m2", "--live", "--copy-storage"], 2, "--copy-storage"),
        (["qemu+tcp://10.231.112.2:1/system", "--unencrypted"], 1, "no libvirt answers"),
        ([there.uri, "--unencrypted", "--as", "m2", "--timeout", "0"], 5, "in time"),
    ):
        done = here.dre("migrate", system, *words, check=False)
        assert (done.returncode, reason in done.stderr) == (status, True), (words, done.stderr)
        assert len(done.stderr.splitlines()) <= 3
    assert here.dre("migrate", "m7", there.uri, "--unencrypted", check=False).returncode == 3
    there.dre("create", system, "--base", there.small(), "--ip", "none", "--memory", "64M")
    refused = migrate(here, there, check=False)
    assert (refused.returncode, "such a system at" in refused.stderr) == (1, True)
    there.dre("destroy", system)
    assert digests(home(here)) == before
    assert left(there) == []


def test_on_shared_storage_nothing_is_copied_and_nothing_removed(here, there, system):
    there.call("mount", "--bind", there.place / "shared", here.place / "state")
    try:
        before = digests(home(here))
        refused = migrate(here, there, check=False)
        assert (refused.returncode, "exist" in refused.stderr) == (1, True), refused.stderr
        assert digests(home(here)) == before
        migrate(here, there, "--shared-storage")
        assert digests(home(here)) == before
        assert (here.virsh("list", "--all", "--name").split(), there.virsh("list", "--all", "--name").split()) == (
            [],
            ["m1"],
        )
        taken = here.dre("create", system, "--base", "img", check=False)
        assert (taken.returncode, "overwritten" in taken.stderr) == (1, True)
        assert there.virsh("snapshot-list", system, "--name").split() == ["clean"]
        there.dre("undo", system, "clean")
        there.dre("destroy", "--force", system)
    finally:
        there.call("umount", here.place / "state")


def test_on_the_same_host_it_gets_another_name(here, system):
    here.dre("migrate", system, "localhost", "--as", "m2")
    assert here.virsh("snapshot-list", "m2", "--name").split() == ["clean"]
    here.dre("migrate", "m2", "localhost", "--as", system, "--keep")
    assert sorted(here.virsh("list", "--all", "--name").split()) == ["m1", "m2"]
    assert here.virsh("domuuid", "m1") != here.virsh("domuuid", "m2")


def test_a_cut_cable_and_a_dead_libvirt_leave_it_here(here, there, system):
    before = digests(home(here))
    cable = [(there.cut, lambda: there.cut("up"))] if os.environ.get("DRE_FULL") == "1" else []
    for harm, mend in (*cable, (there.kill_libvirt, there.begin_libvirt)):
        moving = here.begin("migrate", system, there.uri, "--unencrypted", "--bandwidth", "64K")
        wait(lambda: (home(there) / "disk.qcow2").exists())
        harm()
        assert moving.wait(timeout=120) in (1, 5), moving.stderr.read()
        assert {**before, "left.json": ""} == {**digests(home(here)), "left.json": ""}  # and what is left there
        assert here.dre("status", system, check=False).stdout == "stopped\n"
        mend()
    migrate(here, there)  # what is left there is in nobody's way
    assert there.virsh("snapshot-list", system, "--name").split() == ["clean"]


def test_a_full_disk_there_leaves_nothing_there(here, there, system):
    there.call("mount", "-t", "tmpfs", "-o", "size=600k", "none", here.place / "state")
    try:
        done = migrate(here, there, check=False)
        assert (done.returncode, "No space" in done.stderr) == (1, True)
        assert there.call("find", here.place / "state", "-type", "f").stdout == ""
        assert there.virsh("list", "--all", "--name").split() == []
    finally:
        there.call("umount", here.place / "state")
    assert here.dre("status", system, check=False).stdout == "stopped\n"


def test_killed_at_any_moment_it_is_here_or_there(here, there, system):
    for _ in range(int(os.environ.get("DRE_KILLS", "1"))):
        moving = here.begin("migrate", system, there.uri, "--unencrypted")
        time.sleep(random.uniform(0.5, 3))
        moving.kill()
        moving.wait()
        done = here.dre("recover", check=False)
        assert done.returncode == 0, done.stderr
        one, two = (host.virsh("list", "--all", "--name").split() for host in (here, there))
        assert [*one, *two] == [system]
        assert here.virsh("pool-list", "--all").split() == []
        if two:
            assert not home(here).exists()
            assert there.virsh("snapshot-list", system, "--name").split() == ["clean"]
            there.dre("destroy", system)
            here.dre("create", system, "--base", "img", "--memory", "64M", "--ip", "none")
            here.dre("snapshot", "save", system, "clean")
        else:
            assert left(there) in ([], ["img", "image.qcow2", "vmlinuz", "initrd.img", "image.json"])
            assert (home(here) / "disk.qcow2").exists()
