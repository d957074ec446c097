# SPDX-License-Identifier: Apache-2.0
"""dre-sysmon io on guests that run: what it tells of frames, requests and keys is what they, the kernel and virsh say.

One guest is Debian's kernel with a server of TCP, the other a boot sector that writes to its disk for each key.
"""

import json
import re
import select
import signal
import socket
import subprocess
import threading
import time

import guest_ground
import pytest
from guest_ground import Talk
from programs import environment, program
from system_ground import NETWORK, Apart
from test_foxykbd_guest import LOGGER

ADDRESS, HOST = f"{NETWORK}.5", f"{NETWORK}.1"


def space(host):
    """The network of *host*."""
    return f"/proc/{host.first_pid()}/ns/net"


@pytest.fixture(scope="module")
def host():
    with Apart() as made:
        words = ("--memory", "128M", "--ip", f"{ADDRESS}/24")
        made.dre("create", "io-net", "--base", guest_ground.image(made), *words)
        made.dre("create", "io-keys", "--base", made.small("logger", LOGGER), "--ip", "none", "--memory", "64M")
        made.dre("start", "io-net", "io-keys")
        with Talk(ADDRESS, space(made)):
            pass  # it is up
        yield made


class Streamed:
    """dre-sysmon io at work; a `with`-block."""

    def __init__(self, host, name, *argv):
        words = [*host.inside, program("dre-sysmon"), "--config", host.conf, "io", name, *argv]
        self._process = subprocess.Popen(
            list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
        )
        self._timer = threading.Timer(120, self._process.kill)  # then next() fails
        self._timer.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()

    def speaks(self):
        """Whether there is something to read within a moment."""
        return bool(select.select([self._process.stdout], [], [], 0.1)[0])

    def next(self, **wanted):
        """The data of the next event in which these are."""
        for line in self._process.stdout:
            found = json.loads(line)
            data = {**found["data"], "type": found["type"]}
            if all(data.get(key) == value for key, value in wanted.items()):
                return data
        raise AssertionError(self._process.stderr.read())

    def end(self):
        """Interrupt it; the data of the rest."""
        self._process.send_signal(signal.SIGINT)
        out, said = self._process.communicate(timeout=20)
        assert self._process.returncode == 130, said
        return [json.loads(line)["data"] for line in out.splitlines()]


def tap(host, name):
    """The host's end of the link of a system, and the guest's address, as virsh says."""
    (row,) = [line.split() for line in host.virsh("domiflist", name).splitlines() if line.strip()]
    return row[0], row[4]


def packets(host, device):
    """How many the kernel has counted: to the guest, from it."""
    place = f"/sys/class/net/{device}/statistics"
    return [int(host.call("cat", f"{place}/{way}_packets").stdout) for way in ("tx", "rx")]


def settled(host, device):
    """The same, once neither has grown for two seconds: the guest's kernel acknowledges when it comes to it."""
    before, now = None, packets(host, device)
    while now != before:
        time.sleep(2)
        before, now = now, packets(host, device)
    return now


def test_each_frame_is_told_once_with_its_direction(host):
    device, mac = tap(host, "io-net")
    with Talk(ADDRESS, space(host)) as talk, Streamed(host, "io-net", "--net", "--head", "1000") as io:
        while not io.speaks():
            talk.ask()
        port = talk.peer.getsockname()[1]
        first = io.next(direction="in", to=f"{ADDRESS}:7")
        assert first["from"] == f"{HOST}:{port}" and first["target"] == mac
        for _ in range(3):
            talk.ask()
        counted = settled(host, device)
        marker = b"after this all is counted"
        talk.peer.sendall(marker + b"\n")
        assert talk.lines.readline().split(b" ", 1)[1] == marker + b"\n"
        for _ in range(20):
            talk.ask()
        more = [now - before for now, before in zip(settled(host, device), counted, strict=True)]
        rest = io.end()
    begin = next(number for number, one in enumerate(rest) if marker.hex() in one["head"])
    seen = rest[begin:]
    assert [sum(one["direction"] == way for one in seen) for way in ("in", "out")] == more
    answers = [one for one in seen if one["direction"] == "out" and talk.token.hex() in one["head"]]
    assert len(answers) == 21
    assert {(one["source"], one["from"], one["protocol"]) for one in answers} == {(mac, f"{ADDRESS}:7", "tcp")}


