# SPDX-License-Identifier: Apache-2.0
"""What a bridge gives containers by IPv6 and by DHCP; `ip`, `ping` and udhcpc in namespaces are the witnesses."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import pytest
from app_ground import wait_for
from bridge_ground import BRIDGE, SETTINGS, attach, make_router, spaces
from conftest import environment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
ADDRESS6, OUTSIDE6 = "fd00:d2:102::1", "fd00:d2:103::2"
MAC = "52:54:00:d2:00:01"
SINGLE = pathlib.Path("/proc/sys/net/ipv6/conf/all/force_forwarding").exists()


@pytest.fixture
def space(settings):
    with spaces(settings) as create:
        yield create


@pytest.fixture
def place():
    """Where dnsmasq's own user can read, unlike in pytest's directories."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="dret2-", dir="/run"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def configure(settings, place):
    """configure(KEY=value…): other settings, with names and DHCP."""
    own = {"DRE_CORE_RUN_DIR": place, "DRE_BRIDGE_DNS": "yes", "DRE_BRIDGE_DHCP": "auto"}
    return lambda **keys: settings(**{**SETTINGS, **own, **keys})


def daemon(place):
    """The pid of the bridge's dnsmasq."""
    return int((place / "bridge" / BRIDGE / "dnsmasq.pid").read_text())


@pytest.fixture
def router(space):
    """As IPv4 has it, so has IPv6: a default route to `.out`, which has none back."""
    assert shutil.which("dnsmasq"), "install dnsmasq-base"
    made = make_router(space)
    made.run("ip", "addr", "add", "fd00:d2:103::1/64", "dev", "up0", "nodad")
    made.out.run("ip", "addr", "add", f"{OUTSIDE6}/64", "dev", "eth0", "nodad")
    made.run("ip", "-6", "route", "add", "default", "via", OUTSIDE6)
    return made


def addresses6(host, link):
    rows = json.loads(host.run("ip", "-j", "-6", "addr", "show", "dev", link))
    ready = (item for row in rows for item in row["addr_info"] if item["scope"] == "global" and "tentative" not in item)
    return [f"{item['local']}/{item['prefixlen']}" for item in ready]


def switches(host):
    """What the host does with IPv6 that is not for it, and with what routers say."""
    names = ("forwarding", "force_forwarding", "accept_ra")
    text = host.run(
        "sh", "-c", f"cd /proc/sys/net/ipv6/conf && grep -H . {' '.join(f'*/{name}' for name in names)} || :"
    )
    return {line for line in text.splitlines() if not line.startswith((BRIDGE, "port"))}


def test_containers_form_an_address_and_reach_the_outside(router, space, configure):
    app = space("a")
    configure(DRE_BRIDGE_ADDRESS6=f"{ADDRESS6}/64")
    before = switches(router)
    for _ in range(2):
        assert router.bridge("up").returncode == 0
    assert addresses6(router, BRIDGE) == [f"{ADDRESS6}/64"]
    assert json.loads(router.bridge("show", "--json").stdout)["addresses"] == ["10.231.102.1/24", f"{ADDRESS6}/64"]
    attach(router, app, 11)
    found = wait_for(lambda: addresses6(app, "eth0"), 20)
    assert len(found) == 1 and found[0].startswith("fd00:d2:102:") and found[0].endswith("/64")
    assert app.ping(ADDRESS6)
    assert app.ping(OUTSIDE6), "no NAT: the outside has no route back"
    router.out.run("ip", "-6", "route", "add", "fd00:d2:102::/64", "via", "fd00:d2:103::1")
    assert not router.out.ping(found[0].partition("/")[0]), "the outside reached a container by itself"
    if SINGLE:
        assert router.run("cat", "/proc/sys/net/ipv6/conf/all/forwarding").strip() == "0"
    assert router.bridge("down", "--force").returncode == 0
    assert switches(router) == before
    assert router.rules() == ""


def test_the_host_still_listens_to_routers(router, configure):
    """An interface that forwards does not by itself."""
    configure(DRE_BRIDGE_ADDRESS6=f"{ADDRESS6}/64")
    path = "/proc/sys/net/ipv6/conf/up0/accept_ra"
    router.run("sh", "-c", f"echo 1 >{path}")
    assert router.bridge("up").returncode == 0
    assert router.run("cat", path).strip() == ("1" if SINGLE else "2")
    assert router.run("cat", f"/proc/sys/net/ipv6/conf/{BRIDGE}/accept_ra").strip() == "0", "a container is no router"
    assert router.bridge("down").returncode == 0
    assert router.run("cat", path).strip() == "1"


def test_without_nat_nothing_is_forwarded(router, configure):
    configure(DRE_BRIDGE_ADDRESS6=f"{ADDRESS6}/64", DRE_BRIDGE_NAT="no")
    before = switches(router)
    assert router.bridge("up").returncode == 0
    assert (switches(router), router.rules()) == (before, "")
    configure(DRE_BRIDGE_ADDRESS6=f"{ADDRESS6}/64")
    assert router.bridge("up").returncode == 0
    assert f"table ip6 dre-{BRIDGE}" in router.rules()
    configure(DRE_BRIDGE_ADDRESS6=f"{ADDRESS6}/64", DRE_BRIDGE_NAT="no")
    assert router.bridge("up").returncode == 0
    assert (switches(router), router.rules()) == (before, "")


