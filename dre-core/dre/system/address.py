# SPDX-License-Identifier: Apache-2.0
"""Addresses of systems: which are given, which one a new system gets, and the way out of its network.

Apps and systems share the network of the bridge, and the lock under which an address is given: dre.network.reserved.
"""

import contextlib
import ipaddress
import json
import secrets
from collections.abc import Iterator
from dataclasses import replace

from dre import dnsmasq, intent, network
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, UsageError
from dre.spec import AUTO, DHCP
from dre.system.spec import Spec


def given(conf: Conf, but: str = "") -> Iterator[Spec]:
    """The Specs of all systems but *but*, and those that a `set` under way will make of them."""
    place = conf.core_state_dir / "sys" / "state"
    for home in sorted(place.iterdir()) if place.is_dir() else ():
        if home.name == but:
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # half made, or half removed
            yield Spec.from_json((home / "system.json").read_text())
        with contextlib.suppress(DreError, ValueError, KeyError, TypeError):
            under_way = intent.read(home)
            if under_way is not None and under_way["verb"] == "set":
                yield Spec.from_json(json.dumps(under_way["new"]))


def taken(conf: Conf, but: str = "") -> set[ipaddress.IPv4Address]:
    """The addresses of systems."""
    return {ipaddress.IPv4Interface(str(spec.ip)).ip for spec in given(conf, but) if spec.ip not in (None, DHCP)}


def choose(conf: Conf, name: str, wanted: str | None) -> str | None:
    """The address to give, with its length, or `dhcp`; *wanted* may be `none`, and `auto` or None for the next free.

    An address without a length gets that of DRE_SYS_DEFAULT_NETMASK. Wants `network.reserved`.
    Raises UsageError, or DreError when it is taken.
    """
    if wanted == "none":
        return None
    if wanted == DHCP:
        return wanted
    busy = {conf.bridge_address.ip, *network.taken_by_apps(App(conf, "")), *taken(conf, name)}
    if wanted in (None, AUTO):
        return network.next_free(conf, name, busy)
    return _checked(conf, name, str(wanted), busy)


def _checked(conf: Conf, name: str, wanted: str, busy: set[ipaddress.IPv4Address]) -> str:
    word = wanted if "/" in wanted else f"{wanted}/{conf.sys_default_netmask}"
    try:
        chosen = ipaddress.IPv4Interface(word)
    except ValueError:
        raise UsageError(f"--ip {wanted!r}: expected ADDR/LEN, dhcp or none") from None
    text = f"{chosen.ip}/{chosen.network.prefixlen}"
    if chosen.network == conf.bridge_address.network:
        return network.checked(conf, name, text, busy)
    # A bridge of others may lead to any network.
    if chosen.ip in (chosen.network.network_address, chosen.network.broadcast_address):
        raise UsageError(f"--ip {wanted}: not the address of a host")
    if chosen.ip in busy:
        raise DreError(f"{name}: address {chosen.ip} is taken")
    return text


def check(system: "object", spec: Spec) -> Spec:
    """*spec* with the address it asks for, as `set ip=…` wants it."""
    from dre.system.model import System

    assert isinstance(system, System)
    return replace(spec, ip=choose(system.conf, system.name, spec.ip or "none"))


def gateway(conf: Conf, ip: str) -> str | None:
    """The way out for *ip*: DRE_SYS_DEFAULT_GATEWAY where it lies in that network, else the bridge, else none."""
    net = ipaddress.IPv4Interface(ip).network
    for candidate in (ipaddress.IPv4Address(conf.sys_default_gateway), conf.bridge_address.ip):
        if candidate in net:
            return str(candidate)
    return None


def name_servers(conf: Conf) -> tuple[str, ...]:
    """Whom a system asks for names: the bridge where it answers, else DRE_SYS_DEFAULT_DNS."""
    ours = network.nameserver(conf) if dnsmasq.serves(conf) else None
    bridge = str(conf.bridge_address.ip)
    return (ours,) if ours else tuple(server for server in conf.sys_default_dns if server != bridge)


def mac(conf: Conf, wanted: str | None, but: str = "") -> str:
    """The hardware address to give: *wanted*, or by DRE_SYS_DEFAULT_MAC. Raises DreError when it is taken."""
    used = {spec.mac for spec in given(conf, but)}
    if wanted is not None:
        if wanted in used:
            raise DreError(f"--mac {wanted}: taken by another system")
        return wanted
    if conf.sys_default_mac == "auto":
        while True:
            found = "52:54:00:" + secrets.token_bytes(3).hex(":")
            if found not in used:
                return found
    first = int(conf.sys_default_mac.replace(":", ""), 16)
    return next(text for text in (_mac_text(number) for number in range(first, 1 << 48)) if text not in used)


def _mac_text(number: int) -> str:
    return number.to_bytes(6, "big").hex(":")
