# SPDX-License-Identifier: Apache-2.0
"""dre-libra on frames made for it: what is hidden is named, what was not seen is not clean, and lies lead nowhere."""

import dataclasses
import itertools
import os
import random
import socket
import struct
import subprocess
import tracemalloc

import pytest
from dre.errors import MissingError
from nfskit import CLIENT, DIRECTORY, NFS, PORT, SERVER, Disk, Nfs3, Nfs4, Taken, Talk, opaque, u32, u64
from sysmonlib import capture, inside, libra, rpc, tcp
from sysmonlib.capture import Wire
from sysmonlib.inside import File, Mount, Nonsense, View
from sysmonlib.libra import Libra, Sight
from sysmonlib.served import Attributes, Entry, Served

CASES = int(os.environ.get("DRE_CASES", "40"))
DEVICE, OTHER = os.makedev(0, 42), os.makedev(0, 43)
TOP = b"/mnt"
PLUS = 0x18011A | 0xB0A23A << 32  # what Linux asks READDIR for: with fsid, filehandle, fileid and mode among it
OWNED = 0x10011A | 0xB0A23A << 32  # and GETATTR


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(libra, "AGAIN", 0)


def bits(mask):
    return u32(2, mask & 0xFFFFFFFF, mask >> 32)


class Client:
    """What a client asks that walks through all of *disk*, by version 3 or 4."""

    def __init__(self, disk, version=4, entries=3, plus=True, **kwargs):
        self.disk, self.version, self.served = disk, version, Served()
        self.service = Nfs3(disk, entries, plus) if version == 3 else Nfs4(disk, entries)
        self.wire, self.kwargs, self.plus = Wire(self.served, PORT), kwargs, plus
        self.talk = self.talker()

    def talker(self):
        """A connection."""
        return Talk(self.wire.frame, {(NFS, self.version): self.service}, **self.kwargs)

    def compound(self, *operations):
        """The results of a COMPOUND of version 4.1."""
        sequence = u32(53) + b"S" * 16 + u32(1, 0, 0, 0)
        self.talk.call(4, 1, opaque(b"") + u32(1, len(operations) + 1) + sequence + b"".join(operations))

    def handle(self, node):
        return opaque(self.disk.handle(node))

    def look_at(self, node):
        if self.version == 3:
            self.talk.call(3, 1, self.handle(node))
        else:
            self.compound(u32(22) + self.handle(node), u32(9) + bits(OWNED))

    def list(self, node, plus=None):
        """READDIR, or READDIRPLUS, from begin to end."""
        plus = self.plus if plus is None else plus
        cookie = 0
        for _ in range(1000):
            if self.version == 3:
                args = self.handle(node) + u64(cookie) + bytes(8) + u32(4096) + (u32(8192) if plus else b"")
                self.talk.call(3, 17 if plus else 16, args)
            else:
                args = u64(cookie) + bytes(8) + u32(4096, 8192) + bits(PLUS if plus else 1 << 11 | 1 << 55)
                self.compound(u32(22) + self.handle(node), u32(26) + args)
            rest = self.disk.after(node, cookie)
            dots = 2 if self.version == 3 and cookie == 0 else 0
            taken = self.service.entries - dots
            if len(rest) <= taken:
                return
            cookie = rest[taken - 1][0]

    def access(self, node, mask=0x3F):
        if self.version == 3:
            self.talk.call(3, 4, self.handle(node) + u32(mask))
        else:
            self.compound(u32(22) + self.handle(node), u32(3, mask))

    def walk(self):
        """As ls and stat would have it of all that the disk holds."""
        self.look_at(self.disk.root)
        for _, node in places(self.disk):
            if node.mode & DIRECTORY:
                self.access(node)
                self.list(node)
        if not self.plus:
            for _, node in places(self.disk):
                self.look_at(node)

    def remove(self, directory, name):
        args = opaque(name)
        if self.version == 3:
            self.talk.call(3, 12, self.handle(directory) + args)
        else:
            self.compound(u32(22) + self.handle(directory), u32(28) + args)

    def rename(self, directory, name, new):
        if self.version == 3:
            self.talk.call(3, 14, self.handle(directory) + opaque(name) + self.handle(directory) + opaque(new))
        else:
            there = u32(22) + self.handle(directory)
            self.compound(there, u32(32), there, u32(29) + opaque(name) + opaque(new))


def places(disk, path=TOP, node=None):
    """Path and node of all on *disk*."""
    node = node or disk.root
    yield path, node
    for name, (_, child) in sorted(node.children.items()):
        yield from places(disk, path + b"/" + name, child)


