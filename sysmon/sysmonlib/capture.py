# SPDX-License-Identifier: Apache-2.0
"""What passes between a guest and its NFS server, seen on the taps of the guest, and told to sysmonlib.served.

A reply counts only where the host hands it to the tap: the guest could send a frame in the name of its server, but not
receive one by sending it. See packet(7) and tap devices in Linux' Documentation/networking/tuntap.rst.
"""

import ctypes
import select
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from dre.errors import MissingError, NotPermittedError

from sysmonlib import nfs3, nfs4
from sysmonlib.rpc import CALL, REPLY, Calls, Malformed, Records
from sysmonlib.served import Served
from sysmonlib.tcp import End, Stream, segment

CONNECTIONS = 16  # of one guest with its servers; the longest silent is forgotten
FRAME = 256 << 10  # with segmentation offload a frame is longer than any wire would have it
_BUFFER = 64 << 20  # octets of frames that wait to be read
BATCH = 64  # frames between two looks at whether to end
_ETH_P_ALL, _OUTGOING = 3, 4  # linux/if_ether.h, linux/if_packet.h
_SOL_PACKET, _STATISTICS = 263, 6
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33


class Connection:
    """One connection of TCP to a server: its streams, their records, and the calls that wait."""

    def __init__(self) -> None:
        self.asked, self.said = (Stream(), Records(CALL)), (Stream(), Records(REPLY))
        self.calls = Calls()


class Wire:
    """Frames of a guest to what *served* is told; *port* is that of NFS."""

    def __init__(self, served: Served, port: int) -> None:
        self.secured = False  # something is hidden by Kerberos or TLS
        self.forged = False  # two different segments were for one place
        self._served, self._port = served, port
        self._connections: OrderedDict[tuple[End, End], Connection] = OrderedDict()

    def frame(self, octets: bytes, inwards: bool) -> None:
        """*octets* went to the guest (*inwards*) or came from it."""
        found = segment(octets)
        if found is None:
            return
        server, client = (found.source, found.target) if inwards else (found.target, found.source)
        if server[1] != self._port:
            return
        connection = self._connections.get((client, server))
        if connection is None or (found.begins and not inwards):
            connection = self._connections[client, server] = Connection()
        self._connections.move_to_end((client, server))
        if len(self._connections) > CONNECTIONS:
            self._connections.popitem(last=False)
        stream, records = connection.said if inwards else connection.asked
        for piece, broken in stream.take(found):
            for record in records.take(piece, broken):
                try:
                    if inwards:
                        self._reply(server, connection, record)
                    else:
                        connection.calls.call(record)
                except Malformed:
                    pass  # what it told before is told, and what was not seen is missed by who compares
        self.secured = self.secured or connection.calls.secured
        self.forged = self.forged or stream.forged

    def _reply(self, server: End, connection: Connection, record: bytes) -> None:
        found = connection.calls.reply(record)
        if found is None:
            return
        call, results = found
        if call.version == 3:
            nfs3.take(self._served, server, call, results)
        elif call.version == 4:
            nfs4.take(self._served, server, call, results)


def _filter(port: int) -> bytes:
    """A program of classic BPF that lets TCP from and to *port* pass; see Linux' networking/filter.rst."""
    half, byte, indexed, header = 0x28, 0x30, 0x48, 0xB1  # loads; header: four times the low bits of an octet
    equal, any_set, give = 0x15, 0x45, 0x06
    passed, dropped = 18, 19
    lines = [  # what to do, its operand, and for a comparison the lines to go on at
        (half, 12, 0, 0),
        (equal, 0x0800, 2, 11),
        (byte, 23, 0, 0),
        (equal, 6, 4, dropped),
        (half, 20, 0, 0),
        (any_set, 0x3FFF, dropped, 6),  # a fragment
        (header, 14, 0, 0),
        (indexed, 14, 0, 0),
        (equal, port, passed, 9),
        (indexed, 16, 0, 0),
        (equal, port, passed, dropped),
        (equal, 0x86DD, 12, dropped),
        (byte, 20, 0, 0),
        (equal, 6, 14, dropped),
        (half, 54, 0, 0),
        (equal, port, passed, 16),
        (half, 56, 0, 0),
        (equal, port, passed, dropped),
        (give, 0xFFFFFFFF, 0, 0),
        (give, 0, 0, 0),
    ]
    octets = b""
    for number, (what, operand, yes, no) in enumerate(lines, 1):  # the kernel counts lines from the next one on
        jump = what in (equal, any_set)
        octets += struct.pack("=HBBI", what, yes - number if jump else 0, no - number if jump else 0, operand)
    return octets


