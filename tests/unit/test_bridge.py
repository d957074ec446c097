# SPDX-License-Identifier: Apache-2.0
"""What dre-bridge makes of texts: records, addresses and routes to move, what cannot be a port, reservations."""

import ipaddress

import pytest
from dre import addresses, attach, conf, dnsmasq, mark, nat, network, uplink
from dre import app as apps
from dre.addresses import Rows
from dre.errors import DreError, NotFoundError, UsageError

FOREVER = (1 << 32) - 1


@pytest.fixture
def net(tmp_path, monkeypatch):
    """net(LINK, FILE=text…): /sys/class/net as it could be."""
    for module, name in ((mark, "NET"), (uplink, "_NET")):
        monkeypatch.setattr(module, name, tmp_path)

    def make(link, **texts):
        place = tmp_path / link
        place.mkdir(exist_ok=True)
        for name, text in {"type": "1", "flags": "0x1003", **texts}.items():
            (place / name).write_text(f"{text}\n")
        return place

    return make


@pytest.mark.parametrize("record", [{}, {"nat": []}, {"nat": ["eth0", "wlan0"], "uplink": ["eth1"]}])
def test_a_record_is_read_as_it_was_written(net, record):
    place = net("br0", ifalias="")
    mark.write("br0", record)
    assert (place / "ifalias").read_text().startswith("d-re")
    assert mark.read("br0") == record


@pytest.mark.parametrize("alias", ["", "d-really", "office d-re", "nat=eth0"])
def test_another_alias_is_none(net, alias):
    net("br0", ifalias=alias)
    assert mark.read("br0") is None
    assert mark.read("absent0") is None


def test_what_other_bridges_need(net):
    net("br0", ifalias="d-re nat=eth0")
    net("br1", ifalias="d-re nat=eth1,eth2")
    net("br2", ifalias="somebody nat=eth3")
    assert mark.of_others("br0", "nat") == {"eth1", "eth2"}


def row(**more):
    kept = {"valid_life_time": FOREVER, "preferred_life_time": FOREVER, "scope": "global", "label": "eth0"}
    return {"family": "inet", "local": "192.0.2.5", "prefixlen": 24, **kept, **more}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (row(), "192.0.2.5/24 dev br0 scope global valid_lft forever preferred_lft forever"),
        (
            row(valid_life_time=90, preferred_life_time=0),
            "192.0.2.5/24 dev br0 scope global valid_lft 90 preferred_lft 0",
        ),
        (row(broadcast="192.0.2.255", metric=7), "192.0.2.5/24 dev br0 scope global broadcast 192.0.2.255 metric 7 {}"),
        (row(label="eth0:7"), "192.0.2.5/24 dev br0 scope global label br0:7 {}"),
        (row(address="192.0.2.9", prefixlen=32), "192.0.2.5 peer 192.0.2.9/32 dev br0 scope global {}"),
        (
            {
                **row(family="inet6", local="2001:db8::5", prefixlen=64, noprefixroute=True, mngtmpaddr=True),
                "label": "",
            },
            "2001:db8::5/64 dev br0 nodad mngtmpaddr noprefixroute {}",
        ),
    ],
)
def test_an_address_is_given_with_all_that_it_had(given, words):
    assert (
        addresses.address(given, "br0")
        == f"addr replace {words}".format("valid_lft forever preferred_lft forever").split()
    )


