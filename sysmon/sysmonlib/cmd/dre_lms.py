# SPDX-License-Identifier: Apache-2.0
"""dre-lms: what a system hides of its tasks and modules, and where its kernel was hooked, seen from outside."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dre import cli, units
from dre.cli import Column
from dre.errors import DreError, MissingError, UsageError
from dre.system import hypervisor

from sysmonlib import guest, hooks, kernel, modules, slabs, tasks
from sysmonlib.cmd.telling import looked, looking, printing, source, tell
from sysmonlib.cross import HOOK, INCONSISTENT, MODULE, PROCESS, Cross, Finding
from sysmonlib.memory import Memory

SYMBOLS = tasks.SYMBOLS | slabs.SYMBOLS | modules.SYMBOLS | hooks.SYMBOLS
TYPES = tasks.TYPES | slabs.TYPES | modules.TYPES | hooks.TYPES
MEMORY = 64 << 20  # octets of processes in a report
BEAT = 10.0  # seconds between two times that --stdout tells that it looked
PS: tuple[Column, ...] = (
    ("PID", "pid", 7),
    ("PPID", "ppid", 7),
    ("UID", "uid", 6),
    ("S", "state", 1),
    ("THREADS", "threads", 7),
    ("START", "start", 24),
    ("COMMAND", "comm", 16),
    ("HIDDEN FROM", "views_missing", 0),
)


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-lms."""
    parser = cli.parser("dre-lms", "Look from outside for what a running system hides, and for hooks in its kernel.")
    parser.add_argument("system", metavar="SYSTEM", type=units.name, help="the system to look into")
    parser.add_argument("--ps", action="store_true", help="print its processes, as seen from outside")
    parser.add_argument("--interval", metavar="S", help="look again every S (default 1s), until interrupted")
    parser.add_argument("--count", metavar="N", type=int, help="look N times (default 1; with --interval: for ever)")
    parser.add_argument(
        "--report", metavar="PATH", type=Path, help="write what is found for analysis, and to the D-Box"
    )
    parser.add_argument("--memory", metavar="SIZE", type=units.size, help="of processes, in a report (default 64M)")
    printing(parser)
    parser.add_argument("--user", metavar="NAME", help="as root, with --stdout: become this user once it can look")
    parser.set_defaults(function=look)
    return parser


def look(ctx: cli.Context) -> int:
    """0: nothing hidden was found; 1: something; raises what the exit codes of 2 and more are for."""
    if ctx.args.count is not None and ctx.args.count < 1:
        raise UsageError(f"--count {ctx.args.count}: at least 1 is needed")
    if ctx.args.ps and (ctx.args.interval or ctx.args.count):
        raise UsageError("--ps is of one moment: neither --interval nor --count")
    if ctx.args.report and (ctx.args.ps or ctx.args.interval or ctx.args.count or ctx.args.stdout):
        raise UsageError("--report is of one moment, for a person: neither --ps, --interval, --count nor --stdout")
    if ctx.args.memory is not None and not ctx.args.report:
        raise UsageError("--memory is of a --report")
    if ctx.args.ps and ctx.args.stdout:
        raise UsageError("--ps prints processes, and not events: without --stdout")
    if ctx.args.user and not ctx.args.stdout:
        raise UsageError("--user: only with --stdout, for what it sends would not be believed")
    interval = units.duration(ctx.args.interval or "1s")
    count = ctx.args.count or (None if ctx.args.interval else 1)
    with looking():
        if ctx.args.report:
            return _report(ctx)
        return _ps(ctx) if ctx.args.ps else _watch(ctx, interval, count)


def _open(name: str, memory: Memory, known: Cross | None = None, more: frozenset[str] = frozenset()) -> Cross:
    """What looks at the kernel that runs now, which is *known* if that one still runs; with types *more*, too."""
    if memory.ended():
        raise MissingError(f"{name}: it does not run any more")
    try:
        found = kernel.find(memory, SYMBOLS, TYPES | more, hooks.BEGINS)
        return known if known is not None and known.kernel.same(found) else Cross(name, found)
    except MissingError as error:
        raise MissingError(f"{name}: it cannot be looked into: {error}") from None


