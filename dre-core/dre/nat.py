# SPDX-License-Identifier: Apache-2.0
"""Translation of addresses for a bridge of ours, and its tables of nftables: for each family a table and forwarding.

What it switches on for the bridge is first noted in the bridge's record: `nat=` and `nat6=` hold the interfaces
whose forwarding that is, `ra=` those that had to be told to heed routers although they forward.
"""

import contextlib
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from dre import mark
from dre.conf import Conf
from dre.errors import DreError
from dre.run import run

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_ROUTE4, _ROUTE6 = Path("/proc/net/route"), Path("/proc/net/ipv6_route")
EVERY = "all"  # the kernel's name for all interfaces


@dataclass(frozen=True)
class Family:
    """What differs between IPv4 and IPv6."""

    word: str  # in nft
    key: str  # in the record
    conf: Path
    elsewhere: str  # addresses that are never translated: they do not leave the link
    redirect: str  # how nft calls the message "send it there directly"

    @property
    def switch(self) -> str:
        """Which sysctl has an interface forward what it receives."""
        forced = self is V6 and (self.conf / EVERY / "force_forwarding").exists()
        return "force_forwarding" if forced else "forwarding"

    @property
    def each(self) -> bool:
        """Whether an interface can forward by itself: with IPv6 only from Linux 6.17 on."""
        return self is V4 or self.switch == "force_forwarding"


V4 = Family("ip", "nat", Path("/proc/sys/net/ipv4/conf"), "224.0.0.0/4, 255.255.255.255", "icmp type redirect")
V6 = Family("ip6", "nat6", Path("/proc/sys/net/ipv6/conf"), "fe80::/10, ff00::/8", "icmpv6 type nd-redirect")
FAMILIES = (V4, V6)


def on(name: str, network: Network, uplink: bool) -> None:
    """Forward between bridge *name* and the interfaces of default routes; translate. *uplink*: it is one of them."""
    family = V6 if network.version == 6 else V4
    record = mark.read(name) or {}
    links = uplinks(name, family) if family.each else [EVERY]
    others = mark.of_others(name, family.key)
    mine = sorted({*record.get(family.key, ()), *(link for link in links if not _on(family, link) or link in others)})
    if mine != record.get(family.key):
        record[family.key] = mine
        mark.write(name, record)
    cards: list[str] = []
    if EVERY in mine:
        cards = uplinks(name, family)
        _heed_routers(name, record)
    for link in (name, *links) if family.each else links:
        _switch(family, link, True)
    nft(f"{_remove(name, family.word)}{_rules(name, family, network, uplink, cards)}")


def off(name: str, family: Family) -> None:
    """Take back what `on` did, except what another bridge of ours needs or the host does for itself."""
    record = mark.read(name) or {}
    if family.key not in record:
        return
    mine = record[family.key]
    # With global forwarding somebody has made this host a router, and each interface has to stay one.
    if EVERY in mine or not _on(family, EVERY):
        for link in {*mine} - mark.of_others(name, family.key):
            _switch(family, link, False)
        if family.each:
            _switch(family, name, False)
    if family is V6:
        for link in record.pop("ra", ()):
            _swap(V6.conf / link / "accept_ra", "2", "1")
    if _exists(name, family.word):
        nft(_remove(name, family.word))
    del record[family.key]
    mark.write(name, record)


def forwards(conf: Conf) -> bool:
    """Whether IPv4 that comes for the bridge from outside is, or will be, forwarded to it."""
    return conf.bridge_nat or _on(V4, EVERY) or _on(V4, conf.bridge_if)


def table(name: str) -> str:
    """What our nftables tables for bridge *name* are called, in each family."""
    return f"dre-{name}"


def has_table(family: str, name: str) -> bool:
    """Whether there is a table of ours for bridge *name* in *family*. Raises DreError."""
    done = run(["nft", "list", "tables", family])
    return f"table {family} {table(name)}" in done.stdout.decode().splitlines()


def translates(name: str) -> bool | None:
    """Whether the table is there; None where the caller cannot know: no privilege, or no nft."""
    return _exists(name, V4.word)


