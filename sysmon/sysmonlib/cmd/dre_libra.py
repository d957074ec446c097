# SPDX-License-Identifier: Apache-2.0
"""dre-libra: files on NFS that a system hides, or tells a wrong size or mode of, by what is seen on its network."""

import argparse
import os
import posixpath
import socket
import time
from collections.abc import Sequence

from dre import cli, units
from dre.errors import MissingError, UsageError
from dre.system import domain as definitions
from dre.system import hypervisor
from dre.system.agent import Agent
from dre.system.model import System

from sysmonlib import inside
from sysmonlib.capture import Capture
from sysmonlib.cmd.telling import looked, looking, printing, tell
from sysmonlib.cross import INCONSISTENT, Finding
from sysmonlib.libra import Libra, Sight
from sysmonlib.served import Served


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-libra."""
    parser = cli.parser("dre-libra", "Look from outside for files on NFS that a running system hides or misstates.")
    parser.add_argument("system", metavar="SYSTEM", type=units.name, help="the system to look at")
    parser.add_argument(
        "--mount",
        metavar="DIR",
        action="append",
        required=True,
        help="a directory of the system that is on NFS, looked at with all below it; may be given again",
    )
    parser.add_argument("--except", metavar="DIR", action="append", default=[], help="not to be looked at, below")
    parser.add_argument("--server", metavar="ADDRESS", help="the address of the server that it must be on")
    parser.add_argument("--fileid", metavar="N", type=int, help="the number (inode) that it must have on the server")
    parser.add_argument("--interval", metavar="S", help="look again every S (default 5s), until interrupted")
    parser.add_argument("--count", metavar="N", type=int, help="look N times (default 1; with --interval: for ever)")
    parser.add_argument("--timeout", metavar="S", default="60s", help="how long the system may take (default 60s)")
    printing(parser)
    parser.set_defaults(function=look)
    return parser


def look(ctx: cli.Context) -> int:
    """0: nothing hidden was found; 1: something; raises what the exit codes of 2 and more are for."""
    args = ctx.args
    if args.count is not None and args.count < 1:
        raise UsageError(f"--count {args.count}: at least 1 is needed")
    paths = [_directory("--mount", path) for path in args.mount]
    apart = frozenset((*paths, *(_directory("--except", path) for path in vars(args)["except"])))
    if args.fileid is not None and len(paths) > 1:
        raise UsageError("--fileid: of one --mount alone")
    server = _address(args.server) if args.server else None
    interval, timeout = units.duration(args.interval or "5s"), units.duration(args.timeout)
    count = args.count or (None if args.interval else 1)
    with looking():
        return _watch(ctx, [_Looked(ctx, path, server, apart, timeout) for path in paths], interval, count)


def _directory(option: str, path: str) -> bytes:
    """*path* as the guest will have it. Raises UsageError."""
    whole = posixpath.normpath(path)
    try:
        octets = whole.encode()
    except UnicodeEncodeError:
        octets = b""
    if not whole.startswith("/") or whole.startswith("//") or not octets or b"\0" in octets:
        raise UsageError(f"{option} {ascii(path)}: not the absolute path of a directory")
    return octets


def _address(text: str) -> bytes:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return socket.inet_pton(family, text)
        except OSError:
            continue
    raise UsageError(f"--server {text!r}: not an address of IPv4 or IPv6")


class _Looked:
    """One directory of the system, looked at again and again.

    *server*: the address that its server must have; *apart*: what below is looked at elsewhere, or not to be.
    """

    def __init__(
        self, ctx: cli.Context, path: bytes, server: bytes | None, apart: frozenset[bytes], timeout: float
    ) -> None:
        self._ctx, self._name, self._path, self._timeout = ctx, ctx.args.system, path, timeout
        self._server, self._apart = server, apart
        self._served = Served()
        self.libra = Libra(self._name, self._see)

    def _see(self, forced: bool) -> Sight:
        agent, devices = _running(self._ctx, self._name)
        mount = inside.mount(agent, self._path, self._timeout)
        if self._server not in (None, mount.server[0]):
            raise inside.Nonsense(f"{os.fsdecode(self._path)} is of {inside.address(mount.server)} there")
        if self._ctx.args.fileid not in (None, mount.fileid):
            raise inside.Nonsense(f"{os.fsdecode(self._path)} has the number {mount.fileid} there")
        self._served.begin()
        with Capture(devices, mount.server[1], self._served) as capture:
            view = inside.look(agent, self._path, forced, self._timeout)
            whole = capture.settle()
        return Sight(mount, view, self._served, self._apart, whole, capture.wire.secured, capture.wire.forged)


def _running(ctx: cli.Context, name: str) -> tuple[Agent, list[str]]:
    """The agent of the system, and its taps. Raises NotFoundError, and MissingError where it does not run."""
    found = System(ctx.conf, name).need()
    with hypervisor.translated(name):
        if not found.isActive():
            raise MissingError(f"{name}: it does not run")
        top = definitions.parse(found.XMLDesc(0))
    devices = [device for _, device, _ in definitions.links(top) if device is not None]
    if not devices:
        raise MissingError(f"{name}: it has no network interface that can be read")
    return Agent(name, found), devices


def _watch(ctx: cli.Context, places: Sequence[_Looked], interval: float, count: int | None) -> int:
    found = 0
    due = time.monotonic()
    while True:
        for place in places:
            for finding in place.libra.scan():
                found += 1
                tell(ctx, finding, _sentence(finding))
            aside = place.libra.aside
            if aside:
                ctx.say(f"not looked at: {aside[0]}" + (f", and {len(aside) - 1} more" if len(aside) > 1 else ""))
        looked(ctx, "libra", "found" if found else "clean")
        if count is not None:
            count -= 1
            if count == 0:
                return 1 if found else 0
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def _sentence(finding: Finding) -> str:
    data, kind = finding.data, finding.type.removeprefix("sysmon.")
    if finding.type == INCONSISTENT:
        return f"{kind} {','.join(data['views'])}: {data['reason']}"
    hides, missing = data["hides"], ",".join(data["views_missing"])
    if hides == "name":
        return f"{kind} {data['path']} not in {missing}"
    return f"{kind} {data['path']} {hides} {data[hides]} not in {missing}, which has {data['told']}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-libra."""
    return cli.main(make_parser(), argv)