def _watch(ctx: cli.Context, interval: float, count: int | None) -> int:
    name, found, scans, said = ctx.args.system, 0, 0, -BEAT
    account = guest.account(ctx.args.user) if ctx.args.user else None
    with guest.memory(ctx.conf, name) as memory:
        if account is not None:
            hypervisor.disconnect()  # who may talk to libvirt is as good as root
            guest.become(account)
        cross = _open(name, memory)
        due = time.monotonic()
        while True:
            clock = cross.kernel.clock()
            for finding in cross.scan():
                found += 1
                tell(ctx, finding, _sentence(finding))
            scans += 1
            if count == scans or time.monotonic() >= said + BEAT:
                looked(ctx, "lms", "found" if found else "clean", scans=scans, found=found)
                said = time.monotonic()
            if count == scans:
                break
            due = max(due + interval, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            if memory.ended() or cross.kernel.clock() == clock:  # a reboot, or a guest that sleeps
                cross = _open(name, memory, cross)
    return 1 if found else 0


def _sentence(finding: Finding) -> str:
    data, kind = finding.data, finding.type.removeprefix("sysmon.")
    if finding.type == INCONSISTENT:
        return f"{kind} {','.join(data['views'])}: {data['reason']}"
    missing = ",".join(data["views_missing"])
    if finding.type == HOOK:
        where = f" in module {data['module']}" if data["module"] else ""
        where += f" not in {missing}" if missing else ""
        return f"{kind} {data['hook']} {data['name']} leads to {data['address']}{where}"
    if finding.type == MODULE:
        return f"{kind} {data['name']} not in {missing}"
    return f"{kind} {data['pid']} {data['comm']} started {data['start'] or '-'} not in {missing}"


def _ps(ctx: cli.Context) -> int:
    name = ctx.args.system
    with guest.memory(ctx.conf, name) as memory:
        cross = _open(name, memory)
        findings = cross.scan()
        for finding in findings:
            if finding.type != PROCESS:
                ctx.say(_sentence(finding))
        rows = _rows(cross)
    ctx.out.table(rows, PS)
    return 1 if findings else 0


def _rows(cross: Cross) -> list[dict[str, Any]]:
    return [
        {
            "pid": task.pid,
            "ppid": task.ppid,
            "uid": task.uid,
            "state": task.state,
            "threads": threads,
            "start": cross.tasks.moment(task),
            "comm": task.comm,
            "kernel": task.kernel,
            "views_missing": missing,
        }
        for task, threads, missing in sorted(cross.processes(), key=lambda row: row[0].pid)
    ]


def _report(ctx: cli.Context) -> int:
    from sysmonlib import process, report  # with the client of the D-Box, which is slow to load

    name, path = ctx.args.system, ctx.args.report
    report.check(path)
    with guest.memory(ctx.conf, name) as memory:
        cross = _open(name, memory, more=process.TYPES)
        findings = cross.scan()
        for finding in findings:
            tell(ctx, finding, _sentence(finding))
        if not findings:
            ctx.say("nothing was found, and so there is no report")
            return 0
        told = {"system": name, "findings": [{"type": found.type, **found.data} for found in findings]}
        told["processes"] = _rows(cross)
        most = MEMORY if ctx.args.memory is None else ctx.args.memory
        with report.written(path, cross, told, most) as made:
            data = report.record(ctx.conf, made, source(ctx), name)
    if data["first"] is not None:
        try:
            report.deliver(ctx.conf)
        except DreError as error:
            ctx.say(f"the report is in the spool, and waits for the D-Box: {error}")
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-lms."""
    return cli.main(make_parser(), argv)
