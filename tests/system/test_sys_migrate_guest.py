# SPDX-License-Identifier: Apache-2.0
"""A running guest moves between two hosts and back, and who talks to it by TCP notices a pause and nothing else.

One guest and one open connection go through all moves; DRE_MIGRATIONS is how many. The connection comes over a switch
which, as those in the world do, learns where an address is only from what is sent from there.
"""

import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import threading
import time

import guest_ground
import pytest
from guest_ground import Talk
from system_ground import BRIDGE, NETWORK, Host, There, need

MIGRATIONS = int(os.environ.get("DRE_MIGRATIONS", "2"))
SWITCH, ADDRESS, CLIENT = "dret9", f"{NETWORK}.5", f"{NETWORK}.200"
MARK = b"this is not for others to read. " * 4
MARKED = MARK * (1 << 13)  # a MiB of the second disk
WORDS, CLEAR, PAUSE = ("--live", "--copy-storage", "--json"), ("--unencrypted",), ("--downtime", "250ms")
FULL = os.environ.get("DRE_FULL") == "1"
full = pytest.mark.skipif(not FULL, reason="takes time: with DRE_FULL=1, as all of a release")


@contextlib.contextmanager
def switch(here, there):
    """A network namespace whose bridge has both hosts' bridges behind it, and a client of its own."""

    def call(*words):
        subprocess.run(["ip", *map(str, words)], check=True, timeout=30)

    def inside(*words):
        call("netns", "exec", SWITCH, "ip", *words)

    call("netns", "add", SWITCH)
    try:
        inside("link", "add", "switch", "type", "bridge")
        for end, where, host in ((f"{SWITCH}a", 1, here), (f"{SWITCH}b", there.holder.pid, there)):
            inside("link", "add", end, "netns", where, "type", "veth", "peer", "name", end)
            inside("link", "set", end, "master", "switch", "up")
            host.call("ip", "link", "set", end, "master", BRIDGE, "up")
        inside("address", "add", f"{CLIENT}/24", "dev", "switch")
        inside("link", "set", "switch", "up")
        yield f"/run/netns/{SWITCH}"
    finally:
        here.call("ip", "link", "del", f"{SWITCH}a", check=False)  # the kernel takes its time over a namespace
        call("netns", "del", SWITCH)


@pytest.fixture(scope="module")
def hosts():
    with Host() as here, There(here) as there:
        there.answer_back()
        there.call("ip", "link", "add", BRIDGE, "type", "bridge")
        there.call("ip", "link", "set", BRIDGE, "up")
        guest_ground.image(here)
        here.dre("create", "w1", "--base", "tiny", "--memory", "128M", "--ip", f"{ADDRESS}/24", "--disk", "32M")
        (here.place / "mark").write_bytes(MARKED)
        disk = here.place / "state/sys/state/w1/disk2.qcow2"
        here.call("qemu-io", "-c", f"write -s {here.place}/mark 1M {len(MARKED)}", disk)
        here.dre("start", "w1")
        yield here, there


@pytest.fixture(scope="module")
def talk(hosts):
    """An open connection to the guest."""
    with switch(*hosts) as space, Talk(ADDRESS, space=space) as made:
        yield made


def running(*hosts):
    """Where w1 runs: never in two places, never in none."""
    (found,) = (host for host in hosts if host.virsh("list", "--name").split())
    return found


def other(hosts, host):
    """The other one of the two."""
    return hosts[1 - hosts.index(host)]


def move(hosts, talk, *words):
    """Move it to where it is not; dre-sys's row, and the longest pause that the client saw."""
    here = running(*hosts)
    there = other(hosts, here)
    moving = here.begin("migrate", "w1", there.uri, *WORDS, *words, stdout=subprocess.PIPE)
    longest = talk.until(lambda: moving.poll() is not None)
    out, err = moving.communicate()
    assert moving.returncode == 0, err.decode()
    assert running(*hosts) is there
    return json.loads(out), longest


def test_who_talks_to_it_goes_on_talking(hosts, talk, capsys):
    told = []
    for number in range(1, MIGRATIONS + 1):
        row, longest = move(hosts, talk, *CLEAR)
        told.append((row["down"], row["silent"], longest))
        down, silent, client = told[-1]
        with capsys.disabled():
            print(f"\nmove {number}: down {down:.3f} s, reached after {silent:.3f} s, client {client:.3f} s", end="")
        assert 0 < down < silent
    for what, seconds in zip(("down", "reached after", "by the client after"), zip(*told, strict=True), strict=True):
        print(f"{what}: median {statistics.median(seconds):.3f} s, most {max(seconds):.3f} s")


