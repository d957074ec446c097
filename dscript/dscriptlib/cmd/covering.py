# SPDX-License-Identifier: Apache-2.0
"""dscript coverage: which goals of a D-Case the scripts answer, and how they stand."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dre import cli, event
from dre.conf import Conf
from dre.errors import DONE, FAILED

from dscriptlib.cmd import dscript as command

COLUMNS: list[cli.Column] = [
    ("GOAL", "goal", 10),
    ("STATE", "state", 6),
    ("ANSWERED-BY", "responses", 24),
    ("EVIDENCE", "time", 24),
    ("TEXT", "text", 0),
]


def add(verbs: Any) -> None:
    """Add the verb to those of dscript."""
    coverage = cli.verb(
        verbs, "coverage", show_coverage, "say which goals of a D-Case scripts answer: 1 when one is open"
    )
    coverage.add_argument("--case", metavar="CASE", required=True, type=Path, help="GSN in YAML, or of D-Case Editor")
    coverage.add_argument("--html", action="store_true", help="print a page instead, in the colours of how it stands")
    coverage.add_argument("files", metavar="SCRIPT", nargs="*", type=Path)


def show_coverage(ctx: cli.Context) -> int:
    """dscript coverage --case CASE [SCRIPT…]"""
    from dscriptlib import case, coverage, load

    made = case.parse(command.read(ctx.args.case, load), str(ctx.args.case))
    scripts = _scripts(ctx.conf, ctx.args.files)
    found = coverage.rows(made, scripts, *_recorded(ctx.conf))
    if ctx.args.html:
        ctx.out.stream.write(coverage.page(made, found, ctx.args.case.name, event.stamp()))
    else:
        ctx.out.table((row.fields() for row in found), COLUMNS)
    strange = [
        f"{script.name}/{response.id}: unknown goal {goal!r}: {ctx.args.case} has no such node\n"
        for script in scripts
        for response in script.responses
        if (goal := script.goal(response)) is not None and goal not in made.nodes
    ]
    sys.stderr.write("".join(strange))
    return FAILED if strange or any(row.state == "open" for row in found) else DONE


def page(conf: Conf, made: Any, title: str) -> str:
    """The page of a case beside the scripts in force."""
    from dscriptlib import coverage

    found = coverage.rows(made, _scripts(conf, []), *_recorded(conf))
    return coverage.page(made, found, title, event.stamp())


def _scripts(conf: Conf, files: Sequence[Path]) -> list[Any]:
    """The scripts in *files*, or those in force."""
    from dscriptlib import engine, store

    return [script for script, _ in engine.scripts(files or store.deployed(conf))]


def _recorded(conf: Conf) -> tuple[dict[str, Any], list[event.Event]]:
    """The states of the scripts, and the events that name a goal, of the journal."""
    from dscriptlib import journal

    directory = command.journal_directory(conf)
    lines = (record["line"] for record in journal.records(directory) if '"goal":' in record.get("line", ""))
    return journal.states(directory), [event.parse(line) for line in lines]
