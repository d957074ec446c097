# SPDX-License-Identifier: Apache-2.0
"""Whom an app is told to ask for names: the bridge where it answers, else those of the host that it can reach."""

from dataclasses import replace

import pytest
from dre import names, network
from dre.conf import Conf
from dre.spec import DHCP, Spec

TREE = Spec(name="web1", base="/tree", created="x", ip="10.231.0.11/24")


@pytest.fixture
def host(tmp_path, monkeypatch):
    """host(*TEXTS): the files that the host asks by, in order; the bridge answers nothing."""
    monkeypatch.setattr(network, "nameserver", lambda conf: None)

    def write(*texts):
        paths = tuple(tmp_path / str(number) for number in range(2))
        for path, text in zip(paths, texts, strict=False):
            path.write_text(text)
        monkeypatch.setattr(names, "RESOLVERS", paths)

    return write


def test_the_bridge_comes_first(monkeypatch):
    monkeypatch.setattr(network, "nameserver", lambda conf: "10.231.0.1")
    assert names.resolv_conf(Conf(bridge_domain="apps.lan")) == "search apps.lan\nnameserver 10.231.0.1\n"


@pytest.mark.parametrize(
    ("texts", "result"),
    [
        (
            ["# x\nnameserver 192.0.2.1\nsearch a b\noptions x\nnameserver 192.0.2.2\n"],
            "search a b\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n",
        ),
        (["nameserver 127.0.0.53\nsearch a\n", "nameserver 192.0.2.1\n"], "nameserver 192.0.2.1\n"),
        (["nameserver ::1\nnameserver fe80::1%eth0\nnameserver\n", "nameserver 127.0.0.1\n"], ""),
        ([], ""),
    ],
)
def test_of_the_hosts_those_that_can_be_reached(host, texts, result):
    host(*texts)
    assert names.resolv_conf(Conf()) == result


def test_what_is_told_to_whom(host):
    host("nameserver 192.0.2.1\n")
    assert sorted(names.wanted(Conf(), TREE)) == ["hostname", "hosts", "resolv.conf"]
    assert "10.231.0.11 web1.dre web1\n" in names.wanted(Conf(), TREE)["hosts"]
    assert "127.0.1.1 web1.dre web1\n" in names.wanted(Conf(), replace(TREE, ip=DHCP))["hosts"]
    assert sorted(names.wanted(Conf(), replace(TREE, ip=None))) == ["hostname", "hosts"]
    assert sorted(names.wanted(Conf(), replace(TREE, base="host"))) == ["resolv.conf"]
