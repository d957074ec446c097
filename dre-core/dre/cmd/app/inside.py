# SPDX-License-Identifier: Apache-2.0
"""dre-app exec, push and pull: programs and files in apps. Apart from the verbs that start and stop, to be quick."""

from functools import partial
from typing import Any

from dre import attached, cli, recovery, verbs
from dre.cli import Context
from dre.errors import DreError, UsageError
from dre.run import need


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    execute = cli.verb(table, "exec", _exec, "run a program in a running app; its exit status passes through")
    verbs.add_name(execute)
    verbs.add_command(execute, "after --: the program and its arguments")
    push = verbs.changing(table, "push", _push, "copy a file into an app")
    verbs.add_name(push)
    push.add_argument("source", metavar="SRC", help="file of the host; -: standard input")
    push.add_argument("target", metavar="DST", help="path in the app")
    verbs.endless(push, lambda args: bool(args.source == "-"))
    pull = cli.verb(table, "pull", _pull, "copy a file out of an app")
    verbs.add_name(pull)
    pull.add_argument("source", metavar="SRC", help="path in the app")
    pull.add_argument("target", metavar="DST", help="file of the host; -: standard output")
    verbs.endless(pull, lambda args: bool(args.target == "-"))


def _exec(ctx: Context) -> int:
    cli.need_root("dre-app exec")
    if not ctx.args.command:
        raise UsageError("exec: the command after -- is missing")
    app = recovery.look(ctx.conf, ctx.args.name)
    spec = app.need()
    state = app.state()
    if state != "running":
        raise DreError(f"{app.name}: cannot exec: it is {state}")
    words = ("-n", app.name, "-P", str(ctx.conf.app_lxc_path), "--clear-env", "--", *ctx.args.command)
    # Root of an unprivileged app cannot change the host's files, so LXC, which is that by then, does not either.
    first = partial(attached.guard, app.init_pid())
    return ctx.become(first, need("lxc-attach"), *words, keep_files=spec.privileged)


def _push(ctx: Context) -> None:
    from dre import transfer

    with recovery.held(ctx.conf, ctx.args.name) as app:
        transfer.push(app, ctx.args.source, ctx.args.target)


def _pull(ctx: Context) -> None:
    from dre import transfer

    cli.need_root("dre-app pull")
    with recovery.held(ctx.conf, ctx.args.name) as app:
        transfer.pull(app, ctx.args.source, ctx.args.target)
