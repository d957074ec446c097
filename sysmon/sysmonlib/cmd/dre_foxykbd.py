# SPDX-License-Identifier: Apache-2.0
"""dre-foxykbd: key loggers in a system, by whether what it puts out follows the keys that it is given."""

import argparse
import os
import random
from collections.abc import Sequence
from typing import Any

from dre import cli, event, files, units
from dre.errors import MissingError, UsageError

from sysmonlib import foxy, typist
from sysmonlib.cmd.telling import looked, looking, printing, tell
from sysmonlib.cross import Finding
from sysmonlib.devices import Devices
from sysmonlib.keyboard import KEYBOARD, Keyboard
from sysmonlib.typist import Counter, Course, Typed, Typist

KEYLOGGER = "sysmon.keylogger"
FALSE_ALARM = 0.001
WINDOWS, SLOW_WINDOWS, MOST = 20, 30, 120


def make_parser() -> argparse.ArgumentParser:
    """The arguments of dre-foxykbd."""
    parser = cli.parser("dre-foxykbd", "Look for key loggers in a running system: type, and see what it puts out.")
    parser.add_argument("system", metavar="SYSTEM", type=units.name, help="the system to type at")
    parser.add_argument("--slow", action="store_true", help="look for one that keeps keys for a while, too: 32 minutes")
    parser.add_argument(
        "--windows",
        metavar="N",
        type=int,
        help=f"type in N/2 of N windows of time (default {WINDOWS}, --slow {SLOW_WINDOWS})",
    )
    parser.add_argument(
        "--false-alarm",
        metavar="P",
        type=float,
        default=FALSE_ALARM,
        help=f"the probability of a false alarm that is accepted (default {FALSE_ALARM:g})",
    )
    parser.add_argument("--seed", metavar="N", type=int, help="choose as with this number again, not by chance")
    printing(parser)
    parser.set_defaults(function=look)
    return parser


def look(ctx: cli.Context) -> int:
    """0: no key logger of the kind looked for was seen; 1: one was; raises what the exit codes of 2 and more are."""
    args = ctx.args
    windows = (SLOW_WINDOWS if args.slow else WINDOWS) if args.windows is None else args.windows
    if windows % 2 or not 8 <= windows <= MOST:
        raise UsageError(f"--windows {windows}: an even number from 8 to {MOST} is needed")
    if not 0 < args.false_alarm <= 0.05:
        raise UsageError(f"--false-alarm {args.false_alarm:g}: a probability of at most 0.05 is needed")
    if foxy.smallest(windows) > args.false_alarm:
        raise UsageError(
            f"--false-alarm {args.false_alarm:g}: {windows} windows cannot tell less than {foxy.smallest(windows):.2g}"
        )
    with looking(), files.lock(ctx.conf.core_run_dir / "lock" / f"foxykbd-{args.system}", timeout=0):
        return _look(ctx, typist.slowly(windows) if args.slow else typist.at_once(windows))


class _Typed:
    """A running system as typist.Guest."""

    def __init__(self, name: str, devices: Devices) -> None:
        self._keyboard, self.output = Keyboard(name, devices.domain), devices.output
        self.press = self._keyboard.press

    def taken(self) -> int:
        return self._keyboard.interrupts().get(KEYBOARD, 0)