def way(**more):
    kept = {"type": "unicast", "dst": "default", "protocol": "dhcp", "table": "main", "scope": "global", "flags": []}
    return {"family": "-4", **kept, **more}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            way(
                gateway="192.0.2.1", metric=100, prefsrc="192.0.2.5", metrics=[{"mtu": 1400}], flags=["onlink", "dead"]
            ),
            "-4 route append unicast default via 192.0.2.1 dev br0 table main proto dhcp metric 100 scope global"
            " src 192.0.2.5 mtu 1400 onlink",
        ),
        (
            way(family="-6", gateway="fe80::1", protocol="ra", metric=1024, expires=99, pref="high"),
            "-6 route append unicast default via fe80::1 dev br0 table main proto ra metric 1024 expires 99 pref high",
        ),
        (
            way(dst="10.0.0.0/8", via={"family": "inet6", "host": "fe80::1"}, table="7"),
            "-4 route append unicast 10.0.0.0/8 via inet6 fe80::1 dev br0 table 7 proto dhcp scope global",
        ),
        (
            way(nexthops=[{"gateway": "192.0.2.1", "weight": 2, "flags": []}, {"gateway": "192.0.2.2", "weight": 1}]),
            "-4 route append unicast default table main proto dhcp scope global nexthop via 192.0.2.1 dev br0 weight 2"
            " nexthop via 192.0.2.2 dev br0 weight 1",
        ),
    ],
)
def test_a_route_is_made_as_it_was(given, words):
    assert addresses.route(given, "append", "br0") == words.split()


def test_to_remove_a_route_its_way_is_named():
    """Else the other one of that network would go."""
    given = way(nexthops=[{"gateway": "192.0.2.1", "weight": 1}])
    assert " ".join(addresses.route(given, "del", "eth0")).endswith("nexthop via 192.0.2.1 dev eth0 weight 1")
    assert "eth0" in addresses.route(way(gateway="192.0.2.1"), "del", "eth0")


def test_gateways():
    several = way(nexthops=[{"gateway": "192.0.2.2"}, {"via": {"family": "inet6", "host": "fe80::1"}}])
    rows = Rows([], [way(gateway="192.0.2.1"), several, way(dst="10.0.0.0/8", gateway="192.0.2.3"), way()])
    assert rows.gateways() == ["192.0.2.1", "192.0.2.2", "fe80::1"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"wireless": ""}, "is wireless"),
        ({"phy80211": ""}, "is wireless"),
        ({"type": "772", "flags": "0x9"}, "no Ethernet"),
        ({"type": "65534"}, "no Ethernet"),
        ({"bridge": ""}, "is a bridge"),
    ],
)
def test_interfaces_that_cannot_be_ports(net, files, reason):
    net("br0", ifalias="d-re")
    net("eth0", **files)
    with pytest.raises(DreError, match=reason):
        uplink.check("br0", "eth0")


def test_interfaces_that_are_taken_or_absent(net):
    net("br0", ifalias="d-re uplink=eth1").joinpath("brif").mkdir()
    net("br1")
    place = net("eth0")
    with pytest.raises(NotFoundError):
        uplink.check("br0", "eth9")
    uplink.check("br0", "eth0")
    (place / "master").symlink_to("../br1")
    with pytest.raises(DreError, match="is in br1 already"):
        uplink.check("br0", "eth0")
    (place / "master").unlink()
    net("br0").joinpath("brif/eth1").mkdir()
    with pytest.raises(DreError, match="has eth1 as its uplink"):
        uplink.check("br0", "eth0")


def test_a_damaged_record_of_a_move_is_told(tmp_path):
    where = conf.Conf(core_run_dir=tmp_path)
    file = tmp_path / "bridge/br0/uplink.json"
    file.parent.mkdir(parents=True)
    for text in ("", "[]", '{"link": "eth0"}'):
        file.write_text(text)
        with pytest.raises(DreError, match="damaged"):
            uplink.state(where)
    file.unlink()
    assert uplink.state(where) is None


def test_rules_of_a_bridge_that_leads_outside_translate_what_leaves_by_itself():
    rules = nat._rules("br0", nat.V4, ipaddress.ip_network("10.231.0.0/24"), True, [])
    assert 'oifname "br0" ip daddr != { 10.231.0.0/24, 224.0.0.0/4, 255.255.255.255 } masquerade' in rules
    assert 'oifname "br0" icmp type redirect drop' in rules
    assert "redirect" not in nat._rules("br0", nat.V4, ipaddress.ip_network("10.231.0.0/24"), False, [])


def test_ipv6_of_old_kernels_is_not_forwarded_between_the_uplinks():
    rules = nat._rules("br0", nat.V6, ipaddress.ip_network("fd00:d::/64"), False, ["eth0", "eth1"])
    assert 'iifname { "eth0", "eth1" } oifname { "eth0", "eth1" } drop' in rules


