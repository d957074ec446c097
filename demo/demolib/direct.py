# SPDX-License-Identifier: Apache-2.0
"""The command demo/run: stage, scenario, time line, verdict, and a clean host afterwards whatever happens.

Exit status: 0 all of it happened, 1 it was played and did not all happen, 2 it could not be played to its end or the
host could not be cleared. With a part left out 1 is what should come: the shop suffered and nothing was undone.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from demolib import command, report, scenario, stage, verdict
from demolib.command import cleared, say
from demolib.places import HOME
from demolib.programs import Failed, settle
from demolib.scenario import Played
from demolib.story import Story

HAPPENED, MISSED, BROKEN = 0, 1, 2
PARTS = ("sec", "dscript", "release", "event")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration and return its exit status."""
    args = _arguments(argv)
    return command.alone("demo", _stop if args.stop else lambda: _demonstrate(args))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run", description="Show D-RE at work on a CD shop under load.")
    parser.add_argument("--stop", action="store_true", help="end what --keep or a killed run left")
    parser.add_argument(
        "--keep",
        action="store_true",
        default=os.environ.get("KEEP", "") not in ("", "0"),
        help="leave it running (KEEP=1)",
    )
    parser.add_argument(
        "--without",
        choices=("", *PARTS),
        default=os.environ.get("WITHOUT", ""),
        help="leave one part out (WITHOUT=PART)",
    )
    parser.add_argument(
        "--scenario",
        default=os.environ.get("SCENARIO") or "1",
        help="; ".join(f"{number}: {story.title}" for number, story in scenario.STORIES.items()) + " (SCENARIO=NUMBER)",
    )
    args = parser.parse_args(argv)
    if args.scenario not in scenario.STORIES:
        parser.error(f"SCENARIO={args.scenario}: expected one of {', '.join(scenario.STORIES)}")
    if args.without and args.scenario != "1":
        parser.error("WITHOUT goes with SCENARIO=1")
    if args.without not in ("", *PARTS):  # argparse does not check a default
        parser.error(f"WITHOUT={args.without}: expected one of {', '.join(PARTS)}")
    return args


def _stop() -> int:
    if not HOME.exists():
        print("demo: nothing is left running")
        return 0
    _not_of_a_soak()
    return cleared("demo", stage.clear(say))


def _not_of_a_soak() -> None:
    if stage.SOAK.exists():
        raise Failed("a soak was killed and has left much; soak/run --stop removes it")


def _demonstrate(args: argparse.Namespace) -> int:
    if stage.KEPT.exists():
        raise Failed("an earlier demonstration was left running (KEEP=1); end it with `make demo-stop`")
    _not_of_a_soak()
    if HOME.exists():
        say("clearing away what a killed demonstration left")
        if cleared("demo", stage.clear(say)):
            return BROKEN
    stage.check_host()
    code = BROKEN
    story = scenario.STORIES[args.scenario]()
    try:
        stage.prepare(story, args.without, say)
        played = scenario.play(story, args.without, say)
        code = _show(args.without, played)
        print(f"the report: {report.write(story, args.scenario, played, code)}")
    except Failed as failure:
        print(f"demo: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
    finally:
        command.hold_out()
        settle()
        code = max(code, _leave(args, story, code))
    return code


def _leave(args: argparse.Namespace, story: Story, code: int) -> int:
    """Keep it or clear it; BROKEN when either fails."""
    if code != HAPPENED and HOME.exists():
        print(f"logs and evidence are in {stage.keep_logs()}")
    if args.keep and HOME.exists():
        try:
            print(scenario.explore(story))
            stage.KEPT.touch()
            return HAPPENED
        except Failed as failure:
            print(f"demo: {failure}", file=sys.stderr)
            code = BROKEN
    return max(code, cleared("demo", stage.clear(say)))


def _show(without: str, played: Played) -> int:
    """Print time line and checks; the exit status they deserve."""
    facts, checks = played.facts, played.checks
    print("\nTime line (seconds count from the first request that was slow or failed)\n")
    print("\n".join(verdict.shown(facts)))
    print("\nChecks\n")
    print("\n".join(map(str, checks)))
    if without:
        code, happened = verdict.left_out(without, facts)
        print(f"\nWithout {without}: {happened}. The demonstration has not succeeded.")
        return code
    ok = all(check.ok for check in checks)
    print("\nD-RE did its job." if ok else "\nThe demonstration has not succeeded.")
    return HAPPENED if ok else MISSED