class Capture:
    """Reads the taps *devices* of a guest, as long as it is entered, and tells *served*. Raises NotPermittedError."""

    def __init__(self, devices: Sequence[str], port: int, served: Served) -> None:
        self.wire = Wire(served, port)
        self._devices, self._port = devices, port
        self._sockets: dict[socket.socket, str] = {}  # and the taps that they read
        self._ended = threading.Event()
        self._emptied = threading.Condition()
        self._rounds = 0  # how often all that was there had been read
        self._error: BaseException | None = None
        self._dropped = 0
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "Capture":
        try:
            for device in self._devices:
                self._sockets[tapped(device, self._port)] = device
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._close()

    def _close(self) -> None:
        for one in self._sockets:
            one.close()

    def settle(self, patience: float = 5.0) -> bool:
        """Wait until what has come up to now is read; False where that took too long, or frames were lost."""
        deadline = time.monotonic() + patience
        with self._emptied:
            wanted = self._rounds + 2  # the round at work may have begun before
            while self._rounds < wanted and self._error is None:
                if not self._emptied.wait(deadline - time.monotonic()) and time.monotonic() > deadline:
                    return False
        if self._error is not None:
            raise self._error
        return self._lost() == 0

    def _lost(self) -> int:
        """Frames that found no room, since the capture began."""
        self._dropped += sum(map(lost, self._sockets))
        return self._dropped

    def _read(self) -> None:
        try:
            while not self._ended.is_set():
                ready, _, _ = select.select(list(self._sockets), [], [], 0.02)
                rest = [one for one in ready if not self._drained(one)]
                if not rest:
                    with self._emptied:
                        self._rounds += 1
                        self._emptied.notify_all()
        except BaseException as error:  # who waits is told
            with self._emptied:
                self._error = error
                self._emptied.notify_all()

    def _drained(self, one: socket.socket) -> bool:
        """Read some frames; whether there are no more."""
        for _ in range(BATCH):
            try:
                octets, address = one.recvfrom(FRAME)
            except BlockingIOError:
                return True
            except OSError as error:
                raise gone(self._sockets[one], error) from None
            self.wire.frame(octets, inwards=inwards(address))
        return False


def _attach(to: socket.socket, port: int) -> None:
    """Let through what _filter says; struct sock_fprog of linux/filter.h."""
    program = ctypes.create_string_buffer(_filter(port))
    description = struct.pack("HL", (len(program) - 1) // 8, ctypes.addressof(program))
    to.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, description)


def gone(device: str, error: OSError) -> MissingError:
    """What is raised when the tap *device* has gone away."""
    return MissingError(f"{device}: cannot be read any more: {error.strerror}")


def inwards(address: tuple[Any, ...]) -> bool:
    """Whether what was read with this sender, as of packet(7), went to the guest."""
    return bool(address[2] == _OUTGOING)


def lost(one: socket.socket) -> int:
    """Frames that found no room on *one*, since this was asked last: the kernel begins to count anew."""
    return int(struct.unpack("II", one.getsockopt(_SOL_PACKET, _STATISTICS, 8))[1])


def tapped(device: str, port: int | None = None) -> socket.socket:
    """A socket on which the frames of the tap *device* are read, those of TCP from and to *port* alone if it is given.

    What is sent on it goes to the guest. Raises NotPermittedError, and MissingError where there is no such device.
    """
    try:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    except PermissionError:
        raise NotPermittedError(f"to read what passes on {device} needs root") from None
    try:
        if port is not None:
            _attach(made, port)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        made.bind((device, _ETH_P_ALL))  # nothing comes before this
    except OSError as error:
        made.close()
        raise MissingError(f"{device}: cannot be read: {error.strerror}") from None
    return made