def test_a_frame_that_is_put_in_is_answered(host):
    """Who asks for its address is no host of this network: only the guest could answer there."""
    device, mac = tap(host, "io-net")
    asker, nobody = "02:00:00:00:00:99", f"{NETWORK}.77"
    ends = socket.inet_aton(nobody).hex() + "00" * 6 + socket.inet_aton(ADDRESS).hex()
    frame = "ff" * 6 + asker + "0806 0001 0800 06 04 0001" + asker + ends
    with Streamed(host, "io-net", "--net", "--send-frame", frame) as io:
        inserted = io.next(type="sysmon.io.inserted")
        assert (inserted["device"], inserted["kind"], inserted["octets"]) == (device, "arp", 42)
        assert io.next(direction="in", kind="arp")["head"] == inserted["head"]
        answer = io.next(direction="out", kind="arp", to=nobody)
    assert (answer["source"], answer["target"], answer["from"]) == (mac, asker, ADDRESS)
    spooled = (host.place / "state/spool/event/emitted.jsonl").read_text().splitlines()
    assert [json.loads(line)["data"]["sha256"] for line in spooled if "sysmon.io.inserted" in line] == [
        inserted["sha256"]
    ]


def test_a_frame_that_no_link_takes_is_refused(host):
    call = [program("dre-sysmon"), "--config", host.conf, "io"]
    long = host.call(*call, "io-net", "--send-frame", "ff" * 2000, check=False)
    assert long.returncode == 2 and "2000 octets" in long.stderr
    other = host.call(*call, "io-net", "--link", "lo", "--send-frame", "ff" * 20, check=False)
    assert other.returncode == 2 and "--link 'lo'" in other.stderr
    none = host.call(*call, "io-keys", "--send-frame", "ff" * 20, check=False)
    assert none.returncode == 6 and "io-keys" in none.stderr


def writes(host):
    """Of the disk of io-keys, as virsh has it: requests and octets."""
    text = host.virsh("domblkstat", "io-keys", "vda")
    return [int(re.search(rf"{word} (\d+)", text)[1]) for word in ("wr_req", "wr_bytes")]


def test_keys_that_are_pressed_arrive_and_what_they_cause_is_told(host):
    before = writes(host)
    with Streamed(host, "io-keys", "--block", "--input", "--send-keys", "a b", "--send-keys", "c") as io:
        assert io.next(type="sysmon.io.inserted")["keys"] == 3
        events = []
        while sum(one.get("writes", 0) for one in events) < 3 or sum(one.get("interrupts", 0) for one in events) < 6:
            events.append(io.next())
        events += io.end()
    now = writes(host)
    requests, octets = (sum(one.get(word, 0) for one in events) for word in ("writes", "written_octets"))
    assert [requests, octets] == [after - first for after, first in zip(now, before, strict=True)] == [3, 3 * 512]
    assert {one["device"] for one in events} == {"vda", "keyboard"}
    assert sum(one.get("interrupts", 0) for one in events) == 6  # each key down and up


def test_keys_alone_are_pressed_and_that_is_all(host):
    before = writes(host)
    done = host.call(program("dre-sysmon"), "--config", host.conf, "io", "io-keys", "--send-keys", "x")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["data"] == {"system": "io-keys", "device": "keyboard", "keys": 1}
    deadline = time.monotonic() + 20
    while writes(host)[0] != before[0] + 1:
        assert time.monotonic() < deadline


def test_a_guest_that_rests_is_streamed_on_and_one_that_ends_is_not(host):
    with Streamed(host, "io-keys") as io:
        host.dre("freeze", "io-keys")
        host.dre("thaw", "io-keys")
        before = writes(host)[0]
        host.virsh("send-key", "io-keys", "KEY_A")
        assert io.next(device="vda")["writes"] == 1 == writes(host)[0] - before
        host.dre("stop", "io-keys", "--timeout", "1")
        assert io._process.wait(20) == 6
        assert "io-keys" in io._process.stderr.read()
    missing = host.call(program("dre-sysmon"), "--config", host.conf, "io", "nosuch", check=False)
    assert (missing.returncode, missing.stdout) == (3, "")
    stopped = host.call(program("dre-sysmon"), "--config", host.conf, "io", "io-keys", check=False)
    assert (stopped.returncode, stopped.stdout) == (6, "")
