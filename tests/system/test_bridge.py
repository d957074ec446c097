# SPDX-License-Identifier: Apache-2.0
"""dre-bridge on a real kernel. `ip` and `nft` are the witnesses, and `ping` between network namespaces.

The router is a namespace too, with a default route of its own: the host's own forwarding stays as it is.
"""

import contextlib
import json
import os
import pathlib
import random
import subprocess
import time

import pytest
from bridge_ground import ALONE, BRIDGE, Host, attach, make_router, sh, spaces
from conftest import environment

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def space(settings):
    with spaces(settings) as create:
        yield create


@pytest.fixture
def router(space):
    return make_router(space)


def test_up_twice_makes_one_bridge_with_its_address(router):
    for _ in range(2):
        done = router.bridge("up")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        details = json.loads(router.run("ip", "-d", "-j", "link", "show", "dev", BRIDGE))[0]
        assert details["linkinfo"]["info_kind"] == "bridge"
        assert details["linkinfo"]["info_data"]["stp_state"] == 0
        assert "UP" in details["flags"]
        assert router.addresses(BRIDGE) == ["10.231.102.1/24"]
        assert router.rules().count(f"table ip dre-{BRIDGE} ") == router.rules().count("masquerade") == 1
    assert set(router.links()) == {"lo", "up0", BRIDGE}


def test_down_twice_removes_all_of_it(router):
    before = router.run("nft", "list", "ruleset"), set(router.links()), router.forwarding("up0")
    assert router.bridge("up").returncode == 0
    for _ in range(2):
        assert router.bridge("down").returncode == 0
        assert (router.rules(), set(router.links()), router.forwarding("up0")) == before


def test_containers_reach_the_outside_by_nat_and_are_not_reached(router, space):
    app, before = space("a"), router.forwarding("all")
    assert router.bridge("up").returncode == 0
    attach(router, app, 11)
    assert app.ping("10.231.102.1")
    assert app.ping("10.231.103.2"), "no NAT: the outside has no route back to the bridge's network"
    assert router.forwarding("all") == before, "global ip_forward was switched on"
    router.out.run("ip", "route", "add", "10.231.102.0/24", "via", "10.231.103.1")
    assert not router.out.ping("10.231.102.11"), "the outside reached a container by itself"


def test_a_container_cannot_send_under_a_foreign_address(router, space):
    app = space("a")
    assert router.bridge("up").returncode == 0
    attach(router, app, 11)
    app.run("ip", "addr", "add", "10.231.104.9/32", "dev", "lo")
    for host, via in ((router, "10.231.102.11"), (router.out, "10.231.103.1")):
        host.run("ip", "route", "add", "10.231.104.0/24", "via", via)
    assert router.ping("10.231.104.9")
    lost = app.run("ping", "-c", "1", "-W", "1", "-I", "10.231.104.9", "10.231.103.2", check=False)
    assert "100% packet loss" in lost
    assert app.ping("10.231.103.2"), "with its own address it passes"


def test_containers_reach_each_other(router, space):
    one, two = space("a"), space("b")
    assert router.bridge("up").returncode == 0
    attach(router, one, 11)
    attach(router, two, 12)
    assert one.ping("10.231.102.12")


def test_no_nat_means_no_table_and_no_forwarding(space):
    host = space("n", DRE_BRIDGE_NAT="no")
    assert host.bridge("up").returncode == 0
    assert host.rules() == ""
    assert host.forwarding(BRIDGE) == "0"


def test_nat_can_be_switched_off_later(router, settings):
    assert router.bridge("up").returncode == 0
    settings(DRE_BRIDGE_IF=BRIDGE, DRE_BRIDGE_ADDRESS="10.231.102.1/24", DRE_BRIDGE_NAT="no", **ALONE)
    assert router.bridge("up").returncode == 0
    assert router.rules() == ""
    assert router.forwarding("up0") == router.forwarding(BRIDGE) == "0"


def test_up_repairs_what_was_taken_away(router):
    assert router.bridge("up").returncode == 0
    router.run("nft", "flush", "ruleset")
    router.run("ip", "addr", "flush", "dev", BRIDGE)
    router.run("ip", "link", "set", BRIDGE, "down")
    assert router.bridge("up").returncode == 0
    assert router.addresses(BRIDGE) == ["10.231.102.1/24"]
    assert "UP" in router.links()[BRIDGE]["flags"]
    assert "masquerade" in router.rules()


def test_down_refuses_while_a_container_is_attached(router, space):
    app = space("a")
    assert router.bridge("up").returncode == 0
    attach(router, app, 11)
    done = router.bridge("down")
    assert (done.returncode, b"port11" in done.stderr) == (1, True)
    assert app.ping("10.231.102.1"), "the refused call changed something"
    assert router.bridge("down", "--force").returncode == 0
    assert BRIDGE not in router.links()


def test_a_bridge_of_others_is_used_and_left(router):
    router.run("ip", "link", "add", BRIDGE, "type", "bridge")
    router.run("ip", "addr", "add", "10.9.9.1/24", "dev", BRIDGE)
    before = router.links()[BRIDGE]
    assert router.bridge("up").returncode == 0
    assert router.addresses(BRIDGE) == ["10.9.9.1/24"]
    assert json.loads(router.bridge("show", "--json").stdout)["ours"] is False
    done = router.bridge("down")
    assert (done.returncode, done.stderr) == (1, b"dre-bridge: dret2: not made by dre-bridge; left as it is\n")
    assert router.bridge("down", "--force").returncode == 1
    assert router.links()[BRIDGE] == before
    assert router.rules() == ""


