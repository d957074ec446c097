# SPDX-License-Identifier: Apache-2.0
"""One dnsmasq per bridge of ours: it answers the names of running apps and gives addresses by DHCP.

It is our child for a moment only, then a daemon known by its pid file and its command line. It listens on the
bridge alone, as user dnsmasq, and reads one file per app from a directory that it watches. Without dnsmasq there
are no names and no DHCP; everything else works.
"""

import contextlib
import ipaddress
import shutil
from pathlib import Path

from dre import daemon, files
from dre.conf import Conf
from dre.errors import UsageError
from dre.run import missing, run

LEASE_TIME = "1h"


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


def serves(conf: Conf) -> bool:
    """Whether the settings and this host have names answered."""
    return conf.bridge_dns and shutil.which("dnsmasq") is not None


def ensure(conf: Conf) -> None:
    """Have it running with these settings. Raises MissingError when it is not installed, DreError when it fails."""
    leases = dhcp_range(conf)
    if not conf.bridge_dns and leases is None:
        stop(conf)
        return
    argv = _argv(conf, leases)
    pid = daemon.find("dnsmasq", _pid_file(conf))
    if pid is not None and daemon.command(pid) == argv:
        return
    if shutil.which("dnsmasq") is None:
        raise missing("dnsmasq")
    stop(conf)
    hosts(conf).mkdir(parents=True, exist_ok=True)
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
    """The directory with a file for each app that has a name."""
    return _place(conf) / "hosts"


def name(conf: Conf, app: str, address: str) -> None:
    """Have *app* found under *address*."""
    place = hosts(conf)
    place.mkdir(parents=True, exist_ok=True)
    text = f"{address.partition('/')[0]} {app}.{conf.bridge_domain} {app}\n"
    file = place / app
    with contextlib.suppress(FileNotFoundError):
        if file.read_text() == text:
            return
    files.write_atomic(file, text)


def forget(conf: Conf, app: str) -> None:
    """Have *app* not found any more."""
    (hosts(conf) / app).unlink(missing_ok=True)


def _place(conf: Conf) -> Path:
    return conf.core_run_dir / "bridge" / conf.bridge_if


def _pid_file(conf: Conf) -> Path:
    return _place(conf) / "dnsmasq.pid"


def _argv(conf: Conf, leases: tuple[ipaddress.IPv4Address, ipaddress.IPv4Address] | None) -> list[str]:
    # bind-dynamic and not bind-interfaces: the latter answers what comes for the bridge's address by another interface.
    argv = [
        "dnsmasq",
        "--conf-file=/dev/null",
        f"--pid-file={_pid_file(conf)}",
        "--user=dnsmasq",
        f"--interface={conf.bridge_if}",
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
    return argv
