# SPDX-License-Identifier: Apache-2.0
"""The interface of the host that is a port of our bridge and leads outside, and the host's addresses that it had.

Whose addresses the bridge has taken over is written in `uplink.json` before the first is touched, and forgotten after
the last has gone back: what was killed on its way is taken back by `settle`. All wants the lock of the bridge. What
decides whether to stay there, and who may be cut off, is dre.uplinkmove's.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dre import addresses, files, mark
from dre.addresses import Row, Rows
from dre.conf import Conf
from dre.errors import DreError, NotFoundError
from dre.run import run

TO, MOVED, BACK = "to", "moved", "back"  # stages; the first and the last were interrupted
_NET = mark.NET
_ETHERNET = "1"  # linux/if_arp.h


@dataclass(frozen=True)
class State:
    """What was moved: to the bridge, or on the way. *mac* and *heeds* are what the bridge had before."""

    link: str
    stage: str
    addresses: list[Row]
    routes: list[Row]
    mac: str
    heeds: str

    @property
    def rows(self) -> Rows:
        """As dre.addresses takes it."""
        return Rows(self.addresses, self.routes)


def port(name: str) -> str | None:
    """The uplink of bridge *name* as it is."""
    return next((link for link in (mark.read(name) or {}).get("uplink", ()) if _is_port(name, link)), None)


def state(conf: Conf) -> State | None:
    """What was written last. Raises DreError when it is damaged."""
    try:
        return State(**json.loads(_file(conf).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DreError(f"{_file(conf)}: damaged: {error}; put the addresses right by hand, then remove it") from None


def store(conf: Conf, what: State) -> None:
    """Write it, before it is so."""
    _file(conf).parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(_file(conf), json.dumps(asdict(what)) + "\n", 0o600)


def moved(conf: Conf) -> bool:
    """Whether the bridge has the addresses of the host's interface."""
    return _file(conf).exists()


def check(name: str, link: str) -> None:
    """Refuse what cannot be the uplink of bridge *name*. Raises NotFoundError and DreError."""
    place = _NET / link
    if not place.exists():
        raise NotFoundError(f"{link}: no such interface")
    if link == name or (place / "bridge").exists():
        raise DreError(f"{link}: is a bridge, and cannot be a port of one")
    if (place / "wireless").exists() or (place / "phy80211").exists():
        raise DreError(
            f"{link}: is wireless; an access point takes frames of one address only, so no bridge can use it"
        )
    if _read(place / "type") != _ETHERNET or int(_read(place / "flags") or "0", 16) & 8:  # IFF_LOOPBACK
        raise DreError(f"{link}: is no Ethernet interface")
    if (place / "master").is_symlink():
        master = (place / "master").readlink().name
        if master != name:
            raise DreError(f"{link}: is in {master} already")
    other = port(name)
    if other not in (None, link):
        raise DreError(f"{name}: has {other} as its uplink already")


def join(conf: Conf, asked: str | None) -> str | None:
    """Have *asked*, or what the settings say, as a port; returns why it is not, where only the settings want it."""
    name, link = conf.bridge_if, asked or conf.bridge_uplink
    if not link or port(name) == link:
        return None
    try:
        check(name, link)
        found = addresses.of(link).plain()
        if found:
            raise DreError(f"{link}: has {', '.join(found)}; dre-bridge migrate-uplink {link} moves that to {name}")
        attach(name, link)
    except DreError as error:
        if asked:
            raise
        return f"{name}: without its uplink: {error}"
    return None


def attach(name: str, link: str) -> None:
    """Make *link* the port that leads outside."""
    mark.write(name, {**(mark.read(name) or {}), "uplink": [link]})
    run(["ip", "link", "set", link, "master", name, "up"], timeout=10)


def detach(name: str, link: str) -> None:
    """Take *link* out of bridge *name*, and forget it."""
    if _is_port(name, link):
        run(["ip", "link", "set", link, "nomaster"], timeout=10)
    record = mark.read(name)
    if record is not None and "uplink" in record:
        del record["uplink"]
        mark.write(name, record)


def settle(conf: Conf) -> str | None:
    """Take back what was interrupted, or whose bridge has gone; returns the interface that has its own again."""
    found = state(conf)
    if found is None or (found.stage == MOVED and _is_port(conf.bridge_if, found.link)):
        return None
    if not (_NET / found.link).exists():
        return None  # it may come back
    if found.stage == MOVED and addresses.of(found.link).addresses:
        forget(conf)  # somebody has set it up anew
        return None
    bring_back(conf, found)
    return found.link


def take_over(conf: Conf, link: str) -> State:
    """Have the bridge, which is up, take the place of *link*. What fails in the middle is left to `bring_back`."""
    name = conf.bridge_if
    rows = addresses.of(link)
    what = State(link, TO, rows.addresses, rows.routes, _read(_NET / name / "address"), heeds(name))
    store(conf, what)
    # Neighbours know the host by this address, and DHCP servers and switches may admit no other.
    _set_mac(name, _read(_NET / link / "address"))
    attach(name, link)
    if any(row["family"] == "inet6" for row in rows.addresses):
        Path("/proc/sys/net/ipv6/conf", name, "disable_ipv6").write_text("0")
    heed_routers(name, heeds(link))
    addresses.move(rows, link, name)
    if not addresses.has(rows, name):
        raise DreError(f"{name}: does not keep the addresses of {link}")
    return what


def bring_back(conf: Conf, what: State) -> None:
    """Have its interface have what is written in *what*, and be no port any more. May be repeated."""
    name = conf.bridge_if
    store(conf, replace(what, stage=BACK))
    run(["ip", "link", "set", what.link, "up"], timeout=10)
    try:
        addresses.move(what.rows, name, what.link, regardless=True)
    finally:
        detach(name, what.link)
        if (_NET / name / "bridge").exists():
            heed_routers(name, what.heeds)
            _set_mac(name, what.mac)
        if addresses.has(what.rows, what.link):
            forget(conf)


def forget(conf: Conf) -> None:
    """The host's addresses are where they belong."""
    _file(conf).unlink(missing_ok=True)


def heeds(link: str) -> str:
    """What the kernel does with the words of IPv6 routers at *link*; empty without IPv6."""
    return _read(_heeding(link))


def heed_routers(link: str, how: str) -> None:
    """Set it: 0 not at all, 1 unless it forwards, 2 always."""
    if how and heeds(link) not in ("", how):
        _heeding(link).write_text(how)


def _set_mac(name: str, mac: str) -> None:
    if _read(_NET / name / "address") != mac:
        # Who is on the bridge is told at once.
        Path("/proc/sys/net/ipv4/conf", name, "arp_notify").write_text("1")
        run(["ip", "link", "set", name, "address", mac], timeout=10)


def _heeding(link: str) -> Path:
    return Path("/proc/sys/net/ipv6/conf", link, "accept_ra")


def _file(conf: Conf) -> Path:
    return conf.core_run_dir / "bridge" / conf.bridge_if / "uplink.json"


def _is_port(name: str, link: str) -> bool:
    return (_NET / name / "brif" / link).exists()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
