# SPDX-License-Identifier: Apache-2.0
"""dre-app list, status, pid and digest: what there is and what it does, nothing changed."""

from pathlib import Path
from typing import Any

from dre import app as apps
from dre import cgroup, cli, glance, verbs
from dre.app import App
from dre.cli import Context
from dre.cmd.app import listing
from dre.errors import DreError, NotFoundError

PID_COLUMNS = (("OUTSIDE", "outside", 8), ("INSIDE", "inside", 8), ("COMMAND", "command", 1))


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    cli.verb(table, "list", _list, "list all apps").set_defaults(names=[])
    status = cli.verb(table, "status", _status, "print the state; exit 0 when running, else 1")
    status.add_argument("name", metavar="NAME", type=verbs.name)
    pid = cli.verb(table, "pid", _pid, "print its processes as host and app number them")
    pid.add_argument("name", metavar="NAME", type=verbs.name)
    pid.add_argument(
        "pid", nargs="?", type=verbs.count, metavar="PID", help="only the process with this number in the app"
    )
    digest = cli.verb(table, "digest", _digest, "print the digest that a snapshot would have now")
    digest.add_argument("name", metavar="NAME", type=verbs.name)


def _list(ctx: Context) -> None:
    cli.need_root("dre-app list")
    if ctx.out.as_json:
        host = glance.Host()
        ctx.out.table((App(ctx.conf, name).row(host) for name in apps.names(ctx.conf)), listing.COLUMNS)
    else:
        ctx.out.table(glance.rows(ctx.conf), listing.COLUMNS)


def _status(ctx: Context) -> int:
    from dre import recovery  # here and below: with all that it can end, more than the rest of a list

    cli.need_root("dre-app status")
    app = recovery.look(ctx.conf, ctx.args.name)
    if not glance.there(str(app.home)):
        raise NotFoundError(f"{app.name}: no such app")
    row = app.row()
    if ctx.out.as_json:
        ctx.out.json(row)
    else:
        ctx.out.line(row["state"])
    return 0 if row["state"] == "running" else 1


def _pid(ctx: Context) -> None:
    from dre import recovery

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
    from dre import recovery, snapshot

    app = recovery.look(ctx.conf, ctx.args.name)

    found = snapshot.digest(app)
    if ctx.out.as_json:
        ctx.out.json({"name": app.name, "digest": found})
    else:
        ctx.out.line(found)
