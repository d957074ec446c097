# SPDX-License-Identifier: Apache-2.0
"""dre-app log, console, keep, autostart and autostop: services as a person meets them, and as the host keeps them."""

import os
import sys
from typing import Any

from dre import app as apps
from dre import cli, output, recovery, verbs
from dre.app import App
from dre.cli import Context
from dre.cmd import printing
from dre.cmd.app.running import STOP_WAIT, settle_all, start_in_order, stop_in_order
from dre.errors import DreError, UsageError
from dre.run import need

# Of the shells that an app may have, the one a person would choose; asked inside, for only there it can be known.
SHELL = "cd ~root || cd /; for shell in /bin/bash /bin/sh; do [ -x $shell ] && exec $shell -l; done"


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    log = cli.verb(table, "log", _log, "print what an app's program printed")
    verbs.add_name(log)
    log.add_argument("--lines", type=verbs.count, metavar="N", help="only the last N lines")
    which = log.add_mutually_exclusive_group()
    which.add_argument("--follow", action="store_true", help="go on as it prints more, until interrupted")
    which.add_argument("--before", action="store_true", help="of the run before the last start")
    which.add_argument("--lxc", action="store_true", help="what LXC said of the last start")
    verbs.endless(log, lambda args: bool(args.follow))
    console = cli.verb(table, "console", _console, "a shell in a running app, on this terminal")
    verbs.add_name(console)
    verbs.endless(console)
    keep = cli.verb(table, "keep", _keep, "restart what crashed and hold logs to their size, until ended")
    keep.add_argument("--while-needed", action="store_true", help="end when no app is to be restarted")
    verbs.endless(keep)
    verbs.changing(table, "autostart", _autostart, "start the apps that are to start with the system")
    stop = verbs.changing(table, "autostop", _autostop, "stop all apps that run, for the end of the system")
    verbs.add_timeout(stop, STOP_WAIT)


def _log(ctx: Context) -> None:
    cli.need_root("dre-app log")
    args = ctx.args
    app = recovery.look(ctx.conf, args.name)
    app.need()
    paths = [output.cut_off(app), app.log]
    if args.before:
        paths = [output.before(app)]
    elif args.lxc:
        paths = [output.of_lxc(app)]
    position = app.log.stat().st_size if args.follow and app.log.exists() else 0
    printing.log(ctx, app.name, output.kept(paths, ctx.conf.app_log_max, args.lines), args.follow)
    if args.follow:
        ctx.out.stream.flush()
        printing.log(ctx, app.name, output.follow(app, position), follow=True)


def _console(ctx: Context) -> None:
    cli.need_root("dre-app console")
    app = recovery.look(ctx.conf, ctx.args.name)
    app.need()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(f"console: needs a terminal; dre-app exec {app.name} -- sh does without")
    state = app.state()
    if state != "running":
        raise DreError(f"{app.name}: has no console: it is {state}")
    # lxc-attach gives the shell a terminal of the app's own /dev/pts and passes size, keys and status.
    options = ("-n", app.name, "-P", str(ctx.conf.app_lxc_path), "--clear-env", "--keep-var", "TERM")
    program = need("lxc-attach")
    os.execv(program, (program, *options, "--", "/bin/sh", "-c", SHELL))  # noqa: S606 - as in dre-app exec


def _keep(ctx: Context) -> None:
    cli.need_root("dre-app keep")
    from dre import keeping

    keeping.serve(ctx.conf, ctx.say, stay=not ctx.args.while_needed)


def _autostart(ctx: Context) -> None:
    try:
        settle_all(ctx)
    finally:
        names = [name for name in apps.names(ctx.conf) if _spec_says_autostart(App(ctx.conf, name))]
        start_in_order(ctx, names)


def _spec_says_autostart(app: App) -> bool:
    try:
        return app.spec().autostart
    except DreError:
        return False  # half made, or damaged: what uses it by its name will say so


def _autostop(ctx: Context) -> None:
    stop_in_order(ctx, [name for name in apps.names(ctx.conf) if _at_work(App(ctx.conf, name))])


def _at_work(app: App) -> bool:
    """Whether the app runs, or crashed and is to be started again in a moment."""
    state, record = app.state(), app.record()
    waits = state == "crashed" and record.get("kept") and not record.get("gave_up")
    return bool(waits) or state in ("running", "frozen", "starting")