class Cable:
    """Looks at what passes between the hosts: how much, how fast, and whether MARK can be read; a `with`-block."""

    def __init__(self, there):
        self.end = f"{there.cable}a"
        self.octets, self.fastest, self.read = 0, 0.0, False

    def __enter__(self):
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=work) for work in (self._listen, self._measure)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.stopped.set()
        for thread in self.threads:
            thread.join()

    def _listen(self):
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as ear:  # ETH_P_ALL
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            ear.bind((self.end, 0))
            ear.settimeout(0.1)
            while not self.stopped.is_set():
                with contextlib.suppress(TimeoutError):
                    self.read |= MARK in ear.recv(1 << 17)

    def _measure(self):
        """The fastest second."""
        place = pathlib.Path("/sys/class/net", self.end, "statistics")
        seen = []
        while not self.stopped.wait(0.1):
            both = sum(int((place / f"{way}_bytes").read_text()) for way in ("rx", "tx"))
            seen.append((time.monotonic(), both))
            before = [(at, octets) for at, octets in seen if seen[-1][0] - at >= 1]
            if before:
                at, octets = before[-1]
                self.fastest = max(self.fastest, (both - octets) / (seen[-1][0] - at))
            self.octets = both - seen[0][1]


@full
def test_limits_of_rate_and_pause_are_kept(hosts, talk):
    here, there = running(*hosts), hosts[1]
    with Cable(there) as cable:
        moving = here.begin("migrate", "w1", other(hosts, here).uri, *WORDS, *CLEAR, "--bandwidth", "16M", *PAUSE)
        limits = set()
        while moving.poll() is None:
            limits.add(here.call("virsh", "-q", "migrate-getmaxdowntime", "w1", check=False).stdout.strip())
            talk.ask()
    assert moving.returncode == 0, moving.stderr.read().decode()
    assert "250" in limits
    assert 0 < cable.fastest < 1.25 * (16 << 20)
    print(f"16 MiB/s at most: {cable.octets / 2**20:.0f} MiB, the fastest second {cable.fastest / 2**20:.1f} MiB")


@full
def test_by_tls_nobody_reads_what_passes(hosts, talk):
    need("openssl")
    here, there = hosts
    uri = there.begin_tls()
    if running(*hosts) is there:
        move(hosts, talk, *CLEAR)
    strange = uri.replace("pkipath=", f"pkipath={here.place}/host")  # where there are no certificates
    refused = here.dre("migrate", "w1", strange, *WORDS, "--tls", check=False)
    assert (refused.returncode, running(*hosts)) == (1, here), refused.stderr
    for words, back, read in (((uri, "--tls"), CLEAR, False), ((there.uri, *CLEAR), CLEAR, True)):
        with Cable(there) as cable:
            moving = here.begin("migrate", "w1", *words, *WORDS)
            talk.until(lambda moving=moving: moving.poll() is not None)
        assert moving.returncode == 0, moving.stderr.read().decode()
        assert (running(*hosts), cable.read, cable.octets > len(MARKED)) == (there, read, True)
        move(hosts, talk, *back)


@full
@pytest.mark.parametrize("harm", ["QEMU there ends", "the cable is cut", "libvirt there ends"])
def test_when_it_fails_who_talks_to_it_notices_nothing(hosts, talk, harm):
    """There is no pause then but that of the checkpoint before."""
    here, there = hosts
    if running(*hosts) is there:
        move(hosts, talk, *CLEAR)
    moving = here.begin("migrate", "w1", there.uri, *WORDS, *CLEAR, "--bandwidth", "4M")
    while "Data remaining" not in here.call("virsh", "domjobinfo", "w1", check=False).stdout:
        talk.ask()
        assert moving.poll() is None, moving.stderr.read().decode()
    mend = None
    if harm == "QEMU there ends":
        os.kill(int((there.place / "host/run-libvirt/qemu/w1.pid").read_text()), 9)
    elif harm == "the cable is cut":
        there.cut()
        mend = lambda: there.cut("up")  # noqa: E731
    else:
        there.kill_libvirt()
        mend = lambda: there.begin_libvirt()  # noqa: E731
    longest = talk.until(lambda: moving.poll() is not None)
    said = moving.stderr.read().decode()
    assert (moving.returncode, len(said.splitlines())) == (1, 1), said
    if mend:
        mend()
    assert running(*hosts) is here
    print(f"{harm}: the client waited {longest:.3f} s at most")
    move(hosts, talk, *CLEAR)  # what was left there is in nobody's way
    move(hosts, talk, *CLEAR)
