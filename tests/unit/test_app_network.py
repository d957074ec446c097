# SPDX-License-Identifier: Apache-2.0
"""What follows for the network from settings and Specs: addresses, names of links, ports, keys, the script of sshd."""

import dataclasses
import ipaddress
import subprocess

import pytest
from dre import app as apps
from dre import conf, dnsmasq, lxcconfig, network, spec, sshd
from dre.errors import DreError, UsageError
from dre.spec import Publish, Spec


def settings(tmp_path, **changes):
    return conf.Conf(core_state_dir=tmp_path / "state", core_run_dir=tmp_path / "run", **changes)


def made(settings, name, **fields):
    app = apps.App(settings, name)
    app.home.mkdir(parents=True)
    (app.home / "app.json").write_text(Spec(name=name, base="host", created="x", **fields).to_json())
    return app


@pytest.mark.parametrize(
    ("address", "wanted", "expected"),
    [
        ("10.231.0.1/24", "auto", ("10.231.0.224", "10.231.0.254")),
        ("10.231.0.1/27", "auto", ("10.231.0.28", "10.231.0.30")),
        ("10.231.0.1/28", "auto", None),
        ("10.231.0.1/24", "no", None),
        ("10.231.0.1/24", "10.231.0.9-10.231.0.9", ("10.231.0.9", "10.231.0.9")),
    ],
)
def test_addresses_of_dhcp(tmp_path, address, wanted, expected):
    given = conf.KEYS["DRE_BRIDGE_DHCP"].kind(wanted)
    found = dnsmasq.dhcp_range(settings(tmp_path, bridge_address=ipaddress.IPv4Interface(address), bridge_dhcp=given))
    assert (found and tuple(map(str, found))) == expected


@pytest.mark.parametrize("wanted", ["10.9.0.1-10.9.0.2", "10.231.0.0-10.231.0.9", "10.231.0.9-10.231.0.255"])
def test_addresses_of_dhcp_that_are_not_the_bridges(tmp_path, wanted):
    given = conf.KEYS["DRE_BRIDGE_DHCP"].kind(wanted)
    with pytest.raises(UsageError):
        dnsmasq.dhcp_range(settings(tmp_path, bridge_dhcp=given))


def test_the_next_free_address_is_neither_taken_nor_one_of_dhcp(tmp_path):
    where = settings(tmp_path, bridge_address=ipaddress.IPv4Interface("10.231.0.1/27"))
    for last in range(2, 28):
        if last != 20:
            made(where, f"web{last}", ip=f"10.231.0.{last}/27")
    made(where, "wild", ip="dhcp")
    new = apps.App(where, "new")
    assert network.address(new, None) == "10.231.0.20/27"
    made(where, "web20", ip="10.231.0.20/27")
    with pytest.raises(DreError, match="no free address"):
        network.address(new, "auto")
    with pytest.raises(DreError, match="one that DHCP gives"):
        network.address(new, "10.231.0.29/27")


def test_an_address_of_a_set_that_was_killed_is_taken(tmp_path):
    where = settings(tmp_path)
    other = made(where, "web1", ip="10.231.0.5/24")
    later = Spec(name="web1", base="host", created="x", ip="10.231.0.6/24")
    other.begin(verb="set", keys=["ip"], old={}, new=dataclasses.asdict(later))
    new = apps.App(where, "new")
    for address in ("10.231.0.5/24", "10.231.0.6/24"):
        with pytest.raises(DreError, match="is taken"):
            network.address(new, address)


def test_names_of_links_fit_and_differ():
    where = conf.Conf()
    links = {
        lxcconfig.link(where, Spec(name="a" * 31, base="host", created="x", ip=ip)) for ip in ("10.231.0.2/24", "dhcp")
    }
    assert len(links) == 2 and all(len(link) <= 15 for link in links)
    assert lxcconfig.link(where, Spec(name="a", base="host", created="x")) is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("8080:80", Publish(8080, 80)),
        ("53:5353/udp", Publish(53, 5353, "udp")),
        ("127.0.0.1:1:65535/tcp", Publish(1, 65535, "tcp", "127.0.0.1")),
    ],
)
def test_published_ports(word, expected):
    found = spec.publish(word)
    assert found == expected
    assert spec.publish(str(found)) == found
    stored = Spec(name="a", base="host", created="x", publish=(found,))
    assert Spec.from_json(stored.to_json()) == stored


@pytest.mark.parametrize(
    "word", ["", "80", ":80", "80:", "0:80", "80:0", "80:65536", "80:80/", "80:80/TCP", "::1:80:80"]
)
def test_what_is_no_port(word):
    with pytest.raises(UsageError):
        spec.publish(word)


def test_no_stored_port_becomes_a_rule():
    text = Spec(name="a", base="host", created="x", publish=(Publish(80, 80, "tcp", '1.1.1.1"; flush ruleset #'),))
    with pytest.raises(UsageError):
        Spec.from_json(text.to_json())


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("80:1", "80:2", True),
        ("80:1", "80:1/udp", False),
        ("80:1", "127.0.0.1:80:1", True),
        ("127.0.0.1:80:1", "127.0.0.2:80:1", False),
        ("127.0.0.1:80:1", "127.0.0.1:80:9", True),
    ],
)
def test_ports_that_clash(first, second, clash):
    ports = spec.publish(first), spec.publish(second)
    assert ports[0].clashes(ports[1]) is ports[1].clashes(ports[0]) is clash


def test_a_snapshot_restores_neither_isolation_nor_ports_nor_keys():
    own = {"isolated": True, "publish": (Publish(1, 2),), "sshd_port": 22, "ssh_keys": ("ssh-ed25519 new",)}
    now = Spec(name="a", base="host", created="x", **own)
    saved = Spec(name="a", base="host", created="x", publish=(Publish(3, 4),), ssh_keys=("ssh-ed25519 old",))
    restored = now.restored(saved)
    assert {key: getattr(restored, key) for key in own} == own


def test_no_key_becomes_code(tmp_path):
    key = "ssh-ed25519 " + "A" * 68
    evil = f"{key} '; touch {tmp_path}/owned; echo '$(touch {tmp_path}/owned)`touch {tmp_path}/owned`"
    assert sshd.keys([evil]) == (evil,)
    script = sshd.script(Spec(name="a", base="host", created="x", sshd_port=22, ssh_keys=(evil,)))
    only = next(line for line in script.split("\n") if line.startswith("printf %s 'ssh-"))
    rest = script[script.index(only) :].partition(" >/run/dre-sshd-keys")[0]
    done = subprocess.run(["/bin/sh", "-c", rest], capture_output=True, check=True, env={"PATH": "/usr/bin:/bin"})
    assert done.stdout.decode() == f"{evil}\n"
    assert not (tmp_path / "owned").exists()
    subprocess.run(["/bin/sh", "-n", "-c", script + sshd.AFTER], check=True)
