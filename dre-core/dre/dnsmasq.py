# SPDX-License-Identifier: Apache-2.0
"""One dnsmasq per bridge of ours: it answers the names of running apps and gives addresses by DHCP and SLAAC.

It is our child for a moment only, then a daemon known by its pid file and its command line. It listens on the
bridge alone, as user dnsmasq, and reads one file per app from a directory that it watches. Without dnsmasq there
are no names and no DHCP; everything else works. Where the bridge leads outside it gives no addresses unless it was
told which: there others do.
"""

import contextlib
import ipaddress
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from dre import daemon, files, units
from dre.conf import Conf
from dre.errors import DreError, UsageError
from dre.run import missing, run, which

LEASE_TIME = "1h"
SYSTEM = ".sys"  # ends the file of a system: that of an app with the same name is another


def dhcp_range(conf: Conf) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address] | None:
    """The first and the last address that DHCP gives, or None. Raises UsageError where they are not the bridge's."""
    network = conf.bridge_address.network
    if conf.bridge_dhcp == "no" or (conf.bridge_dhcp == "auto" and network.prefixlen > 27):
        return None
    if isinstance(conf.bridge_dhcp, str):
        return network[-network.num_addresses // 8], network[-2]
    first, last = conf.bridge_dhcp
    if not (network.network_address < first <= last < network.broadcast_address):
        raise UsageError(f"DRE_BRIDGE_DHCP: {first}-{last} is not within DRE_BRIDGE_ADDRESS {network}")
    return first, last


def given(conf: Conf, outside: bool) -> tuple[ipaddress.IPv4Address, ipaddress.IPv4Address] | None:
    """As `dhcp_range`, for a bridge that leads *outside* or not."""
    return None if outside and isinstance(conf.bridge_dhcp, str) else dhcp_range(conf)


def serves(conf: Conf) -> bool:
    """Whether the settings and this host have names answered."""
    return conf.bridge_dns and which("dnsmasq") is not None


def ensure(conf: Conf, outside: bool = False) -> None:
    """Have it running with these settings. Raises MissingError when it is not installed, DreError when it fails."""
    leases = given(conf, outside)
    if not conf.bridge_dns and leases is None:
        stop(conf)
        return
    argv = _argv(conf, leases, outside)
    pid = daemon.find("dnsmasq", _pid_file(conf))
    if pid is not None and daemon.command(pid) == argv:
        return
    if which("dnsmasq") is None:
        raise missing("dnsmasq")
    stop(conf)
    for place in (hosts(conf), _reserved(conf)):
        place.mkdir(parents=True, exist_ok=True)
    run(argv, timeout=10)
    daemon.settle("dnsmasq", _pid_file(conf))


def stop(conf: Conf) -> None:
    """End it; does nothing when it does not run."""
    # Whoever serves this bridge, under other settings too: there can be but one.
    daemon.end("dnsmasq", _pid_file(conf), lost=f"/bridge/{conf.bridge_if}/dnsmasq.pid")


def running(conf: Conf) -> bool:
    """Whether it runs."""
    return daemon.find("dnsmasq", _pid_file(conf)) is not None


def hosts(conf: Conf) -> Path:
    """The directory with a file for each app, and each system, that has a name."""
    return _place(conf) / "hosts"


def name(conf: Conf, app: str, address: str, end: str = "") -> None:
    """Have *app* found under *address*; with the *end* SYSTEM it is a system."""
    place = hosts(conf)
    place.mkdir(parents=True, exist_ok=True)
    text = f"{address.partition('/')[0]} {app}.{conf.bridge_domain} {app}\n"
    file = place / f"{app}{end}"
    with contextlib.suppress(FileNotFoundError):
        if file.read_text() == text:
            return
    files.write_atomic(file, text)


def forget(conf: Conf, app: str, end: str = "") -> None:
    """Have *app* not found any more; with the *end* SYSTEM the system of that name."""
    file = hosts(conf) / f"{app}{end}"
    files.remove_halves(file)
    file.unlink(missing_ok=True)


def reserve(conf: Conf, mac: str, address: str, host: str) -> None:
    """Have DHCP give *address* to who has *mac*, and both DHCP and DNS call it *host*; until `release`, or a reboot.

    For systems; wants `network.reserved`, under which addresses are given away. Replaces what was reserved for *mac*.
    Raises UsageError for what this bridge cannot give, and DreError when the address is somebody's.
    """
    if dhcp_range(conf) is None:
        raise UsageError(f"{conf.bridge_if} gives no addresses: set DRE_BRIDGE_DHCP")
    mac, wanted = _mac(mac), _of_network(conf, address)
    units.name(host)
    others = {taken for other, taken, _ in reservations(conf) if other != mac}
    if wanted in {conf.bridge_address.ip, *others}:
        raise DreError(f"{host}: address {wanted} is taken")
    before = _named(conf, mac)
    _reserved(conf).mkdir(parents=True, exist_ok=True)
    files.write_atomic(_reservation(conf, mac), f"{mac},{wanted},{host}\n", durable=False)
    _reread(conf)
    if before not in (None, host):
        forget(conf, str(before), SYSTEM)
    name(conf, host, str(wanted), SYSTEM)


def release(conf: Conf, mac: str) -> None:
    """Reserve nothing for *mac* any more; does nothing when nothing was."""
    named = _named(conf, _mac(mac))
    if named is not None:
        _reservation(conf, _mac(mac)).unlink(missing_ok=True)
        _reread(conf)
        forget(conf, named, SYSTEM)


def reservations(conf: Conf) -> Iterator[tuple[str, ipaddress.IPv4Address, str]]:
    """What is reserved: mac, address and name."""
    for file in sorted(_reserved(conf).glob("[0-9a-f]*")):
        with contextlib.suppress(FileNotFoundError):  # released meanwhile
            mac, address, host = file.read_text().strip().split(",")
            yield mac, ipaddress.IPv4Address(address), host


def _named(conf: Conf, mac: str) -> str | None:
    return next((host for other, _, host in reservations(conf) if other == mac), None)


def _mac(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", text.lower()):
        raise UsageError(f"expected a MAC address such as 52:54:00:00:00:01, got {text!r}")
    return text.lower()


def _of_network(conf: Conf, text: str) -> ipaddress.IPv4Address:
    network = conf.bridge_address.network
    try:
        address = ipaddress.IPv4Address(text.partition("/")[0])
    except ValueError:
        raise UsageError(f"expected an IPv4 address, got {text!r}") from None
    if address not in network or address in (network.network_address, network.broadcast_address):
        raise UsageError(f"{address}: not an address of {network}, the network of {conf.bridge_if}")
    return address


def _reread(conf: Conf) -> None:
    pid = daemon.find("dnsmasq", _pid_file(conf))
    if pid is not None:  # else it reads all when it starts
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGHUP)


def _reserved(conf: Conf) -> Path:
    return _place(conf) / "reserved"


def _reservation(conf: Conf, mac: str) -> Path:
    return _reserved(conf) / mac.replace(":", "-")


def _place(conf: Conf) -> Path:
    return conf.core_run_dir / "bridge" / conf.bridge_if


def _pid_file(conf: Conf) -> Path:
    return _place(conf) / "dnsmasq.pid"


def _argv(conf: Conf, leases: tuple[ipaddress.IPv4Address, ipaddress.IPv4Address] | None, outside: bool) -> list[str]:
    # bind-dynamic and not bind-interfaces: the latter answers what comes for the bridge's address by another interface.
    argv = [
        "dnsmasq",
        "--conf-file=/dev/null",
        f"--pid-file={_pid_file(conf)}",
        "--user=dnsmasq",
        # Of a bridge that leads outside only the address that containers know; but DHCP wants the interface.
        f"--listen-address={conf.bridge_address.ip}" if outside and leases is None else f"--interface={conf.bridge_if}",
    ]
    argv += ["--except-interface=lo", "--bind-dynamic", "--no-hosts", f"--hostsdir={hosts(conf)}"]
    if conf.bridge_dns:
        argv += [f"--domain={conf.bridge_domain}", f"--local=/{conf.bridge_domain}/", "--domain-needed"]
    else:
        argv += ["--port=0"]
    if leases is not None:
        argv += [f"--dhcp-range={leases[0]},{leases[1]},{conf.bridge_address.netmask},{LEASE_TIME}"]
        # Names come from us: no client shall pass for an app by calling itself so.
        argv += [f"--dhcp-leasefile={_place(conf)}/leases", "--dhcp-authoritative", "--dhcp-ignore-names"]
        argv += ["--no-ping"]  # no app has a fixed address of the range; each start would wait 3 s for the answer
        argv += [f"--dhcp-hostsfile={_reserved(conf)}"]
    if leases is not None and conf.bridge_address6 is not None and not outside:
        argv += ["--enable-ra", f"--dhcp-range={conf.bridge_address6.network.network_address},ra-only,64,{LEASE_TIME}"]
    return argv
