# SPDX-License-Identifier: Apache-2.0
"""dre-sysmon: looks at systems as a plan says, and what passes through the devices of one."""

import argparse
import contextlib
import hashlib
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dre import cli, conf, event, files, units
from dre.cli import Column
from dre.errors import FAILED, DreError, MissingError, TimedOutError, UsageError

from sysmonlib import keyboard, plan, traffic
from sysmonlib.cmd.telling import source
from sysmonlib.devices import Devices
from sysmonlib.keyboard import Keyboard

PLAN, LOCK = "sysmon.yaml", "sysmon-run"
STATUS: tuple[Column, ...] = (
    ("LOOK", "look", 12),
    ("SYSTEM", "system", 12),
    ("STATE", "state", 8),
    ("VERDICT", "verdict", 12),
    ("FOUND", "found", 5),
    ("LAST", "last", 24),
    ("DUE", "due", 24),
    ("REASON", "reason", 0),
)
INSERTED = "sysmon.io.inserted"
PACE = 0.02  # seconds between two keys: a guest's PS/2 queue holds 16 octets
LEAST = 0.01  # seconds between two looks at counters, of which each costs about 2 ms


def make_parser() -> argparse.ArgumentParser:
    """The parser of dre-sysmon."""
    parser = cli.parser("dre-sysmon", "Watch from outside what running systems do.")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    io = cli.verb(verbs, "io", show_io, "print what passes through the devices of a system, and put something in")
    io.add_argument("system", metavar="SYSTEM", type=units.name, help="the system to look at")
    io.add_argument("--net", action="store_true", help="each frame of its links")
    io.add_argument("--block", action="store_true", help="the requests to its disks")
    io.add_argument("--input", action="store_true", help="what it is given of its keyboard and mouse")
    io.add_argument(
        "--head", metavar="N", type=int, default=traffic.HEAD,
        help=f"print the first N octets of each frame (default {traffic.HEAD})",
    )  # fmt: skip
    io.add_argument("--interval", metavar="S", default="100ms", help="look at counters each S (default 100ms)")
    io.add_argument("--count", metavar="N", type=int, help="end after N events")
    io.add_argument("--send-keys", metavar="KEYS", action="append", default=[], help="press keys, as in 'ctrl+c enter'")
    io.add_argument("--send-frame", metavar="HEX", action="append", default=[], help="have it receive a frame")
    io.add_argument("--link", metavar="DEVICE", help="the host's end of the link that --send-frame is for")
    run = cli.verb(verbs, "run", run_service, "look at systems as the plan says, in the foreground")
    run.add_argument("file", metavar="FILE", nargs="?", type=Path, help=f"the plan (default: /etc/dre/{PLAN})")
    run.add_argument("--user", metavar="NAME", help="as root: what looks all the time becomes this user")
    check = cli.verb(verbs, "check", check_plan, "say what is wrong with the plan: 0 nothing, 1 findings")
    check.add_argument("file", metavar="FILE", nargs="?", type=Path, help=f"the plan (default: /etc/dre/{PLAN})")
    cli.verb(verbs, "status", show_status, "print how each look is; 0 when the service runs, else 1")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-sysmon."""
    return cli.main(make_parser(), argv)


# --- io ---


def show_io(ctx: cli.Context) -> None:
    """dre-sysmon io SYSTEM"""
    args = ctx.args
    if not 0 <= args.head <= traffic.MOST:
        raise UsageError(f"--head {args.head}: a number from 0 to {traffic.MOST} is needed")
    if args.count is not None and args.count < 1:
        raise UsageError(f"--count {args.count}: at least 1 is needed")
    interval = units.duration(args.interval)
    if interval < LEAST:
        raise UsageError(f"--interval {args.interval}: at least {LEAST:g}s is needed")
    chords = [chord for text in args.send_keys for chord in keyboard.chords(text)]
    frames = [traffic.octets(text) for text in args.send_frame]
    named = [kind for kind in traffic.KINDS if vars(args)[kind]]
    kinds = named or ([] if chords or frames else list(traffic.KINDS))
    if args.link is not None and not frames:
        raise UsageError("--link: says where --send-frame goes, and there is none")
    devices = Devices(ctx.conf, args.system)
    with _stream(devices, kinds, bool(named), args, interval) as passing:
        told = 0
        for batch in itertools.chain([_put_in(ctx, devices, chords, frames)], passing):
            for one in batch:
                _print(ctx, one)
                told += 1
                if told == args.count:
                    return
            ctx.out.stream.flush()


@contextlib.contextmanager
def _stream(
    devices: Devices, kinds: Sequence[str], named: bool, args: argparse.Namespace, interval: float
) -> Iterator[Iterator[list[traffic.Passed]]]:
    """What passes from now on. Of a kind that was not *named* there may be no device."""
    taps = devices.taps if "net" in kinds else []
    if "net" in kinds and named and not taps:
        raise MissingError(f"{args.system}: it has no network interface that can be read")
    counters = []
    if "block" in kinds:
        counters.append(traffic.Counters(traffic.BLOCK, traffic.disks(devices)))
    if "input" in kinds:
        counters.append(traffic.Counters(traffic.INPUT, traffic.keys(Keyboard(args.system, devices.domain))))
    with traffic.Taps(taps, args.head) as opened:
        yield traffic.stream(opened, counters, interval) if kinds else iter(())


def _put_in(
    ctx: cli.Context, devices: Devices, chords: Sequence[Sequence[int]], frames: Sequence[bytes]
) -> list[traffic.Passed]:
    """Press the keys, then hand the frames over; what was done, which is told to the monitor, too."""
    device = traffic.link(devices.taps, ctx.args.link, ctx.args.system) if frames else ""
    done = []
    if chords:
        hands = Keyboard(ctx.args.system, devices.domain)
        for chord in chords:
            hands.press(chord)
            time.sleep(PACE)
        done.append(_inserted(ctx, {"device": "keyboard", "keys": len(chords)}))  # not which: it may be a password
    for frame in frames:
        traffic.put_in(device, frame)
        told = {"device": device, "sha256": hashlib.sha256(frame).hexdigest(), **traffic.described(frame)}
        done.append(_inserted(ctx, told))
    return done


def _inserted(ctx: cli.Context, data: Mapping[str, Any]) -> traffic.Passed:
    done = traffic.Passed(INSERTED, time.time(), data)
    event.emit(ctx.conf, INSERTED, source(ctx), {"system": ctx.args.system, **data}, 5)
    return done


def _print(ctx: cli.Context, passed: traffic.Passed) -> None:
    """As an event, whether --json is said or not."""
    data = {"system": ctx.args.system, **passed.data}
    severity = 4 if passed.type == traffic.DROPPED else 5 if passed.type == INSERTED else 6
    made = event.Event(event.stamp(passed.time), source(ctx), passed.type, severity, data)
    ctx.out.line(event.new_line(made).decode().rstrip("\n"))


# --- run ---


def run_service(ctx: cli.Context) -> None:
    """dre-sysmon run [FILE]"""
    import asyncio  # late, for it is slow

    from sysmonlib import guest, service

    def say(text: str) -> None:
        ctx.say(text)
        sys.stderr.flush()

    with _alone(ctx):
        options = ["--config", ctx.args.config] if ctx.args.config else []
        made = service.Service(ctx.conf, options, _agreed(ctx), say)
        if ctx.args.user:
            made.become(guest.account(ctx.args.user).pw_name)
        asyncio.run(made.run(lambda: _agreed(ctx)))


@contextlib.contextmanager
def _alone(ctx: cli.Context) -> Iterator[None]:
    """One service per host: two would press keys at the same time."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.lock(ctx.conf.core_run_dir / "lock" / LOCK, timeout=1.0))
        except TimedOutError:
            raise DreError("another dre-sysmon run is at work") from None
        yield


def _agreed(ctx: cli.Context) -> list[plan.Look]:
    """The looks of the plan. Raises UsageError with all that is wrong with it."""
    path = _plan(ctx)
    looks, wrong = plan.read(path)
    if wrong:
        raise UsageError("\n".join(wrong))
    conf.trusted(str(path), path.stat())  # what it says is done as root
    return looks


def _plan(ctx: cli.Context) -> Path:
    path: Path = ctx.args.file or ctx.conf.core_etc_dir / PLAN
    return path


def check_plan(ctx: cli.Context) -> int:
    """dre-sysmon check [FILE]"""
    _, wrong = plan.read(_plan(ctx))
    for text in wrong:
        ctx.out.json({"text": text}) if ctx.out.as_json else ctx.out.line(text)
    return FAILED if wrong else 0


def show_status(ctx: cli.Context) -> int:
    """dre-sysmon status"""
    from sysmonlib import service

    rows = service.status(ctx.conf)
    if rows is None:
        ctx.say("not running")
        return FAILED
    ctx.out.table(rows, STATUS)
    return 0
