# SPDX-License-Identifier: Apache-2.0
"""dre-bridge migrate-uplink: the host's addresses go to the bridge and back, and who works from afar keeps the way in.

A process of its own does it, which outlives a terminal that hangs up. Who answered before has to answer after, else
all goes back where it was. If that process is killed, its caller takes all back; if both are, the next call.
"""

import contextlib
import ipaddress
import json
import os
import signal
import socket
import time
from dataclasses import replace
from typing import Any

from dre import addresses, bridge, uplink
from dre.conf import Conf
from dre.errors import DreError, TimedOutError, UsageError
from dre.run import need, run
from dre.uplink import BACK, MOVED, State

_OTHERS = 1.0  # seconds for a gateway that may have been dead before, when another is alive
_PORT = 9  # discard: what is sent there need not arrive, only to be sent
_SO_BINDTODEVICE = socket.SO_BINDTODEVICE
_ASKED = {"PROBE", "INCOMPLETE", "DELAY", "REACHABLE"}  # states of a neighbour who is being asked, or has answered


def migrate(conf: Conf, link: str, back: bool, host: str | None, wait: float) -> str | None:
    """Move what *link* has to the bridge, or *back*; returns what the person should know.

    Raises TimedOutError when nobody answers, *host* or else the default gateway: before, with nothing begun, or after,
    with all where it was. Raises NotFoundError and DreError for an interface that cannot be a port.
    """
    if bridge.foreign(conf.bridge_if):
        raise DreError(f"{conf.bridge_if}: not made by dre-bridge; left as it is")
    if host is not None:
        need("ping")
        _host(host)
    answer = _elsewhere(conf, link, back, host, wait)
    if answer is None:
        recover(conf)
        raise DreError(f"{link}: the process that moved its addresses was killed; they were taken back")
    if answer["code"]:
        kinds = (DreError, *DreError.__subclasses__())
        raise next(kind for kind in kinds if kind.code == answer["code"])(answer["text"])
    said: str | None = answer["text"]
    return said


def recover(conf: Conf) -> str | None:
    """End what was interrupted; returns the interface that has its own again."""
    with bridge.locked(conf):
        return uplink.settle(conf)


def _host(host: str) -> None:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        raise UsageError(f"--check {host!r}: no such host") from None


