# SPDX-License-Identifier: Apache-2.0
"""What dre-libra reads of a real link, whose ends stand for a tap and its guest: both directions, and which is which.

The link is in network namespaces of its own.
"""

import contextlib
import os
import socket
import struct
import subprocess

import pytest
from dre.errors import MissingError
from guest_ground import inside
from nfskit import DIRECTORY, NFS, Disk, Nfs3, opaque, serve, u32, u64
from sysmonlib.capture import Capture
from sysmonlib.served import Served

PORT, HOST, GUEST, TAP = 12049, "10.77.0.1", "10.77.0.2", "tap0"
SPACES = [f"dret-libra-{name}-{os.getpid()}" for name in ("host", "guest")]


@pytest.fixture(scope="module")
def link():
    """Two namespaces, and the link between them."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes network namespaces")

    def ip(*argv):
        subprocess.run(["ip", *argv], check=True, timeout=10)

    try:
        for name in SPACES:
            ip("netns", "add", name)
        ip("-n", SPACES[0], "link", "add", TAP, "type", "veth", "peer", "name", "eth0", "netns", SPACES[1])
        for space, device, address in ((SPACES[0], TAP, HOST), (SPACES[1], "eth0", GUEST)):
            ip("-n", space, "address", "add", f"{address}/24", "dev", device)
            ip("-n", space, "link", "set", device, "up")
        yield
    finally:
        for name in SPACES:
            subprocess.run(["ip", "netns", "del", name], timeout=10, check=False)


def at(number):
    """Be at one end."""
    return inside(f"/run/netns/{SPACES[number]}")


@pytest.fixture
def disk():
    made = Disk()
    docs = made.make(made.root, b"docs", DIRECTORY | 0o755)
    for number in range(3000):
        made.make(docs, b"file%d" % number, data=bytes(number))
    return made


@pytest.fixture
def client(link, disk):
    """Calls the server over the link."""
    with serve({(NFS, 3): Nfs3(disk, entries=1000)}, HOST, PORT, lambda: at(0)):
        with at(1):
            peer = socket.create_connection((HOST, PORT), timeout=20)
        with peer:
            yield Client(peer)


class Client:
    def __init__(self, peer):
        self.peer, self.stream, self.number = peer, peer.makefile("rb"), 0

    def call(self, procedure, args):
        self.number += 1
        record = u32(self.number, 0, 2, NFS, 3, procedure) + u32(0, 0, 0, 0) + args
        self.peer.sendall(u32(0x80000000 | len(record)) + record)
        (mark,) = struct.unpack(">I", self.stream.read(4))
        return self.stream.read(mark & 0x7FFFFFFF)

    def list(self, disk, node):
        cookie = 0
        while rest := disk.after(node, cookie):
            self.call(17, opaque(disk.handle(node)) + u64(cookie) + bytes(8) + u32(1 << 16, 1 << 20))
            cookie = rest[min(len(rest), 998 if cookie == 0 else 1000) - 1][0]


@contextlib.contextmanager
def capture(served):
    with at(0):
        made = Capture([TAP], PORT, served)
        made.__enter__()
    try:
        yield made
    finally:
        made.__exit__()


def test_what_passes_is_read_from_the_middle_of_a_connection_on(client, disk):
    """Frames are longer than any wire has them here, as they are of a guest."""
    docs = disk.root.children[b"docs"][1]
    client.list(disk, docs)
    served = Served()
    with capture(served) as made:
        client.list(disk, docs)
        assert made.settle()
        assert not made.wire.forged
    listing = served.listing(((socket.inet_aton(HOST), PORT), (7, 0), docs.fileid))
    assert set(listing.whole) == set(docs.children)
    for _, node in docs.children.values():
        (said,) = served.of(((socket.inet_aton(HOST), PORT), (7, 0), node.fileid))
        assert (said.size, said.mode) == (node.size, node.mode)


def test_what_comes_from_the_guest_is_no_reply(client, disk):
    """All the same frames, once more, but with the tap at the other end: there the server is the guest."""
    served = Served()
    with at(1):
        made = Capture(["eth0"], PORT, served)
        made.__enter__()
    client.list(disk, disk.root.children[b"docs"][1])
    assert made.settle()
    made.__exit__()
    assert served.empty


def test_a_link_that_goes_away_or_is_not_there_is_told(link):
    with pytest.raises(MissingError, match="none0"), at(0), Capture(["none0"], PORT, Served()):
        pass
    for argv in (["link", "add", "gone0", "type", "veth", "peer", "name", "gone1"], ["link", "set", "gone0", "up"]):
        subprocess.run(["ip", "-n", SPACES[0], *argv], check=True, timeout=10)
    with at(0):
        made = Capture(["gone0"], PORT, Served())
        made.__enter__()
    assert made.settle()
    subprocess.run(["ip", "-n", SPACES[0], "link", "del", "gone0"], check=True, timeout=10)
    with pytest.raises(MissingError, match="gone0"):
        made.settle()
    made.__exit__()
