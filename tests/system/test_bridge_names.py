# SPDX-License-Identifier: Apache-2.0
"""On the bridge, and nowhere else, running apps are found by their names; addresses are given by DHCP."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import net_ground
import pytest
from app_ground import wait_for
from net_ground import GATEWAY, HOST, address, look_up

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME, OTHER = "ndns1", "ndns2"


@pytest.fixture
def app(run, settings):
    assert shutil.which("dnsmasq"), "install dnsmasq-base"
    with net_ground.NetGround(run, settings) as ground:
        yield ground


def ip(app, name):
    return json.loads(app("status", name, "--json"))["ip"][0]


def daemon(app):
    """The pid of the bridge's dnsmasq, by /proc alone."""
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with_nuls = entry.read_bytes() if entry.exists() else b""
        if with_nuls.startswith(b"dnsmasq\0") and app.run_dir.encode() in with_nuls:
            return int(entry.parent.name)
    return None


def test_names_of_running_apps(app):
    app("create", NAME)
    app("create", OTHER)
    app("start", OTHER)
    assert address(NAME) == "none"
    app("start", NAME)
    where = ip(app, NAME)
    inside = ("lxc-attach", "-n", OTHER, "--")
    for name in (NAME, f"{NAME}.dre"):
        assert wait_for(lambda name=name: address(name) == where)
        assert address(name, prefix=inside) == where
    backwards = ".".join(reversed(where.split("."))) + ".in-addr.arpa"
    assert f"\x05{NAME}\x03dre".encode() in look_up(backwards, kind=12)
    app("stop", NAME)
    assert wait_for(lambda: address(NAME) == "none") and address(OTHER) == ip(app, OTHER)
    app("destroy", "--force", OTHER)
    assert wait_for(lambda: address(OTHER) == "none")


def test_nobody_else_is_answered(app):
    app("create", NAME)
    app("start", NAME)
    assert wait_for(lambda: address(NAME) == ip(app, NAME))
    assert address(NAME, server="127.0.0.1") != ip(app, NAME)
    with net_ground.outsider() as outside:
        assert address(NAME, server=HOST, prefix=outside) is None
        assert address(NAME, server=GATEWAY, prefix=outside) is None
    status = pathlib.Path(f"/proc/{daemon(app)}/status").read_text()
    assert re.search(r"^Uid:\t(?!0\t)", status, re.M)  # not root
    # Nor one of the caller's group, with which systemd would end it.
    assert "0::/\n" in pathlib.Path(f"/proc/{daemon(app)}/cgroup").read_text()


def test_it_comes_back_and_ends_with_the_bridge(app):
    app.bridge("up")
    first = daemon(app)
    app.bridge("up")
    assert daemon(app) == first
    os.kill(first, signal.SIGKILL)
    assert wait_for(lambda: daemon(app) is None)
    app.bridge("up")
    assert daemon(app) not in (None, first)
    (pathlib.Path(app.run_dir) / "bridge" / net_ground.BRIDGE / "dnsmasq.pid").unlink()
    lost = daemon(app)
    app.bridge("up")
    assert daemon(app) not in (None, lost) and not pathlib.Path(f"/proc/{lost}/exe").exists()
    row = json.loads(app.bridge("show", "--json"))
    assert (row["dns"], row["dhcp"]) == (True, "10.231.102.224-10.231.102.254")
    app.bridge("down")
    assert daemon(app) is None


def test_without_dnsmasq_all_else_works(app, tmp_path):
    for program in (
        "nft",
        "ip",
        "lxc-start",
        "lxc-info",
        "setpriv",
        "rm",
        "umount",
        "mount",
        "sh",
        "python3",
        "modprobe",
    ):
        found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
        if found:
            (tmp_path / "bin").mkdir(exist_ok=True)
            (tmp_path / "bin" / program).symlink_to(found)
    with_path = ["env", f"PATH={tmp_path}/bin"]
    done = app.run("dre-bridge", "--config", app.config, "up", prefix=["/usr/bin/env", *with_path[1:]])
    assert done.returncode == 0
    text = f"dre-bridge: {net_ground.BRIDGE}: no names of apps and no DHCP: dnsmasq: no such program; "
    assert done.stderr.decode() == f"{text}apt-get install dnsmasq-base\n"
    assert daemon(app) is None