def view(disk, device=DEVICE):
    """What an honest guest says of *disk*."""
    names = {path: set(node.children) for path, node in places(disk) if node.mode & DIRECTORY}
    return View(names, {path: File(device, node.fileid, node.size, node.mode) for path, node in places(disk)})


def mount(disk, version=4, server=SERVER):
    return Mount(TOP, DEVICE, disk.root.fileid, (server, PORT), (disk.fsid, 5 if version == 4 else 0))


def small():
    """A disk with a directory in a directory, empty ones, and files."""
    disk = Disk()
    docs = disk.make(disk.root, b"docs", DIRECTORY | 0o755)
    disk.make(docs, b"empty", DIRECTORY | 0o700)
    for number in range(10):
        disk.make(docs, b"file%d" % number, data=bytes(number * 1000))
    disk.make(disk.root, b"nothing")
    disk.make(disk.root, b"evil", data=b"evil")
    return disk


class Guest:
    """A guest that looks, walks and then tells; *lie* changes what it tells, *before* what is there."""

    def __init__(self, client, lie=lambda view: None, before=lambda look: None, walk=None, **sight):
        self.client, self.lie, self.before, self.sight = client, lie, before, sight
        self.walk, self.looks = walk or client.walk, 0
        self.libra = Libra("pay1", self.see)

    def see(self, forced):
        self.looks += 1
        self.client.served.begin()
        self.before(self.looks)
        self.walk()
        told = view(self.client.disk)
        self.lie(told)
        wire = self.client.wire
        where = mount(self.client.disk, self.client.version)
        return Sight(where, told, self.client.served, **{"forged": wire.forged, **self.sight})

    def scan(self):
        """The findings: what is hidden, and of which path; or type and reason."""
        found = self.libra.scan()
        return sorted((one.data["hides"], one.data["path"]) if "hides" in one.data else one.type for one in found)


WAYS = [(3, True, 3), (3, False, 3), (3, True, 1000), (4, True, 3), (4, False, 3), (4, True, 1000)]
ways = pytest.mark.parametrize(("version", "plus", "entries"), WAYS)
both = pytest.mark.parametrize("version", [3, 4])


@pytest.fixture
def disk():
    return small()


@ways
def test_a_guest_that_hides_nothing_is_clean(disk, version, plus, entries):
    guest = Guest(Client(disk, version, entries, plus))
    assert (guest.scan(), guest.looks, guest.libra.aside) == ([], 1, [])


@ways
def test_what_is_hidden_or_misstated_is_named(disk, version, plus, entries):
    def lie(told):
        told.names[TOP].remove(b"evil")
        del told.files[TOP + b"/evil"]
        for name, change in ((b"file3", {"size": 4096}), (b"file4", {"mode": 0o104755}), (b"file0", {"size": 1})):
            path = TOP + b"/docs/" + name
            told.files[path] = dataclasses.replace(told.files[path], **change)

    guest = Guest(Client(disk, version, entries, plus), lie)
    named = [
        ("mode", "/mnt/docs/file4"),
        ("name", "/mnt/evil"),
        ("size", "/mnt/docs/file0"),
        ("size", "/mnt/docs/file3"),
    ]
    assert (guest.scan(), guest.looks) == (named, 3)
    assert guest.scan() == []  # each once


def test_a_finding_tells_what_the_server_said(disk):
    def lie(told):
        path = TOP + b"/docs/file5"
        told.files[path] = dataclasses.replace(told.files[path], size=4096)

    (found,) = Guest(Client(disk), lie).libra.scan()
    data = {key: value for key, value in found.data.items() if key not in ("first_seen", "confirmed", "fileid")}
    assert data == {
        "system": "pay1",
        "views_missing": ["stat"],
        "hides": "size",
        "name": "file5",
        "path": "/mnt/docs/file5",
        "fsid": "7:5",
        "size": 5000,
        "told": 4096,
    }


@both
def test_a_hidden_directory_is_named(disk, version):
    def lie(told):
        told.names[TOP].remove(b"docs")
        for path in [path for path in told.files if path.startswith(TOP + b"/docs")]:
            del told.files[path]
            told.names.pop(path, None)

    assert Guest(Client(disk, version), lie).scan() == [("name", "/mnt/docs")]