def _look(ctx: cli.Context, course: Course) -> int:
    name = ctx.args.system
    seed = ctx.args.seed if ctx.args.seed is not None else int.from_bytes(os.urandom(6), "big")
    source = random.Random(seed)  # noqa: S311 - where nobody gives it, the seed is from the system's random source
    devices = Devices(ctx.conf, name)
    begun = event.stamp()

    def told(done: int, of: int) -> None:
        ctx.progress(f"{name}: window {done + 1} of {of}")

    devices.figures()  # it runs
    hands = Typist(_Typed(name, devices), source, told=told)
    try:
        hands.listen()
        typed = hands.type(course, foxy.choose(course.windows, source))
    except MissingError as error:
        raise MissingError(f"{name}: it cannot be looked at: {str(error).removeprefix(f'{name}: ')}") from None
    finally:
        ctx.progress("")
    trial = foxy.Trial(typed.pattern, typed.series, course.kernels, source)
    about = {
        "windows": course.windows,
        "keys": typed.keys,
        "slow": bool(ctx.args.slow),
        "choices": foxy.choices(course.windows) if trial.exact else foxy.DRAWS,
        "exact": trial.exact,
        "seed": seed,
    }
    found = _found(trial, typed, ctx.args.false_alarm)
    for key, chance in found:
        _tell(ctx, key, chance, trial, about, begun)
    if not found:
        _not_excluded(ctx, trial, typed, course, devices, about)
    else:
        looked(ctx, "foxykbd", "found", **about)
    return 1 if found else 0


def _found(trial: foxy.Trial[Counter], typed: Typed, accepted: float) -> list[tuple[Counter, float]]:
    """Of each device that puts keys out its best counter, and the probability to be fooled by it."""
    best: dict[str, tuple[float, Counter]] = {}
    for key in typed.series:
        fit = trial.statistic(key)
        if key[0] not in best or fit > best[key[0]][0]:
            best[key[0]] = fit, key
    chances = [(key, trial.chance(fit)) for fit, key in best.values()]
    return sorted(((key, chance) for key, chance in chances if chance <= accepted), key=lambda one: one[1])


def _tell(
    ctx: cli.Context, key: Counter, chance: float, trial: foxy.Trial[Counter], about: dict[str, Any], begun: str
) -> None:
    name, (device, counter), (on, off) = ctx.args.system, key, trial.means(key)
    data = {
        "system": name,
        "device": device,
        "counter": counter,
        "with_keys": round(on, 3),
        "without": round(off, 3),
        "false_alarm": chance,
        "confidence": 1 - chance,
        **about,
        "first_seen": begun,
        "confirmed": event.stamp(),
    }
    what = f"{counter} {on:.4g} a window with keys, {off:.4g} without"
    sentence = f"keylogger {device} {what}; false alarm {chance:.2g}"
    tell(ctx, Finding(KEYLOGGER, data), sentence, verdict="keylogger")


def _not_excluded(
    ctx: cli.Context,
    trial: foxy.Trial[Counter],
    typed: Typed,
    course: Course,
    devices: Devices,
    about: dict[str, Any],
) -> None:
    """Say that none was seen, which is never that there is none. Raises MissingError where none could have been."""
    name, accepted = ctx.args.system, ctx.args.false_alarm
    if not typed.arrived():
        raise MissingError(f"{name}: nothing was seen, but it has not taken {typed.lost()} of {typed.keys} keys")
    uncounted = devices.uncounted()
    if uncounted:
        raise MissingError(f"{name}: nothing was seen, but what leaves by its {', '.join(uncounted)} is not counted")
    for device in dict.fromkeys(key[0] for key in typed.series):
        counters = [key for key in typed.series if key[0] == device]
        if not any(trial.chance_with(key, course.least[key[1]]) <= accepted for key in counters):
            raise MissingError(f"{name}: {device} puts out so much that a key logger could not have been seen there")
    least = min(trial.chance(trial.statistic(key)) for key in typed.series) if typed.series else 1.0
    looked(ctx, "foxykbd", "not excluded", false_alarm=least, **about)
    if ctx.args.quiet or ctx.args.stdout:
        return
    if ctx.out.as_json:
        ctx.out.json({"verdict": "not excluded", "system": name, "false_alarm": least, **about})
        return
    kind = "keeps more than 4 KiB or 60 s" if ctx.args.slow else "keeps keys for a while (see --slow)"
    ctx.out.line(f"not excluded: none seen in {about['keys']} keys, p {least:.2g}; one that {kind} would not be")


def main(argv: Sequence[str] | None = None) -> int:
    """Run dre-foxykbd."""
    return cli.main(make_parser(), argv)
