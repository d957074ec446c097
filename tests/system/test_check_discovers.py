# SPDX-License-Identifier: Apache-2.0
"""dre-check --discover hears a real DHCP server on a link of its own, takes no lease; where none is it hears nobody."""

import json
import os
import subprocess

import pytest
from conftest import environment, program
from dre import discover

LINK, SPACE = "dretchk0", f"dretchk-{os.getpid()}"
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not os.access("/usr/sbin/dnsmasq", os.X_OK), reason="needs dnsmasq"),
]


def ip(*argv):
    return subprocess.run(["ip", *argv], check=True, capture_output=True, text=True, timeout=10).stdout


@pytest.fixture
def server(tmp_path):
    """start() → the file of leases: dnsmasq in a namespace, on the other end of LINK, which has no address."""
    ip("netns", "add", SPACE)
    started = []
    leases = tmp_path / "leases"
    try:
        ip("link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", SPACE)
        ip("link", "set", LINK, "up")
        ip("-n", SPACE, "addr", "add", "10.231.104.1/24", "dev", "eth0")
        ip("-n", SPACE, "link", "set", "eth0", "up")

        def start():
            argv = ["ip", "netns", "exec", SPACE, "dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv"]
            argv += ["--port=0", "--conf-file=/dev/null", "--interface=eth0", "--no-ping", "--user=root", "--pid-file="]
            argv += [f"--dhcp-leasefile={leases}", "--dhcp-range=10.231.104.50,10.231.104.50,1h", "--log-facility=-"]
            log = (tmp_path / "log").open("wb")
            started.append(subprocess.Popen([*argv, "--log-dhcp"], stdout=log, stderr=log))
            return leases

        yield start
    finally:
        for child in started:
            child.kill()
            child.wait()
        subprocess.run(["ip", "link", "del", LINK], check=False, timeout=10)  # with its namespace it would go later
        ip("netns", "del", SPACE)


def check(settings, **keys):
    config = settings(DRE_BRIDGE_UPLINK=LINK, DRE_BRIDGE_IF="dretchk1", **keys)
    argv = [program("dre-check"), "--config", config, "--json", "--discover", "dhcp"]
    done = subprocess.run(argv, capture_output=True, env=environment(), timeout=60)
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout)


def test_a_server_offers_and_gives_nothing(server, settings, tmp_path):
    leases, before = server(), ip("addr", "show", "dev", LINK)
    code, row = check(settings)
    assert (code, row["state"], row["remedy"]) == (0, "ok", None), (tmp_path / "log").read_text()
    assert row["found"] == f"{LINK}: the DHCP server 10.231.104.1 offers 10.231.104.50"
    assert not leases.exists() or leases.read_text() == ""
    said = (tmp_path / "log").read_text()
    assert "DHCPOFFER" in said and "DHCPREQUEST" not in said and "DHCPACK" not in said
    assert ip("addr", "show", "dev", LINK) == before


def test_a_port_of_a_bridge_is_asked_by_its_bridge(server, settings):
    server()
    ip("link", "add", "dretchk2", "type", "bridge", "forward_delay", "0")
    try:
        ip("link", "set", "dretchk2", "up")
        ip("link", "set", LINK, "master", "dretchk2")
        code, row = check(settings)
        assert (code, row["found"]) == (0, "dretchk2: the DHCP server 10.231.104.1 offers 10.231.104.50")
    finally:
        ip("link", "del", "dretchk2")


def test_no_server(server):
    """Not for as long as dre-check waits; and what was asked here comes back from nobody."""
    assert discover.ask(LINK, 0.5) is None
