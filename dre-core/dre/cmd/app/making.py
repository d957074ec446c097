# SPDX-License-Identifier: Apache-2.0
"""dre-app create, adopt and destroy: apps come and go."""

from typing import Any

from dre import adopt, cgroup, confine, existence, lifecycle, order, recovery, relimit, spec, verbs
from dre.app import App
from dre.cli import Context
from dre.cmd import limit_options
from dre.cmd.app.limiting import KEYS
from dre.cmd.app.running import STOP_WAIT, each_held
from dre.errors import DreError, NotFoundError


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    create = verbs.changing(table, "create", _create, "make an app, stopped")
    verbs.add_name(create)
    create.add_argument("--base", default="host", metavar="host|TREE", help="what it shares (default: host)")
    limit_options.add_options(create, KEYS)
    spec.add_options(create)
    text = "its root is a user of the host (default with a tree as base)"
    create.add_argument("--unprivileged", action="store_true", default=None, help=text)
    verbs.add_command(create, "after --: its program (default: idle)")
    take = verbs.changing(table, "adopt", _adopt, "make a stopped LXC container an app")
    verbs.add_name(take)
    text = "its address (default: what it had, or the next free one)"
    take.add_argument("--ip", metavar="ADDR/LEN|dhcp|none", help=text)
    take.add_argument("--privileged", action="store_true", help="its root is root of the host")
    verbs.add_command(take, "after --: its program in place of its own init")
    destroy = verbs.changing(table, "destroy", _destroy, "remove stopped apps and their snapshots")
    destroy.add_argument("--force", action="store_true", help="stop them first")
    verbs.add_names(destroy)


def _create(ctx: Context) -> None:
    args = ctx.args
    with recovery.held(ctx.conf, args.name) as app:
        if args.again and app.exists() and app.spec().request == args.request_id:
            return  # done by the call that was killed before it could say so
        existence.need_free(app)  # before what is wanted is looked at: all of it may be right but for the name
        base = existence.base(ctx.conf, args.base)
        fields = spec.from_options(args)
        fields["privileged"] = confine.privileged(base, args.privileged, args.unprivileged)
        wanted = existence.new_spec(
            app,
            base=base,
            command=spec.command(args.command),
            limits=cgroup.Limits(**limit_options.chosen(args, KEYS)),
            request=args.request_id,
            **fields,
        )
        relimit.check(app, wanted.limits)
        existence.create(app, spec.checked(app, wanted, spec.PROPERTIES), args.ip)


def _adopt(ctx: Context) -> None:
    with recovery.held(ctx.conf, ctx.args.name) as app:
        for said in adopt.adopt(app, ctx.args.ip, spec.command(ctx.args.command), ctx.args.privileged):
            ctx.say(f"{app.name}: {said}")


def _destroy(ctx: Context) -> None:
    def work(app: App) -> None:
        try:
            app.need()
        except NotFoundError:
            if app.home.exists():  # partial: lxc-destroy has left this
                app.begin(verb="destroy")
                existence.remove(app)
                app.emit("destroyed")
                return
            if ctx.args.again:
                return
            raise
        state = app.state()
        if not ctx.args.force and state in ("running", "frozen"):
            raise DreError(f"{app.name}: is running; stop it, or use --force")
        others = [] if ctx.args.force else [name for name in order.dependents(ctx.conf, app.name) if name not in named]
        if others:
            raise DreError(f"{app.name}: {', '.join(others)} is after it; change that, or use --force")
        adopt.need_unshared(app)
        if state not in ("stopped", "crashed"):
            lifecycle.stop(app, 0.0 if ctx.args.force else STOP_WAIT)
        existence.destroy(app)

    named = ctx.args.names
    each_held(ctx, work, doomed=True)
