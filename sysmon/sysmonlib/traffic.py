# SPDX-License-Identifier: Apache-2.0
"""What passes through the devices of a running system, as it passes: of its links each frame, of its disks and its
keyboard how many requests, from one look at their counters to the next.

What a frame holds is the word of whoever sent it: only its length and the direction are known.
"""

import errno
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dre.errors import MissingError, UsageError

from sysmonlib import capture
from sysmonlib.devices import Devices
from sysmonlib.keyboard import KEYBOARD, MOUSE, Keyboard

KINDS = ("net", "block", "input")
NET, BLOCK, INPUT, DROPPED = "sysmon.io.net", "sysmon.io.block", "sysmon.io.input", "sysmon.io.dropped"
HEAD, MOST = 64, 1400  # octets of a frame that are told: if nothing is said, and at most, so that an event holds them
LOOK = 1.0  # seconds between two questions whether frames were lost
LEAST = 14  # octets of a frame: two addresses of Ethernet, and what follows
_STAMP = 35  # SO_TIMESTAMPNS, asm-generic/socket.h
_TIMESPEC = struct.Struct("@ll")
_KINDS = {0x0800: "ipv4", 0x0806: "arp", 0x86DD: "ipv6"}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_WITH_PORTS = ("tcp", "udp")
# What libvirt counts of a disk, and what it is called here.
_COUNTED = (
    ("rd.reqs", "reads"),
    ("rd.bytes", "read_octets"),
    ("wr.reqs", "writes"),
    ("wr.bytes", "written_octets"),
    ("fl.reqs", "flushes"),
)
Counts = Mapping[str, Mapping[str, int]]  # of each device, by what is counted


@dataclass(frozen=True)
class Passed:
    """Something that passed: the type of its event, when (seconds since the epoch), and the data."""

    type: str
    time: float
    data: Mapping[str, Any]


# --- frames ---


def described(frame: bytes, head: int = HEAD) -> dict[str, Any]:
    """What *frame*, as of Ethernet, says of itself, and its first *head* octets in hexadecimal digits."""
    found: dict[str, Any] = {"octets": len(frame)}
    if len(frame) >= LEAST:
        number = int.from_bytes(frame[12:14], "big")
        found |= {"source": frame[6:12].hex(":"), "target": frame[:6].hex(":")}
        found["kind"] = _KINDS.get(number, f"0x{number:04x}")
        found |= _within(found["kind"], frame[LEAST:])
    if head:
        found["head"] = frame[:head].hex()
    return found


def _within(kind: str, packet: bytes) -> dict[str, Any]:
    """From and to which address, and by which protocol, as far as *packet* is whole."""
    if kind == "arp" and len(packet) >= 28:
        return _ends(socket.AF_INET, packet[14:18], packet[24:28])
    if kind == "ipv4" and len(packet) >= 20:
        start, number = (packet[0] & 15) * 4, packet[9]
        ends, later = (socket.AF_INET, packet[12:16], packet[16:20]), int.from_bytes(packet[6:8], "big") & 0x1FFF
    elif kind == "ipv6" and len(packet) >= 40:
        start, number, later = 40, packet[6], 0
        ends = (socket.AF_INET6, packet[8:24], packet[24:40])
    else:
        return {}
    protocol = _PROTOCOLS.get(number, str(number))
    ports = packet[start : start + 4] if protocol in _WITH_PORTS and not later else b""
    return {"protocol": protocol, **_ends(*ends, *(struct.unpack(">HH", ports) if len(ports) == 4 else ()))}


def _ends(family: int, source: bytes, target: bytes, *ports: int) -> dict[str, str]:
    texts = [socket.inet_ntop(family, address) for address in (source, target)]
    if ports:
        bare = "{}:{}" if family == socket.AF_INET else "[{}]:{}"
        texts = [bare.format(text, port) for text, port in zip(texts, ports, strict=True)]
    return {"from": texts[0], "to": texts[1]}


def octets(text: str) -> bytes:
    """The frame that *text* has in hexadecimal digits, with blanks or colons between them or not. Raises UsageError."""
    try:
        frame = bytes.fromhex(text.replace(":", " "))
    except ValueError:
        raise UsageError(f"{text[:40]!r}: not hexadecimal digits, two for each octet") from None
    if len(frame) < LEAST:
        raise UsageError(f"{text[:40]!r}: a frame has at least {LEAST} octets: two addresses, and its kind")
    return frame


