# SPDX-License-Identifier: Apache-2.0
"""The bridge that containers are attached to: made, described and removed; NAT by one nftables table of its own.

What `up` makes carries its record in the link's alias, `d-re` and, with NAT, `nat=` and the interfaces whose
forwarding it switched on. The record lives exactly as long as the bridge. A bridge without it is somebody
else's: used as it is, never changed, never removed. Addresses inside containers are not this module's business.
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

from dre import dnsmasq, files
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, NotPermittedError, UsageError
from dre.run import run

MARK = "d-re"
_NET = Path("/sys/class/net")
_SYSCTL = Path("/proc/sys/net/ipv4/conf")
_IFF_UP = 1
_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B  # linux/sockios.h


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
    mac: str
    mtu: int


def up(conf: Conf) -> str | None:
    """Make the bridge with its address, up, without STP, its NAT and its dnsmasq; do only what is still missing.

    A bridge of that name made by others is left as it is. Returns why there are no names and no DHCP, where the
    settings want them. Raises DreError and its children.
    """
    name = conf.bridge_if
    with _locked(conf):
        if foreign(name):
            if not (_NET / name / "bridge").exists():
                raise DreError(f"{name}: not a bridge; set DRE_BRIDGE_IF to another name")
            return None
        if not (_NET / name).exists():
            _make(name)
        if not _has_primary(name, conf.bridge_address) or not _flags(name) & _IFF_UP:
            _configure(name, conf.bridge_address)
        if conf.bridge_nat:
            _nat_on(name, conf.bridge_address.network)
        elif _record(name) is not None:
            _nat_off(name)
            _write_alias(name, MARK)
        try:
            dnsmasq.ensure(conf)
        except UsageError:
            raise
        except DreError as error:  # what has a fixed address works without
            return f"{name}: no names of apps and no DHCP: {error}"
    return None


def down(conf: Conf, force: bool = False) -> None:
    """Remove what `up` made; with interfaces attached only if *force*. Raises DreError for a bridge of others."""
    name = conf.bridge_if
    with _locked(conf):
        if not (_NET / name).exists():
            dnsmasq.stop(conf)  # its bridge may have been removed by hand
            _remove_tables(name)
            return
        if not _ours(name):
            raise DreError(f"{name}: not made by dre-bridge; left as it is")
        ports = _ports(name)
        if ports and not force:
            raise DreError(f"{name}: still attached: {', '.join(ports)}; stop their containers, or use --force")
        dnsmasq.stop(conf)
        _nat_off(name)
        _remove_tables(name)
        with _netlink(name) as ip:  # last, because the record goes with it
            ip.link("del", index=_index(name))


def foreign(name: str) -> bool:
    """Whether there is an interface *name* that `up` did not make."""
    return (_NET / name).exists() and not _ours(name)


def forwards(conf: Conf) -> bool:
    """Whether what comes for the bridge from outside is, or will be, forwarded to it."""
    return conf.bridge_nat or _forwards("all") or _forwards(conf.bridge_if)


def table(name: str) -> str:
    """What our nftables tables for bridge *name* are called, in each family."""
    return f"dre-{name}"


def show(conf: Conf) -> Bridge:
    """The bridge as it is now. Raises NotFoundError."""
    name = conf.bridge_if
    if not (_NET / name / "bridge").exists():
        raise NotFoundError(f"{name}: no such bridge; dre-bridge up makes it")
    with _netlink(name) as ip:
        addresses = _addresses(ip, name)
    serving, leases = dnsmasq.running(conf), dnsmasq.dhcp_range(conf)
    return Bridge(
        name=name,
        state="up" if _flags(name) & _IFF_UP else "down",
        addresses=addresses,
        ours=_ours(name),
        nat=_table_exists(name),
        dns=serving and conf.bridge_dns,
        dhcp="-".join(map(str, leases)) if serving and leases else None,
        ports=_ports(name),
        mac=_read(name, "address"),
        mtu=int(_read(name, "mtu")),
    )


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
        ip.link("set", index=index, ifalias=MARK)
        ip.link("set", index=index, ifname=name)


def _configure(name: str, wanted: ipaddress.IPv4Interface) -> None:
    with _netlink(name) as ip:
        present = _addresses(ip, name)
        if str(wanted) not in present:
            if present:
                raise DreError(f"{name}: has {', '.join(present)}, the settings say {wanted}; dre-bridge down, then up")
            ip.addr("add", index=_index(name), address=str(wanted.ip), prefixlen=wanted.network.prefixlen)
        ip.link("set", index=_index(name), state="up")


def _nat_on(name: str, network: ipaddress.IPv4Network) -> None:
    """Forward between the bridge and the interfaces of default routes only: no global ip_forward."""
    recorded = _record(name)
    others = _recorded_by_others(name)
    uplinks = _uplinks(name)
    mine = sorted({*(recorded or ()), *(link for link in uplinks if not _forwards(link) or link in others)})
    if mine != recorded:
        _write_alias(name, f"{MARK} nat={','.join(mine)}")
    for link in (name, *uplinks):
        _forward(link, True)
    nft(f"{_remove_rule(name)}{_rules(name, network)}")


def _nat_off(name: str) -> None:
    keep = _recorded_by_others(name)
    # With global forwarding somebody has made this host a router, and each interface has to stay one.
    if not _forwards("all"):
        for link in {*(_record(name) or ())} - keep:
            _forward(link, False)
        _forward(name, False)
    if _table_exists(name):
        nft(_remove_rule(name))


def _rules(name: str, network: ipaddress.IPv4Network) -> str:
    return f"""table ip {table(name)} {{
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\tip saddr {network} oifname != "{name}" masquerade
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\tiifname "{name}" oifname "{name}" accept
\t\tiifname "{name}" ip saddr != {network} drop
\t\toifname "{name}" ct state established,related accept
\t\toifname "{name}" ct status dnat accept
\t\toifname "{name}" drop
\t}}
}}
"""


def _remove_rule(name: str, family: str = "ip") -> str:
    which = f"table {family} {table(name)}"
    return f"add {which}\ndelete {which}\n"  # `delete` alone fails where there is none


def _remove_tables(name: str) -> None:
    """Of all of ours for the bridge; dre.network and dre.publish make the last three."""
    for family, which in (("ip", name), ("bridge", name), ("netdev", name), ("ip", f"{name}-publish")):
        if _table_exists(which, family):
            nft(_remove_rule(which, family))


def has_table(family: str, name: str) -> bool:
    """Whether there is a table of ours for bridge *name* in *family*. Raises DreError."""
    done = run(["nft", "list", "tables", family])
    return f"table {family} {table(name)}" in done.stdout.decode().splitlines()


def _table_exists(name: str, family: str = "ip") -> bool | None:
    """None where the caller cannot know: no privilege, or no nft."""
    try:
        return has_table(family, name)
    except DreError:
        return None


def nft(script: str) -> None:
    """Load *script*. Raises DreError, and MissingError where nft is not installed."""
    # One transaction: all of it or nothing. The first loads modules of the kernel, which takes a busy machine seconds.
    run(["nft", "-f", "-"], stdin=script.encode())


@contextlib.contextmanager
def _locked(conf: Conf) -> Iterator[None]:
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


def _addresses(ip: Any, name: str) -> list[str]:
    found = ip.get_addr(family=socket.AF_INET, index=_index(name))
    return [f"{message.get_attr('IFA_LOCAL')}/{message['prefixlen']}" for message in found]


def _has_primary(name: str, wanted: ipaddress.IPv4Interface) -> bool:
    """Whether the first address is *wanted*, asked in a microsecond and without pyroute2."""
    request = struct.pack("16s240x", name.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answers = [fcntl.ioctl(probe, code, request)[20:24] for code in (_SIOCGIFADDR, _SIOCGIFNETMASK)]
        except OSError:
            return False
    return answers == [wanted.ip.packed, wanted.netmask.packed]


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


def _ours(name: str) -> bool:
    return _read(name, "ifalias").partition(" ")[0] == MARK


def _record(name: str) -> list[str] | None:
    """The interfaces whose forwarding was switched on for bridge *name*; None when it never had NAT."""
    mark, _, record = _read(name, "ifalias").partition(" nat=")
    if mark != MARK or not _read(name, "ifalias").startswith(f"{MARK} nat="):
        return None
    return [link for link in record.split(",") if link]


def _recorded_by_others(name: str) -> set[str]:
    return {link for other in os.listdir(_NET) if other != name for link in _record(other) or ()}


def _write_alias(name: str, text: str) -> None:
    (_NET / name / "ifalias").write_text(text)


def _uplinks(name: str) -> list[str]:
    """The interfaces of the IPv4 default routes. /proc/net/route is hexadecimal, made for programs."""
    rows = (line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:])
    return sorted({row[0] for row in rows if row[1] == row[7] == "00000000"} - {name})


def _forwards(link: str) -> bool:
    try:
        return (_SYSCTL / link / "forwarding").read_text().strip() == "1"
    except FileNotFoundError:
        return False


def _forward(link: str, on: bool) -> None:
    if _forwards(link) != on:
        with contextlib.suppress(FileNotFoundError):  # an interface that has gone forwards nothing
            (_SYSCTL / link / "forwarding").write_text("1" if on else "0")
