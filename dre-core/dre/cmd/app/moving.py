# SPDX-License-Identifier: Apache-2.0
"""dre-app migrate and receive: apps move to another host, or come from one."""

import os
import sys
from typing import Any

from dre import cli, manifest, migrate, peer, receive, recovery, requests, units, verbs
from dre.cli import Context
from dre.cmd.app.running import STOP_WAIT
from dre.errors import NotPermittedError


def add(table: Any) -> None:
    """Add these verbs to *table*."""
    move = verbs.changing(table, "migrate", _migrate, "move an app to another host, by ssh")
    move.add_argument("--as", dest="new", metavar="NEW", type=verbs.name, help="its name there (default: the same)")
    text = "with its memory, by CRIU: its processes go on there"
    move.add_argument("--live", action="store_true", help=text)
    move.add_argument("--keep", action="store_true", help="leave the app here too, stopped")
    text = "go on although its snapshots and checkpoints stay behind"
    move.add_argument("--without-snapshots", action="store_true", help=text)
    move.add_argument("--copy-storage", action="store_true", help="what an app changed always goes with it: no effect")
    move.add_argument("--bandwidth", type=verbs.kind(units.size), metavar="RATE", help="octets per second at most")
    move.add_argument("--ssh-config", metavar="FILE", help="ssh_config(5) to use instead of the user's")
    verbs.add_timeout(move, STOP_WAIT)
    verbs.add_name(move)
    move.add_argument("host", metavar="HOST", type=verbs.kind(peer.host), help="HOST or USER@HOST, or localhost")
    take = cli.verb(table, "receive", _receive, "take an app that another host migrates here; a forced command of sshd")
    take.add_argument("--allow-privileged", action="store_true", help="take apps whose root is root of this host")
    take.add_argument("--allow-setuid", action="store_true", help="take programs with setuid, setgid or capabilities")
    text = "take apps that bind DIR of this host, or what is below it; may be repeated"
    take.add_argument("--allow-bind", metavar="DIR", action="append", default=[], help=text)
    text = "take memory images, which are code that runs with what privilege they say: only of who is trusted as root"
    take.add_argument("--allow-live", action="store_true", help=text)
    take.add_argument("--allow-all", action="store_true", help="the sender is as trusted as root of this host")
    verbs.endless(take)


def _migrate(ctx: Context) -> None:
    args = ctx.args
    wish = migrate.Wish(args.new or args.name, args.keep, args.without_snapshots, args.bandwidth, args.live)
    way = peer.Way(args.host, args.config, args.ssh_config)
    with recovery.held(ctx.conf, args.name) as app:
        if args.again and requests.completed(ctx.conf, args.request_id):
            return  # the lock gave us the app only after the killed migrate had been ended
        row = migrate.migrate(app, way, wish, args.timeout, args.request_id, ctx.progress)
    if ctx.out.as_json:
        ctx.out.json(row)
    else:
        down = f", {row['down']} s down" if row["down"] is not None else ""
        ctx.say(f"{args.name}: is {row['name']} at {args.host}, {cli.plain(row['ip'])}, {row['state']}{down}")


def _receive(ctx: Context) -> None:
    cli.need_root("dre-app receive")
    args = ctx.args
    every = args.allow_all
    asked = os.environ.get("SSH_ORIGINAL_COMMAND", peer.RECEIVE)
    if asked != peer.RECEIVE and not every:  # libvirt's, say: each would wait for the other
        raise NotPermittedError(f"this key of ssh is for {peer.RECEIVE} alone, and not for {asked[:60]!r}")
    allowed = manifest.Allowed(
        privileged=args.allow_privileged or every,
        setuid=args.allow_setuid or every,
        binds=tuple(args.allow_bind),
        live=args.allow_live or every,
        anywhere=every,
    )
    receive.Receiver(ctx.conf, allowed, sys.stdin.buffer, sys.stdout.buffer).serve()
