# SPDX-License-Identifier: Apache-2.0
"""The verbs of dre-rules that put rules in force: install, rollback, history; propose, pending, approve and reject."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dre import cli
from dre.errors import DONE, FAILED, NotPermittedError, UsageError

from monitorlib import changing, rulecheck, versions
from monitorlib.versions import Switch

_SHORT = 12  # digits of a version that people see


def add(verbs: Any) -> None:
    """Add the verbs to those of dre-rules."""
    made = cli.verb(verbs, "install", _install, "Put rule files in force, beside or instead of those of their names.")
    _files(made)
    made = cli.verb(verbs, "rollback", _rollback, "Put the rules in force that were so before, or those of a NUMBER.")
    made.add_argument("number", metavar="NUMBER", nargs="?", type=int, help="as history tells it")
    made.add_argument("--note", metavar="TEXT", default="", help="why, for the history")
    cli.verb(verbs, "history", _history, "List what was in force since when, and by whom.")
    made = cli.verb(verbs, "propose", _propose, "Let rule files wait for a second person; print the ID to approve.")
    _files(made)
    cli.verb(verbs, "pending", _pending, "List what waits for a second person.")
    made = cli.verb(verbs, "approve", _approve, "Put in force what somebody else proposed.")
    made.add_argument("id", metavar="ID")
    made = cli.verb(verbs, "reject", _reject, "What was proposed waits no more.")
    made.add_argument("id", metavar="ID")


def _files(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("file", metavar="FILE", nargs="*")
    verb.add_argument("--remove", metavar="NAME", action="append", default=[], help="take this file out of force")
    verb.add_argument("--note", metavar="TEXT", default="", help="why, for the history")


def _install(ctx: cli.Context) -> int:
    if ctx.conf.monitor_four_eyes:
        raise NotPermittedError("DRE_MONITOR_FOUR_EYES=yes: a second person has to approve it; dre-rules propose")
    texts, base = _wanted(ctx)

    def install() -> Switch | None:
        changing.check(ctx.conf, texts, _named(ctx))
        return changing.put(ctx.conf, texts, "install", ctx.args.note, base)

    return _done(ctx, install)


def _rollback(ctx: cli.Context) -> int:
    return _done(ctx, lambda: changing.rollback(ctx.conf, ctx.args.number, ctx.args.note))


def _history(ctx: cli.Context) -> None:
    for made in versions.history(ctx.conf):
        if ctx.args.json:
            ctx.out.json(asdict(made))
        else:
            columns = (str(made.number), made.time, made.version[:_SHORT], made.how, made.by or "-", made.note)
            ctx.out.line(cli.harmless("\t".join(columns).rstrip("\t")))


def _propose(ctx: cli.Context) -> int:
    texts, base = _wanted(ctx)
    try:
        changing.check(ctx.conf, texts, _named(ctx))
    except changing.RefusedError as error:
        return _refused(ctx, error)
    if versions.digest(texts) == base:
        ctx.say("these rules are in force already")
        return DONE
    made = versions.propose(ctx.conf, texts, ctx.args.note, base)
    if ctx.args.json:
        ctx.out.json(asdict(made))
    else:
        ctx.out.line(made.id)
    return DONE


def _pending(ctx: cli.Context) -> None:
    for made in versions.proposals(ctx.conf):
        if ctx.args.json:
            ctx.out.json({**asdict(made), "changes": changing.changes(ctx.conf, made)})
        else:
            columns = (made.id, made.time, made.by, " ".join(changing.changes(ctx.conf, made)), made.note)
            ctx.out.line(cli.harmless("\t".join(columns).rstrip("\t")))


def _approve(ctx: cli.Context) -> int:
    return _done(ctx, lambda: changing.approve(ctx.conf, ctx.args.id))


def _reject(ctx: cli.Context) -> None:
    versions.drop(ctx.conf, ctx.args.id)


def _wanted(ctx: cli.Context) -> tuple[dict[str, bytes], str]:
    """What is in force, with the files that were named instead of those of their names; the version it was made from.

    Raises UsageError.
    """
    texts = versions.in_force(ctx.conf)
    base = versions.digest(texts)
    if not ctx.args.file and not ctx.args.remove:
        raise UsageError("no FILE, and nothing to --remove")
    for name in ctx.args.remove:
        if texts.pop(name, None) is None:
            raise UsageError(f"--remove {name}: there is no such file in force")
    given = set()
    for file in ctx.args.file:
        name = Path(file).name
        if not versions.NAME.fullmatch(name) or name in given:
            raise UsageError(f"{file}: expected different names of letters, digits and _.- that end in .sec")
        given.add(name)
        try:
            with Path(file).open("rb") as stream:
                texts[name] = stream.read(rulecheck.LIMIT + 1)
        except OSError as error:
            raise UsageError(f"{file}: {error.strerror}") from None
    return texts, base


def _named(ctx: cli.Context) -> dict[str, str]:
    """How the user named the files."""
    return {Path(file).name: file for file in ctx.args.file}


def _done(ctx: cli.Context, change: Callable[[], Switch | None]) -> int:
    """Make a change and say what became of it."""
    try:
        made = change()
    except changing.RefusedError as error:
        return _refused(ctx, error)
    ctx.say(
        f"version {made.number} is in force: {made.version[:_SHORT]}" if made else "these rules are in force already"
    )
    return DONE


def _refused(ctx: cli.Context, error: changing.RefusedError) -> int:
    for finding in error.findings:
        if ctx.args.json:
            ctx.out.json({"file": finding.file, "line": finding.line, "reason": finding.reason})
        else:
            ctx.out.line(str(finding))
    return FAILED