DOMAIN = """<domain type='kvm' id='1'><name>%s</name><devices>
<interface type='bridge'><source bridge='br0'/><target dev='vnet0'/></interface>
<interface type='bridge'><source bridge='br1'/><target dev='vnet1'/></interface>
<interface type='network'><source network='default' bridge='br0'/><target dev='vnet2'/></interface>
<interface type='user'/><interface type='bridge'><source bridge='br0'/></interface>
</devices></domain>"""


def test_taps_of_a_domain():
    assert attach.taps(DOMAIN % "pay", "br0") == ["vnet0", "vnet2"]
    assert attach.taps(DOMAIN % "pay", "br9") == []


@pytest.mark.parametrize("text", ["fd00:d::1", "fd00:d::1/48", "fd00:d::/64", "fe80::1/64", "10.0.0.1/24", "x/64"])
def test_ipv6_addresses_that_are_refused(text):
    with pytest.raises(UsageError):
        conf.KEYS["DRE_BRIDGE_ADDRESS6"].kind(text)


MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"


def test_reservations(tmp_path):
    where = conf.Conf(core_run_dir=tmp_path, core_state_dir=tmp_path)
    (tmp_path / "bridge/br0/hosts").mkdir(parents=True)
    dnsmasq.reserve(where, MAC.upper(), "10.231.0.50/24", "pay1")
    place = tmp_path / "bridge/br0"
    assert (place / "reserved/52-54-00-00-00-01").read_text() == f"{MAC},10.231.0.50,pay1\n"
    assert (place / "hosts/pay1.sys").read_text() == "10.231.0.50 pay1.dre pay1\n"
    dnsmasq.reserve(where, MAC, "10.231.0.51", "pay2")  # another instead
    assert [name.name for name in (place / "hosts").iterdir()] == ["pay2.sys"]
    with pytest.raises(DreError, match="10.231.0.51 is taken"):
        dnsmasq.reserve(where, OTHER, "10.231.0.51", "pay3")
    assert [(mac, str(ip), name) for mac, ip, name in dnsmasq.reservations(where)] == [(MAC, "10.231.0.51", "pay2")]
    dnsmasq.release(where, MAC)
    dnsmasq.release(where, MAC)
    assert list(dnsmasq.reservations(where)) == [] == list((place / "hosts").iterdir())


@pytest.mark.parametrize(
    ("mac", "address", "name"),
    [
        ("52:54:00:00:00", "10.231.0.50", "pay1"),
        ("52:54:00:00:00:01,set:x", "10.231.0.50", "pay1"),
        (MAC, "10.9.0.50", "pay1"),
        (MAC, "10.231.0.255", "pay1"),
        (MAC, "10.231.0.50\n", "pay1"),
        (MAC, "10.231.0.50", "pay,1"),
        (MAC, "10.231.0.50", "../pay"),
    ],
)
def test_reservations_that_are_refused(tmp_path, mac, address, name):
    where = conf.Conf(core_run_dir=tmp_path)
    with pytest.raises(UsageError):
        dnsmasq.reserve(where, mac, address, name)
    assert list(tmp_path.iterdir()) == []


def test_no_reservations_without_dhcp(tmp_path):
    with pytest.raises(UsageError, match="set DRE_BRIDGE_DHCP"):
        dnsmasq.reserve(conf.Conf(core_run_dir=tmp_path, bridge_dhcp="no"), MAC, "10.231.0.50", "pay1")


def test_apps_get_no_reserved_address(tmp_path):
    where = conf.Conf(core_run_dir=tmp_path, core_state_dir=tmp_path)
    dnsmasq.hosts(where).mkdir(parents=True)
    dnsmasq.reserve(where, MAC, "10.231.0.2", "pay1")
    assert network.address(apps.App(where, "web1"), None) == "10.231.0.3/24"
    with pytest.raises(DreError, match="is taken"):
        network.address(apps.App(where, "web1"), "10.231.0.2/24")
