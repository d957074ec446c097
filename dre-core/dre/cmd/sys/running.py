# SPDX-License-Identifier: Apache-2.0
"""dre-sys start, stop, restart, freeze, thaw and recover: systems at work."""

from collections.abc import Callable, Sequence
from typing import Any

from dre import cli, units, verbs
from dre.cli import Context
from dre.system import lifecycle, order, recovery
from dre.system.model import System

STOP_WAIT = 60.0  # a guest ends its services first
BOOT_WAIT = 300.0


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    start = verbs.changing(table, "start", _start, "start systems")
    add_wait(start)
    verbs.add_names(start)
    verb = verbs.changing(table, "stop", _stop, "stop systems")
    verbs.add_timeout(verb, STOP_WAIT)
    verbs.add_names(verb)
    verb = verbs.changing(table, "restart", _restart, "stop and start systems")
    verbs.add_timeout(verb, STOP_WAIT)
    add_wait(verb)
    verbs.add_names(verb)
    verbs.add_names(verbs.changing(table, "freeze", _freeze, "hold all processors of systems"))
    verbs.add_names(verbs.changing(table, "thaw", _thaw, "let frozen systems go on"))
    cli.verb(table, "recover", _recover, "end what killed commands left unfinished")


def add_wait(verb: Any) -> None:
    """--wait of a start."""
    text = f"return when the guest can be used: its agent answers; fail after S seconds (default: {BOOT_WAIT:g})"
    verb.add_argument("--wait", nargs="?", const=BOOT_WAIT, type=verbs.kind(units.duration), metavar="S", help=text)


def each_held(ctx: Context, work: Callable[[System], object], doomed: bool = False) -> None:
    """Do *work* on every system that was named, each locked."""

    def held(name: str) -> None:
        with recovery.held(ctx.conf, name, doomed) as system:
            work(system)

    verbs.each(ctx, ctx.args.names, held)


def start_in_order(ctx: Context, names: Sequence[str], work: Callable[[System], object] | None = None) -> None:
    """Start the systems *names*, by *work* where given, each after those it is after, which are started too."""

    def held(name: str) -> None:
        with recovery.held(ctx.conf, name) as system:
            work(system) if work and name in names else lifecycle.start(system, ctx.say)

    verbs.start_each(ctx, order.sequence(ctx.conf, names), lambda name: order.after(ctx.conf, name), held)


def _start(ctx: Context) -> None:
    start_in_order(ctx, ctx.args.names)
    _wait(ctx)


def _wait(ctx: Context) -> None:
    """Without their locks: who waits for a guest shall not keep others from stopping it."""
    if ctx.args.wait is not None:
        verbs.each(ctx, ctx.args.names, lambda name: lifecycle.wait_usable(System(ctx.conf, name), ctx.args.wait))


def _stop(ctx: Context) -> None:
    each_held(ctx, lambda system: lifecycle.stop(system, ctx.args.timeout))


def _restart(ctx: Context) -> None:
    def work(system: System) -> None:
        lifecycle.stop(system, ctx.args.timeout)
        lifecycle.start(system, ctx.say)

    start_in_order(ctx, ctx.args.names, work)
    _wait(ctx)


def _freeze(ctx: Context) -> None:
    each_held(ctx, lifecycle.freeze)


def _thaw(ctx: Context) -> None:
    each_held(ctx, lifecycle.thaw)


def _recover(ctx: Context) -> None:
    cli.need_root("dre-sys recover")
    settle_all(ctx)


def settle_all(ctx: Context) -> None:
    """End what interrupted commands left, for all systems; one where that fails keeps back no other."""

    def work(name: str) -> None:
        system = System(ctx.conf, name)
        with system.locked():
            verb = recovery.settle(system)
        if verb:
            ctx.say(f"{name}: ended {verb}")

    verbs.each(ctx, recovery.unsettled(ctx.conf), work)
