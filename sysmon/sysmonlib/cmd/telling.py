# SPDX-License-Identifier: Apache-2.0
"""What the monitors of systems have in common: how a finding is told, and what a look that fails ends with."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from dre import cli, ending, event
from dre.errors import FAILED, DreError, MissingError

from sysmonlib.cross import Finding

SEVERITY = 1  # alert
LOOKED = "sysmon.looked"


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Status 1 says that something was found: a look that could not be had raises MissingError in its place."""
    try:
        yield
    except (DreError, OSError) as error:
        code, message = ending.failure(error)
        if code == FAILED:
            raise MissingError(message) from error
        raise


def printing(parser: argparse.ArgumentParser) -> None:
    """Add the option by which all is told to whoever started the look."""
    parser.add_argument("--stdout", action="store_true", help="print the events instead of sending them")


def source(ctx: cli.Context) -> str:
    """Where events of the system that was asked for come from."""
    return f"{event.host()}/sys:{ctx.args.system}"


def tell(ctx: cli.Context, finding: Finding, sentence: str, **shown: Any) -> None:
    """Emit *finding* of the system that was asked for, and print it: as JSON, with *shown*, or as *sentence*."""
    if ctx.args.stdout:
        _print(ctx, finding.type, finding.data, SEVERITY)
        return
    event.emit(ctx.conf, finding.type, source(ctx), finding.data, SEVERITY)
    if ctx.out.as_json:
        ctx.out.json({"type": finding.type, **shown, **finding.data})
    else:
        ctx.out.line(sentence)
    ctx.out.stream.flush()


def looked(ctx: cli.Context, look: str, verdict: str, **about: Any) -> None:
    """With --stdout, an event that the *look* was had, and what came of it: who is silent may be asleep."""
    if ctx.args.stdout:
        _print(ctx, LOOKED, {"system": ctx.args.system, "look": look, "verdict": verdict, **about}, 6)


def _print(ctx: cli.Context, type: str, data: Mapping[str, Any], severity: int) -> None:
    made = event.Event(event.stamp(), source(ctx), type, severity, data, {"id": event.new_id()})
    ctx.out.line(event.new_line(made).decode().rstrip("\n"))
    ctx.out.stream.flush()
