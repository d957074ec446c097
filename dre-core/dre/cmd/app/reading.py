# SPDX-License-Identifier: Apache-2.0
"""dre-app list, status, stat, pid and digest: what there is and what it does, nothing changed."""

import time
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import cgroup, cli, recovery, units, verbs
from dre.app import App
from dre.cli import Context
from dre.errors import DreError, NotFoundError

LIST_COLUMNS = (("NAME", "name", 12), ("STATE", "state", 8), ("IP", "ip", 14), ("PID", "pid", 6))
STAT_COLUMNS = (
    ("NAME", "name", 12),
    ("STATE", "state", 8),
    ("CPU%", "cpu", 6),
    ("MEMORY", "memory", 11),
    ("LIMIT", "memory_limit", 11),
    ("PIDS", "pids", 5),
    ("READ/S", "io_read", 10),
    ("WRITE/S", "io_write", 10),
    ("RX/S", "net_rx", 10),
    ("TX/S", "net_tx", 10),
)
PID_COLUMNS = (("OUTSIDE", "outside", 8), ("INSIDE", "inside", 8), ("COMMAND", "command", 1))


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    cli.verb(table, "list", _list, "list all apps").set_defaults(names=[])
    status = cli.verb(table, "status", _status, "print the state; exit 0 when running, else 1")
    status.add_argument("name", metavar="NAME", type=verbs.name)
    stat = cli.verb(table, "stat", _stat, "print use of cpu, memory, pids, io and net")
    stat.add_argument("--interval", type=verbs.kind(units.duration), metavar="S", help="look again every S seconds")
    stat.add_argument(
        "--count", type=verbs.count, metavar="N", help="look N times (default: 1, with --interval no end)"
    )
    stat.add_argument("names", nargs="*", metavar="NAME", type=verbs.name)
    verbs.endless(stat, lambda args: args.interval is not None and args.count is None)
    pid = cli.verb(table, "pid", _pid, "print its processes as host and app number them")
    pid.add_argument("name", metavar="NAME", type=verbs.name)
    pid.add_argument(
        "pid", nargs="?", type=verbs.count, metavar="PID", help="only the process with this number in the app"
    )
    digest = cli.verb(table, "digest", _digest, "print the digest that a snapshot would have now")
    digest.add_argument("name", metavar="NAME", type=verbs.name)


def _list(ctx: Context) -> None:
    cli.need_root("dre-app list")
    rows = [App(ctx.conf, name).row() for name in apps.names(ctx.conf)]
    ctx.out.table(rows, LIST_COLUMNS)


def _status(ctx: Context) -> int:
    cli.need_root("dre-app status")
    app = recovery.look(ctx.conf, ctx.args.name)
    if not app.home.exists():
        raise NotFoundError(f"{app.name}: no such app")
    row = app.row()
    if ctx.out.as_json:
        ctx.out.json(row)
    else:
        ctx.out.line(row["state"])
    return 0 if row["state"] == "running" else 1


def _stat(ctx: Context) -> None:
    cli.need_root("dre-app stat")
    args = ctx.args
    for name in args.names:
        recovery.look(ctx.conf, name).need()
    rounds = args.count or (1 if args.interval is None else None)
    before: dict[str, apps.Sample] = {}
    ctx.out.header(STAT_COLUMNS)
    while rounds is None or rounds > 0:
        for name in args.names or apps.names(ctx.conf):
            _sample(ctx, App(ctx.conf, name), before)
        ctx.out.stream.flush()
        if rounds is not None:
            rounds -= 1
        if rounds != 0:
            time.sleep(args.interval if args.interval is not None else 1.0)


def _sample(ctx: Context, app: App, before: dict[str, apps.Sample]) -> None:
    try:
        now = apps.Sample.take(app)
    except NotFoundError:
        before.pop(app.name, None)  # destroyed meanwhile
        return
    rates = now.rates(before.get(app.name))
    before[app.name] = now
    ctx.out.row({**app.row(rates.pop("cpu")), **rates}, STAT_COLUMNS)


def _pid(ctx: Context) -> None:
    cli.need_root("dre-app pid")
    app = recovery.look(ctx.conf, ctx.args.name)
    app.need()
    init = app.init_pid()
    if init is None:
        raise DreError(f"{app.name}: has no processes: it is {app.state()}")
    rows = [row for row in map(_process, sorted(cgroup.Group.of(init).pids())) if row is not None]
    if ctx.args.pid is not None:
        rows = [row for row in rows if row["inside"] == ctx.args.pid]
        if not rows:
            raise NotFoundError(f"{app.name}: no process {ctx.args.pid}")
    ctx.out.table(rows, PID_COLUMNS)


def _process(pid: int) -> dict[str, Any] | None:
    """Both numbers of a process; None when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return {"outside": pid, "inside": int(fields["NSpid"].split()[-1]), "command": fields["Name"]}


def _digest(ctx: Context) -> None:
    cli.need_root("dre-app digest")
    app = recovery.look(ctx.conf, ctx.args.name)
    from dre import snapshot

    found = snapshot.digest(app)
    if ctx.out.as_json:
        ctx.out.json({"name": app.name, "digest": found})
    else:
        ctx.out.line(found)
