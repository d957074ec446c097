# SPDX-License-Identifier: Apache-2.0
"""A bridge that others make, or make anew: it stays theirs, and running containers are put back into it."""

import json
import os
import pathlib
import subprocess

import net_ground
import pytest
import system_ground
from app_ground import wait_for
from conftest import program
from net_ground import BRIDGE, GATEWAY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME, CUT = "natt1", "natt2"


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, check=True, timeout=10).stdout.decode()


def remove():
    """What others made."""
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False, timeout=10)


@pytest.fixture
def app(run, settings):
    with net_ground.NetGround(run, settings) as ground:
        try:
            yield ground
        finally:
            for name in (NAME, CUT):
                ground.run("dre-app", "--config", ground.config, "destroy", "--force", name)
            remove()


def made_anew(*words):
    """As ifup, netplan and others do."""
    ip("link", "del", BRIDGE)
    ip("link", "add", BRIDGE, "type", "bridge", *words)
    ip("addr", "add", f"{GATEWAY}/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")


def ports():
    """Which are in the bridge, and whether they are set up."""
    return {row["ifname"]: "UP" in row["flags"] for row in json.loads(ip("-j", "link", "show", "master", BRIDGE))}


def ping(address):
    return subprocess.run(["ping", "-c", "1", "-W", "1", address], capture_output=True, check=False).returncode == 0


def where(app, name):
    return json.loads(app("status", name, "--json"))["ip"][0]


def daemons(app):
    found = [entry.read_bytes() for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline") if entry.exists()]
    return [words for words in found if words.startswith(b"dnsmasq\0") and app.run_dir.encode() in words]


def tables():
    return subprocess.run(["nft", "list", "tables"], capture_output=True, check=True).stdout.decode()


def test_running_apps_are_put_into_a_bridge_that_others_made_anew(app):
    for name in (NAME, CUT):
        app("create", name)
        app("start", name)
    app("isolate", CUT)
    before = ports()
    assert sorted(before.values()) == [False, True]
    made_anew()
    assert ports() == {}
    app.bridge("attach", "another0")
    assert ports() == {}
    app.bridge("attach", BRIDGE)
    assert ports() == before
    assert wait_for(lambda: ping(where(app, NAME)))
    assert not ping(where(app, CUT))
    # What was for our own bridge must not be on theirs: it would answer for their network.
    assert daemons(app) == []
    assert f"table ip dre-{BRIDGE}\n" not in tables()
    row = json.loads(ip("-j", "-d", "link", "show", BRIDGE))[0]
    done = app.run("dre-bridge", "--config", app.config, "attach")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert json.loads(ip("-j", "-d", "link", "show", BRIDGE))[0]["address"] == row["address"]
    app("rejoin", CUT)
    assert wait_for(lambda: ping(where(app, CUT)))


def test_links_that_are_in_another_bridge_stay_there(app):
    app("create", NAME)
    app("start", NAME)
    (link,) = ports()
    ip("link", "add", "dret2other", "type", "bridge")
    try:
        ip("link", "set", link, "master", "dret2other")
        app.bridge("attach")
        assert ports() == {}
    finally:
        ip("link", "del", "dret2other")
    app.bridge("attach")
    assert list(ports()) == [link]


def test_our_own_bridge_removed_by_hand_comes_back_with_its_apps(app):
    app("create", NAME)
    app("start", NAME)
    before = ports()
    ip("link", "del", BRIDGE)
    app.bridge("up")
    assert ports() == before
    assert wait_for(lambda: ping(where(app, NAME)))
    assert len(daemons(app)) == 1


def test_without_a_bridge(app):
    done = app.run("dre-bridge", "--config", app.config, "attach")
    assert (done.returncode, b"no such bridge" in done.stderr) == (3, True)


def test_apps_on_a_bridge_of_others_leave_it_as_it_is(app):
    ip("link", "add", BRIDGE, "type", "bridge", "stp_state", "1", "forward_delay", "400")
    ip("addr", "add", "10.231.102.7/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    before = described()
    app("create", NAME, "--ip", "10.231.102.99/24")
    app("start", NAME)
    assert len(ports()) == 1 and ports() != {}
    app("destroy", "--force", NAME)
    assert app.run("dre-bridge", "--config", app.config, "down", "--force").returncode == 1
    assert described() == before
    assert daemons(app) == []
    assert f"table ip dre-{BRIDGE}\n" not in tables()


def described():
    """All that the bridge is, but counters and timers; its own hardware address it takes from its ports."""
    link, addr = (json.loads(ip("-j", "-d", kind, "show", BRIDGE))[0] for kind in ("link", "addr"))
    kept = ("stp_state", "forward_delay", "ageing_time", "priority", "vlan_filtering")
    addresses = [row["local"] for row in addr["addr_info"] if row["scope"] == "global"]
    return (
        {key: link["linkinfo"]["info_data"][key] for key in kept},
        link.get("ifalias"),
        addresses,
        "UP" in link["flags"],
    )


DOMAIN = """<domain type='qemu'><name>natt3</name><memory unit='MiB'>32</memory><os><type>hvm</type></os><devices>
<interface type='bridge'><source bridge='dret2s'/><target dev='dret2t0'/></interface>
<interface type='bridge'><source bridge='dret2o'/><target dev='dret2t1'/></interface></devices></domain>"""


def test_taps_of_running_systems_are_put_back():
    with system_ground.Host() as host:
        text = host.conf.read_text()
        host.conf.write_text(text.replace(system_ground.BRIDGE, "dret2s").replace(system_ground.NETWORK, "10.231.115"))
        bridge = (program("dre-bridge"), "--config", host.conf)
        file = host.place / "natt3.xml"
        file.write_text(DOMAIN)
        host.call(*bridge, "up")
        qemu = None
        try:
            ip("link", "add", "dret2o", "type", "bridge")
            host.call("virsh", "-q", "create", "--paused", file)
            qemu = int(host.call("cat", "/run/libvirt/qemu/natt3.pid").stdout)
            masters = {"dret2t0": "dret2s", "dret2t1": "dret2o"}
            assert {name: master(name) for name in masters} == masters
            ip("link", "set", "dret2t1", "nomaster")  # not of our bridge
            ip("link", "del", "dret2s")
            ip("link", "add", "dret2s", "type", "bridge")
            done = host.call(*bridge, "attach")
            assert (done.stdout, done.stderr) == ("", "dre-bridge: dret2t0 is in dret2s again\n")
            assert {name: master(name) for name in masters} == {"dret2t0": "dret2s", "dret2t1": None}
            # A libvirt that does not answer is none, and says nothing.
            os.kill(int((host.place / "libvirtd.pid").read_text()), 9)
            ip("link", "set", "dret2t0", "nomaster")
            assert host.call(*bridge, "attach").stderr == ""
        finally:
            if qemu is not None:
                os.kill(qemu, 9)  # nobody else does, with libvirt gone
            for name in ("dret2o", "dret2s"):
                subprocess.run(["ip", "link", "del", name], check=False)


def master(name):
    return json.loads(ip("-j", "link", "show", name))[0].get("master")
