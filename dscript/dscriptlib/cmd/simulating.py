# SPDX-License-Identifier: Apache-2.0
"""dscript simulate: how decisions look, and which file they are about."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dre import cli, event, units
from dre.errors import FAILED, NotFoundError, UsageError

from dscriptlib import engine, explain, journal, simulate, state, store
from dscriptlib.doer import Doer
from dscriptlib.model import Script
from dscriptlib.simulate import Decision
from dscriptlib.steps import KINDS


def simulate_files(ctx: cli.Context) -> int:
    """dscript simulate --events FILE [SCRIPT…]"""
    if unknown := set(ctx.args.fail) - set(KINDS):
        raise UsageError(f"--fail {min(unknown)}: unknown action; known: {', '.join(KINDS)}")
    code = 0
    for decision in _decisions(ctx):
        for row in _shown(ctx, decision):
            ctx.out.json(row) if ctx.out.as_json else ctx.out.line(_told(row))
        if decision.differs:
            sys.stderr.write(f"dscript: {event.stamp(decision.time)}: the recorded run decided otherwise\n")
            code = FAILED
    return code


def _decisions(ctx: cli.Context) -> Iterator[Decision]:
    """The decisions about the file of --events, which shows by its first line what it is."""
    path = ctx.args.events
    scripts = [script for script, _ in engine.scripts(ctx.args.files)]
    named = {script.name: script for script in scripts}

    def version(sha256: str) -> Script | None:
        return store.version(ctx.conf, sha256)

    if path.is_dir():
        return simulate.of_record(journal.records(path), version, named)
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if lines and journal.decode(lines[0]) is not None:
        read = (journal.decode(line) for line in lines)
        return simulate.of_record((record for record in read if record is not None), version, named)
    if not scripts:
        scripts = [store.read(deployed)[0] for deployed in store.deployed(ctx.conf)]
    events = [_event(path, number, line) for number, line in enumerate(lines, 1) if line]
    reply = None if ctx.args.answer is None else ctx.args.answer == "approve"
    return simulate.of_events(scripts, events, ctx.args.fail, reply, units.duration(ctx.args.after))


def _event(path: Path, number: int, line: bytes) -> event.Event:
    try:
        return event.parse(line)
    except event.EventError as error:
        raise UsageError(f"{path}:{number}: {error}") from None


def _shown(ctx: cli.Context, decision: Decision) -> Iterator[dict[str, Any]]:
    """One row for each command of a decision, with what a person wants to know of it."""
    doer = Doer(ctx.conf, None)
    for command, values in zip(decision.commands, state.shown(decision.commands), strict=True):
        row: dict[str, Any] = {"time": event.stamp(decision.time), "script": decision.script.name, **values}
        if isinstance(command, state.Act):
            step = decision.script.response(command.response).steps[command.step]
            row.update(argv=doer.argv(decision.script, command), text=explain.step_sentence(step, "en"))
        yield row


def _told(row: dict[str, Any]) -> str:
    if row["command"] == "tell":
        told = ("response", "outcome", "id", "reason", "by")
        said = {key: row["data"][key] for key in told if key in row["data"]}
        return (
            f"{row['time']} {row['script']}: {row['type']} {' '.join(f'{key}={value}' for key, value in said.items())}"
        )
    words = {"act": "", "read": "(asks for the state before) ", "revert": "(takes back) "}[row["phase"]]
    return f"{row['time']} {row['script']}/{row['response']}: {words}{row['step'] + 1}. {row['text']}"