class Taps:
    """The frames on the taps *devices* of a guest, as long as it is entered. Raises NotPermittedError, MissingError."""

    def __init__(self, devices: Sequence[str], head: int = HEAD) -> None:
        self._devices, self._head = devices, head
        self.sockets: dict[socket.socket, str] = {}  # and the tap that each is of

    def __enter__(self) -> "Taps":
        try:
            for device in self._devices:
                one = capture.tapped(device)
                self.sockets[one] = device
                one.setsockopt(socket.SOL_SOCKET, _STAMP, 1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        for one in self.sockets:
            one.close()

    def read(self, one: socket.socket) -> Iterator[Passed]:
        """Some of what waits on *one* of the sockets."""
        for _ in range(capture.BATCH):
            try:
                frame, told, _, address = one.recvmsg(capture.FRAME, socket.CMSG_SPACE(_TIMESPEC.size))
            except BlockingIOError:
                return
            except OSError as error:
                raise capture.gone(self.sockets[one], error) from None
            direction = "in" if capture.inwards(address) else "out"
            data = {"device": self.sockets[one], "direction": direction, **described(frame, self._head)}
            yield Passed(NET, _moment(told), data)

    def lost(self) -> Iterator[Passed]:
        """What found no room since this was asked last."""
        for one, device in self.sockets.items():
            if count := capture.lost(one):
                yield Passed(DROPPED, time.time(), {"device": device, "frames": count})


def _moment(told: Sequence[tuple[int, int, bytes]]) -> float:
    """When the kernel saw a frame."""
    for level, kind, value in told:
        if (level, kind) == (socket.SOL_SOCKET, _STAMP) and len(value) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(value)
            return float(seconds) + float(nanoseconds) / 1e9
    return time.time()


# --- counters ---


class Counters:
    """Tells what *take* counts more than at the last look, as events of *type*."""

    def __init__(self, type: str, take: Callable[[], Counts]) -> None:
        self._type, self._take = type, take
        self._last, self._time = take(), time.time()

    def look(self) -> Iterator[Passed]:
        """What has passed since the last look; `seconds` is how long ago that was."""
        counts, now = self._take(), time.time()
        for device, figures in counts.items():
            before = self._last.get(device, {})
            more = {key: value - before.get(key, 0) for key, value in figures.items()}
            if any(more.values()):
                yield Passed(self._type, now, {"device": device, **more, "seconds": round(now - self._time, 3)})
        self._last, self._time = counts, now


def disks(devices: Devices) -> Callable[[], Counts]:
    """What takes the counters of the disks."""

    def take() -> Counts:
        found, _ = devices.figures(resting=True)
        return {name: {word: figures.get(key, 0) for key, word in _COUNTED} for name, figures in found.items()}

    return take


def keys(keyboard: Keyboard) -> Callable[[], Counts]:
    """What takes how much the guest was given of the keyboard and mouse of its PS/2 controller."""

    def take() -> Counts:
        count = keyboard.interrupts()
        return {"keyboard": {"interrupts": count.get(KEYBOARD, 0)}, "mouse": {"interrupts": count.get(MOUSE, 0)}}

    return take


# --- all of them ---


def stream(taps: Taps, counters: Sequence[Counters], interval: float) -> Iterator[list[Passed]]:
    """What passes, some at a time, for ever; counters are looked at each *interval* seconds.

    Raises MissingError when a tap, or the system, has gone away.
    """
    pause = interval if counters else LOOK
    due, asked = time.monotonic() + pause, time.monotonic()
    while True:
        ready, _, _ = select.select(list(taps.sockets), [], [], max(0.0, due - time.monotonic()))
        found = [passed for one in ready for passed in taps.read(one)]
        now = time.monotonic()
        if now >= due:
            found += [passed for counter in counters for passed in counter.look()]
            due = max(due + pause, now)
        if now >= asked + LOOK:
            found += taps.lost()
            asked = now
        if found:
            yield found


def link(taps: Sequence[str], wanted: str | None, name: str) -> str:
    """The tap to put a frame in by: *wanted*, or the one that the system *name* has. Raises DreError."""
    if wanted is not None and wanted not in taps:
        raise UsageError(f"--link {wanted!r}: {name} has {', '.join(taps) or 'none'}")
    if wanted is None and len(taps) > 1:
        raise UsageError(f"{name} has several links: say --link, one of {', '.join(taps)}")
    if not taps:
        raise MissingError(f"{name}: it has no network interface that can be read")
    return wanted or taps[0]


def put_in(device: str, frame: bytes) -> None:
    """Have the guest behind the tap *device* receive *frame*. Raises UsageError where it is too long, MissingError."""
    with capture.tapped(device) as one:
        try:
            one.send(frame)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                raise UsageError(f"a frame of {len(frame)} octets is more than {device} takes") from None
            raise MissingError(f"{device}: takes no frame: {error.strerror}") from None
