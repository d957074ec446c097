# SPDX-License-Identifier: Apache-2.0
"""dre-app start, stop, restart, freeze, thaw, exec, push, pull and recover: apps at work."""

from collections.abc import Callable, Sequence
from typing import Any

from dre import cli, keeping, lifecycle, order, recovery, verbs
from dre.app import App
from dre.cli import Context
from dre.errors import DreError, UsageError
from dre.run import need

STOP_WAIT = 10.0


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    verbs.add_names(verbs.changing(table, "start", _start, "start apps"))
    for name, function, text in (("stop", _stop, "stop apps"), ("restart", _restart, "stop and start apps")):
        verb = verbs.changing(table, name, function, text)
        verbs.add_timeout(verb, STOP_WAIT)
        verbs.add_names(verb)
    verbs.add_names(verbs.changing(table, "freeze", _freeze, "hold all processes of apps"))
    verbs.add_names(verbs.changing(table, "thaw", _thaw, "let frozen apps go on"))
    execute = cli.verb(table, "exec", _exec, "run a program in a running app; its exit status passes through")
    verbs.add_name(execute)
    execute.add_argument("command", nargs="*", metavar="CMD", help="after --: the program and its arguments")
    push = verbs.changing(table, "push", _push, "copy a file into an app")
    verbs.add_name(push)
    push.add_argument("source", metavar="SRC", help="file of the host")
    push.add_argument("target", metavar="DST", help="path in the app")
    pull = cli.verb(table, "pull", _pull, "copy a file out of an app")
    verbs.add_name(pull)
    pull.add_argument("source", metavar="SRC", help="path in the app")
    pull.add_argument("target", metavar="DST", help="file of the host")
    cli.verb(table, "recover", _recover, "end what killed commands left unfinished")


def each_held(ctx: Context, work: Callable[[App], object], doomed: bool = False) -> None:
    """Do *work* on every app that was named, each locked."""

    def held(name: str) -> None:
        with recovery.held(ctx.conf, name, doomed) as app:
            work(app)

    verbs.each(ctx, ctx.args.names, held)


def start_in_order(ctx: Context, names: Sequence[str], work: Callable[[App], object] = lifecycle.start) -> None:
    """Start the apps *names*, by *work*, each after those it is after, which are started too."""
    failed: list[str] = []

    def held(name: str) -> None:
        failed.append(name)
        wanting = [other for other in order.after(ctx.conf, name) if other in failed]
        if wanting:
            raise DreError(f"{name}: not started, for {wanting[0]} was not, which it is after")
        with recovery.held(ctx.conf, name) as app:
            if name in names:
                work(app)
            else:
                lifecycle.start(app)
        failed.remove(name)

    found = order.sequence(ctx.conf, names)
    try:
        verbs.each(ctx, found, held)
    finally:
        keeping.ensure(ctx.conf, found, ctx.args.config)


def _start(ctx: Context) -> None:
    start_in_order(ctx, ctx.args.names)


def _stop(ctx: Context) -> None:
    each_held(ctx, lambda app: lifecycle.stop(app, ctx.args.timeout))


def _restart(ctx: Context) -> None:
    def work(app: App) -> None:
        lifecycle.stop(app, ctx.args.timeout)
        lifecycle.start(app)

    start_in_order(ctx, ctx.args.names, work)


def _freeze(ctx: Context) -> None:
    each_held(ctx, lifecycle.freeze)


def _thaw(ctx: Context) -> None:
    each_held(ctx, lifecycle.thaw)


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
    return ctx.become(need("lxc-attach"), *words)


def _push(ctx: Context) -> None:
    from dre import transfer

    with recovery.held(ctx.conf, ctx.args.name) as app:
        transfer.push(app, ctx.args.source, ctx.args.target)


def _pull(ctx: Context) -> None:
    from dre import transfer

    cli.need_root("dre-app pull")
    with recovery.held(ctx.conf, ctx.args.name) as app:
        transfer.pull(app, ctx.args.source, ctx.args.target)


def _recover(ctx: Context) -> None:
    cli.need_root("dre-app recover")
    for name, verb in recovery.everything(ctx.conf):
        ctx.say(f"{name}: ended {verb}")
    keeping.recover(ctx.conf, ctx.say)
