# SPDX-License-Identifier: Apache-2.0
"""dre-app: make, run, limit, save and undo application containers. Arguments and printing only; see dre.app."""

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import cgroup, cli, lifecycle, lxcconfig, recovery, requests, snapshot, transfer, units
from dre.app import App
from dre.cli import Context
from dre.errors import DreError, NotFoundError, UsageError
from dre.run import need

Verb = Callable[[Context], int | None]

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
SNAPSHOT_COLUMNS = (("TAG", "tag", 12), ("CREATED", "created", 24), ("SIZE", "size", 10), ("DIGEST", "digest", 64))
PID_COLUMNS = (("OUTSIDE", "outside", 8), ("INSIDE", "inside", 8), ("COMMAND", "command", 1))
STOP_WAIT = 10.0
UNDO_STOP_WAIT = 2.0


class VerbParser(cli.Parser):
    """A parser that leaves what follows `--` alone; argparse would lose it behind options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; what follows the first `--` becomes the end of `command`."""
        words = list(sys.argv[1:] if args is None else args)
        tail: list[str] = []
        if "--" in words:
            words, tail = words[: words.index("--")], words[words.index("--") + 1 :]
        found, rest = super().parse_known_args(words, namespace)
        if tail:
            if not hasattr(found, "command"):
                self.error("this verb takes no command after --")
            found.command = [*found.command, *tail]
        return found, rest