def test_an_address_by_dhcp(app):
    assert shutil.which("udhcpc"), "install udhcpc"
    app("create", NAME, "--ip", "dhcp")
    assert json.loads(app("list", "--json"))["ip"] == []
    app("start", NAME)
    first = ip(app, NAME)
    assert 224 <= int(first.rpartition(".")[2]) <= 254
    found = subprocess.run(["lxc-info", "-n", NAME, "-iH"], capture_output=True, check=True).stdout.decode().split()
    assert first in found
    assert subprocess.run(["ping", "-c", "1", "-W", "2", first], capture_output=True, check=False).returncode == 0
    assert app("exec", NAME, "--", "ip", "-4", "route", "show", "default").split()[:3] == ["default", "via", GATEWAY]
    assert wait_for(lambda: address(f"{NAME}.dre") == first)
    clients = clients_of(app)
    assert len(clients) == 1
    # In the app's network, and in nothing else of it: its root must find no process to reach the host by.
    init = json.loads(app("status", NAME, "--json"))["pid"]
    same = {
        kind: os.readlink(f"/proc/{clients[0]}/ns/{kind}") == os.readlink(f"/proc/{init}/ns/{kind}") for kind in KINDS
    }
    assert same == {"net": True, "pid": False, "mnt": False}
    app("restart", "--timeout", "1", NAME)
    assert ip(app, NAME) == first
    app("stop", "--timeout", "1", NAME)
    assert clients_of(app) == [] and json.loads(app("list", "--json"))["ip"] == []
    app("set", NAME, "ip=10.231.102.77/24")
    app("start", NAME)
    assert ip(app, NAME) == "10.231.102.77"


KINDS = ("net", "pid", "mnt")


def clients_of(app):
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes() if entry.exists() else b""
        if words.startswith(b"udhcpc\0") and app.run_dir.encode() in words:
            found.append(int(entry.parent.name))
    return found


def test_isolated_it_gets_its_address_when_it_rejoins(app):
    app("create", NAME, "--ip", "dhcp")
    app("isolate", NAME)
    app("start", NAME)
    assert json.loads(app("status", NAME, "--json"))["ip"] == []
    app("rejoin", NAME)
    assert (
        subprocess.run(["ping", "-c", "1", "-W", "2", ip(app, NAME)], capture_output=True, check=False).returncode == 0
    )
    assert len(clients_of(app)) == 1


def test_no_address_by_dhcp_is_a_failed_start(run, settings):
    with net_ground.NetGround(run, settings) as app:
        app("create", NAME, "--ip", "dhcp")
        app.bridge("up")
        os.kill(daemon(app), signal.SIGSTOP)
        begun = time.monotonic()
        assert f"{NAME}: no address by DHCP on dret2" in app("start", NAME, code=5)
        assert time.monotonic() - begun < 40
        assert app("status", NAME, code=1) == ""
        assert clients_of(app) == []
        os.kill(daemon(app), signal.SIGCONT)
        app("start", NAME)


def test_dhcp_of_others_on_a_bridge_of_others(app):
    """As on an office network that the host's own interface is bridged to."""
    subprocess.run(["ip", "link", "add", net_ground.BRIDGE, "type", "bridge"], check=True)
    server = None
    try:
        subprocess.run(["ip", "addr", "add", f"{GATEWAY}/24", "dev", net_ground.BRIDGE], check=True)
        subprocess.run(["ip", "link", "set", net_ground.BRIDGE, "up"], check=True)
        argv = ["dnsmasq", "--conf-file=/dev/null", "--keep-in-foreground", "--port=0", "--no-ping"]
        argv += [f"--interface={net_ground.BRIDGE}", "--bind-dynamic", "--except-interface=lo"]
        argv += [f"--pid-file={app.run_dir}/others", f"--dhcp-leasefile={app.run_dir}/leases"]
        server = subprocess.Popen([*argv, "--dhcp-range=10.231.102.40,10.231.102.49,1h"])
        app("create", NAME, "--ip", "dhcp")
        app("start", NAME)
        assert 40 <= int(ip(app, NAME).rpartition(".")[2]) <= 49
        app("destroy", "--force", NAME)
    finally:
        if server is not None:
            server.terminate()
            server.wait(10)
        subprocess.run(["ip", "link", "del", net_ground.BRIDGE], check=True)


def test_addresses_that_are_refused(app):
    assert "is one that DHCP gives" in app("create", NAME, "--ip", "10.231.102.230/24", code=1)
    app("create", NAME, "--ip", "10.231.102.9/24")
    app("create", OTHER)
    assert app("set", OTHER, "ip=10.231.102.9/24", code=1) == f"dre-app: {OTHER}: address 10.231.102.9 is taken"
    assert "not an address of" in app("set", OTHER, "ip=10.9.9.9/24", code=2)
    app("set", OTHER, "ip=none")
    app("start", OTHER)
    assert json.loads(app("status", OTHER, "--json"))["ip"] == []
    assert "cannot change while it runs" in app("set", OTHER, "ip=10.231.102.10/24", code=1)


def test_dhcp_that_is_off(run, settings):
    with net_ground.NetGround(run, settings, DRE_BRIDGE_DHCP="no") as app:
        assert "set DRE_BRIDGE_DHCP" in app("create", NAME, "--ip", "dhcp", code=2)
