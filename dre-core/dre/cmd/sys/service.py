# SPDX-License-Identifier: Apache-2.0
"""dre-sys log, console, autostart and autostop: systems as a person meets them, and as the host keeps them."""

import os
import sys
from typing import Any

from dre import cli, verbs
from dre.cli import Context
from dre.cmd import printing
from dre.cmd.sys.running import STOP_WAIT, settle_all, start_in_order
from dre.errors import DreError, UsageError
from dre.run import need
from dre.system import lifecycle, model, recovery, serial
from dre.system.model import RUNNING, System


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    log = cli.verb(table, "log", _log, "print what a system wrote to its serial console")
    verbs.add_name(log)
    log.add_argument("--lines", type=verbs.count, metavar="N", help="only the last N lines")
    log.add_argument("--follow", action="store_true", help="go on as it writes more, until interrupted")
    verbs.endless(log, lambda args: bool(args.follow))
    console = cli.verb(table, "console", _console, "the serial console of a running system, on this terminal")
    verbs.add_name(console)
    verbs.endless(console)
    verbs.changing(table, "autostart", _autostart, "start the systems that are to start with the host")
    stop = verbs.changing(table, "autostop", _autostop, "stop all systems that dre-sys made, for the end of the host")
    verbs.add_timeout(stop, STOP_WAIT)


def _log(ctx: Context) -> None:
    cli.need_root("dre-sys log")
    system = recovery.look(ctx.conf, ctx.args.name)
    system.need()
    printing.log(ctx, system.name, serial.lines(system, ctx.args.lines, ctx.args.follow), ctx.args.follow)


def _console(ctx: Context) -> None:
    cli.need_root("dre-sys console")
    system = recovery.look(ctx.conf, ctx.args.name)
    system.need()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(f"console: needs a terminal; dre-sys exec {system.name} -- sh does without")
    state = system.state()
    if state not in RUNNING:
        raise DreError(f"{system.name}: has no console: it is {state}")
    program = need("virsh")
    argv = ("virsh", "--connect", ctx.conf.sys_uri, "console", "--", system.name)
    os.execv(program, argv)  # noqa: S606 - the name is checked, and no shell reads it


def _autostart(ctx: Context) -> None:
    try:
        settle_all(ctx)
    finally:
        names = sorted(name for name in model.kept(ctx.conf) if _says_autostart(System(ctx.conf, name)))
        start_in_order(ctx, names)


def _says_autostart(system: System) -> bool:
    try:
        spec = system.spec()
    except DreError:
        return False  # damaged: what uses it by its name will say so
    return spec is not None and spec.autostart


def _autostop(ctx: Context) -> None:
    def work(name: str) -> None:
        with recovery.held(ctx.conf, name) as system:
            lifecycle.stop(system, ctx.args.timeout)

    running = [name for name in sorted(model.kept(ctx.conf)) if System(ctx.conf, name).state() in RUNNING]
    verbs.each(ctx, running, work, behind=lambda name: ())