def _elsewhere(conf: Conf, *args: Any) -> dict[str, Any] | None:
    """The outcome of `_work` in a session of its own; None when it was killed."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _alone(send, conf, *args)
    os.close(send)
    with os.fdopen(receive, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    outcome: dict[str, Any] | None = json.loads(told) if told.endswith(b"\n") else None
    return outcome


def _alone(send: int, conf: Conf, *args: Any) -> None:
    code: int = 1
    text: str | None = "failed"
    try:
        os.setsid()
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        code, text = 0, _work(conf, *args)
    except (DreError, OSError) as error:
        code, text = getattr(error, "code", 1), str(error)
    finally:
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(send, json.dumps({"code": code, "text": text}).encode() + b"\n")
        os._exit(0)


def _work(conf: Conf, link: str, back: bool, host: str | None, wait: float) -> str | None:
    with bridge.locked(conf):
        uplink.settle(conf)
        there = uplink.state(conf)
        if back:
            return _back(conf, link, there, host, wait)
        if there is not None:
            if there.link != link:
                raise DreError(f"{conf.bridge_if}: has the addresses of {there.link}; first take them --back")
            return None
        uplink.check(conf.bridge_if, link)
        rows = addresses.of(link)  # refused before there is a bridge
        known = _known(link, rows, host, wait)
        bridge.ensure(conf)
        try:
            what = uplink.take_over(conf, link)
            _need(conf.bridge_if, known, host, wait)
        except BaseException:
            _undo(conf)
            raise
        uplink.store(conf, replace(what, stage=MOVED))
        without = bridge.ensure(conf)  # its rules and its dnsmasq follow the uplink
        return without or _unchecked(link, known, host)


def _back(conf: Conf, link: str, there: State | None, host: str | None, wait: float) -> str | None:
    name = conf.bridge_if
    if (there.link if there else uplink.port(name)) != link:
        uplink.check(name, link)  # it has its addresses already, if it is there
        return None
    if there is None:
        uplink.detach(name, link)
        return None
    own = [item for item in (conf.bridge_address, conf.bridge_address6) if item is not None]
    rows = addresses.of(name, own)  # now: DHCP or a person may have changed them since
    known = _known(name, rows, host, wait)
    uplink.bring_back(conf, State(link, BACK, rows.addresses, rows.routes, there.mac, there.heeds))
    try:
        _need(link, known, host, wait)
    except TimedOutError:
        uplink.store(conf, replace(uplink.take_over(conf, link), stage=MOVED))
        raise
    return bridge.ensure(conf) or _unchecked(link, known, host)


def _undo(conf: Conf) -> None:
    begun = uplink.state(conf)
    if begun is not None:
        uplink.bring_back(conf, begun)


def _unchecked(link: str, known: set[str], host: str | None) -> str | None:
    return None if known or host else f"{link}: has no default gateway, so whether it is reached was not checked"


def _known(link: str, rows: addresses.Rows, host: str | None, wait: float) -> set[str]:
    """The gateways that answer now. Raises TimedOutError when there is none to go by."""
    if host is not None:
        if not _pings(host, wait):
            raise TimedOutError(f"{host}: does not answer now; nothing was changed")
        return set()
    gateways = set(rows.gateways())
    found = _answering(link, gateways, wait, others=_OTHERS)
    if gateways and not found:
        named = ", ".join(sorted(gateways))
        raise TimedOutError(f"{link}: its gateway {named} does not answer now; nothing was changed (--check HOST)")
    return found


def _need(link: str, known: set[str], host: str | None, wait: float) -> None:
    lost = known - _answering(link, known, wait)
    if host is not None and not _pings(host, wait):
        lost.add(host)
    if lost:
        raise TimedOutError(f"{link}: {', '.join(sorted(lost))} did not answer within {wait:g} s; all is as it was")


def _pings(host: str, wait: float) -> bool:
    deadline = time.monotonic() + wait
    while True:
        if run(["ping", "-n", "-c", "1", "-W", "1", host], check=False, timeout=15).returncode == 0:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)  # what cannot be sent at all fails at once


def _answering(link: str, gateways: set[str], wait: float, others: float | None = None) -> set[str]:
    """Which of them, neighbours at *link*, answer within *wait* seconds, whatever they do with ping.

    With *others* they have only so long once the first has answered.
    """
    for gateway in gateways:  # what was known of it before is no answer
        run(["ip", "neigh", "change", gateway, "dev", link, "nud", "probe"], check=False, timeout=10)
    deadline = time.monotonic() + wait
    while True:
        rows = json.loads(run(["ip", "-j", "neigh", "show", "dev", link], timeout=10).stdout or b"[]")
        states = {row["dst"]: set(row.get("state", ())) for row in rows}
        found = {gateway for gateway in gateways if "REACHABLE" in states.get(gateway, ())}
        if found and others is not None:
            deadline, others = min(deadline, time.monotonic() + others), None
        if found == gateways or time.monotonic() >= deadline:
            return found
        for gateway in gateways:
            if not states.get(gateway, set()) & _ASKED:
                _nudge(link, gateway)
        time.sleep(0.05)  # the kernel asks; it tells nobody by a form that is made for us


def _nudge(link: str, gateway: str) -> None:
    """Have the kernel want to send something to *gateway*."""
    version = ipaddress.ip_address(gateway).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, link.encode())
        scope = () if version == 4 else (0, socket.if_nametoindex(link))
        sender.sendto(b"", (gateway, _PORT, *scope))