@both
def test_a_name_that_commands_a_terminal_is_shown_harmless(version):
    disk = Disk()
    disk.make(disk.root, b"\x1b[2J\xff" + 249 * b"\x01")

    def lie(told):
        told.names[TOP].clear()
        told.files.pop(next(path for path in told.files if path != TOP))

    (found,) = Guest(Client(disk, version), lie).libra.scan()
    assert found.data["name"].startswith("\\x1b[2J\\xff\\x01") and found.data["name"].isprintable()
    assert len(str(found.data).encode()) < 3900


@both
def test_what_is_deleted_or_renamed_while_it_is_looked_at_accuses_nobody(disk, version):
    client = Client(disk, version)

    def before(look):
        if look == 1:  # the first view is older than what the wire shows
            late.append(view(disk))
            disk.make(disk.root, b"new")

    def lie(told):
        if late:
            old = late.pop()
            told.names.update(old.names)

    late = []
    guest = Guest(client, lie, before)
    assert (guest.scan(), guest.looks) == ([], 2)
    client.rename(disk.root, b"new", b"old")
    client.remove(disk.root, b"evil")
    assert guest.scan() == []
    assert b"old" in view(disk).names[TOP]


@both
def test_two_file_systems_with_the_same_numbers_are_not_confused(disk, version):
    other = Disk(fsid=8)
    twin = Client(other, version)
    for number in range(14):
        other.make(other.root, b"other%d" % number, data=bytes(77))
    client = Client(disk, version)
    twin.served, twin.wire = client.served, client.wire
    twin.talk, client.talk = twin.talker(), client.talker()

    def walk():
        client.walk()
        twin.talk.sequences = client.talk.sequences
        twin.walk()

    def lie(told):
        told.names[TOP].remove(b"evil")
        del told.files[TOP + b"/evil"]

    assert {node.fileid for _, node in places(disk)} <= {node.fileid for _, node in places(other)}
    assert Guest(client, walk=walk).scan() == []
    assert Guest(client, lie, walk=walk).scan() == [("name", "/mnt/evil")]


@both
def test_one_that_is_renamed_each_time_is_named(disk, version):
    client = Client(disk, version)
    names = (b"evil%d" % number for number in itertools.count())
    last = [b"evil"]

    def before(look):
        new = next(names)
        client.rename(disk.root, last[0], new)
        last[0] = new

    def lie(told):
        told.names[TOP].remove(last[0])
        del told.files[TOP + b"/" + last[0]]

    assert Guest(client, lie, before).scan() == [("name", f"/mnt/{last[0].decode()}")]


@both
def test_one_that_is_made_anew_each_time_is_not_clean(disk, version):
    def before(look):
        if look > 1:
            disk.remove(disk.root, b"evil%d" % (look - 1))
        disk.make(disk.root, b"evil%d" % look)

    def lie(told):
        name = next(name for name in told.names[TOP] if name.startswith(b"evil") and name != b"evil")
        told.names[TOP].remove(name)
        del told.files[TOP + b"/" + name]

    guest = Guest(Client(disk, version), lie, before)
    assert (guest.scan(), guest.looks) == (["sysmon.inconsistent"], libra.LOOKS)


@both
def test_one_that_comes_and_goes_on_the_wire_in_each_look_is_neither_found_nor_clean(disk, version):
    client = Client(disk, version)

    def before(look):
        if look > 1:
            client.remove(disk.root, b"evil%d" % (look - 1))
        disk.make(disk.root, b"new")
        client.rename(disk.root, b"new", b"evil%d" % look)

    def lie(told):
        name = next(name for name in told.names[TOP] if name.startswith(b"evil") and name != b"evil")
        told.names[TOP].remove(name)
        del told.files[TOP + b"/" + name]

    guest = Guest(client, lie, before)
    with pytest.raises(MissingError, match="changes too fast: other files came or went"):
        guest.scan()
    assert guest.looks == libra.LOOKS


@both
def test_what_the_server_does_not_have_is_inconsistent(disk, version):
    def lie(told):
        told.names[TOP].add(b"invented")
        told.files[TOP + b"/invented"] = told.files[TOP + b"/evil"]

    assert Guest(Client(disk, version), lie).scan() == ["sysmon.inconsistent"]


@both
def test_a_file_that_is_listed_and_not_told_of_is_inconsistent(disk, version):
    assert Guest(Client(disk, version), lambda told: told.files.pop(TOP + b"/evil")).scan() == ["sysmon.inconsistent"]


def unseen(guest):
    """The reason why it is not clean."""
    with pytest.raises(MissingError) as error:
        guest.scan()
    return str(error.value)