def test_an_interface_that_is_no_bridge_is_refused(router):
    router.run("ip", "link", "add", BRIDGE, "type", "veth", "peer", "name", "dret2p")
    done = router.bridge("up")
    assert (done.returncode, b"not a bridge" in done.stderr) == (1, True)


def test_another_address_in_the_settings_is_refused(router, settings):
    assert router.bridge("up").returncode == 0
    settings(DRE_BRIDGE_IF=BRIDGE, DRE_BRIDGE_ADDRESS="10.231.105.1/24", **ALONE)
    done = router.bridge("up")
    assert (done.returncode, b"10.231.102.1/24" in done.stderr) == (1, True)
    assert router.addresses(BRIDGE) == ["10.231.102.1/24"]


def test_a_second_bridge_keeps_the_forwarding_of_the_uplink(router, tmp_path):
    second = tmp_path / "second.conf"
    text = pathlib.Path(router.conf).read_text()
    second.write_text(text.replace(BRIDGE, "dret2b").replace("10.231.102.1", "10.231.106.1"))
    other = Host(router.name, str(second))
    assert [router.bridge("up").returncode, other.bridge("up").returncode] == [0, 0]
    assert router.bridge("down").returncode == 0
    assert router.forwarding("up0") == "1"
    assert other.bridge("down").returncode == 0
    assert router.forwarding("up0") == "0"


def test_forwarding_that_was_on_stays_on(router):
    router.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/up0/forwarding")
    assert [router.bridge("up").returncode, router.bridge("down").returncode] == [0, 0]
    assert router.forwarding("up0") == "1"


def test_show_tells_what_ip_tells(router, space):
    assert router.bridge("up").returncode == 0
    attach(router, space("a"), 11)
    row = json.loads(router.bridge("show", "--json").stdout)
    link = router.links()[BRIDGE]
    assert row == {
        "name": BRIDGE,
        "state": "up",
        "addresses": ["10.231.102.1/24"],
        "ours": True,
        "nat": True,
        "dns": False,
        "dhcp": None,
        "ports": ["port11"],
        "uplink": None,
        "mac": link["address"],
        "mtu": link["mtu"],
    }
    plain = [BRIDGE, "up", "10.231.102.1/24", "yes", "port11", "no", "-", "-"]
    assert router.bridge("show").stdout.decode().split() == plain


def test_its_mac_address_stays_when_ports_come(router, space):
    assert router.bridge("up").returncode == 0
    before = router.links()[BRIDGE]["address"]
    attach(router, space("a"), 11)
    router.run("ip", "link", "set", "port11", "address", "00:00:00:00:00:01")
    assert router.links()[BRIDGE]["address"] == before


def duration(router, verb):
    start = time.monotonic()
    assert router.bridge(verb).returncode == 0
    return time.monotonic() - start


@pytest.mark.parametrize("verb", ["up", "down"])
def test_killed_at_any_moment_the_next_call_works(router, verb):
    other = {"up": "down", "down": "up"}[verb]
    router.bridge(other)
    span = duration(router, verb)
    assert router.bridge(other).returncode == 0
    for _ in range(int(os.environ.get("DRE_KILLS", "2"))):
        child = subprocess.Popen(router.argv(verb), env=environment())
        time.sleep(random.uniform(0, span))  # the moment is what is tested, not a wait for something
        child.kill()
        child.wait()
        assert router.bridge(verb).returncode == 0
        assert set(router.links()) == {"lo", "up0"} | ({BRIDGE} if verb == "up" else set())
        assert ("masquerade" in router.rules()) == (verb == "up")
        assert router.forwarding("up0") == ("1" if verb == "up" else "0")
        assert router.bridge(other).returncode == 0


def test_two_at_once_both_succeed(router):
    children = [subprocess.Popen(router.argv("up"), env=environment()) for _ in range(4)]
    assert [child.wait(30) for child in children] == [0, 0, 0, 0]
    assert set(router.links()) == {"lo", "up0", BRIDGE}


def forwarding_of_all():
    found = {}
    for path in pathlib.Path("/proc/sys/net/ipv4/conf").glob("*/forwarding"):
        with contextlib.suppress(OSError):  # it has just gone
            found[path.parent.name] = path.read_text().strip()
    return found


def test_on_the_host_itself(run, settings):
    conf = settings(DRE_BRIDGE_IF=BRIDGE, DRE_BRIDGE_ADDRESS="10.231.102.1/24", **ALONE)
    before = forwarding_of_all()
    try:
        assert run("dre-bridge", "--config", conf, "up").returncode == 0
        assert "10.231.102.1/24" in sh("ip", "-4", "addr", "show", "dev", BRIDGE)
        assert f"table ip dre-{BRIDGE}" in sh("nft", "list", "tables")
    finally:
        assert run("dre-bridge", "--config", conf, "down").returncode == 0
    assert BRIDGE not in sh("ip", "link")
    assert f"dre-{BRIDGE}" not in sh("nft", "list", "tables")
    after = forwarding_of_all()
    both = before.keys() & after.keys()  # interfaces of other tests come and go
    assert {"all", "default", "lo"} <= both
    assert {name: after[name] for name in both} == {name: before[name] for name in both}