def nft(script: str) -> None:
    """Load *script*. Raises DreError, and MissingError where nft is not installed."""
    # One transaction: all of it or nothing. The first loads modules of the kernel, which takes a busy machine seconds.
    run(["nft", "-f", "-"], stdin=script.encode())


def remove_tables(name: str, only: tuple[str, ...] = ("ip", "ip6", "bridge", "netdev")) -> None:
    """Remove those of ours for the bridge; dre.network and dre.publish make the others."""
    wanted = [(family, name) for family in only] + [("ip", f"{name}-publish")] * ("bridge" in only)
    for family, which in wanted:
        if _exists(which, family):
            nft(_remove(which, family))


def _rules(name: str, family: Family, network: Network, uplink: bool, cards: list[str]) -> str:
    word = family.word
    hairpin = stay = quiet = ""
    if uplink:  # what goes out leaves by the bridge itself, to which the sender must not be sent directly
        beyond = f"{{ {network}, {family.elsewhere} }}"
        hairpin = f'\n\t\t{word} saddr {network} oifname "{name}" {word} daddr != {beyond} masquerade'
        quiet = f"""
\tchain output {{
\t\ttype filter hook output priority filter; policy accept;
\t\toifname "{name}" {family.redirect} drop
\t}}"""
    if cards:  # they forward for the bridge's sake alone
        listed = "{ " + ", ".join(f'"{card}"' for card in cards) + " }"
        stay = f"\n\t\tiifname {listed} oifname {listed} drop"
    return f"""table {word} {table(name)} {{
\tchain postrouting {{
\t\ttype nat hook postrouting priority srcnat; policy accept;
\t\t{word} saddr {network} oifname != "{name}" masquerade{hairpin}
\t}}
\tchain forward {{
\t\ttype filter hook forward priority filter; policy accept;
\t\tiifname "{name}" oifname "{name}" accept
\t\tiifname "{name}" {word} saddr != {network} drop
\t\toifname "{name}" ct state established,related accept
\t\toifname "{name}" ct status dnat accept
\t\toifname "{name}" drop{stay}
\t}}{quiet}
}}
"""


def _remove(name: str, family: str) -> str:
    which = f"table {family} {table(name)}"
    return f"add {which}\ndelete {which}\n"  # `delete` alone fails where there is none


def _exists(name: str, family: str) -> bool | None:
    try:
        return has_table(family, name)
    except DreError:
        return None


def _heed_routers(name: str, record: mark.Record) -> None:
    """An interface that forwards no longer listens to routers, by which it may have its address: tell it to go on."""
    links = [link for link in os.listdir(V6.conf) if link not in (EVERY, "default", "lo", name)]
    mine = sorted({*record.get("ra", ()), *(link for link in links if _read(V6.conf / link / "accept_ra") == "1")})
    if mine != record.get("ra", []):
        record["ra"] = mine
        mark.write(name, record)
    for link in mine:
        _swap(V6.conf / link / "accept_ra", "1", "2")


def uplinks(name: str, family: Family) -> list[str]:
    """The interfaces of the default routes. These files are hexadecimal, made for programs."""
    if family is V4:
        rows = (line.split() for line in _ROUTE4.read_text().splitlines()[1:])
        return sorted({row[0] for row in rows if row[1] == row[7] == "00000000"} - {name})
    rows = (line.split() for line in (_ROUTE6.read_text() if _ROUTE6.exists() else "").splitlines())
    return sorted({row[9] for row in rows if row[0] == "0" * 32 and row[1] == "00"} - {name, "lo"})


def _on(family: Family, link: str) -> bool:
    return _read(family.conf / link / family.switch) == "1"


def _switch(family: Family, link: str, on: bool) -> None:
    _swap(family.conf / link / family.switch, "0" if on else "1", "1" if on else "0")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _swap(path: Path, old: str, new: str) -> None:
    if _read(path) == old:
        with contextlib.suppress(FileNotFoundError):  # an interface that has gone forwards nothing
            path.write_text(new)