def test_another_address_in_the_settings_is_refused(router, configure):
    configure(DRE_BRIDGE_ADDRESS6=f"{ADDRESS6}/64")
    assert router.bridge("up").returncode == 0
    configure(DRE_BRIDGE_ADDRESS6="fd00:d2:112::1/64")
    done = router.bridge("up")
    assert (done.returncode, f"has {ADDRESS6}/64".encode() in done.stderr) == (1, True)


def test_a_bridge_that_leads_outside_gives_no_addresses(router, space, configure, place):
    """Others do there."""
    neighbour = space("n")
    configure(DRE_BRIDGE_ADDRESS6=f"{ADDRESS6}/64")
    router.run("ip", "link", "add", "up1", "type", "veth", "peer", "name", "eth0", "netns", neighbour.name)
    neighbour.run("ip", "link", "set", "eth0", "address", MAC, "up")
    assert router.bridge("up", "--uplink", "up1").returncode == 0
    assert json.loads(router.bridge("show", "--json").stdout)["dhcp"] is None
    assert "no lease" in lease(neighbour)
    words = pathlib.Path(f"/proc/{daemon(place)}/cmdline").read_text()
    assert "--listen-address=10.231.102.1" in words and "range" not in words
    configure(DRE_BRIDGE_DHCP="10.231.102.90-10.231.102.99")  # told to, it does
    assert router.bridge("up").returncode == 0
    assert lease(neighbour).startswith("10.231.102.9")


HOOK = """#!/bin/sh
[ "$1" != bound ] || echo "$ip $hostname"
"""


def lease(host):
    """What udhcpc is given: an address, and a name if one is."""
    with tempfile.NamedTemporaryFile("w", delete=False) as hook:
        hook.write(HOOK)
    os.chmod(hook.name, 0o755)
    words = ["udhcpc", "-i", "eth0", "-s", hook.name, "-n", "-q", "-f", "-t", "3", "-T", "1", "-R"]
    argv = ["ip", "netns", "exec", host.name, *words]
    done = subprocess.run(argv, capture_output=True, timeout=30, check=False)
    os.unlink(hook.name)
    return done.stdout.decode().strip() if done.returncode == 0 else "no lease"


def reserve(host, verb, *words):
    """What dre-sys does, on *host*."""
    code = f"import sys; from dre import conf, dnsmasq; dnsmasq.{verb}(conf.load(sys.argv[1]), *sys.argv[2:])"
    argv = ["ip", "netns", "exec", host.name, "/usr/bin/python3", "-c", code, host.conf, *words]
    subprocess.run(argv, check=True, timeout=30, env=environment())


def test_who_has_a_reservation_gets_that_address_and_name(router, space, configure, place):
    assert shutil.which("udhcpc"), "install udhcpc"
    system = space("s")
    configure()
    assert router.bridge("up").returncode == 0
    attach(router, system, 11)
    system.run("ip", "link", "set", "eth0", "address", MAC)
    before = lease(system)
    assert before.startswith("10.231.102.2") and " " not in before
    pid = daemon(place)
    reserve(router, "reserve", MAC, "10.231.102.50/24", "pay1")  # while it runs
    assert wait_for(lambda: lease(system) == "10.231.102.50 pay1", 30)
    assert "10.231.102.50" in system.run("/usr/bin/python3", "-c", LOOK, "pay1.dre")
    reserve(router, "reserve", MAC, "10.231.102.51", "pay2")
    assert wait_for(lambda: lease(system) == "10.231.102.51 pay2", 30)
    assert "10.231.102.51" in system.run("/usr/bin/python3", "-c", LOOK, "pay2.dre")
    assert "none" in system.run("/usr/bin/python3", "-c", LOOK, "pay1.dre")
    assert router.bridge("up").returncode == 0
    assert daemon(place) == pid, "nobody else had to wait for a new one"
    os.kill(pid, 9)
    assert router.bridge("up").returncode == 0  # it reads what is reserved
    assert lease(system) == "10.231.102.51 pay2"
    reserve(router, "release", MAC)
    assert wait_for(lambda: "pay2" not in lease(system), 30)
    assert wait_for(lambda: "none" in system.run("/usr/bin/python3", "-c", LOOK, "pay2.dre"))


LOOK = """
import socket, struct, sys
labels = b"".join(bytes([len(label)]) + label.encode() for label in sys.argv[1].split("."))
talk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
talk.settimeout(3)
talk.sendto(struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack(">B2H", 0, 1, 1), ("10.231.102.1", 53))
answer = talk.recv(512)
print(socket.inet_ntoa(answer[-4:]) if struct.unpack(">H", answer[6:8])[0] else "none")
"""
