# SPDX-License-Identifier: Apache-2.0
"""dre-sys migrate: a system moves to another host."""

from typing import Any

from dre import cli, requests, units, verbs
from dre.cli import Context
from dre.errors import UsageError
from dre.system import migrate, recovery, remote


def add(table: Any) -> None:
    """Add this verb to *table*."""
    move = verbs.changing(table, "migrate", _migrate, "move a system to another host, by its libvirt")
    move.add_argument("--as", dest="new", metavar="NEW", type=verbs.name, help="its name there (default: the same)")
    move.add_argument("--keep", action="store_true", help="leave it here too, stopped")
    move.add_argument("--verify", action="store_true", help="read back what was sent, and compare")
    text = "its disks are files that HOST sees by the same paths: nothing is copied"
    move.add_argument("--shared-storage", action="store_true", help=text)
    move.add_argument("--unencrypted", action="store_true", help="let it cross the network in the clear: qemu+tcp")
    move.add_argument("--bandwidth", type=verbs.kind(_rate), metavar="RATE", help="octets per second at most")
    text = "give up after S seconds (default: 3600)"
    move.add_argument("--timeout", type=verbs.kind(units.duration), default=3600.0, metavar="S", help=text)
    verbs.add_name(move)
    text = "[USER@]HOST, by ssh, or URI of its libvirt"
    move.add_argument("host", metavar="HOST", type=verbs.kind(_host), help=text)


def _host(text: str) -> str:
    remote.way(text)
    return text


def _rate(text: str) -> int:
    rate = units.size(text)
    if rate < 1 << 10:
        raise UsageError(f"{text!r} is not a rate of 1K or more")
    return rate


def _wish(args: Any) -> migrate.Wish:
    way = remote.way(args.host)
    if not way.private and not args.unencrypted:
        raise UsageError(f"{way.host}: all of the system would cross the network in the clear; --unencrypted")
    storage = migrate.SHARED if args.shared_storage else migrate.COPY
    return migrate.Wish(
        args.new or args.name,
        storage=storage,
        keep=args.keep,
        verify=args.verify,
        rate=args.bandwidth,
        timeout=args.timeout,
    )


def _migrate(ctx: Context) -> None:
    args = ctx.args
    wish = _wish(args)
    with recovery.held(ctx.conf, args.name) as system:
        if args.again and requests.completed(ctx.conf, args.request_id, "sys"):
            return  # the lock gave us the system only after the killed migrate had been ended
        row = migrate.migrate(system, remote.way(args.host), wish, args.request_id, ctx.progress)
    ctx.progress("")
    if ctx.out.as_json:
        ctx.out.json(row)
    else:
        ctx.say(f"{args.name}: is {row['name']} at {row['host']}, {cli.plain(row['ip'])}, {row['state']}")
