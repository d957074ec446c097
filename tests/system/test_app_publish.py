# SPDX-License-Identifier: Apache-2.0
"""A published port of the host leads to its app while it runs, from everywhere, and to nobody else."""

import contextlib
import json
import os
import socket
import subprocess
import time

import net_ground
import pytest
from app_ground import wait_for
from conftest import environment, program
from net_ground import GATEWAY, HOST, OUTSIDE, answering, ask

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME, OTHER = "npub1", "npub2"
PORT = 20731


@pytest.fixture
def app(run, settings):
    with net_ground.NetGround(run, settings) as ground:
        yield ground


def rules():
    argv = ["nft", "-j", "list", "table", "ip", f"dre-{net_ground.BRIDGE}-publish"]
    done = subprocess.run(argv, capture_output=True, check=False)
    return sorted(
        item["rule"]["comment"]
        for item in (json.loads(done.stdout)["nftables"] if done.returncode == 0 else ())
        if item.get("rule", {}).get("chain") == "prerouting"
    )


def localnet():
    with open(f"/proc/sys/net/ipv4/conf/{net_ground.BRIDGE}/route_localnet") as file:
        return file.read().strip()


def test_from_everywhere_while_it_runs(app):
    published = ("--publish", f"{PORT}:80", "--publish", f"{PORT + 1}:53/udp")
    app("create", NAME, *published, "--publish", f"{HOST}:{PORT + 2}:81", "--", *answering(NAME), code=1)
    with net_ground.outsider() as outside:
        app("create", NAME, *published, "--publish", f"{HOST}:{PORT + 2}:81", "--", *answering(NAME))
        app("create", OTHER)
        assert ask("127.0.0.1", PORT) is None and rules() == []
        app("start", NAME, OTHER)
        inside = ("lxc-attach", "-n", OTHER, "--")
        itself = ("lxc-attach", "-n", NAME, "--")
        assert wait_for(lambda: ask("127.0.0.1", PORT)) == f"{NAME} 80 {GATEWAY}"
        assert ask(HOST, PORT, prefix=outside) == f"{NAME} 80 {OUTSIDE}"
        assert ask(HOST, PORT + 1, "udp", prefix=outside) == f"{NAME} 53 udp"
        assert ask(HOST, PORT, prefix=inside) == f"{NAME} 80 {GATEWAY}"
        assert ask(HOST, PORT, prefix=itself) == f"{NAME} 80 {GATEWAY}"
        assert ask(GATEWAY, PORT, prefix=inside) == f"{NAME} 80 {GATEWAY}"
        # Only at its address, and only what was published.
        assert ask(HOST, PORT + 2, prefix=outside) == f"{NAME} 81 {OUTSIDE}"
        assert ask("127.0.0.1", PORT + 2) is None
        assert ask(HOST, PORT + 1, prefix=outside) is None
        assert ask(json.loads(app("status", NAME, "--json"))["ip"][0], 80, prefix=outside) is None
        assert rules() == [NAME] * 3
        app("set", NAME, f"publish={PORT + 3}:80")
        assert ask(HOST, PORT + 3, prefix=outside) == f"{NAME} 80 {OUTSIDE}"
        assert ask(HOST, PORT, prefix=outside) is None
        app("stop", NAME)
        assert ask(HOST, PORT + 3, prefix=outside) is None
        assert (rules(), localnet()) == ([], "0")


