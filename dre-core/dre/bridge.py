# SPDX-License-Identifier: Apache-2.0
"""The bridge that containers are attached to: made, described and removed.

What `up` makes is known by the record of dre.mark. A bridge without it is somebody else's: used as it is, never
changed, never removed. Translation of addresses is dre.nat's, the way to a network outside dre.uplink's, and what
happens inside containers nobody's here.
"""

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import dnsmasq, files, mark, nat, uplink
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, NotPermittedError, UsageError

_NET = mark.NET
_IFF_UP = 1
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B  # linux/sockios.h
_IFA_F_NODAD = 2  # linux/if_addr.h


@dataclass(frozen=True)
class Bridge:
    """What `show` tells; *nat* is None where the caller may not read the rules, *dhcp* where no address is given."""

    name: str
    state: str  # up or down, as `ip link` has it
    addresses: list[str]
    ours: bool
    nat: bool | None
    dns: bool
    dhcp: str | None
    ports: list[str]
    uplink: str | None  # the one of them that leads outside
    mac: str
    mtu: int


def up(conf: Conf, link: str | None = None) -> str | None:
    """Make the bridge with its addresses, up, without STP, its NAT and its dnsmasq; do only what is still missing.

    The interface *link*, by default that of the settings, becomes a port of it. A bridge of that name made by others
    is left as it is. Returns what the settings want and is not had: names and DHCP, or the port. Raises DreError and
    its children.
    """
    with locked(conf):
        return ensure(conf, link)


def ensure(conf: Conf, link: str | None = None) -> str | None:
    """As `up`, for who holds the lock."""
    name = conf.bridge_if
    if foreign(name):
        if not (_NET / name / "bridge").exists():
            raise DreError(f"{name}: not a bridge; set DRE_BRIDGE_IF to another name")
        if link is not None and link not in _ports(name):
            raise DreError(f"{name}: not made by dre-bridge; {link} is not put into it")
        _withdraw(conf)
        return None
    uplink.settle(conf)
    anew = not (_NET / name).exists()
    if anew:
        _make(name)
    if not _has_primary(name, conf.bridge_address) or not _flags(name) & _IFF_UP:
        _configure(name, conf.bridge_address)
    _configure6(name, conf.bridge_address6)
    if not uplink.moved(conf):
        uplink.heed_routers(name, "0")  # a container could pass for one
    without = uplink.join(conf, link)
    _translate(conf)
    if anew:
        from dre import attach  # for it looks at all containers

        attach.again(conf)
    try:
        dnsmasq.ensure(conf, uplink.port(name) is not None)
    except UsageError:
        raise
    except DreError as error:  # what has a fixed address works without
        return f"{name}: no names of apps and no DHCP: {error}"
    return without


def down(conf: Conf, force: bool = False) -> None:
    """Remove what `up` made; with interfaces attached only if *force*. Raises DreError for a bridge of others."""
    name = conf.bridge_if
    with locked(conf):
        if not (_NET / name).exists():
            uplink.settle(conf)
            dnsmasq.stop(conf)  # its bridge may have been removed by hand
            nat.remove_tables(name)
            return
        if mark.read(name) is None:
            raise DreError(f"{name}: not made by dre-bridge; left as it is")
        uplink.settle(conf)
        out = uplink.port(name)
        if uplink.moved(conf):  # not by force either: it would cut off who may be far away
            raise DreError(f"{name}: has the addresses of {out}; first dre-bridge migrate-uplink --back {out}")
        ports = [port for port in _ports(name) if port != out]
        if ports and not force:
            raise DreError(f"{name}: still attached: {', '.join(ports)}; stop their containers, or use --force")
        dnsmasq.stop(conf)
        for family in nat.FAMILIES:
            nat.off(name, family)
        nat.remove_tables(name)
        with _netlink(name) as ip:  # last, because the record goes with it
            ip.link("del", index=_index(name))


def foreign(name: str) -> bool:
    """Whether there is an interface *name* that `up` did not make."""
    return (_NET / name).exists() and mark.read(name) is None


def show(conf: Conf) -> Bridge:
    """The bridge as it is now. Raises NotFoundError."""
    name = conf.bridge_if
    if not (_NET / name / "bridge").exists():
        raise NotFoundError(f"{name}: no such bridge; dre-bridge up makes it")
    with _netlink(name) as ip:
        addresses = [*_addresses(ip, name), *_addresses(ip, name, socket.AF_INET6)]
    out = uplink.port(name)
    serving, leases = dnsmasq.running(conf), dnsmasq.given(conf, out is not None)
    return Bridge(
        name=name,
        state="up" if _flags(name) & _IFF_UP else "down",
        addresses=addresses,
        ours=mark.read(name) is not None,
        nat=nat.translates(name),
        dns=serving and conf.bridge_dns,
        dhcp="-".join(map(str, leases)) if serving and leases else None,
        ports=_ports(name),
        uplink=out,
        mac=_read(name, "address"),
        mtu=int(_read(name, "mtu")),
    )