def make_parser() -> argparse.ArgumentParser:
    """The parser of dre-app, which is also the source of its completion."""
    parser = cli.parser("dre-app", "Application containers: make, run, limit, save and undo services.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=VerbParser)
    _add_making(verbs)
    _add_running(verbs)
    _add_reading(verbs)
    _add_snapshots(verbs)
    return parser


def _add_making(verbs: Any) -> None:
    create = _changing(verbs, "create", _create, "make an app, stopped")
    create.add_argument("name", metavar="NAME", type=_name)
    create.add_argument("--base", default="host", metavar="host|TREE", help="what it shares (default: host)")
    create.add_argument("--ip", metavar="ADDR/LEN|none", help="address (default: the next free one)")
    _add_limits(create)
    create.add_argument("--env", action="append", default=[], metavar="K=V", help="environment of its processes")
    create.add_argument(
        "--bind", action="append", default=[], metavar="SRC:DST[:ro]", help="show SRC of the host at DST"
    )
    create.add_argument("command", nargs="*", metavar="CMD", help="after --: its program (default: idle)")
    destroy = _changing(verbs, "destroy", _destroy, "remove stopped apps and their snapshots")
    destroy.add_argument("--force", action="store_true", help="stop them first")
    _add_names(destroy)
    limit = _changing(verbs, "limit", _limit, "set or print limits; `none` lifts one")
    limit.add_argument("name", metavar="NAME", type=_name)
    _add_limits(limit)


def _add_running(verbs: Any) -> None:
    _add_names(_changing(verbs, "start", _start, "start apps"))
    for name, function, text in (("stop", _stop, "stop apps"), ("restart", _restart, "stop and start apps")):
        verb = _changing(verbs, name, function, text)
        _add_timeout(verb, STOP_WAIT)
        _add_names(verb)
    _add_names(_changing(verbs, "freeze", _freeze, "hold all processes of apps"))
    _add_names(_changing(verbs, "thaw", _thaw, "let frozen apps go on"))
    execute = cli.verb(verbs, "exec", _exec, "run a program in a running app; its exit status passes through")
    execute.add_argument("name", metavar="NAME", type=_name)
    execute.add_argument("command", nargs="*", metavar="CMD", help="after --: the program and its arguments")
    push = _changing(verbs, "push", _push, "copy a file into an app")
    push.add_argument("name", metavar="NAME", type=_name)
    push.add_argument("source", metavar="SRC", help="file of the host")
    push.add_argument("target", metavar="DST", help="path in the app")
    pull = cli.verb(verbs, "pull", _pull, "copy a file out of an app")
    pull.add_argument("name", metavar="NAME", type=_name)
    pull.add_argument("source", metavar="SRC", help="path in the app")
    pull.add_argument("target", metavar="DST", help="file of the host")
    cli.verb(verbs, "recover", _recover, "end what killed commands left unfinished")


def _add_reading(verbs: Any) -> None:
    cli.verb(verbs, "list", _list, "list all apps")
    status = cli.verb(verbs, "status", _status, "print the state; exit 0 when running, else 1")
    status.add_argument("name", metavar="NAME", type=_name)
    stat = cli.verb(verbs, "stat", _stat, "print use of cpu, memory, pids, io and net")
    stat.add_argument("--interval", type=_kind(units.duration), metavar="S", help="look again every S seconds")
    stat.add_argument("--count", type=_count, metavar="N", help="look N times (default: 1, with --interval no end)")
    stat.add_argument("names", nargs="*", metavar="NAME", type=_name)
    pid = cli.verb(verbs, "pid", _pid, "print its processes as host and app number them")
    pid.add_argument("name", metavar="NAME", type=_name)
    pid.add_argument("pid", nargs="?", type=_count, metavar="PID", help="only the process with this number in the app")
    digest = cli.verb(verbs, "digest", _digest, "print the digest that a snapshot would have now")
    digest.add_argument("name", metavar="NAME", type=_name)


def _add_snapshots(verbs: Any) -> None:
    undo = _changing(verbs, "undo", _undo, "back to a snapshot and running again")
    _add_timeout(undo, UNDO_STOP_WAIT)
    undo.add_argument("name", metavar="NAME", type=_name)
    undo.add_argument("tag", nargs="?", metavar="TAG", type=_name, help="default: the newest")
    parser = cli.verb(verbs, "snapshot", _no_snapshot_verb, "save, load, list and delete snapshots of stopped apps")
    inner = parser.add_subparsers(title="verbs", metavar="VERB")
    save = _changing(inner, "save", _save, "save a stopped app")
    save.add_argument("name", metavar="NAME", type=_name)
    save.add_argument("tag", nargs="?", metavar="TAG", type=_name, help="default: named by the time, and printed")
    for name, function, text in (
        ("load", _load, "put a stopped app back to a snapshot"),
        ("delete", _delete, "delete a snapshot"),
    ):
        verb = _changing(inner, name, function, text)
        verb.add_argument("name", metavar="NAME", type=_name)
        verb.add_argument("tag", metavar="TAG", type=_name)
    listing = cli.verb(inner, "list", _snapshots, "list the snapshots of an app, oldest first")
    listing.add_argument("name", metavar="NAME", type=_name)


def _add_names(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("names", nargs="+", metavar="NAME", type=_name)


def _add_timeout(verb: argparse.ArgumentParser, default: float) -> None:
    text = f"kill what has not ended after S seconds (default: {default:g})"
    verb.add_argument("--timeout", type=_kind(units.duration), default=default, metavar="S", help=text)


def _add_limits(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--cpu", type=_limit_of(_percent), metavar="PCT|none", help="percent of one core")
    verb.add_argument("--memory", type=_limit_of(units.size), metavar="SIZE|none", help="memory, swap included")
    verb.add_argument("--pids", type=_limit_of(_count), metavar="N|none", help="processes and threads")


def _kind(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """*convert* as argparse wants it: its message must reach the user."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def _limit_of(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    return _kind(lambda text: "none" if text == "none" else convert(text))


_name = _kind(units.name)


def _percent(text: str) -> float:
    value = units.percent(text)
    if value < 1:
        raise UsageError(f"{text!r}: the kernel takes no CPU limit below 1 percent")
    return value


@_kind
def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 22:
        raise UsageError(f"{text!r} is not a number above 0")
    return int(text)


def _changing(verbs: Any, name: str, function: Verb, help: str) -> argparse.ArgumentParser:
    """Add a verb that changes something: it takes a request id and answers a second time as it did the first."""

    def answer(ctx: Context) -> int | None:
        cli.need_root(f"{ctx.prog} {name}")
        if ctx.args.request_id is None:
            ctx.args.again = False
            return function(ctx)
        return _remembered(ctx, name, function)

    verb = cli.verb(verbs, name, answer, help)
    text = "asked again with the same ID, answer as the first time and do nothing"
    verb.add_argument("--request-id", type=_kind(requests.identity), metavar="ID", help=text)
    return verb


def _remembered(ctx: Context, name: str, function: Verb) -> int:
    unasked = ("function", "config", "json", "quiet", "debug", "request_id")
    argv = {"verb": name, **{key: value for key, value in vars(ctx.args).items() if key not in unasked}}
    with requests.asked(ctx.conf, ctx.args.request_id, argv) as request:
        if request.outcome is None:
            stdout, ctx.out.stream = ctx.out.stream, io.StringIO()
            ctx.args.again = request.again
            code, error = 0, ""
            try:
                code = function(ctx) or 0
            except DreError as failure:
                code, error = failure.code, str(failure)
            outcome = requests.Outcome(code, ctx.out.stream.getvalue(), error)
            ctx.out.stream = stdout
            request.remember(outcome)
        else:
            outcome = request.outcome
    ctx.out.stream.write(outcome.output)
    if outcome.error:
        sys.stderr.write(f"{ctx.prog}: {outcome.error}\n")
    return outcome.code


def _each(ctx: Context, work: Callable[[App], object], doomed: bool = False) -> None:
    """Do *work* on every app that was named, whatever becomes of the others; the first failure is the answer."""
    failures: list[DreError] = []
    for name in ctx.args.names:
        try:
            with recovery.held(ctx.conf, name, doomed) as app:
                work(app)
        except DreError as error:
            failures.append(error)
    for failure in failures[1:]:
        sys.stderr.write(f"{ctx.prog}: {failure}\n")
    if failures:
        raise failures[0]


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The limits that were given as options, `none` as None."""
    given = {key: getattr(args, key) for key in ("cpu", "memory", "pids")}
    return {key: None if value == "none" else value for key, value in given.items() if value is not None}


def _create(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as app:
        if args.again and app.exists() and app.spec().request == args.request_id:
            return  # done by the call that was killed before it could say so
        spec = lifecycle.new_spec(
            app,
            base=lifecycle.base(ctx.conf, args.base),
            command=lxcconfig.command(args.command),
            env=lxcconfig.env(args.env),
            binds=tuple(map(lxcconfig.bind, args.bind)),
            limits=cgroup.Limits(**_chosen(args)),
            request=args.request_id,
        )
        lifecycle.create(app, spec, args.ip)


def _destroy(ctx: Context) -> None:
    def work(app: App) -> None:
        try:
            app.need()
        except NotFoundError:
            if ctx.args.again:
                return
            raise
        if not ctx.args.force and app.state() in ("running", "frozen"):
            raise DreError(f"{app.name}: is running; stop it, or use --force")
        lifecycle.stop(app, 0.0 if ctx.args.force else STOP_WAIT)
        lifecycle.destroy(app)

    _each(ctx, work, doomed=True)


def _start(ctx: Context) -> None:
    _each(ctx, lifecycle.start)


def _stop(ctx: Context) -> None:
    _each(ctx, lambda app: lifecycle.stop(app, ctx.args.timeout))


def _restart(ctx: Context) -> None:
    def work(app: App) -> None:
        lifecycle.stop(app, ctx.args.timeout)
        lifecycle.start(app)

    _each(ctx, work)


def _freeze(ctx: Context) -> None:
    _each(ctx, lifecycle.freeze)


def _thaw(ctx: Context) -> None:
    _each(ctx, lifecycle.thaw)


def _limit(ctx: Context) -> None:
    changes = _chosen(ctx.args)
    if changes:
        with recovery.held(ctx.conf, ctx.args.name) as app:
            lifecycle.limit(app, changes)
        return
    limits = recovery.look(ctx.conf, ctx.args.name).need().limits
    row = {"name": ctx.args.name, "cpu_limit": limits.cpu, "memory_limit": limits.memory, "pids_limit": limits.pids}
    if ctx.out.as_json:
        ctx.out.json(row)
        return
    for key in ("cpu", "memory", "pids"):
        value = row[f"{key}_limit"]
        ctx.out.line(f"{key} {'none' if value is None else value}")


def _exec(ctx: Context) -> int:
    cli.need_root("dre-app exec")
    if not ctx.args.command:
        raise UsageError("exec: the command after -- is missing")
    app = recovery.look(ctx.conf, ctx.args.name)
    app.need()
    state = app.state()
    if state != "running":
        raise DreError(f"{app.name}: cannot exec: it is {state}")
    words = ("-n", app.name, "-P", str(ctx.conf.app_lxc_path), "--clear-env", "--", *ctx.args.command)
    program = need("lxc-attach")
    sys.stdout.flush()
    os.execv(program, (program, *words))  # noqa: S606 - status, stdin and stdout pass only without us in between


def _push(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        transfer.push(app, ctx.args.source, ctx.args.target)


def _pull(ctx: Context) -> None:
    cli.need_root("dre-app pull")
    with recovery.held(ctx.conf, ctx.args.name) as app:
        transfer.pull(app, ctx.args.source, ctx.args.target)


def _recover(ctx: Context) -> None:
    cli.need_root("dre-app recover")
    for name, verb in recovery.everything(ctx.conf):
        ctx.say(f"{name}: ended {verb}")


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
    found = snapshot.digest(app)
    if ctx.out.as_json:
        ctx.out.json({"name": app.name, "digest": found})
    else:
        ctx.out.line(found)


def _undo(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as app:
        if args.again and requests.completed(ctx.conf, args.request_id):
            return  # the lock gave us the app only after the killed undo had been ended
        snapshot.undo(app, args.tag, args.timeout, args.request_id)


def _no_snapshot_verb(ctx: Context) -> None:
    raise UsageError("snapshot: a verb is missing: save, load, list or delete")


def _save(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        saved = snapshot.save(app, ctx.args.tag, ctx.args.request_id)
    if ctx.out.as_json:
        ctx.out.json(saved.row())
    elif ctx.args.tag is None:
        ctx.out.line(saved.tag)


def _load(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        snapshot.load(app, ctx.args.tag)


def _delete(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        try:
            snapshot.delete(app, ctx.args.tag)
        except NotFoundError:
            if not ctx.args.again or not app.exists():
                raise


def _snapshots(ctx: Context) -> None:
    cli.need_root("dre-app snapshot list")
    ctx.out.table([item.row() for item in snapshot.every(recovery.look(ctx.conf, ctx.args.name))], SNAPSHOT_COLUMNS)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main(make_parser(), argv)
