# SPDX-License-Identifier: Apache-2.0
"""What the tests of dre-bridge stand on: hosts that are network namespaces, so that the real one stays as it is."""

import contextlib
import json
import os
import subprocess

from conftest import environment, program

BRIDGE = "dret2"
ALONE = {"DRE_BRIDGE_DNS": "no", "DRE_BRIDGE_DHCP": "no"}  # dnsmasq has tests of its own
SETTINGS = {"DRE_BRIDGE_IF": BRIDGE, "DRE_BRIDGE_ADDRESS": "10.231.102.1/24", **ALONE}


def sh(*argv, check=True):
    return subprocess.run(argv, capture_output=True, check=check, timeout=30, env=environment()).stdout.decode()


class Host:
    """A network namespace with the programs of ours running in it."""

    def __init__(self, name, conf):
        self.name, self.conf = name, conf

    def run(self, *argv, check=True):
        return sh("ip", "netns", "exec", self.name, *argv, check=check)

    def bridge(self, *argv):
        return subprocess.run(self.argv(*argv), capture_output=True, timeout=180, env=environment(), check=False)

    def argv(self, *argv):
        return ["ip", "netns", "exec", self.name, program("dre-bridge"), "--config", self.conf, *argv]

    def links(self):
        return {link["ifname"]: link for link in json.loads(self.run("ip", "-j", "link"))}

    def addresses(self, link):
        found = json.loads(self.run("ip", "-j", "-4", "addr", "show", "dev", link))
        return [f"{item['local']}/{item['prefixlen']}" for item in found[0]["addr_info"]]

    def forwarding(self, link):
        return self.run("cat", f"/proc/sys/net/ipv4/conf/{link}/forwarding").strip()

    def rules(self):
        return self.run("nft", "list", "ruleset")

    def ping(self, address):
        command = ["ip", "netns", "exec", self.name, "ping", "-c", "1", "-W", "2", address]
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0


@contextlib.contextmanager
def spaces(settings):
    """create(NAME, KEY=value…) → a fresh namespace; removed afterwards."""
    made = []

    def create(name, **keys):
        conf = settings(**{**SETTINGS, **keys})
        full = f"dret2-{name}-{os.getpid()}"
        sh("ip", "netns", "add", full)
        made.append(full)
        host = Host(full, conf)
        host.run("ip", "link", "set", "lo", "up")
        host.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")  # a new namespace has it as the real host has
        return host

    try:
        yield create
    finally:
        for full in made:
            for pid in sh("ip", "netns", "pids", full).split():
                sh("kill", "-KILL", pid, check=False)
            sh("ip", "netns", "del", full)


def make_router(space):
    """A namespace whose default route leads by its up0 to a second one, `.out`."""
    host, out = space("r"), space("o")
    host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", out.name)
    for where, link, address in ((host, "up0", "10.231.103.1/24"), (out, "eth0", "10.231.103.2/24")):
        where.run("ip", "addr", "add", address, "dev", link)
        where.run("ip", "link", "set", link, "up")
    host.run("ip", "route", "add", "default", "via", "10.231.103.2")
    host.out = out
    return host


def attach(host, other, number):
    """Put *other* onto the bridge as a container would be."""
    host.run("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", other.name)
    host.run("ip", "link", "set", f"port{number}", "master", BRIDGE, "up")
    other.run("ip", "addr", "add", f"10.231.102.{number}/24", "dev", "eth0")
    other.run("ip", "link", "set", "eth0", "up")
    other.run("ip", "route", "add", "default", "via", "10.231.102.1")
