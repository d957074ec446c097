# SPDX-License-Identifier: Apache-2.0
"""dre-sys migrate: a system moves to another host."""

from typing import Any

from dre import cli, requests, units, verbs
from dre.cli import Context
from dre.errors import UsageError
from dre.system import copying, migrate, recovery, remote

HERE = "localhost"


def add(table: Any) -> None:
    """Add this verb to *table*."""
    move = verbs.changing(table, "migrate", _migrate, "move a system to another host, by its libvirt")
    move.add_argument("--as", dest="new", metavar="NEW", type=verbs.name, help="its name there (default: the same)")
    move.add_argument("--live", action="store_true", help="while it runs; wants --copy-storage or --shared-storage")
    move.add_argument("--keep", action="store_true", help="leave it here too, stopped")
    move.add_argument("--verify", action="store_true", help="read back what was sent, and compare")
    text = "its disks are files that HOST sees by the same paths: nothing is copied"
    move.add_argument("--shared-storage", action="store_true", help=text)
    text = "its disks go along, as those of a stopped system always do"
    move.add_argument("--copy-storage", action="store_true", help=text)
    text = "give its snapshots and checkpoints up; --copy-storage of a running system leaves them behind"
    move.add_argument("--without-snapshots", action="store_true", help=text)
    text = "let what would cross the network in the clear do so: qemu+tcp, and what QEMU sends without --tls"
    move.add_argument("--unencrypted", action="store_true", help=text)
    text = "with --live: QEMU sends by TLS, with certificates of its own at both hosts"
    move.add_argument("--tls", action="store_true", help=text)
    text = "with --live: how long it may stand still at the end, such as 300ms"
    move.add_argument("--downtime", type=verbs.kind(units.duration), metavar="DURATION", help=text)
    move.add_argument("--bandwidth", type=verbs.kind(_rate), metavar="RATE", help="octets per second at most")
    text = "give up after S seconds (default: 3600)"
    move.add_argument("--timeout", type=verbs.kind(units.duration), default=3600.0, metavar="S", help=text)
    verbs.add_name(move)
    text = "[USER@]HOST, by ssh, or URI of its libvirt, or localhost"
    move.add_argument("host", metavar="HOST", type=verbs.kind(_host), help=text)


def _host(text: str) -> str:
    if text != HERE:
        remote.way(text)
    return text


def _rate(text: str) -> int:
    rate = units.size(text)
    if rate < 1 << 10:
        raise UsageError(f"{text!r} is not a rate of 1K or more")
    return rate


def _wish(args: Any) -> migrate.Wish:
    way = remote.way(args.host)
    _check(args)
    if not way.private and not args.unencrypted:
        raise UsageError(f"{way.host}: all of the system would cross the network in the clear; --unencrypted")
    if args.live and args.copy_storage and not (args.tls or args.unencrypted):
        text = "QEMU would send memory and disks in the clear; --tls, or --unencrypted where nobody can listen"
        raise UsageError(f"{way.host}: {text}")
    storage = migrate.SHARED if args.shared_storage else migrate.COPY
    return migrate.Wish(
        args.new or args.name,
        live=args.live,
        without_snapshots=args.without_snapshots,
        downtime=args.downtime,
        tls=args.tls,
        storage=storage,
        keep=args.keep,
        verify=args.verify,
        rate=args.bandwidth,
        timeout=args.timeout,
    )


def _rename(ctx: Context) -> None:
    """On this host a move is another name, running or not; one that stays here too is a clone: another machine."""
    args = ctx.args
    if args.new is None:
        raise UsageError(f"{args.name}: is on this host; --as gives it another name")
    for option in ("copy_storage", "shared_storage", "without_snapshots", "verify", "tls", "downtime"):
        if getattr(args, option):
            raise UsageError(f"--{option.replace('_', '-')}: not on the same host")
    with recovery.held_all(ctx.conf, (args.name, args.new)) as (system, new):
        if args.again and new.find() is not None and (args.keep or system.find() is None):
            return  # the locks gave us both only after the killed move had been ended
        if args.keep:
            copying.clone(system, new, None, args.request_id)
        else:
            copying.rename(system, new, running=True)


def _check(args: Any) -> None:
    """Raise UsageError for options that make no sense together."""
    if args.live and args.copy_storage == args.shared_storage:
        raise UsageError("--live: where are its disks? --copy-storage, or --shared-storage")
    if args.copy_storage and args.shared_storage:
        raise UsageError("--copy-storage and --shared-storage exclude each other")
    if args.shared_storage and args.new not in (None, args.name):
        raise UsageError("--shared-storage and --as exclude each other: its files have its name")
    for option in ("keep", "verify"):
        if args.live and getattr(args, option):
            raise UsageError(f"--live and --{option} exclude each other")
    for option in ("downtime", "tls"):
        if getattr(args, option) and not args.live:
            raise UsageError(f"--{option.replace('_', '-')}: only with --live")


def _migrate(ctx: Context) -> None:
    args = ctx.args
    if args.host == HERE:
        _rename(ctx)
        return
    wish = _wish(args)
    with recovery.held(ctx.conf, args.name) as system:
        if args.again and requests.completed(ctx.conf, args.request_id, "sys"):
            return  # the lock gave us the system only after the killed migrate had been ended
        row = migrate.migrate(system, remote.way(args.host), wish, args.request_id, ctx.progress)
    ctx.progress("")
    if ctx.out.as_json:
        ctx.out.json(row)
    else:
        down = f", {row['down']:g} s down" if row["down"] is not None else ""
        ctx.say(f"{args.name}: is {row['name']} at {row['host']}, {cli.plain(row['ip'])}, {row['state']}{down}")
