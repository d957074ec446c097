# SPDX-License-Identifier: Apache-2.0
"""The verbs of dre-rules that put rules in force: install, rollback, history; propose, pending, approve and reject."""

import argparse
import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dre import cli
from dre.errors import DONE, FAILED, DreError, NotPermittedError, UsageError

from monitorlib import rulecheck, ruleset, taking, versions
from monitorlib.versions import Proposal, Switch

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
    return _put(ctx, texts, "install", ctx.args.note, base) if _acceptable(ctx, texts) else FAILED


def _rollback(ctx: cli.Context) -> int:
    """Without a second person: what was in force once was approved then, and a person in need must not wait."""
    found, texts = versions.find(ctx.conf, ctx.args.number)
    note = ctx.args.note or f"to {found.number}"
    return _put(ctx, texts, "rollback", note) if _acceptable(ctx, texts) else FAILED


def _history(ctx: cli.Context) -> None:
    for made in versions.history(ctx.conf):
        if ctx.args.json:
            ctx.out.json(asdict(made))
        else:
            columns = (str(made.number), made.time, made.version[:_SHORT], made.how, made.by or "-", made.note)
            ctx.out.line(cli.harmless("\t".join(columns).rstrip("\t")))


def _propose(ctx: cli.Context) -> int:
    texts, _ = _wanted(ctx)
    if not _acceptable(ctx, texts):
        return FAILED
    if texts == versions.in_force(ctx.conf):
        ctx.say("these rules are in force already")
        return DONE
    made = versions.propose(ctx.conf, texts, ctx.args.note)
    if ctx.args.json:
        ctx.out.json(asdict(made))
    else:
        ctx.out.line(made.id)
    return DONE


def _pending(ctx: cli.Context) -> None:
    for made in versions.proposals(ctx.conf):
        if ctx.args.json:
            ctx.out.json({**asdict(made), "changes": _changes(ctx, made)})
        else:
            columns = (made.id, made.time, made.by, " ".join(_changes(ctx, made)), made.note)
            ctx.out.line(cli.harmless("\t".join(columns).rstrip("\t")))


def _changes(ctx: cli.Context, made: Proposal) -> list[str]:
    """The files that would be added, changed and removed: +NAME, ~NAME, -NAME."""
    new, old = versions.proposed(ctx.conf, made.id)[1], versions.in_force(ctx.conf)
    signs = {name: "+" if name not in old else "-" if name not in new else "~" for name in sorted(new | old)}
    return [sign + name for name, sign in signs.items() if new.get(name) != old.get(name)]


def _approve(ctx: cli.Context) -> int:
    made, texts = versions.proposed(ctx.conf, ctx.args.id)
    versions.may_approve(ctx.conf, made)
    if not _acceptable(ctx, texts):
        return FAILED
    status = _put(
        ctx, texts, "approve", f"{made.by}: {made.note}" if made.note else f"proposed by {made.by}", made.base
    )
    if status == DONE:
        versions.drop(ctx.conf, made.id)
    return status


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


def _acceptable(ctx: cli.Context, texts: Mapping[str, bytes]) -> bool:
    """Check all rules as those of one set, and say what is wrong. Raises DreError with what sec itself says."""
    pipes = {path.name for path in ctx.conf.monitor_pipes}
    named = {Path(file).name: file for file in getattr(ctx.args, "file", ())}
    books, read = [], {}
    for name, octets in sorted(texts.items()):
        file = named.get(name, name)
        try:
            read[name] = rulecheck.text(octets)
            books.append(rulecheck.parse(file, read[name], pipes))
        except ValueError as error:
            finding = rulecheck.Finding(file, 1, f"not a text in ASCII: {error}")
            books.append(rulecheck.Book(file, findings=[finding]))
    findings = [finding for book in books for finding in book.findings]
    findings += [rulecheck.Finding(name, 1, "odd file name") for name in texts if not versions.NAME.fullmatch(name)]
    if not findings and ctx.conf.monitor_correlator == "dre":
        findings = ruleset.compile(books, pipes)[1]
    for finding in findings:
        if ctx.args.json:
            ctx.out.json({"file": finding.file, "line": finding.line, "reason": finding.reason})
        else:
            ctx.out.line(str(finding))
    if not findings:
        taking.tried(ctx.conf, read)
    return not findings


def _put(ctx: cli.Context, texts: Mapping[str, bytes], how: str, note: str, base: str | None = None) -> int:
    """Put *texts* in force; where the monitor does not live with them, those before again."""
    made = versions.switch(ctx.conf, texts, how, note, base)
    if made is None:
        ctx.say("these rules are in force already")
        return DONE
    try:
        wrong = taking.take(ctx.conf)
        if wrong:
            assert made.before is not None  # what was there at the first call is a version, too
            back = versions.switch(ctx.conf, versions.version(ctx.conf, made.before), "back", wrong, made.version)
            taking.take(ctx.conf)
            raise DreError(f"version {made.number}: {wrong}; the rules before are in force again{_as(back)}")
        ctx.say(f"version {made.number} is in force: {made.version[:_SHORT]}")
    finally:
        with contextlib.suppress(DreError):  # it waits in the spool, as the D-Box may be away, or never set up
            versions.deliver(ctx.conf)
    return DONE


def _as(made: Switch | None) -> str:
    return f", as version {made.number}" if made else ""
