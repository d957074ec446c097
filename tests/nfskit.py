# SPDX-License-Identifier: Apache-2.0
"""An NFS server of the tests' own, versions 3 and 4.1, and frames as they pass between it and a client.

It keeps its files in memory and is written after RFC 1813, 5531, 5662 and 8881, without anything of sysmonlib: what
that reads here is encoded by other hands. The kernel of Linux can mount it; see serve().
"""

import contextlib
import itertools
import socket
import struct
import sys
import threading

from programs import ROOT

sys.path.insert(0, str(ROOT / "sysmon"))

SERVER, CLIENT = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])
PORT, THEIR_PORT = 2049, 812
NFS, MOUNT = 100003, 100005
FILE, DIRECTORY, LINK = 0o100000, 0o040000, 0o120000
KINDS = {FILE: 1, DIRECTORY: 2, LINK: 5}
NOENT, ACCES, EXIST, NOTDIR, NOTEMPTY, NOTSUPP = 2, 13, 17, 20, 66, 10004


def u32(*numbers):
    return struct.pack(f">{len(numbers)}I", *numbers)


def u64(*numbers):
    return struct.pack(f">{len(numbers)}Q", *numbers)


def opaque(octets):
    return u32(len(octets)) + octets + bytes(-len(octets) % 4)


class Taken:
    """Values out of octets that the tests trust."""

    def __init__(self, octets):
        self.octets, self.at = octets, 0

    def u32(self):
        self.at += 4
        return struct.unpack_from(">I", self.octets, self.at - 4)[0]

    def u64(self):
        self.at += 8
        return struct.unpack_from(">Q", self.octets, self.at - 8)[0]

    def fixed(self, count):
        self.at += count
        return self.octets[self.at - count : self.at]

    def opaque(self):
        return self.fixed((count := self.u32()) + -count % 4)[:count]

    def bitmap(self):
        return sum(self.u32() << 32 * word for word in range(self.u32()))


class Node:
    """A file or directory."""

    def __init__(self, fileid, mode):
        self.fileid, self.mode, self.data, self.children, self.change = fileid, mode, bytearray(), {}, 1
        self.parent, self.denied, self.opened = self, False, False

    @property
    def size(self):
        return 4096 if self.children is not None and self.mode & DIRECTORY == DIRECTORY else len(self.data)


class Failed(Exception):
    """The status of an operation."""


class Disk:
    """A file system; names are octets."""

    def __init__(self, fsid=7, first=100):
        self.fsid, self._numbers, self._cookies = fsid, itertools.count(first), itertools.count(10)
        self.nodes = {}
        self.root = self._node(DIRECTORY | 0o755)

    def _node(self, mode):
        made = Node(next(self._numbers), mode)
        self.nodes[made.fileid] = made
        return made

    def handle(self, node):
        return b"H" + u32(self.fsid) + u64(node.fileid) + bytes(3)

    def node(self, handle):
        with contextlib.suppress(KeyError, struct.error):
            return self.nodes[struct.unpack_from(">Q", handle, 5)[0]]
        raise Failed(70)  # NFS3ERR_STALE, NFS4ERR_STALE

    def find(self, directory, name):
        if directory.mode & DIRECTORY != DIRECTORY:
            raise Failed(NOTDIR)
        if name == b"..":
            return directory.parent
        if name not in directory.children:
            raise Failed(NOENT)
        return directory.children[name][1]

    def make(self, directory, name, mode=FILE | 0o644, data=b""):
        """A new file or directory *name*."""
        if name in directory.children:
            raise Failed(EXIST)
        node = self._node(mode)
        node.parent = directory
        node.data += data
        self.put(directory, name, node)
        return node

    def put(self, directory, name, node):
        directory.children[name] = (next(self._cookies), node)
        directory.change += 1

    def remove(self, directory, name):
        node = self.find(directory, name)
        if node.children:
            raise Failed(NOTEMPTY)
        del directory.children[name]
        directory.change += 1

    def rename(self, source, name, target, new):
        node = self.find(source, name)
        del source.children[name]
        self.put(target, new, node)
        source.change += 1

    def after(self, directory, cookie):
        """Cookie, name and node of the entries behind *cookie*."""
        found = ((number, name, node) for name, (number, node) in directory.children.items() if number > cookie)
        return sorted(found, key=lambda entry: entry[0])


