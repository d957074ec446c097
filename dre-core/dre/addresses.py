# SPDX-License-Identifier: Apache-2.0
"""The addresses and routes that an interface has, as ip(8) tells them, and how they get to another one.

They keep lifetimes, metrics and all else that can be given again. While they move each is on one of the two or on
both, never on none: connections go on. Which interface takes the packets meanwhile is the caller's business.
"""

import ipaddress
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dre.errors import DreError
from dre.run import run

Row = dict[str, Any]
_FOREVER = (1 << 32) - 1
_GONE = ("No such process", "Cannot assign requested address", "Cannot find device")


@dataclass(frozen=True)
class Rows:
    """What belongs to one interface: rows as `ip -j` prints them, of a route with its `family`."""

    addresses: list[Row]
    routes: list[Row]

    def plain(self) -> list[str]:
        """The addresses with their lengths."""
        return [f"{row['local']}/{row['prefixlen']}" for row in self.addresses]

    def gateways(self) -> list[str]:
        """Those of the default routes."""
        ways = [way for row in self.routes if row["dst"] == "default" for way in (row, *row.get("nexthops", ()))]
        found = (way.get("gateway") or way.get("via", {}).get("host") for way in ways)
        return sorted({str(gateway) for gateway in found if gateway})


def of(link: str, but: Iterable[ipaddress.IPv4Interface | ipaddress.IPv6Interface] = ()) -> Rows:
    """What *link* has, but not what the kernel makes by itself, nor what is of the networks *but*.

    Raises DreError for routes that could not be made again.
    """
    networks = [item.network for item in but]

    def kept(text: str | None) -> bool:
        return text is None or not any(ipaddress.ip_address(text) in network for network in networks)

    found = _ask("-d", "addr", "show", "dev", link)[0]["addr_info"]
    moved = [row for row in found if row["family"] == "inet" or row["scope"] != "link"]
    addresses = [row for row in moved if kept(row["local"]) and "dadfailed" not in row]
    routes = []
    for family in ("-4", "-6"):
        every = [row for row in _ask("-d", family, "route", "show", "table", "all") if _leads(row, link)]
        mine = [row for row in every if row.get("protocol") != "kernel" and row.get("table") != "local"]
        for row in mine:
            odd = [word for word in ("nhid", "encap") if word in row]
            if odd or any(hop.get("dev") != link for hop in row.get("nexthops", ())):
                reason = f"has {odd[0]}" if odd else "leads to other interfaces too"
                raise DreError(f"{link}: its route to {row['dst']} {reason}, which cannot be moved")
            routes += [{**one, "family": family} for one in (_single(row) if family == "-6" else [row])]
    routes = [row for row in routes if kept(row.get("gateway")) and kept(row.get("prefsrc"))]
    return Rows(addresses, routes)


def move(rows: Rows, source: str, target: str, regardless: bool = False) -> None:
    """Have *target* have what *source* had. May be repeated, in both directions.

    Raises DreError when it cannot have all: with nothing taken from *source* yet, or *regardless* of that.
    """
    problems = [_ip(*address(row, target)) for row in rows.addresses]
    problems += [_ip(*route(row, "append", target), fine=("File exists",)) for row in rows.routes]
    problem = next((problem for problem in problems if problem), None)
    if problem and not regardless:
        raise DreError(f"{target}: {problem}")
    for row in rows.routes:
        _ip(*route(row, "del", source), fine=_GONE)
    for row in reversed(rows.addresses):  # else the first would take with it the others of its network
        _ip("addr", "del", *_named(row), "dev", source, fine=_GONE)
    if problem:
        raise DreError(f"{target}: {problem}")


def has(rows: Rows, link: str) -> bool:
    """Whether *link* has all the addresses."""
    return set(rows.plain()) <= set(of(link).plain())


def address(row: Row, target: str) -> list[str]:
    """What ip(8) is told to give *target* the address *row*."""
    words = ["addr", "replace", *_named(row), "dev", target]
    if row["family"] == "inet6":
        words += ["nodad", *(word for word in ("home", "mngtmpaddr") if row.get(word))]
    else:
        words += ["scope", row["scope"]]
    words += ["broadcast", row["broadcast"]] if "broadcast" in row else []
    label = str(row.get("label", ""))
    words += ["label", f"{target}:{label.partition(':')[2]}"[:15]] if ":" in label else []
    words += ["noprefixroute"] if row.get("noprefixroute") else []
    words += ["metric", str(row["metric"])] if "metric" in row else []
    for word, key in (("valid_lft", "valid_life_time"), ("preferred_lft", "preferred_life_time")):
        words += [word, "forever" if row[key] == _FOREVER else str(row[key])]
    return words


def _named(row: Row) -> list[str]:
    if "address" in row:  # of its peer, to which the length belongs then
        return [row["local"], "peer", f"{row['address']}/{row['prefixlen']}"]
    return [f"{row['local']}/{row['prefixlen']}"]


def route(row: Row, verb: str, link: str) -> list[str]:
    """What ip(8) is told to do *verb* with the route *row* by *link*."""
    words = [row["family"], "route", verb, row.get("type", "unicast"), row["dst"]]
    words += ["from", row["from"]] if "from" in row else []
    words += ["tos", str(row["tos"])] if "tos" in row else []
    words += [] if "nexthops" in row else [*_by(row), "dev", link]
    words += ["table", str(row.get("table", "main")), "proto", str(row["protocol"])]
    words += ["metric", str(row["metric"])] if "metric" in row else []
    if row["family"] == "-4":
        words += ["scope", str(row.get("scope", "global"))]
    if verb != "del":
        words += ["src", row["prefsrc"]] if "prefsrc" in row else []
        for metrics in row.get("metrics", ()):
            words += [str(word) for pair in metrics.items() for word in pair]
        words += ["expires", str(row["expires"])] if row.get("expires", 0) > 0 else []
        words += ["pref", row["pref"]] if row.get("pref", "medium") != "medium" else []
    words += [flag for flag in row.get("flags", ()) if flag == "onlink"]
    for hop in row.get("nexthops", ()):
        words += ["nexthop", *_by(hop), "dev", link, "weight", str(hop["weight"])]
        words += [flag for flag in hop.get("flags", ()) if flag == "onlink"]
    return words


def _by(way: Row) -> list[str]:
    if "via" in way:
        return ["via", way["via"]["family"], way["via"]["host"]]
    return ["via", way["gateway"]] if "gateway" in way else []


def _single(row: Row) -> list[Row]:
    """An IPv6 route by several gateways is as many routes, and can only be made as such."""
    whole = {key: value for key, value in row.items() if key != "nexthops"}
    return [{**whole, **hop} for hop in row.get("nexthops", [{}])]


def _leads(row: Row, link: str) -> bool:
    return row.get("dev") == link or any(hop.get("dev") == link for hop in row.get("nexthops", ()))


def _ask(*words: str) -> list[Row]:
    done = run(["ip", "-j", *words], timeout=10)
    found: list[Row] = json.loads(done.stdout or b"[]")
    return [row for row in found if row]


def _ip(*words: str, fine: Sequence[str] = ()) -> str | None:
    """What went wrong, but not what is *fine*."""
    done = run(["ip", *words], check=False, timeout=10)
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode == 0 or any(text in said for text in fine):
        return None
    return f"ip {' '.join(words)}: {said.partition(chr(10))[0]}"
