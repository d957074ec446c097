# SPDX-License-Identifier: Apache-2.0
"""What the monitors of systems have in common: how a finding is told, and what a look that fails ends with."""

import contextlib
from collections.abc import Iterator
from typing import Any

from dre import cli, ending, event
from dre.errors import FAILED, DreError, MissingError

from sysmonlib.cross import Finding

SEVERITY = 1  # alert


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


def source(ctx: cli.Context) -> str:
    """Where events of the system that was asked for come from."""
    return f"{event.host()}/sys:{ctx.args.system}"


def tell(ctx: cli.Context, finding: Finding, sentence: str, **shown: Any) -> None:
    """Emit *finding* of the system that was asked for, and print it: as JSON, with *shown*, or as *sentence*."""
    event.emit(ctx.conf, finding.type, source(ctx), finding.data, SEVERITY)
    if ctx.out.as_json:
        ctx.out.json({"type": finding.type, **shown, **finding.data})
    else:
        ctx.out.line(sentence)
    ctx.out.stream.flush()
