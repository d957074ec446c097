# SPDX-License-Identifier: Apache-2.0
"""The packets of a DHCPDISCOVER, and that of what comes back only a real offer is taken for one."""

import struct

import pytest
from dre import discover
from hypothesis import given
from hypothesis import strategies as st

MAC, NUMBER = b"\x02\0\0\0\0\x01", b"\x12\x34\x56\x78"


def offer(options, number=NUMBER, mac=MAC, op=2, ports=(67, 68), cookie=b"\x63\x82\x53\x63"):
    """An IP packet as a server sends it, made by RFC 2131 and not by our module."""
    bootp = struct.pack("!BBBB4sHH4s4s4s4s", op, 1, 6, 0, number, 0, 0, b"", b"\x0a\0\0\x05", b"", b"")
    bootp += mac.ljust(16, b"\0") + bytes(192) + cookie + options
    udp = struct.pack("!HHHH", *ports, 8 + len(bootp), 0) + bootp
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, b"\x0a\0\0\x01", b"\xff" * 4) + udp


GOOD = b"\x35\x01\x02\x36\x04\x0a\x00\x00\x02\xff"


def test_question():
    packet = discover.question(MAC, NUMBER)
    words = struct.unpack("!10H", packet[:20])
    total = sum(words)
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF  # RFC 1071
    assert struct.unpack_from("!HH", packet, 20) == (68, 67) and packet[16:20] == b"\xff" * 4
    bootp = packet[28:]
    assert (bootp[0], bootp[4:8], bootp[10], bootp[28:34]) == (1, NUMBER, 0x80, MAC)
    assert bootp[236:243] == b"\x63\x82\x53\x63\x35\x01\x01" and len(bootp) >= 300
    assert struct.unpack_from("!H", packet, 2)[0] == len(packet)


def test_offer():
    assert discover.answer(offer(GOOD), MAC, NUMBER) == discover.Offer("10.0.0.2", "10.0.0.5")
    assert discover.answer(offer(b"\0\0\x35\x01\x02\xff"), MAC, NUMBER).server == "10.0.0.1"  # names itself not


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        discover.question(MAC, NUMBER),  # our own, seen again
        offer(b"\x35\x01\x05\xff"),  # an acknowledgement
        offer(GOOD, number=b"\0\0\0\0"),
        offer(GOOD, mac=b"\x02\0\0\0\0\x02"),
        offer(GOOD, op=1),
        offer(GOOD, ports=(67, 67)),
        offer(GOOD, cookie=b"\0\0\0\0"),
        offer(b"\x35"),
        offer(b"\x35\xff\x02"),
        offer(GOOD)[:100],
        b"\x65" + offer(GOOD)[1:],
        b"\x41" + offer(GOOD)[1:],
    ],
)
def test_no_offer(packet):
    assert discover.answer(packet, MAC, NUMBER) is None


@given(st.binary(max_size=600), st.binary(max_size=300))
def test_anything_may_come(octets, options):
    for packet in (octets, offer(options)):
        found = discover.answer(packet, MAC, NUMBER)
        assert found is None or found.address