@both
def test_what_was_not_seen_is_not_clean(disk, version):
    assert "nothing of it was seen" in unseen(Guest(Client(disk, version), walk=lambda: None))
    client = Client(disk, version, entries=1000)

    def root_alone():
        client.look_at(disk.root)
        client.list(disk.root)

    assert "/mnt/docs was seen" in unseen(Guest(client, walk=root_alone))
    client = Client(disk, version)

    def half():
        client.walk()
        for pages in client.served._pages.values():
            pages.pop(max(pages))

    assert "no whole listing" in unseen(Guest(client, walk=half))
    client = Client(disk, version, plus=False)

    def without_attributes():
        client.look_at(disk.root)
        for _, node in places(disk):
            if node.mode & DIRECTORY:
                client.look_at(node)
                client.list(node)

    assert "was not seen" in unseen(Guest(client, walk=without_attributes))
    assert "frames" in unseen(Guest(Client(disk, version), whole=False))
    assert "Kerberos" in unseen(Guest(Client(disk, version), secured=True))


@both
def test_a_listing_of_an_earlier_check_does_not_count(disk, version):
    client = Client(disk, version)
    guest = Guest(client)
    assert guest.scan() == []
    guest.walk = lambda: client.look_at(disk.root)
    assert "no whole listing" in unseen(guest)


@both
def test_an_agent_that_leaves_out_is_not_clean(disk, version):
    def nothing(told):
        told.names.clear(), told.files.clear()

    assert "says nothing of it" in unseen(Guest(Client(disk, version), nothing))
    assert "/mnt/docs was seen" in unseen(Guest(Client(disk, version), lambda told: told.names.pop(TOP + b"/docs")))

    def elsewhere(told):
        path = TOP + b"/evil"
        told.files[path] = dataclasses.replace(told.files[path], device=OTHER, size=1)

    assert "another file system" in unseen(Guest(Client(disk, version), elsewhere))
    path = TOP + b"/docs"

    def mounted(told):
        told.files[path] = dataclasses.replace(told.files[path], device=OTHER)
        for below in [one for one in (*told.files, *told.names) if one.startswith(path)]:
            told.names.pop(below, None)
            if below != path:
                told.files.pop(below, None)

    assert "another file system" in unseen(Guest(Client(disk, version), mounted))
    assert Guest(Client(disk, version), mounted, apart=frozenset({path})).scan() == []


@both
def test_an_agent_that_shows_another_directory_is_inconsistent(disk, version):
    """A copy without the file, whose names are the same."""
    copy = disk.make(disk.root, b"copy", DIRECTORY | 0o755)
    docs = disk.root.children[b"docs"][1]
    for name, (_, node) in list(docs.children.items()):
        if name != b"file3":
            disk.put(copy, name, node)

    def lie(told):
        told.names[TOP + b"/docs"].remove(b"file3")
        del told.files[TOP + b"/docs/file3"]
        told.files[TOP + b"/docs"] = told.files[TOP + b"/copy"]

    assert Guest(Client(disk, version), lie).scan() == ["sysmon.inconsistent"]


def test_an_answer_that_is_none_is_inconsistent():
    def see(forced):
        raise Nonsense("a line of its ls is 'x'")

    (found,) = Libra("pay1", see).scan()
    assert (found.type, found.data["views"], found.data["reason"]) == (
        "sysmon.inconsistent",
        ["agent"],
        "a line of its ls is 'x'",
    )


@both
@pytest.mark.parametrize("uid", [0, 1000])
def test_what_root_may_not_read_is_told_and_nobody_else_counts(disk, version, uid):
    docs = disk.root.children[b"docs"][1]
    docs.denied = True
    client = Client(disk, version)
    client.talk.uid = uid

    def lie(told):
        for path in [path for path in told.files if path.startswith(TOP + b"/docs/")]:
            del told.files[path]
        for path in [path for path in told.names if path.startswith(TOP + b"/docs")]:
            del told.names[path]

    guest = Guest(client, lie)
    if uid == 0:
        assert guest.scan() == []
        assert guest.libra.aside == ["/mnt/docs may not be read by root of the guest"]
    else:
        assert "/mnt/docs was seen" in unseen(guest)


@both
def test_to_ask_for_no_access_is_not_to_be_refused(disk, version):
    client = Client(disk, version)

    def walk():
        client.look_at(disk.root)
        client.look_at(disk.root.children[b"docs"][1])
        client.access(disk.root.children[b"docs"][1], mask=0x3C)
        client.list(disk.root)

    assert "/mnt/docs was seen" in unseen(Guest(client, walk=walk))