def test_an_app_reaches_nothing_on_the_loopback_of_the_host(app):
    app("create", NAME, "--publish", f"{PORT}:80", "--", *answering(NAME))
    app("start", NAME)
    assert localnet() == "1"
    with socket.create_server(("127.0.0.1", PORT + 5)):
        app("exec", NAME, "--", "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
        app("exec", NAME, "--", "ip", "route", "add", "127.0.0.1", "via", GATEWAY)
        init = json.loads(app("status", NAME, "--json"))["pid"]
        allow = "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet"
        subprocess.run(["nsenter", f"--net=/proc/{init}/ns/net", "sh", "-c", allow], check=True)
        with counted() as packets:
            assert ask("127.0.0.1", PORT + 5, prefix=("lxc-attach", "-n", NAME, "--")) is None
            assert packets() > 0  # it was sent, and it was dropped


@contextlib.contextmanager
def counted():
    """How many packets for the loopback came from the bridge, by a counter of the test's own."""
    table = "dret2-witness"
    rule = f'iifname "{net_ground.BRIDGE}" ip daddr 127.0.0.0/8 counter'
    script = f"table ip {table} {{ chain c {{ type filter hook prerouting priority -400; {rule}; }}; }}"
    subprocess.run(["nft", script], check=True)

    def packets():
        listed = subprocess.run(["nft", "-j", "list", "table", "ip", table], capture_output=True, check=True)
        found = next(item["rule"] for item in json.loads(listed.stdout)["nftables"] if "rule" in item)
        return next(part["counter"]["packets"] for part in found["expr"] if "counter" in part)

    try:
        yield packets
    finally:
        subprocess.run(["nft", "delete", "table", "ip", table], check=True)


def test_a_taken_port_is_refused(app):
    app("create", NAME, "--publish", f"{PORT}:80")
    taken = f"dre-app: {OTHER}: port {PORT}/tcp of the host is published by app {NAME}"
    assert app("create", OTHER, "--publish", f"{PORT}:8080", code=1) == taken
    assert OTHER not in app("list")
    app("create", OTHER, "--publish", f"{PORT}:8080/udp")
    assert app("set", OTHER, f"publish=127.0.0.1:{PORT}:1", code=1) == taken
    with socket.create_server(("127.0.0.1", PORT + 4)):
        for argv in (("set", OTHER, f"publish={PORT + 4}:80"), ("create", "npub3", "--publish", f"{PORT + 4}:80")):
            assert f"cannot publish port {PORT + 4}/tcp of the host: Address already in use" in app(*argv, code=1)
    app("set", OTHER, f"publish={PORT + 4}:80")
    with socket.create_server(("127.0.0.1", PORT + 4)):
        assert "Address already in use" in app("start", OTHER, code=1)
    assert rules() == []
    app("start", OTHER)
    assert rules() == [OTHER]
    app("destroy", "--force", OTHER)
    assert rules() == []


def test_many_at_once(app):
    names = [f"npub{number}" for number in range(1, 5)]
    for number, name in enumerate(names):
        app("create", name, "--publish", f"{PORT + number}:80")
    argv = [program("dre-app"), "--config", app.config]
    for verb, left in (("start", names), ("stop", [])):
        calls = [subprocess.Popen([*argv, verb, name], env=environment()) for name in names]
        assert [call.wait(60) for call in calls] == [0] * 4
        assert rules() == left


def test_no_rule_is_left_when_the_bridge_goes(app):
    app("create", NAME, "--publish", f"{PORT}:80")
    app("start", NAME)
    app("isolate", NAME)
    assert net_ground.BRIDGE in subprocess.run(["nft", "list", "ruleset"], capture_output=True).stdout.decode()
    app.bridge("down", "--force")
    assert net_ground.BRIDGE not in subprocess.run(["nft", "list", "ruleset"], capture_output=True).stdout.decode()
    app("stop", "--timeout", "1", NAME)
    app("rejoin", NAME)
    app("start", NAME)
    assert rules() == [NAME]


@pytest.mark.parametrize("word", ["80", "0:80", "80:65536", "a:80:80", "1.2.3:80:80", "80:80/icmp", '80:80"; flush'])
def test_what_is_no_port(app, word):
    assert "expected [HOSTADDR:]HOSTPORT:PORT[/tcp|udp]" in app("create", NAME, "--publish", word, code=2)


def test_killed_at_any_moment(app):
    app("create", NAME, "--publish", f"{PORT}:80", "--", *answering(NAME))
    app("create", OTHER, "--publish", f"{PORT + 1}:80", "--", *answering(OTHER))
    app("start", OTHER)
    longest = {}
    for verb in ("start", "stop"):
        begun = time.monotonic()
        app(verb, NAME)
        longest[verb] = time.monotonic() - begun
    hits = 0
    for count in range(int(os.environ.get("DRE_KILLS", "2"))):
        verb = ("start", "stop")[count % 2]
        hits += app.killed(verb, NAME, longest=longest[verb])
        assert OTHER in rules()  # never without the other's
        app(verb, NAME)
        assert rules() == ([NAME, OTHER] if verb == "start" else [OTHER])
    assert hits
