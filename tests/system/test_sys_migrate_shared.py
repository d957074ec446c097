# SPDX-License-Identifier: Apache-2.0
"""On storage that two hosts share a running guest moves without its disks, and all its saved states stay.

The storage is a file system of FUSE that both hosts have mounted, and calls itself one of those that libvirt takes for
shared: only then does it let a running system go without copying. Locks on its files hold between both.
"""

import json
import os
import subprocess

import guest_ground
import pytest
from guest_ground import Talk
from system_ground import BRIDGE, Host, There, need
from test_sys_migrate_guest import ADDRESS, CLEAR, other, running, switch

pytestmark = pytest.mark.skipif(
    os.environ.get("DRE_FULL") != "1", reason="takes time: with DRE_FULL=1, as all of a release"
)


class Here(Host):
    """A host whose files of systems lie on shared storage."""

    def _begin(self):
        need("bindfs", "umount")
        for name in ("shared", "state"):
            (self.place / name).mkdir(mode=0o755)
        options = "subtype=glusterfs,allow_other"
        words = ["bindfs", "-o", options, self.place / "shared", self.place / "state"]
        nothing = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # it stays
        subprocess.run(words, check=True, timeout=30, **nothing)
        super()._begin()

    def end(self):
        # Lazily: the namespaces that had it are gone, but may not be yet for the kernel.
        subprocess.run(["umount", "-l", self.place / "state"], check=False, timeout=30)
        super().end()


@pytest.fixture(scope="module")
def hosts():
    with Here() as here, There(here) as there:
        there.call("umount", here.place / "state")  # what was mounted over it, to be another host's
        there.answer_back()
        there.call("ip", "link", "add", BRIDGE, "type", "bridge")
        there.call("ip", "link", "set", BRIDGE, "up")
        guest_ground.image(here)
        here.dre("create", "w1", "--base", "tiny", "--memory", "128M", "--ip", f"{ADDRESS}/24")
        here.dre("start", "w1")
        yield here, there


def test_it_moves_there_and_back_with_its_saved_states(hosts):
    here, there = hosts
    with switch(here, there) as space, Talk(ADDRESS, space=space) as talk:
        here.dre("checkpoint", "save", "w1", "first")
        for way in ("there", "back"):
            at = running(*hosts)
            to = other(hosts, at)
            moving = at.begin(
                "migrate", "w1", to.uri, "--live", "--shared-storage", "--json", *CLEAR, stdout=subprocess.PIPE
            )
            longest = talk.until(lambda moving=moving: moving.poll() is not None)
            out, err = moving.communicate()
            assert moving.returncode == 0, err.decode()
            assert running(*hosts) is to
            assert to.virsh("snapshot-list", "w1", "--name").split() == ["first"]
            told = json.loads(out)
            print(f"{way}: down {told['down']} s, reached after {told['silent']} s, client {longest:.3f} s")
            disk = here.place / "state/sys/state/w1/disk.qcow2"
            assert to.call("qemu-img", "info", disk, check=False).returncode != 0  # its QEMU has it locked, for both
            assert at.call("qemu-img", "info", disk, check=False).returncode != 0
    here.dre("checkpoint", "restart", "w1", "first")
    assert here.virsh("domstate", "w1").strip() == "running"
