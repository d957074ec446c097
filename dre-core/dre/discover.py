# SPDX-License-Identifier: Apache-2.0
"""Whether a DHCP server answers on a link: a DHCPDISCOVER, and no request, so that no lease is taken (RFC 2131).

It is asked under the link's own hardware address, whose lease, where it has one, the server offers again and leaves
as it is. The packets are made and read here, by AF_PACKET: port 68 may be another client's, and the link need not have
an address. What comes back is anybody's.
"""

import ipaddress
import os
import select
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

DEADLINE = 8.0  # seconds; dnsmasq first sees for 3 that nobody has the address
_AGAIN = 3.0  # seconds until it is asked once more
_CLIENT, _SERVER = 68, 67
_ETH_P_IP = 0x0800
_UDP = 17
_COOKIE = b"\x63\x82\x53\x63"
_KIND, _WHO, _END, _PAD = 53, 54, 255, 0  # options of RFC 2132
_DISCOVER, _OFFER = 1, 2
_BROADCAST = 0x8000  # flag: answer all, for this link has no address
_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")


@dataclass(frozen=True)
class Offer:
    """The address that *server* would give."""

    server: str
    address: str


def ask(link: str, deadline: float = DEADLINE) -> Offer | None:
    """The first offer that comes within *deadline* seconds. Raises OSError; PermissionError without CAP_NET_RAW."""
    mac = bytes.fromhex(Path("/sys/class/net", link, "address").read_text().strip().replace(":", ""))
    number = os.urandom(4)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)) as packets:
        packets.bind((link, _ETH_P_IP))
        end, again = time.monotonic() + deadline, 0.0
        while (left := end - time.monotonic()) > 0:
            if time.monotonic() >= again:
                again = time.monotonic() + _AGAIN
                packets.sendto(question(mac, number), (link, _ETH_P_IP, 0, 0, b"\xff" * 6))
            if select.select([packets], [], [], min(left, max(0.0, again - time.monotonic())))[0]:
                offer = answer(packets.recv(2048), mac, number)
                if offer:
                    return offer
    return None


def question(mac: bytes, number: bytes) -> bytes:
    """The IP packet of a DHCPDISCOVER of *mac*; *number* is the transaction's, four octets."""
    fixed = _FIXED.pack(
        *(1, 1, len(mac), 0, int.from_bytes(number, "big"), 0, _BROADCAST, *[bytes(4)] * 4, mac, b"", b"", _COOKIE)
    )
    message = fixed + bytes([_KIND, 1, _DISCOVER, _END])
    message += bytes(300 - len(message))  # what some servers want at least
    # No checksum is needed for UDP over IPv4: RFC 768.
    datagram = struct.pack("!HHHH", _CLIENT, _SERVER, 8 + len(message), 0) + message
    size = 20 + len(datagram)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0x10, size, 0, 0, 64, _UDP, 0, bytes(4), b"\xff" * 4)
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + datagram


def answer(packet: bytes, mac: bytes, number: bytes) -> Offer | None:
    """The offer in the IP *packet*, if it is one to that question."""
    begin = (packet[0] & 15) * 4 if packet else 0
    if begin < 20 or packet[0] >> 4 != 4 or len(packet) < begin + 8 + _FIXED.size or packet[9] != _UDP:
        return None
    source, target, _, _ = struct.unpack_from("!HHHH", packet, begin)
    fields = _FIXED.unpack_from(packet, begin + 8)
    known = (fields[0], fields[4], fields[11][: len(mac)], fields[14])
    if (source, target) != (_SERVER, _CLIENT) or known != (2, int.from_bytes(number, "big"), mac, _COOKIE):
        return None
    options = _options(packet[begin + 8 + _FIXED.size :])
    if options.get(_KIND) != bytes([_OFFER]):
        return None
    server = options.get(_WHO, b"")
    if len(server) != 4:  # else who sent it
        server = packet[12:16]
    return Offer(str(ipaddress.IPv4Address(server)), str(ipaddress.IPv4Address(fields[8])))


def _options(octets: bytes) -> dict[int, bytes]:
    """The first of each option; what is cut off is left out."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(octets) and octets[at] != _END:
        if octets[at] == _PAD:
            at += 1
            continue
        size = octets[at + 1] if at + 1 < len(octets) else 256
        if at + 2 + size > len(octets):
            break
        found.setdefault(octets[at], octets[at + 2 : at + 2 + size])
        at += 2 + size
    return found


def _checksum(head: bytes) -> int:
    """That of an IP header: RFC 791."""
    total: int = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