class Nfs3:
    """Answers calls of NFS version 3, and of MOUNT version 3."""

    def __init__(self, disk, entries=1000, plus=True):
        """*entries*: in one reply; without *plus* READDIRPLUS is refused."""
        self.disk, self.entries, self.plus = disk, entries, plus

    def answer(self, program, procedure, args):
        """The results of a call."""
        if procedure == 0:
            return b""
        if program == MOUNT:
            return u32(0) + opaque(self.disk.handle(self.disk.root)) + u32(1, 1) if procedure == 1 else b""
        return getattr(self, f"_{procedure}", lambda args: u32(NOTSUPP))(args)

    def attributes(self, node):
        disk, kind = self.disk, KINDS[node.mode & 0o170000]
        head = u32(kind, node.mode & 0o7777, 1, 0, 0) + u64(node.size, node.size) + u32(0, 0)
        return head + u64(disk.fsid, node.fileid) + u32(1, 0, node.change, node.change, node.change, node.change)

    def _maybe(self, node):
        return u32(1) + self.attributes(node)

    def _wcc(self, node):
        return u32(1) + u64(node.size) + bytes(16) + self._maybe(node)

    def _1(self, args):
        return u32(0) + self.attributes(self.disk.node(args.opaque()))

    def _2(self, args):
        node = self.disk.node(args.opaque())
        self._set(node, args)
        return u32(0) + self._wcc(node)

    def _set(self, node, args):
        if args.u32():
            node.mode = node.mode & 0o170000 | args.u32() & 0o7777
        for _ in range(2):  # uid, gid
            if args.u32():
                args.u32()
        if args.u32():
            size = args.u64()
            node.data[size:] = bytes(max(0, size - len(node.data)))
        node.change += 1

    def _3(self, args):
        directory, name = self.disk.node(args.opaque()), args.opaque()
        try:
            found = self.disk.find(directory, name)
        except Failed as status:
            return u32(status.args[0]) + self._maybe(directory)
        return u32(0) + opaque(self.disk.handle(found)) + self._maybe(found) + self._maybe(directory)

    def _4(self, args):
        node = self.disk.node(args.opaque())
        return u32(0) + self._maybe(node) + u32(0 if node.denied else args.u32())

    def _6(self, args):
        node, start, count = self.disk.node(args.opaque()), args.u64(), args.u32()
        data = bytes(node.data[start : start + count])
        return u32(0) + self._maybe(node) + u32(len(data), start + len(data) >= node.size) + opaque(data)

    def _7(self, args):
        node, start = self.disk.node(args.opaque()), args.u64()
        args.u32(), args.u32()
        data = args.opaque()
        node.data[len(node.data) : start] = bytes(max(0, start - len(node.data)))
        node.data[start : start + len(data)] = data
        node.change += 1
        return u32(0) + self._wcc(node) + u32(len(data), 2) + bytes(8)

    def _8(self, args):
        directory, name, how = self.disk.node(args.opaque()), args.opaque(), args.u32()
        node = directory.children[name][1] if name in directory.children else self.disk.make(directory, name)
        if how != 2:  # EXCLUSIVE
            self._set(node, args)
        return u32(0, 1) + opaque(self.disk.handle(node)) + self._maybe(node) + self._wcc(directory)

    def _9(self, args):
        directory, name = self.disk.node(args.opaque()), args.opaque()
        node = self.disk.make(directory, name, DIRECTORY | 0o755)
        return u32(0, 1) + opaque(self.disk.handle(node)) + self._maybe(node) + self._wcc(directory)

    def _12(self, args):
        directory, name = self.disk.node(args.opaque()), args.opaque()
        try:
            self.disk.remove(directory, name)
        except Failed as status:
            return u32(status.args[0]) + self._wcc(directory)
        return u32(0) + self._wcc(directory)

    _13 = _12

    def _14(self, args):
        source, name, target, new = self.disk.node(args.opaque()), args.opaque(), None, None
        target, new = self.disk.node(args.opaque()), args.opaque()
        status = 0
        try:
            self.disk.rename(source, name, target, new)
        except Failed as failed:
            status = failed.args[0]
        return u32(status) + self._wcc(source) + self._wcc(target)

    def _15(self, args):
        node, target, name = self.disk.node(args.opaque()), self.disk.node(args.opaque()), args.opaque()
        self.disk.put(target, name, node)
        return u32(0) + self._maybe(node) + self._wcc(target)

    def _16(self, args, plus=False):
        directory, cookie = self.disk.node(args.opaque()), args.u64()
        if directory.denied:
            return u32(ACCES) + self._maybe(directory)
        dots = [(1, b".", directory), (2, b"..", directory.parent)]
        found = [entry for entry in dots if entry[0] > cookie] + self.disk.after(directory, cookie)
        out = u32(0) + self._maybe(directory) + bytes(8)
        for number, name, node in found[: self.entries]:
            out += u32(1) + u64(node.fileid) + opaque(name) + u64(number)
            out += self._maybe(node) + u32(1) + opaque(self.disk.handle(node)) if plus else b""
        return out + u32(0, len(found) <= self.entries)

    def _17(self, args):
        return self._16(args, plus=True) if self.plus else u32(NOTSUPP, 0)

    def _18(self, args):
        return u32(0) + self._maybe(self.disk.root) + u64(*6 * [1 << 40]) + u32(0)

    def _19(self, args):
        most = u32(*2 * (1 << 16, 1 << 16, 4096), 1 << 16)
        return u32(0) + self._maybe(self.disk.root) + most + u64(1 << 40) + u32(0, 1, 0x1B)

    def _20(self, args):
        return u32(0) + self._maybe(self.disk.root) + u32(32000, 255, 1, 1, 0, 1)

    def _21(self, args):
        return u32(0) + self._wcc(self.disk.node(args.opaque())) + bytes(8)


