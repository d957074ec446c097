# SPDX-License-Identifier: Apache-2.0
"""dre-sysmon io: what is told of a frame, whatever it holds, and of counters from one look to the next."""

import socket
import struct
import sys

import pytest
from conftest import ROOT
from dre import event
from dre.errors import MissingError, UsageError
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "sysmon"))
from sysmonlib import traffic  # noqa: E402

ETHERNET = bytes.fromhex("525400000001 525400000002")


def ipv4(protocol, payload, fragment=0, options=b""):
    words = struct.pack(">BBHHHBBH", 0x40 | 5 + len(options) // 4, 0, 20 + len(payload), 7, fragment, 64, protocol, 0)
    return ETHERNET + b"\x08\0" + words + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + options + payload


def ipv6(protocol, payload):
    ends = socket.inet_pton(socket.AF_INET6, "fe80::1") + socket.inet_pton(socket.AF_INET6, "fe80::2")
    return ETHERNET + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload


PORTS = struct.pack(">HH", 40000, 53) + bytes(4)


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (ipv4(17, PORTS), {"kind": "ipv4", "protocol": "udp", "from": "10.0.0.1:40000", "to": "10.0.0.2:53"}),
        (ipv4(6, PORTS, options=bytes(8)), {"protocol": "tcp", "from": "10.0.0.1:40000", "to": "10.0.0.2:53"}),
        (ipv4(17, PORTS, fragment=0x0001), {"protocol": "udp", "from": "10.0.0.1", "to": "10.0.0.2"}),
        (ipv4(17, PORTS[:3]), {"protocol": "udp", "from": "10.0.0.1"}),
        (ipv4(1, bytes(8)), {"protocol": "icmp", "from": "10.0.0.1", "to": "10.0.0.2"}),
        (ipv4(132, PORTS), {"protocol": "132", "to": "10.0.0.2"}),
        (ipv6(6, PORTS), {"kind": "ipv6", "protocol": "tcp", "from": "[fe80::1]:40000", "to": "[fe80::2]:53"}),
        (
            ETHERNET + bytes.fromhex("0806 0001 0800 06 04 0001 525400000002 0a000001 000000000000 0a000002"),
            {"kind": "arp", "from": "10.0.0.1", "to": "10.0.0.2", "octets": 42},
        ),
        (ETHERNET + b"\x88\xcc" + bytes(9), {"kind": "0x88cc", "source": "52:54:00:00:00:02"}),
        (ipv4(17, PORTS)[:30], {"kind": "ipv4", "octets": 30, "target": "52:54:00:00:00:01"}),
        (b"short", {"octets": 5, "head": b"short".hex()}),
    ],
)
def test_what_a_frame_says_is_told(frame, told):
    found = traffic.described(frame)
    assert {key: found.get(key) for key in told} == told
    assert found["head"] == frame[:64].hex()


@pytest.mark.parametrize("frame", [ipv4(17, PORTS)[:30], ETHERNET + b"\x08\x06" + bytes(20), ETHERNET])
def test_what_is_not_whole_is_not_told(frame):
    assert {"from", "to", "protocol"} & set(traffic.described(frame)) == set()


@given(st.binary(max_size=3000), st.sampled_from([b"", ETHERNET + b"\x08\0", ETHERNET + b"\x86\xdd"]))
def test_any_frame_makes_an_event(rest, start):
    data = {"system": "s" * 31, "device": "x" * 15, "direction": "out", **traffic.described(start + rest, traffic.MOST)}
    line = event.new_line(event.Event(event.stamp(0), "/host:" + "h" * 64 + "/sys:" + "s" * 31, traffic.NET, 6, data))
    assert event.parse(line).data["octets"] == len(start + rest)


def test_no_head_is_told_if_none_is_wanted():
    assert "head" not in traffic.described(ipv4(17, PORTS), 0)


@pytest.mark.parametrize("text", ["ffffffffffff 525400000002 0806 01", "ff:ff:ff:ff:ff:ff:52:54:00:00:00:02:08:06:01"])
def test_a_frame_to_send_is_read(text):
    assert traffic.octets(text) == b"\xff" * 6 + bytes.fromhex("525400000002080601")


@pytest.mark.parametrize("text", ["", "ff", "zz" * 20, "f" * 41, "ff" * 13])
def test_what_is_no_frame_is_refused(text):
    with pytest.raises(UsageError, match="octet"):
        traffic.octets(text)


def test_counters_tell_what_is_more_and_nothing_of_what_rests():
    count = {"vda": {"writes": 5, "reads": 1}, "vdb": {"writes": 0, "reads": 0}}
    counters = traffic.Counters(traffic.BLOCK, lambda: {name: dict(one) for name, one in count.items()})
    assert list(counters.look()) == []
    count["vda"]["writes"] = 8
    count["vdc"] = {"writes": 2}
    found = {passed.data["device"]: passed.data for passed in counters.look()}
    assert found.keys() == {"vda", "vdc"}
    assert (found["vda"]["writes"], found["vda"]["reads"], found["vdc"]["writes"]) == (3, 0, 2)
    assert list(counters.look()) == []


def test_the_link_of_a_frame_is_said_where_there_are_several():
    assert traffic.link(["tap0"], None, "pay1") == "tap0"
    assert traffic.link(["tap0", "tap1"], "tap1", "pay1") == "tap1"
    for taps, wanted, error in ((["a", "b"], None, UsageError), (["a"], "b", UsageError), ([], None, MissingError)):
        with pytest.raises(error, match="pay1"):
            traffic.link(taps, wanted, "pay1")