@both
def test_a_failed_removal_explains_nothing(disk, version):
    client = Client(disk, version)
    docs = disk.root.children[b"docs"][1]

    def walk():
        client.walk()
        client.remove(disk.root, b"docs")  # it is not empty

    def lie(told):
        told.names[TOP].remove(b"docs")
        for path in [path for path in told.files if path.startswith(TOP + b"/docs")]:
            del told.files[path]
            told.names.pop(path, None)

    guest = Guest(client, lie, walk=walk)
    assert (guest.scan(), guest.looks) == ([("name", "/mnt/docs")], 3)
    assert docs.children


@both
def test_a_reply_that_the_guest_sent_is_none(disk, version):
    """The guest can put the server's address on a frame; the host would not have handed it to the tap."""
    client = Client(disk, version)
    bare = small()
    bare.remove(bare.root, b"evil")
    forger = Client(bare, version)
    forger.wire.frame = lambda octets, inwards: client.wire.frame(octets, False)
    forger.talk = forger.talker()
    forger.walk()
    assert client.served.empty


def test_an_object_that_changes_all_the_time_accuses_nobody(disk):
    client = Client(disk)
    evil = disk.root.children[b"evil"][1]

    def walk():
        client.walk()
        evil.data += b"more"
        client.look_at(evil)

    def lie(told):
        if guest.looks < 6:
            path = TOP + b"/evil"
            told.files[path] = dataclasses.replace(told.files[path], size=evil.size + 2)

    guest = Guest(client, lie, walk=walk)
    assert (guest.scan(), guest.looks) == ([], 6)


@both
def test_a_name_that_comes_and_goes_all_the_time_accuses_nobody(disk, version):
    """It is missing in five looks, and each time there was a change of that name on the wire."""
    client = Client(disk, version)
    guest = Guest(client)

    def walk():
        client.walk()
        client.rename(disk.root, b"evil", b"other")
        client.rename(disk.root, b"other", b"evil")

    def lie(told):
        if guest.looks < 6:
            told.names[TOP].remove(b"evil")
            del told.files[TOP + b"/evil"]

    guest.walk, guest.lie = walk, lie
    assert (guest.scan(), guest.looks) == ([], 6)


def test_a_call_does_not_lead_a_reply_astray(disk):
    """A listing of docs/empty as the reply to a call for the root: the reply says itself of which directory it is."""
    client = Client(disk, 3)
    node = disk.root.children[b"docs"][1].children[b"empty"][1]
    wanted = ((SERVER, PORT), (7, 0), disk.root.fileid)
    client.served.begin()
    client.look_at(disk.root)
    asked = client.service.disk.handle(disk.root)
    client.service._17 = lambda args: Nfs3._17(client.service, Taken(client.handle(node) + u64(0)))
    client.talk.call(3, 17, opaque(asked) + u64(0) + bytes(8) + u32(4096, 8192))
    client.look_at(disk.root)
    assert client.served.listing(wanted) is None
    assert client.served.listing((*wanted[:2], node.fileid)).whole == {}


def test_of_two_listings_the_names_in_both_count():
    """As of a directory that has a handle of each version."""
    served, server = Served(), (SERVER, PORT)
    for handle, names in ((b"3", [b"both", b"gone"]), (b"4", [b"both", b"new"])):
        served.attributes(server, Attributes((7, 0), 100, 0o40755, 0), handle)
        entries = [Entry(name, number, 1) for number, name in enumerate(names, 1)]
        served.page(server, handle, 0, entries, True)
    found = served.listing((server, (7, 0), 100))
    assert set(found.whole) == {b"both"} and found.all == {b"both", b"gone", b"new"}


def test_a_file_that_grows_fast_is_within_what_was_seen(disk):
    client = Client(disk)
    evil = disk.root.children[b"evil"][1]
    size = [0]

    def walk():
        client.walk()
        for _ in range(100):
            evil.data += b"more"
            client.look_at(evil)

    def lie(told):
        path = TOP + b"/evil"
        told.files[path] = dataclasses.replace(told.files[path], size=evil.size - size[0])

    assert Guest(client, lie, walk=walk).scan() == []
    size[0] = 7
    assert Guest(client, lie, walk=walk).scan() == []
    size[0] = 1000
    assert Guest(client, lie, walk=walk).scan() == [("size", "/mnt/evil")]


# What is below NFS.


def feed(frames):
    """What two directions of a connection give, as a server and a client say *frames*."""
    seen = {True: [], False: []}
    streams = {True: tcp.Stream(), False: tcp.Stream()}
    for frame, inwards in frames:
        found = tcp.segment(frame)
        seen[inwards] += streams[inwards].take(found)
    return seen, streams


