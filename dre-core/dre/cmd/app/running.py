# SPDX-License-Identifier: Apache-2.0
"""dre-app start, stop, restart, freeze, thaw and recover: apps at work."""

from collections.abc import Callable, Sequence
from typing import Any

from dre import cli, lifecycle, order, parting, recovery, verbs
from dre.app import App
from dre.cli import Context

STOP_WAIT = parting.WAIT


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    verbs.add_names(verbs.changing(table, "start", _start, "start apps"))
    for name, function, text in (("stop", _stop, "stop apps"), ("restart", _restart, "stop and start apps")):
        verb = verbs.changing(table, name, function, text)
        verbs.add_timeout(verb, STOP_WAIT)
        verbs.add_names(verb)
    verbs.add_names(verbs.changing(table, "freeze", _freeze, "hold all processes of apps"))
    verbs.add_names(verbs.changing(table, "thaw", _thaw, "let frozen apps go on"))
    cli.verb(table, "recover", _recover, "end what killed commands left unfinished")


def each_held(ctx: Context, work: Callable[[App], object], doomed: bool = False) -> None:
    """Do *work* on every app that was named, each locked."""

    def held(name: str) -> None:
        with recovery.held(ctx.conf, name, doomed) as app:
            work(app)

    verbs.each(ctx, ctx.args.names, held)


def start_in_order(ctx: Context, names: Sequence[str], work: Callable[[App], bool] = lifecycle.start) -> None:
    """Start the apps *names*, by *work*, each after those it is after, which are started too."""

    def held(name: str) -> None:
        with recovery.held(ctx.conf, name) as app:
            started = work(app) if name in names else lifecycle.start(app)
            if started:
                lifecycle.prove(app)

    found = order.sequence(ctx.conf, names)
    try:
        # One at a time: a start forks, and what is forked in one thread has the pipes of the others.
        verbs.start_each(ctx, found, lambda name: order.after(ctx.conf, name), held)
    finally:
        if any(App(ctx.conf, name).record().get("kept") for name in found):
            from dre import keeping  # few apps want it

            keeping.ensure(ctx.conf, ctx.args.config)


def _start(ctx: Context) -> None:
    start_in_order(ctx, ctx.args.names)


def stop_in_order(ctx: Context, names: Sequence[str]) -> None:
    """Stop the apps *names*, those first that are after others of them."""

    def held(name: str) -> None:
        with recovery.held(ctx.conf, name) as app:
            lifecycle.stop(app, ctx.args.timeout)

    names = [name for wave in order.waves(ctx.conf, names) for name in wave]
    before = {name: order.after(ctx.conf, name) for name in names}
    verbs.each(ctx, names, held, lambda name: [other for other in names if name in before[other]])


def _stop(ctx: Context) -> None:
    stop_in_order(ctx, ctx.args.names)


def _restart(ctx: Context) -> None:
    def work(app: App) -> bool:
        lifecycle.stop(app, ctx.args.timeout)
        return lifecycle.start(app)

    start_in_order(ctx, ctx.args.names, work)


def _freeze(ctx: Context) -> None:
    each_held(ctx, lifecycle.freeze)


def _thaw(ctx: Context) -> None:
    each_held(ctx, lifecycle.thaw)


def _recover(ctx: Context) -> None:
    cli.need_root("dre-app recover")
    from dre import keeping

    try:
        settle_all(ctx)
    finally:
        keeping.recover(ctx.conf, ctx.say)


def settle_all(ctx: Context) -> None:
    """End what interrupted commands left, for all apps; one where that fails keeps back no other."""

    def work(name: str) -> None:
        verb = recovery.one(ctx.conf, name)
        if verb:
            ctx.say(f"{name}: ended {verb}")

    verbs.each(ctx, recovery.unsettled(ctx.conf), work)