class Nfs4:
    """Answers COMPOUND of version 4.1, and of 4.0 but for its own way to begin."""

    supported = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 19, 20, 27, 28, 29, 30, 31, 33, 35, 36, 37, 41, 45}
    supported |= {47, 51, 52, 53, 55, 75}

    def __init__(self, disk, entries=1000):
        self.disk, self.entries = disk, entries

    def answer(self, program, procedure, args):
        """The results of a call."""
        if procedure == 0:
            return b""
        tag, _minor, count = args.opaque(), args.u32(), args.u32()
        self.current = self.saved = None
        out, done, status = b"", 0, 0
        for done in range(1, count + 1):  # noqa: B007 - how many there were
            number = args.u32()
            try:
                result = getattr(self, f"_{number}", self._none)(args)
                status = 0
            except Failed as failed:
                result, status = b"", failed.args[0]
            out += u32(number, status) + result
            if status:
                break
        return u32(status) + opaque(tag) + u32(done) + out

    def _none(self, args):
        raise Failed(NOTSUPP)

    def attributes(self, node, wanted):
        """fattr4."""
        owner = opaque(b"0")
        seconds = u64(1) + u32(0)
        bits = u32(*(sum(1 << bit % 32 for bit in self.supported if bit // 32 == word) for word in range(3)))
        values = {
            **{number: u32(1) for number in (5, 6, 9, 35)},
            **{number: u32(0) for number in (2, 7, 11, 13)},
            **{number: seconds for number in (47, 51, 52, 53)},
            **{0: u32(3) + bits, 1: u32(KINDS[node.mode & 0o170000]), 3: u64(node.change), 4: u64(node.size)},
            **{8: u64(self.disk.fsid, 5), 10: u32(90), 19: opaque(self.disk.handle(node)), 20: u64(node.fileid)},
            **{27: u64(1 << 40), 28: u32(32000), 29: u32(255), 30: u64(1 << 16), 31: u64(1 << 16)},
            **{33: u32(node.mode & 0o7777), 36: owner, 37: owner, 41: u32(0, 0), 45: u64(node.size)},
            **{55: u64(node.fileid), 75: u32(2, 0, 1 << 1)},
        }
        have = [number for number in sorted(self.supported) if wanted >> number & 1]
        mask = sum(1 << number for number in have)
        return u32(3, *(mask >> 32 * word & 0xFFFFFFFF for word in range(3))) + opaque(
            b"".join(values[n] for n in have)
        )

    def _set(self, node, args):
        wanted, values = args.bitmap(), Taken(args.opaque())
        if wanted >> 4 & 1:
            size = values.u64()
            node.data[size:] = bytes(max(0, size - len(node.data)))
        if wanted >> 33 & 1:
            node.mode = node.mode & 0o170000 | values.u32() & 0o7777
        node.change += 1
        return u32(2, wanted & 0xFFFFFFFF, wanted >> 32 & 0xFFFFFFFF)

    def _change(self, directory, before):
        return u32(1) + u64(before, directory.change)

    def _3(self, args):
        return u32(0x3F, 0 if self.current.denied else args.u32()) if not self.current.denied else u32(0x3F, 0)

    def _4(self, args):
        args.fixed(20)
        return bytes(16)

    def _5(self, args):
        args.fixed(12)
        return bytes(8)

    def _6(self, args):
        kind = args.u32()
        assert kind == 2
        name, directory = args.opaque(), self.current
        before = directory.change
        self.current = self.disk.make(directory, name, DIRECTORY | 0o755)
        return self._change(directory, before) + self._set(self.current, args)

    def _8(self, args):
        args.fixed(16)
        return b""

    def _9(self, args):
        return self.attributes(self.current, args.bitmap())

    def _10(self, args):
        return opaque(self.disk.handle(self.current))

    def _15(self, args):
        self.current = self.disk.find(self.current, args.opaque())
        return b""

    def _18(self, args):
        args.fixed(20)
        args.opaque()
        create, attributes = args.u32(), None
        if create and args.u32() in (2, 3):
            args.fixed(8)
        if create:
            attributes = (args.bitmap(), args.opaque())
        claim, directory = args.u32(), self.current
        before = directory.change
        if claim == 0:
            name = args.opaque()
            if create and name not in directory.children:
                self.disk.make(directory, name)
            self.current = self.disk.find(directory, name)
        if attributes and attributes[0] >> 33 & 1:
            self.current.mode = FILE | struct.unpack(">I", attributes[1][-4:])[0] & 0o7777
        return u32(1) + bytes(11) + b"\x01" + self._change(directory, before) + u32(4, 0, 0)

    def _22(self, args):
        self.current = self.disk.node(args.opaque())
        return b""

    def _24(self, args):
        self.current = self.disk.root
        return b""

    def _25(self, args):
        args.fixed(16)
        start, count = args.u64(), args.u32()
        data = bytes(self.current.data[start : start + count])
        return u32(start + len(data) >= self.current.size) + opaque(data)

    def _26(self, args):
        if self.current.denied:
            raise Failed(ACCES)
        cookie = args.u64()
        args.fixed(16)
        wanted = args.bitmap()
        found = self.disk.after(self.current, cookie)
        out = bytes(8)
        for number, name, node in found[: self.entries]:
            out += u32(1) + u64(number) + opaque(name) + self.attributes(node, wanted)
        return out + u32(0, len(found) <= self.entries)

    def _28(self, args):
        before = self.current.change
        self.disk.remove(self.current, args.opaque())
        return self._change(self.current, before)

    def _29(self, args):
        befores = [self.saved.change, self.current.change]
        self.disk.rename(self.saved, args.opaque(), self.current, args.opaque())
        return self._change(self.saved, befores[0]) + self._change(self.current, befores[1])

    def _31(self, args):
        self.current = self.saved
        return b""

    def _32(self, args):
        self.saved = self.current
        return b""

    def _34(self, args):
        args.fixed(16)
        return self._set(self.current, args)

    def _38(self, args):
        args.fixed(16)
        start, _, data, node = args.u64(), args.u32(), args.opaque(), self.current
        node.data[len(node.data) : start] = bytes(max(0, start - len(node.data)))
        node.data[start : start + len(data)] = data
        node.change += 1
        return u32(len(data), 2) + bytes(8)

    def _42(self, args):  # EXCHANGE_ID
        args.fixed(8)
        args.opaque()
        flags, how, count = args.u32(), args.u32(), args.u32()
        assert how == 0 and not flags & ~0xFFFFFFFF
        if count:
            args.opaque(), args.opaque(), args.fixed(12)
        return u64(9) + u32(1, 0x00010000, 0) + u64(0) + opaque(b"test") + opaque(b"test") + u32(0)

    def _43(self, args):  # CREATE_SESSION
        args.fixed(16)
        for _ in range(2):
            args.fixed(24)
            args.fixed(4 * args.u32())
        args.fixed(len(args.octets) - args.at)  # it is alone
        channel = u32(0, 1 << 20, 1 << 20, 4096, 16, 1, 0)
        return b"S" * 16 + u32(1, 0) + channel + channel

    def _44(self, args):
        args.fixed(16)
        return b""

    def _52(self, args):  # SECINFO_NO_NAME
        args.u32()
        return u32(1, 1)

    def _53(self, args):
        session, number, slot = args.fixed(16), args.u32(), args.u32()
        args.fixed(8)
        return session + u32(number, slot, 0, 0, 0)

    def _57(self, args):
        args.fixed(8)
        return b""

    def _58(self, args):
        args.u32()
        return b""


def answered(services, record):
    """The reply to the call in *record* by that of *services*, {(program, version): server}."""
    args = Taken(record)
    number, _, _, program, version, procedure = (args.u32() for _ in range(6))
    for _ in range(2):
        args.u32(), args.opaque()
    head = u32(number, 1, 0, 0, 0)
    server = services.get((program, version))
    if server is None:
        return head + u32(1)  # PROG_UNAVAIL
    try:
        return head + u32(0) + server.answer(program, procedure, args)
    except Failed as status:
        return head + u32(0, status.args[0], 0, 0)


@contextlib.contextmanager
def serve(services, address, port, inside=contextlib.nullcontext):
    """Answer at *address* and *port*; *inside* is entered to open the socket there."""
    lock = threading.Lock()

    def talk(peer):
        with contextlib.suppress(OSError, struct.error), peer:
            stream = peer.makefile("rb")
            while True:
                (mark,) = struct.unpack(">I", stream.read(4))
                record = stream.read(mark & 0x7FFFFFFF)
                with lock:
                    reply = answered(services, record)
                peer.sendall(u32(0x80000000 | len(reply)) + reply)

    def listen():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(server.accept()[0],), daemon=True).start()

    with inside():
        server = socket.create_server((address, port))
    threading.Thread(target=listen, daemon=True).start()
    try:
        yield lock
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


class Talk:
    """A client on the other side of a wire: its calls and the server's replies become frames for *wire*.

    *wire* is a function of a frame and whether it went to the client.
    """

    def __init__(self, wire, services, server=SERVER, port=PORT, largest=1400):
        self.wire, self.services, self.server, self.port, self.largest = wire, services, server, port, largest
        self.numbers, self.sequences, self.uid = itertools.count(0x1000), {False: 5, True: 2**32 - 300}, 0

    def frames(self, inwards, octets):
        """Those that carry *octets* in one direction."""
        record = u32(0x80000000 | len(octets)) + octets
        for start in range(0, len(record), self.largest):
            piece = record[start : start + self.largest]
            yield self.frame(inwards, piece)
            self.sequences[inwards] = (self.sequences[inwards] + len(piece)) % 2**32

    def frame(self, inwards, piece, flags=0x18):
        """One, of IPv4."""
        ports = (self.port, THEIR_PORT) if inwards else (THEIR_PORT, self.port)
        tcp = struct.pack(">HHIIBBHHH", *ports, self.sequences[inwards], 0, 0x50, flags, 65535, 0, 0) + piece
        ends = (self.server, CLIENT) if inwards else (CLIENT, self.server)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + b"".join(ends)
        return bytes(12) + b"\x08\x00" + ip + tcp

    def call(self, version, procedure, args):
        """Call the server, and return the results."""
        number = next(self.numbers)
        credentials = u32(1) + opaque(u32(0) + opaque(b"guest") + u32(self.uid, 0, 0))
        record = u32(number, 0, 2, NFS, version, procedure) + credentials + u32(0, 0) + args
        for frame in self.frames(False, record):
            self.wire(frame, False)
        reply = answered(self.services, record)
        for frame in self.frames(True, reply):
            self.wire(frame, True)
        return Taken(reply[24:])