def talk():
    frames = []
    return Talk(lambda *frame: frames.append(frame), {}), frames


@pytest.mark.parametrize("start", [0, 2**32 - 3000])
@pytest.mark.parametrize("seed", range(5))
def test_segments_in_any_order_give_what_was_sent(start, seed):
    made, frames = talk()
    made.sequences[True] = start
    octets = random.Random(seed).randbytes(20_000)
    made.largest = 700
    frames += [(frame, True) for frame in made.frames(True, octets)]
    first, *rest = frames
    chance = random.Random(seed)
    for at in range(0, len(rest), 6):
        part = rest[at : at + 6]
        chance.shuffle(part)
        rest[at : at + 6] = part
    rest += chance.sample(frames, 5)  # again
    seen, streams = feed([first, *rest])
    assert b"".join(piece for piece, _ in seen[True]) == u32(0x80000000 | len(octets)) + octets
    assert [broken for _, broken in seen[True]] == [True] + [False] * (len(seen[True]) - 1)
    assert not streams[True].forged


def test_a_hole_is_given_up_and_told():
    made, frames = talk()
    made.largest = 100
    frames += [(frame, True) for frame in made.frames(True, bytes(10_000))]
    del frames[3]
    seen, _ = feed(frames)
    assert [broken for _, broken in seen[True]].count(True) == 2
    assert sum(len(piece) for piece, _ in seen[True]) == 10_004 - 100


def test_two_segments_for_one_place_are_noted():
    made, frames = talk()
    frames += [(made.frame(False, b"one thing"), False), (made.frame(False, b"one thing"), False)]
    _, streams = feed(frames)
    assert not streams[False].forged
    _, streams = feed([*frames, (made.frame(False, b"all other"), False)])
    assert streams[False].forged
    made.sequences[False] += 1000
    ahead = [(made.frame(False, octets), False) for octets in (b"one thing", b"all other")]
    _, streams = feed([*frames, *ahead])
    assert streams[False].forged


@both
def test_a_forged_call_is_a_finding(disk, version):
    client = Client(disk, version)

    def before(look):
        if look == 1:
            client.look_at(disk.root)
            client.talk.wire(client.talk.frame(False, bytes(100)), False)  # then the kernel's own goes to its place

    assert Guest(client, before=before).scan() == ["sysmon.inconsistent"]


def test_two_calls_with_one_number_have_no_reply():
    calls = rpc.Calls()
    head = u32(7, 0, 2, NFS, 3, 1) + u32(0, 0, 0, 0)
    reply = u32(7, 1, 0, 0, 0, 0)
    calls.call(head + opaque(b"first"))
    calls.call(head + opaque(b"first"))  # sent again
    assert calls.reply(reply)[0].arguments == opaque(b"first")
    calls.call(head + opaque(b"first"))
    calls.call(head + opaque(b"other"))
    assert calls.reply(reply) is None and calls.reply(reply) is None


def test_records_are_found_from_the_middle_on_and_in_fragments():
    call = u32(7, 0, 2, NFS, 3, 1) + bytes(40)
    reply = u32(8, 1, 0, 0, 0, 0)

    def record(octets):
        return u32(0x80000000 | len(octets)) + octets

    records = rpc.Records(rpc.CALL)
    assert list(records.take(b"the rest of something longer", True)) == []
    assert list(records.take(record(call)[:30], False)) == []
    assert list(records.take(record(call)[30:] + record(reply), False)) == [call, reply]
    parts = u32(10) + call[:10] + u32(0) + u32(0x80000000 | len(call) - 10) + call[10:]
    assert list(records.take(parts, False)) == [call]
    assert list(records.take(u32(0x80000000 | rpc.LARGEST + 1) + bytes(100), False)) == []
    assert list(records.take(record(call), False)) == [call]
    assert list(records.take(record(call)[:30], False)) == []
    assert list(records.take(record(call), True)) == [call]


