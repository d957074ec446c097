# SPDX-License-Identifier: Apache-2.0
"""isolate cuts an app off at the bridge while its processes run on, over restarts too, and costs neighbours nothing.

The witnesses are a packet socket on the bridge, `ip`, `nft` and `ping`.
"""

import contextlib
import json
import os
import pathlib
import re
import select
import socket
import subprocess
import time

import app_ground
import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NAME, OTHER = "niso1", "niso2"


@pytest.fixture
def app(run, settings):
    with app_ground.Ground(run, settings) as ground:
        yield ground


def ip(app, name=NAME):
    return json.loads(app("status", name, "--json"))["ip"][0]


def answers(address):
    return subprocess.run(["ping", "-c", "1", "-W", "1", address], capture_output=True, check=False).returncode == 0


def reached(address):
    """Whether it answers soon: the kernel may take a moment to say that a link is up."""
    return app_ground.wait_for(lambda: answers(address))


def port(app, name=NAME):
    """What the kernel says of the app's port, found by the name LXC has for it."""
    config = pathlib.Path(app_ground.LXC, name, "config").read_text()
    link = re.search(r"^lxc.net.0.veth.pair = (.*)$", config, re.M)[1]
    found = subprocess.run(["ip", "-j", "-d", "link", "show", "dev", link], capture_output=True, check=True)
    return json.loads(found.stdout)[0]


def dropped(app, name=NAME):
    command = ["nft", "-j", "list", "set", "bridge", f"dre-{app_ground.BRIDGE}", "isolated"]
    found = subprocess.run(command, capture_output=True, check=False)
    return found.returncode == 0 and port(app, name)["ifname"] in found.stdout.decode()


@contextlib.contextmanager
def sniffed(mac):
    """All frames that come from hardware address *mac* over any interface of the host; a list that fills."""
    frames = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        yield frames
        deadline = time.monotonic() + 1
        while select.select([tap], [], [], 0.05)[0] and time.monotonic() < deadline:
            frame, where = tap.recvfrom(65536)
            if frame[6:12] == mac and where[0] != "lo":
                frames.append(where[0])


def mac(name=NAME):
    config = pathlib.Path(app_ground.LXC, name, "config").read_text()
    return bytes.fromhex(re.search(r"^lxc.net.0.hwaddr = (.*)$", config, re.M)[1].replace(":", ""))


def test_cut_off_while_it_runs_and_back(app):
    app("create", NAME)
    app("create", OTHER)
    app("start", NAME, OTHER)
    pid = json.loads(app("status", NAME, "--json"))["pid"]
    assert reached(ip(app)) and reached(ip(app, OTHER))
    neighbour = ["ping", "-q", "-i", "0.01", "-c", "300", ip(app, OTHER)]
    with subprocess.Popen(neighbour, stdout=subprocess.PIPE) as traffic:
        for _ in range(2):  # twice is once
            app("isolate", NAME)
            assert not answers(ip(app))
            assert "UP" not in port(app)["flags"] and dropped(app)
        app("rejoin", NAME)
        assert reached(ip(app)) and not dropped(app)
        assert b" 0% packet loss" in traffic.communicate(timeout=30)[0]
    assert app("rejoin", NAME) == ""
    assert json.loads(app("status", NAME, "--json"))["pid"] == pid
    assert app.events()[-2:] == ["app.isolated", "app.rejoined"]


def test_the_isolated_stays_readable_and_cannot_free_itself(app):
    app("create", NAME)
    app("start", NAME)
    app("isolate", NAME)
    assert app("exec", NAME, "--", "echo", "still here") == "still here"
    assert json.loads(app("stat", NAME, "--json"))["state"] == "running"
    row = json.loads(app("status", NAME, "--json"))
    assert (row["state"], row["isolated"]) == ("running", True)
    app("push", NAME, __file__, "/var/cache/pushed")
    assert app("exec", NAME, "--", "cat", "/var/cache/pushed") == pathlib.Path(__file__).read_text().removesuffix("\n")
    app("exec", NAME, "--", "ip", "link", "set", "eth0", "down")
    app("exec", NAME, "--", "ip", "link", "set", "eth0", "up")
    assert not answers(ip(app))
    # Each of the two is enough: the other may be taken away by somebody.
    subprocess.run(["ip", "link", "set", port(app)["ifname"], "up"], check=True)
    assert not answers(ip(app))
    app("isolate", NAME)
    assert "UP" not in port(app)["flags"]


@pytest.mark.parametrize("by_hand", [False, True], ids=["dre-app", "lxc-start"])
def test_not_one_packet_after_a_restart(app, by_hand):
    talk = "while :; do echo x >/dev/udp/10.231.101.1/9 2>/dev/null; sleep 0.02; done"
    app("create", NAME, "--", "/bin/bash", "-c", talk)
    app("start", NAME)
    with sniffed(mac()) as frames:
        assert reached(ip(app))
    assert frames  # the witness sees
    app("isolate", NAME)
    app("stop", "--timeout", "1", NAME)
    if by_hand:  # and without the rule, which a reboot takes away: the link is down before the app's end is up
        subprocess.run(["nft", "delete", "table", "bridge", f"dre-{app_ground.BRIDGE}"], check=True)
    with sniffed(mac()) as frames:
        if by_hand:
            subprocess.run(["lxc-start", "-n", NAME], check=True, timeout=30)
        else:
            app("start", NAME)
        app("exec", NAME, "--", "sleep", "0.3")
    assert frames == []
    assert "UP" not in port(app)["flags"]
    assert not answers(ip(app))
    app("rejoin", NAME)
    assert reached(ip(app))


def test_a_stopped_one_and_undo(app):
    app("create", NAME)
    app("snapshot", "save", NAME, "good")
    app("isolate", NAME)
    app("undo", NAME, "good")
    assert not answers(ip(app)) and json.loads(app("status", NAME, "--json"))["isolated"] is True
    app("destroy", "--force", NAME)
    listed = subprocess.run(["nft", "list", "table", "bridge", f"dre-{app_ground.BRIDGE}"], capture_output=True)
    assert b"elements" not in listed.stdout


def test_without_network_and_unknown(app):
    app("create", NAME, "--ip", "none")
    app("isolate", NAME)
    assert json.loads(app("list", "--json"))["isolated"] is True
    assert app("isolate", "nisonone", code=3) == "dre-app: nisonone: no such app"
    assert "nisonone" in app("rejoin", NAME, "nisonone", code=3)


def test_killed_at_any_moment(app):
    app("create", NAME)
    app("start", NAME)
    longest = {}
    for verb in ("isolate", "rejoin"):
        begun = time.monotonic()
        app(verb, NAME)
        longest[verb] = time.monotonic() - begun
    hits = 0
    for count in range(int(os.environ.get("DRE_KILLS", "2"))):
        verb = ("isolate", "rejoin")[count % 2]
        hits += app.killed(verb, NAME, longest=longest[verb])
        row = json.loads(app("status", NAME, "--json"))
        assert row["state"] == "running"
        assert not answers(row["ip"][0]) if row["isolated"] else reached(row["ip"][0])
        assert dropped(app) is row["isolated"]
        app(verb, NAME)
        assert dropped(app) is (verb == "isolate")
    assert hits