def _withdraw(conf: Conf) -> None:
    """Take away what was for a bridge of ours, where somebody has made another one of that name since."""
    if dnsmasq.running(conf):  # it would answer on the new one
        dnsmasq.stop(conf)
        nat.remove_tables(conf.bridge_if, ("ip", "ip6"))


def _translate(conf: Conf) -> None:
    name = conf.bridge_if
    out = uplink.port(name) is not None
    for family, address in ((nat.V4, conf.bridge_address), (nat.V6, conf.bridge_address6)):
        if conf.bridge_nat and address is not None:
            nat.on(name, address.network, out)
        elif family.key in (mark.read(name) or {}):
            nat.off(name, family)


def _make(name: str) -> None:
    # The alias cannot be given at creation. A bridge that has the final name therefore always has it already;
    # one that has only the temporary name is the remains of a killed call.
    temporary = f"dre-{zlib.crc32(name.encode()):08x}"
    with _netlink(name) as ip:
        if (_NET / temporary / "bridge").exists():
            ip.link("del", index=_index(temporary))
        # A given address stays; else the bridge would take that of its ports, and change it as they come and go.
        mac = "02:" + os.urandom(5).hex(":")
        ip.link("add", ifname=temporary, kind="bridge", br_stp_state=0, br_forward_delay=0, address=mac)
        index = _index(temporary)
        ip.link("set", index=index, ifalias=mark.text({}))
        ip.link("set", index=index, ifname=name)


def _configure(name: str, wanted: ipaddress.IPv4Interface) -> None:
    with _netlink(name) as ip:
        present = _addresses(ip, name)
        if str(wanted) not in present:
            if present and uplink.port(name) is None:
                raise DreError(f"{name}: has {', '.join(present)}, the settings say {wanted}; dre-bridge down, then up")
            ip.addr("add", index=_index(name), address=str(wanted.ip), prefixlen=wanted.network.prefixlen)
        ip.link("set", index=_index(name), state="up")


def _configure6(name: str, wanted: ipaddress.IPv6Interface | None) -> None:
    if wanted is None or _has6(name, wanted):
        return
    switch = Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6")
    if not switch.exists():
        raise DreError(f"{name}: cannot have {wanted} of DRE_BRIDGE_ADDRESS6: this kernel runs without IPv6")
    switch.write_text("0")
    with _netlink(name) as ip:
        present = _addresses(ip, name, socket.AF_INET6)
        if present and uplink.port(name) is None:
            raise DreError(f"{name}: has {', '.join(present)}, the settings say {wanted}; dre-bridge down, then up")
        length = wanted.network.prefixlen
        ip.addr("add", index=_index(name), address=str(wanted.ip), prefixlen=length, flags=_IFA_F_NODAD)


@contextlib.contextmanager
def locked(conf: Conf) -> Iterator[None]:
    """Hold the lock of the bridge."""
    with files.lock(conf.core_run_dir / "lock" / f"bridge-{conf.bridge_if}"):
        yield


@contextlib.contextmanager
def _netlink(name: str) -> Iterator[Any]:
    """A netlink socket whose errors become ours. pyroute2 takes 0.2 s to import: only where something is to do."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as ip:
        try:
            yield ip
        except NetlinkError as error:
            kind = NotPermittedError if error.code == 1 else DreError
            raise kind(f"{name}: {os.strerror(error.code)}") from None


def _addresses(ip: Any, name: str, family: int = socket.AF_INET) -> list[str]:
    kind = "IFA_LOCAL" if family == socket.AF_INET else "IFA_ADDRESS"
    found = [message for message in ip.get_addr(family=family, index=_index(name)) if message["scope"] == 0]
    return [f"{message.get_attr(kind)}/{message['prefixlen']}" for message in found]


def _has_primary(name: str, wanted: ipaddress.IPv4Interface) -> bool:
    """Whether the first address is *wanted*, asked in a microsecond and without pyroute2."""
    request = struct.pack("16s240x", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answers = [fcntl.ioctl(probe, code, request)[20:24] for code in (_SIOCGIFADDR, _SIOCGIFNETMASK)]
        except OSError:
            return False
    return answers == [wanted.ip.packed, wanted.netmask.packed]


def _has6(name: str, wanted: ipaddress.IPv6Interface) -> bool:
    try:
        rows = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    except FileNotFoundError:
        return False
    return [wanted.ip.packed.hex(), name] in [[row[0], row[5]] for row in rows]


def _read(name: str, attribute: str) -> str:
    try:
        return (_NET / name / attribute).read_text().strip()
    except OSError:
        return ""  # the link has just gone


def _flags(name: str) -> int:
    return int(_read(name, "flags") or "0", 16)


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise NotFoundError(f"{name}: no such interface") from None


def _ports(name: str) -> list[str]:
    try:
        return sorted(os.listdir(_NET / name / "brif"))
    except FileNotFoundError:
        return []