def test_frames_of_ipv6_and_with_options_are_read_and_others_are_not():
    tcp4 = struct.pack(">HHIIBBHHH", 812, PORT, 5, 0, 0x60, 0x18, 0, 0, 0) + b"optn" + b"data"

    def ipv4(payload, fragment=0x4000, protocol=6, options=b""):
        head = (0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 0, fragment, 64, protocol, 0)
        return bytes(12) + b"\x08\x00" + struct.pack(">BBHHHBBH", *head) + CLIENT + SERVER + options + payload

    ipv6 = bytes(12) + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(tcp4), 6, 64) + b"\x20" * 32 + tcp4
    good = [ipv4(tcp4), ipv4(tcp4) + bytes(9), ipv4(tcp4, options=b"\x01" * 8), ipv6]
    bad = [ipv4(tcp4, 0x2000), ipv4(tcp4, 7), ipv4(tcp4, protocol=17), ipv4(tcp4)[:-1], b"", ipv6[:-1], bytes(60)]
    assert [tcp.segment(frame).data for frame in good] == [b"data"] * 4
    assert [tcp.segment(frame) for frame in bad] == [None] * len(bad)
    # The filter in the kernel takes the same, of one port; it works on a socket of any family.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        capture._attach(ours, PORT)
        ours.setblocking(False)
        back = bytearray(ipv4(tcp4))
        back[34:38] = back[36:38] + back[34:36]
        other = bytearray(ipv4(tcp4))
        other[36:38] = b"\0\x50"
        other6 = bytearray(ipv6)
        other6[56:58] = b"\0\x50"
        for frame in (*good, *bad[:3], *bad[6:], back, other, other6):
            theirs.send(frame)
        taken = []
        while True:
            try:
                taken.append(ours.recv(2000))
            except BlockingIOError:
                break
        assert taken == [*good, bytes(back)]


# What the guest says.

NAMES = [
    b"plain",
    b"with space",
    b"new\nline",
    b'quo"te',
    b"back\\slash",
    b"colon:",
    b"\xff\xfe",
    b"\xc3\xa9",
    b"-rf",
    b"a" * 255,
]
NAMES += [b"tab\t", b"bell\a", b"\x7f\x01", b"'", b"$(x)", b"??=", b'"x":']


@pytest.fixture
def tree(tmp_path):
    """Real files with odd names."""
    top = os.fsencode(tmp_path) + b"/top"
    for directory in (top, top + b"/sub", top + b"/sub/new\ndir", top + b"/empty"):
        os.mkdir(directory)
        for name in NAMES if directory != top + b"/empty" else []:
            with open(directory + b"/" + name, "wb") as stream:
                stream.write(name)
    os.symlink(b"/nowhere", top + b"/link")
    return top


def told_by_tools(top):
    """What the guest would run, but for the caches."""
    script = inside._SAY_ALL.replace("echo 3 >/proc/sys/vm/drop_caches", "")
    assert "drop_caches" in inside._SAY_ALL and "drop_caches" not in script
    return subprocess.run(["/bin/sh", "-c", script, top, ""], capture_output=True, timeout=60).stdout


def test_what_ls_and_stat_say_is_what_is_there(tree):
    seen = inside.parse(told_by_tools(tree), tree)
    names = {path: {*directories, *files} for path, directories, files in os.walk(tree)}
    assert seen.names == names
    expected = {}
    for path in [tree, *(path + b"/" + name for path, found in names.items() for name in found)]:
        found = os.lstat(path)
        expected[path] = File(found.st_dev, found.st_ino, found.st_size, found.st_mode)
    assert seen.files == expected


LINE = b"42 100 0 41ed 1 /mnt\0"


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"no end",
        b'"/mnt":\n"a"\n',
        b"plain\n\0" + LINE,
        b'"a"\n\0' + LINE,
        b'"/mnt":\n"a/b"\n\0' + LINE,
        b'"/mnt":\n"a\n\0' + LINE,
        b'"/mnt":\n"\\400"\n\0' + LINE,
        b'"/mnt":\n"\\000"\n\0' + LINE,
        b'"/mnt":\n""\n\0' + LINE,
        b'"/mnt":\n"' + 256 * b"a" + b'"\n\0' + LINE,
        b'"/etc":\n"a"\n\0' + LINE,
        b'"/mntx":\n"a"\n\0' + LINE,
        b"\0" + LINE[:-1],
        b"\0" + b"42 100 0 41ed /mnt\0",
        b"\0" + b"42 100 -1 41ed 1 /mnt\0",
        b"\0" + b"42 100 0 41ed 1 /etc\0",
        b"\0" + b"42 100 " + 30 * b"9" + b" 41ed 1 /mnt\0",
    ],
)
def test_an_answer_of_another_form_is_nonsense(said):
    with pytest.raises(Nonsense):
        inside.parse(said, TOP)
    assert inside.parse(b"\0" + LINE, TOP).files == {TOP: File(42, 100, 0, 0o40755)}


class Agent:
    """Answers what it was given."""

    name = "pay1"

    def __init__(self, stdout, cut=False):
        self.stdout, self.cut = stdout, cut

    def run(self, argv, timeout=None):
        return inside.Ended(0, self.stdout, b"", self.cut)


