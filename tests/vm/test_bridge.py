# SPDX-License-Identifier: Apache-2.0
"""Bridges that ifupdown and systemd-networkd make, as the specification has it.

The network outside is a namespace in the guest, with a DHCP server. Its neighbour sees what the bridge lets through.
"""

import json

import pytest
from guests import ALL

pytestmark = pytest.mark.skipif(not ALL, reason="takes some minutes: DRE_VM_ALL=1, as before a release")

DEADLINE = 600

OUTSIDE = """
set -eu
ip netns add lan
ip link add out0 type veth peer name eth0 netns lan
ip -n lan addr add 10.98.0.1/24 dev eth0
ip -n lan link set lo up
ip -n lan link set eth0 up
ip netns exec lan dnsmasq --conf-file=/dev/null --port=0 --no-ping --interface=eth0 --bind-interfaces \
    --dhcp-range=10.98.0.50,10.98.0.99,1h --pid-file=/run/lan.pid --dhcp-leasefile=/run/lan.leases
"""

# The stanza of the specification; the last two spare the minute that bridge-utils waits for the ports.
STANZA = """
auto br0
iface br0 inet dhcp
    bridge_ports out0
    bridge_fd 0
    bridge_maxwait 0
"""

NETDEV = """
set -eu
mkdir -p /run/systemd/network
printf '[NetDev]\nName=br0\nKind=bridge\n' >/run/systemd/network/br0.netdev
printf '[Match]\nName=br0\n[Network]\nAddress=10.98.0.9/24\n' >/run/systemd/network/br0.network
printf '[Match]\nName=out0\n[Network]\nBridge=br0\n' >/run/systemd/network/out0.network
"""

UNTIL = 'for _ in $(seq 100); do if sh -c "$1"; then exit 0; fi; sleep 0.2; done; exit 1'


def until(guest, script):
    """Wait until *script* succeeds."""
    guest.ok(["sh", "-c", UNTIL, "sh", script], timeout=DEADLINE)


def link(guest, name):
    """The bridge as the kernel knows it."""
    return json.loads(guest.ok(["ip", "-j", "-d", "link", "show", name]))[0]


def ports(guest):
    """The links in br0, and whether they are set up."""
    return {row["ifname"]: "UP" in row["flags"] for row in json.loads(guest.ok("ip -j link show master br0"))}


def address(guest, name):
    """Where the app is."""
    return json.loads(guest.ok(["dre-app", "status", name, "--json"]))["ip"][0]


@pytest.fixture
def office(guest):
    """A guest whose br0 is ifupdown's, with an app that runs on it and one that is isolated."""
    guest.ok(OUTSIDE)
    guest.ok("cat >>/etc/network/interfaces", stdin=STANZA.encode())
    guest.ok("ifup br0", timeout=DEADLINE)
    for name in ("v-free", "v-cut"):
        guest.ok(f"dre-app create {name} --ip dhcp -- sleep infinity && dre-app start {name}", timeout=DEADLINE)
    guest.ok("dre-app isolate v-cut", timeout=DEADLINE)
    return guest


def reached(guest, name):
    """Whether the neighbour outside gets an answer of that app."""
    return guest.call(f"ip netns exec lan ping -c 3 -i 0.3 -W 3 {address(guest, name)}").returncode == 0


def all_is_as_it_was(guest, before, index):
    """The bridge is another, and who was on it is again."""
    until(guest, f"[ $(ip -j link show master br0 | jq length) = {len(before)} ]")
    assert link(guest, "br0")["ifindex"] != index
    assert ports(guest) == before
    until(guest, f"ip netns exec lan ping -c 1 -W 3 {address(guest, 'v-free')}")
    assert not reached(guest, "v-cut")


def test_the_stanza_of_the_specification(office):
    """Its bridge is used as it is; when networking is restarted it is made anew, and apps are on it again."""
    assert address(office, "v-free").startswith("10.98.0."), "not from the network outside"
    before = ports(office)
    assert sorted(before.values()) == [False, True, True] and before["out0"]
    assert reached(office, "v-free") and not reached(office, "v-cut")
    row = json.loads(office.ok("dre-bridge show --json"))
    assert (row["ours"], row["nat"], row["dns"], row["dhcp"]) == (False, False, False, None)
    assert office.call("dre-bridge down --force").returncode == 1
    # Without udev, as on hosts that have none: the hook of ifupdown does it.
    office.ok("ln -s /dev/null /etc/udev/rules.d/80-dre-bridge.rules && udevadm control --reload")
    for words in ("/etc/init.d/networking restart", "ifdown br0; ifup br0"):
        index = link(office, "br0")["ifindex"]
        office.ok(words, timeout=DEADLINE)
        all_is_as_it_was(office, before, index)
        assert link(office, "br0").get("ifalias") is None
    # A hook that fails must not fail the network.
    office.ok(
        "echo nonsense >/etc/dre.conf.d/x.conf || { mkdir /etc/dre.conf.d; echo nonsense >/etc/dre.conf.d/x.conf; }"
    )
    assert "containers may not be in br0" in office.ok("ifdown br0; ifup br0 2>&1", timeout=DEADLINE)
    assert "out0" in ports(office)


def test_a_bridge_that_networkd_makes_anew(office):
    """There is no hook of ifupdown then: udev does it."""
    office.ok("rm /etc/network/if-up.d/dre-bridge")
    before, index = ports(office), link(office, "br0")["ifindex"]
    office.ok(NETDEV)
    office.ok("ip link del br0 && systemctl start systemd-networkd", timeout=DEADLINE)
    all_is_as_it_was(office, before, index)
