# SPDX-License-Identifier: Apache-2.0
"""An interface of the host as a port of the bridge: its addresses go there and back, and nobody is locked out.

`ip` is the witness, and a TCP connection through the interface that has to live through all of it.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import time

import pytest
from app_ground import wait_for
from bridge_ground import BRIDGE, SETTINGS, attach, make_router, spaces
from conftest import environment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
GATEWAY, GATEWAY6 = "10.231.103.2", "fd00:d2:103::2"
KILLS = int(os.environ.get("DRE_KILLS", "2"))

ECHO = """
import socket
with socket.create_server(("", 7)) as server:
    while True:
        talk, _ = server.accept()
        with talk:
            while (octets := talk.recv(100)):
                talk.sendall(octets)
"""
TALK = """
import socket, sys
with socket.create_connection((sys.argv[1], 7), 20) as talk:
    for line in sys.stdin.buffer:
        talk.sendall(line)
        sys.stdout.buffer.write(talk.recv(100))
        sys.stdout.flush()
"""


@pytest.fixture
def space(settings):
    with spaces(settings) as create:
        yield create


@pytest.fixture
def host(space):
    """Its up0 has all that can be moved: lifetimes, labels, metrics, IPv6, a second table."""
    made = make_router(space)
    made.out.run("ip", "addr", "add", f"{GATEWAY6}/64", "dev", "eth0", "nodad")
    lines = (
        "addr add 10.231.103.9/24 dev up0 label up0:9",
        "addr add 10.231.107.1/24 broadcast + dev up0 valid_lft 9000 preferred_lft 5000 metric 77",
        "addr add 10.231.108.1 peer 10.231.108.2 dev up0",
        "addr add fd00:d2:103::1/64 dev up0 nodad",
        "addr add fd00:d2:104::1/64 dev up0 nodad noprefixroute valid_lft 8000 preferred_lft 0",
        f"route add 10.231.112.0/24 nexthop via {GATEWAY} weight 2 nexthop via 10.231.107.2 dev up0 onlink",
        f"route add 10.231.109.0/24 via {GATEWAY} metric 50 mtu 1400 proto static src 10.231.103.9",
        f"route add default via {GATEWAY} dev up0 table 200 proto 99",
        f"-6 route add default via {GATEWAY6} dev up0 proto ra expires 7000 pref high",
        "-6 route append default via fd00:d2:103::3 dev up0 metric 1024 proto ra",
        "-6 route add fd00:d2:105::/64 dev up0 proto static metric 5",
    )
    made.run("sh", "-ec", "".join(f"ip {line}\n" for line in lines))
    return made


def has(host, link):
    """What *link* has, and when it ends, in a form that can be compared: ends may differ by the seconds of a test."""

    def plain(row):
        left_out = ("dev", "flags", "nodad", "secondary", "dynamic")
        kept = {key: value for key, value in row.items() if key not in left_out}
        if "label" in kept:
            kept["label"] = kept["label"].replace(link, "IF")
        for key in ("expires", "valid_life_time", "preferred_life_time"):
            if key in kept:
                kept[key] = -(-kept[key] // 1000)  # in thousands, upwards
        return json.dumps(kept, sort_keys=True)

    found = json.loads(host.run("ip", "-j", "-d", "addr", "show", "dev", link))[0]["addr_info"]
    own = ("10.231.102.", "fe80:")
    rows = [plain(row) for row in found if not row["local"].startswith(own)]
    for family in ("-4", "-6"):
        for row in json.loads(host.run("ip", "-j", "-d", family, "route", "show", "table", "all")):
            ways = row.get("nexthops", [row])
            if row.get("protocol") != "kernel" and all(way.get("dev") == link for way in ways):
                rows.append(plain({**row, "nexthops": sorted(plain(way) for way in ways)}))
    return sorted(rows)


def everything(host):
    """All that the host has, by names; what IPv6 makes of hardware addresses comes late, and is not compared."""
    links = {name: (link["address"], link.get("master"), "UP" in link["flags"]) for name, link in host.links().items()}
    return links, has(host, "up0")


@contextlib.contextmanager
def connection(host):
    """talk(TEXT) → what the other side of one TCP connection through up0 says to it."""
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen(["ip", "netns", "exec", host.out.name, "/usr/bin/python3", "-c", ECHO])
        stack.callback(server.wait)
        stack.callback(server.kill)
        assert wait_for(lambda: ":7 " in host.out.run("ss", "-Htln"))
        words = ["ip", "netns", "exec", host.name, "/usr/bin/python3", "-c", TALK, GATEWAY]
        client = stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))

        def talk(text):
            client.stdin.write(text.encode() + b"\n")
            client.stdin.flush()
            return client.stdout.readline().decode().strip()

        yield talk
        client.stdin.close()
        assert client.wait(10) == 0


def test_there_and_back_with_all_that_it_has(host):
    before, links = has(host, "up0"), everything(host)
    assert len(before) == 12, before  # two by IPv6 are one by two gateways
    with connection(host) as talk:
        assert talk("one") == "one"
        done = host.bridge("migrate-uplink", "up0")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        assert talk("two") == "two"
        assert has(host, "up0") == []
        assert has(host, BRIDGE) == before
        row = json.loads(host.bridge("show", "--json").stdout)
        assert (row["uplink"], row["ports"], row["mac"]) == ("up0", ["up0"], host.links()["up0"]["address"])
        assert host.addresses(BRIDGE)[0] == "10.231.102.1/24"
        for _ in range(2):  # the second has nothing to do
            assert host.bridge("migrate-uplink", "up0").returncode == 0
            assert host.bridge("up").returncode == 0
            assert has(host, BRIDGE) == before
        assert talk("three") == "three"
        for _ in range(2):
            assert host.bridge("migrate-uplink", "--back", "up0").returncode == 0
            assert has(host, "up0") == before
            assert has(host, BRIDGE) == []
        assert talk("four") == "four"
    assert host.bridge("down").returncode == 0
    assert everything(host) == links


def test_what_changed_on_the_bridge_goes_back(host):
    assert host.bridge("migrate-uplink", "up0").returncode == 0
    host.run("ip", "addr", "add", "10.231.103.77/24", "dev", BRIDGE)
    host.run("ip", "addr", "del", "10.231.107.1/24", "dev", BRIDGE)
    assert host.bridge("migrate-uplink", "--back", "up0").returncode == 0
    assert "10.231.103.77/24" in host.addresses("up0")
    assert "10.231.107.1/24" not in host.addresses("up0")
    assert host.addresses(BRIDGE) == ["10.231.102.1/24"]


def test_containers_reach_the_outside_by_the_bridge_itself(host, space):
    app = space("a")
    assert host.bridge("up").returncode == 0
    attach(host, app, 11)
    assert host.bridge("migrate-uplink", "up0").returncode == 0
    for _ in range(3):  # and again when it could have been told a shorter way
        assert app.ping(GATEWAY)
    assert "redirect" not in app.run("ip", "route", "get", GATEWAY)
    assert host.bridge("migrate-uplink", "--back", "up0").returncode == 0
    assert wait_for(lambda: app.ping(GATEWAY))


BLOCK = """table arp block { chain in { type filter hook input priority 0; iifname "%s" drop; }; }
table ip6 block { chain in { type filter hook input priority 0; iifname "%s" icmpv6 type nd-neighbor-advert drop; }; }
"""


def block(host, link):
    """Have nobody be reached by *link*."""
    subprocess.run(
        ["ip", "netns", "exec", host.name, "nft", "-f", "-"],
        input=(BLOCK % (link, link)).encode(),
        check=True,
        timeout=10,
    )


def test_an_unreachable_gateway_undoes_it(host):
    assert host.bridge("up").returncode == 0
    before = everything(host)
    block(host, BRIDGE)
    done = host.bridge("migrate-uplink", "up0", "--timeout", "1")
    assert done.returncode == 5
    assert re.fullmatch(
        rf"dre-bridge: {BRIDGE}: {GATEWAY}, {GATEWAY6} did not answer within 1 s; .*\n", done.stderr.decode()
    )
    assert everything(host) == before


def test_an_unreachable_gateway_undoes_the_way_back(host):
    assert host.bridge("migrate-uplink", "up0").returncode == 0
    before = has(host, BRIDGE)
    block(host, "up0")
    assert host.bridge("migrate-uplink", "--back", "up0", "--timeout", "1").returncode == 5
    assert (has(host, BRIDGE), has(host, "up0")) == (before, [])
    assert host.links()["up0"]["master"] == BRIDGE
    assert host.ping(GATEWAY)


def test_nothing_is_begun_when_nobody_answers_before(host):
    before = everything(host)
    host.out.run("ip", "link", "set", "eth0", "down")
    done = host.bridge("migrate-uplink", "up0", "--timeout", "300ms")
    assert (done.returncode, b"nothing was changed" in done.stderr) == (5, True)
    assert BRIDGE not in host.links()
    done = host.bridge("migrate-uplink", "up0", "--timeout", "300ms", "--check", "10.231.103.99")
    assert (done.returncode, b"10.231.103.99: does not answer now" in done.stderr) == (5, True)
    host.out.run("ip", "link", "set", "eth0", "up")
    assert wait_for(lambda: everything(host) == before)


def test_who_has_to_answer_can_be_chosen(host):
    host.out.run("ip", "addr", "add", "10.231.110.1/32", "dev", "lo")
    host.run("ip", "route", "add", "10.231.110.1/32", "via", GATEWAY)
    before = everything(host)
    chain = "ip lost in { type filter hook input priority 0; }"
    drop = f'ip lost in iifname "{BRIDGE}" ip saddr 10.231.110.1 drop'
    host.run("nft", f"add table ip lost; add chain {chain}; add rule {drop}")
    done = host.bridge("migrate-uplink", "up0", "--timeout", "500ms", "--check", "10.231.110.1")
    assert (done.returncode, b"10.231.110.1 did not answer" in done.stderr) == (5, True)
    assert host.bridge("down").returncode == 0
    assert everything(host) == before
    assert host.bridge("migrate-uplink", "up0", "--timeout", "500ms").returncode == 0  # the gateway does answer


def test_a_terminal_that_hangs_up_does_not_stop_it(host):
    before = has(host, "up0")
    with subprocess.Popen(host.argv("migrate-uplink", "up0"), env=environment(), process_group=0) as caller:
        assert wait_for(lambda: BRIDGE in host.links())
        os.killpg(caller.pid, signal.SIGHUP)
    assert wait_for(lambda: not workers(host))
    assert (has(host, BRIDGE), has(host, "up0")) == (before, [])


def workers(host):
    """The processes of dre-bridge on that host."""
    found = []
    for pid in host.run("ip", "netns", "pids", host.name).split():
        with contextlib.suppress(OSError):
            words = pathlib.Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
            if any(word.endswith(b"/dre-bridge") for word in words):
                found.append(int(pid))
    return found


def kill(host, caller, everybody):
    """Kill the one who was called, or the worker too."""
    pids = workers(host) if everybody else [caller.pid]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("back", [(), ("--back",)])
def test_killed_at_any_moment_the_next_call_heals(host, back):
    before = has(host, "up0")
    with connection(host) as talk:
        for count in range(KILLS):
            if back:
                assert host.bridge("migrate-uplink", "up0").returncode == 0
            with subprocess.Popen(host.argv("migrate-uplink", *back, "up0"), env=environment()) as caller:
                time.sleep(random.uniform(0.1, 0.6))  # the moment is what is tested, not a wait for something
                kill(host, caller, True)
            assert host.bridge("recover").returncode == 0
            places = sorted([has(host, "up0"), has(host, BRIDGE) if BRIDGE in host.links() else []])
            assert places == [[], before]
            assert (host.links()["up0"].get("master") == BRIDGE) == (has(host, "up0") == [])
            assert talk(f"number {count}") == f"number {count}"
            assert host.bridge("migrate-uplink", "--back", "up0").returncode == 0
            assert has(host, "up0") == before
    assert host.bridge("down").returncode == 0


def test_the_caller_killed_all_is_done_to_the_end(host):
    before = has(host, "up0")
    with subprocess.Popen(host.argv("migrate-uplink", "up0"), env=environment()) as caller:
        assert wait_for(lambda: BRIDGE in host.links())
        kill(host, caller, False)
    assert wait_for(lambda: not workers(host))
    assert has(host, BRIDGE) == before


def test_the_worker_killed_its_caller_takes_all_back(host):
    before = everything(host)
    block(host, BRIDGE)  # so that it waits, long enough to be caught at it
    argv = host.argv("migrate-uplink", "--timeout", "60", "up0")
    with subprocess.Popen(argv, env=environment(), stderr=subprocess.PIPE) as caller:
        assert wait_for(lambda: host.links()["up0"].get("master") == BRIDGE and not has(host, "up0"))
        parents = {pid: int(pathlib.Path(f"/proc/{pid}/stat").read_text().split()[3]) for pid in workers(host)}
        worker = next(pid for pid, parent in parents.items() if parent in parents)
        os.kill(worker, signal.SIGKILL)
        assert caller.wait(60) == 1
        assert b"was killed; they were taken back" in caller.stderr.read()
    assert host.bridge("down").returncode == 0
    assert everything(host) == before


def test_a_bridge_removed_by_hand_gives_the_addresses_back(host):
    before = has(host, "up0")
    assert host.bridge("migrate-uplink", "up0").returncode == 0
    host.run("ip", "link", "del", BRIDGE)
    assert has(host, "up0") == []
    assert host.bridge("up").returncode == 0
    assert has(host, "up0") == before
    assert host.ping(GATEWAY)


def test_down_refuses_while_it_has_the_addresses(host):
    assert host.bridge("migrate-uplink", "up0").returncode == 0
    for words in ((), ("--force",)):
        done = host.bridge("down", *words)
        assert (done.returncode, b"first dre-bridge migrate-uplink --back up0" in done.stderr) == (1, True)
    assert host.ping(GATEWAY)


def plain(host):
    """A second interface, without addresses; its peer is a neighbour at 10.231.102.200."""
    host.run("ip", "link", "add", "up1", "type", "veth", "peer", "name", "eth1", "netns", host.out.name)
    host.out.run("ip", "addr", "add", "10.231.102.200/24", "dev", "eth1")
    host.out.run("ip", "link", "set", "eth1", "up")


def test_an_interface_without_addresses_becomes_a_port(host):
    plain(host)
    for _ in range(2):
        assert host.bridge("up", "--uplink", "up1").returncode == 0
        assert host.ping("10.231.102.200")
    assert json.loads(host.bridge("show", "--json").stdout)["uplink"] == "up1"
    assert host.bridge("up").returncode == 0
    assert host.links()["up1"]["master"] == BRIDGE
    done = host.bridge("up", "--uplink", "up0")
    assert (done.returncode, b"has up1 as its uplink already" in done.stderr) == (1, True)
    assert host.bridge("migrate-uplink", "--back", "up1").returncode == 0
    assert "master" not in host.links()["up1"]
    assert host.bridge("up", "--uplink", "up1").returncode == 0
    assert host.bridge("down").returncode == 0  # which needs no --force for that
    assert "master" not in host.links()["up1"]


def test_the_settings_can_name_it(host, settings):
    plain(host)
    settings(**SETTINGS, DRE_BRIDGE_UPLINK="up1")
    assert host.bridge("up").returncode == 0
    assert host.links()["up1"]["master"] == BRIDGE
    assert host.bridge("down").returncode == 0
    settings(**SETTINGS, DRE_BRIDGE_UPLINK="up0")  # whose addresses must not be lost, nor must apps wait for it
    done = host.bridge("up")
    assert (done.returncode, b"dre-bridge migrate-uplink up0 moves that" in done.stderr) == (0, True)
    assert "master" not in host.links()["up0"]
    settings(**SETTINGS, DRE_BRIDGE_UPLINK="up9")
    done = host.bridge("up")
    assert (done.returncode, b"without its uplink: up9: no such interface" in done.stderr) == (0, True)


@pytest.mark.parametrize("words", [("up", "--uplink"), ("migrate-uplink",)])
def test_what_cannot_be_one_is_refused(host, words):
    host.run("ip", "link", "add", "other0", "type", "bridge")
    host.run("ip", "link", "add", "in0", "type", "veth", "peer", "name", "in1")
    host.run("ip", "link", "set", "in0", "master", "other0")
    assert host.bridge("up").returncode == 0
    before = everything(host)
    for link, code, reason in (
        ("none0", 3, "no such interface"),
        ("in0", 1, "is in other0 already"),
        ("other0", 1, "is a bridge"),
        (BRIDGE, 1, "is a bridge"),
        ("lo", 1, "is no Ethernet interface"),
    ):
        done = host.bridge(*words, link)
        assert (done.returncode, reason in done.stderr.decode()) == (code, True), done.stderr
    assert everything(host) == before


def test_one_with_addresses_is_no_plain_port(host):
    done = host.bridge("up", "--uplink", "up0")
    assert (done.returncode, b"dre-bridge migrate-uplink up0 moves that" in done.stderr) == (1, True)
    assert "master" not in host.links()["up0"]
    assert host.ping(GATEWAY)


def test_routes_that_could_not_be_made_again_are_refused(host):
    plain(host)
    host.run("ip", "link", "set", "up1", "up")
    hops = ["nexthop", "via", GATEWAY, "nexthop", "via", "10.231.114.2", "dev", "up1", "onlink"]
    host.run("ip", "route", "add", "10.231.111.0/24", *hops)
    before = everything(host)
    done = host.bridge("migrate-uplink", "up0")
    assert (done.returncode, b"its route to 10.231.111.0/24 leads to other interfaces" in done.stderr) == (1, True)
    assert everything(host) == before


def test_a_bridge_of_others_gets_none(host):
    plain(host)
    host.run("ip", "link", "add", BRIDGE, "type", "bridge")
    before = everything(host)
    for words in (("up", "--uplink", "up1"), ("migrate-uplink", "up0"), ("migrate-uplink", "--back", "up0")):
        done = host.bridge(*words)
        assert (done.returncode, b"not made by dre-bridge" in done.stderr) == (1, True)
    assert everything(host) == before