VOLUMES = b"NV SERVER   PORT DEV          FSID                              FSC\n"
VOLUMES += b"v3 0a4d0001  801 0:43         8:0                               no \n"
VOLUMES += b"v4 0a4d0001  801 0:42         3e8:1                             no \n"


def test_a_mount_is_known_by_its_device():
    record = b"%d 100 4096 41ed 1 /mnt\0" % DEVICE
    found = inside.mount(Agent(record + VOLUMES), TOP, 1)
    assert found == Mount(TOP, DEVICE, 100, (SERVER, 2049), (0x3E8, 1))
    six = VOLUMES.replace(b"0a4d0001", b"fd" + 30 * b"0")
    assert inside.mount(Agent(record + six), TOP, 1).server == (b"\xfd" + bytes(15), 2049)
    for said in (b"", record, record.replace(b"41ed", b"81ed") + VOLUMES, record + VOLUMES.replace(b"0:42", b"0:44")):
        with pytest.raises(MissingError):
            inside.mount(Agent(said), TOP, 1)
    with pytest.raises(MissingError):
        inside.mount(Agent(record + VOLUMES, cut=True), TOP, 1)


# Whatever comes, it ends soon, raises nothing and keeps little.


@pytest.mark.parametrize("case", range(CASES))
def test_fuzzed_frames_do_no_harm(case):
    """One is changed in some octets, left out, repeated or out of order; each length field may become any."""
    chance = random.Random(case)
    disk = small()
    frames = []
    for version in (3, 4):
        client = Client(disk, version, entries=chance.choice([2, 1000]))
        client.talk = Talk(
            lambda *frame: frames.append(frame), client.talk.services, largest=chance.choice([60, 1400, 60000])
        )
        client.talk.sequences = {False: case * 7919 % 2**32, True: 2**32 - case - 1}
        client.walk()
        client.rename(disk.root, b"evil", b"lives")
        client.rename(disk.root, b"lives", b"evil")
    made = []
    for octets, inwards in frames:
        kind = chance.randrange(8)
        changed = bytearray(octets)
        if kind < 3:
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(14 if kind else 54, len(changed))
                changed[at : at + 4] = chance.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", chance.randbytes(4)])
        made += [(bytes(changed), inwards)] * chance.choice([1, 1, 1, 1, 0, 2])
        if kind == 7:
            made.insert(chance.randrange(len(made) + 1), (chance.randbytes(chance.randrange(200)), inwards))
    served = Served()
    wire = Wire(served, PORT)
    served.begin()
    for octets, inwards in made:
        wire.frame(octets, inwards)
    told = view(disk)
    for version in (3, 4):
        where = mount(disk, version)
        list(Libra("pay1", lambda forced: None)._differences(Sight(where, told, served)))


def test_fuzzed_answers_do_no_harm(tree):
    whole = told_by_tools(tree)
    for case in range(CASES):
        chance, said = random.Random(case), bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            at = chance.randrange(len(said))
            said[at : at + chance.randrange(3)] = chance.choice(
                [b"", b"\0", b'"', b"\\", b"\n", b"/", chance.randbytes(3)]
            )
        try:
            inside.parse(bytes(said), tree)
        except Nonsense:
            pass
        except Exception as error:
            error.add_note(f"case {case}")
            raise


def test_what_is_kept_is_bounded(monkeypatch):
    """A connection whose calls are never answered, whose segments never fit, with handles without end."""
    monkeypatch.setattr(rpc, "PENDING", 64)
    monkeypatch.setattr("sysmonlib.served.HANDLES", 64)
    monkeypatch.setattr("sysmonlib.served.MOST", 500)
    disk = Disk()
    client = Client(disk, 3, entries=50)
    for number in range(300):
        disk.make(disk.root, b"file%d" % number)

    def storm():
        for number in range(12):
            client.talk.sequences[False] += 100  # a hole
            client.walk()
            client.talk.call(3, 1, opaque(b"none%d" % number))
            ends = (bytes([10, 0, number % 7, number % 251]), PORT + number)
            connection = Talk(client.wire.frame, client.talk.services, server=ends[0])
            for frame in connection.frames(True, u32(7, 1, 0, 0) + bytes(50_000)):
                client.wire.frame(frame, True)

    tracemalloc.start()
    storm()
    first = tracemalloc.get_traced_memory()[0]
    storm()
    second = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert client.served.full
    assert len(client.wire._connections) <= capture.CONNECTIONS
    assert second - first < 1 << 20, (first, second)
