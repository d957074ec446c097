# SPDX-License-Identifier: Apache-2.0
"""One scenario of the CD shop, played on the prepared stage: load, an accident, and what comes of it."""

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from demolib import answers, evidence, forgery, journal, stage, usage, verdict
from demolib.answers import Request
from demolib.batch import BatchStory
from demolib.evidence import Entry
from demolib.intruder import IntruderStory
from demolib.memory import MemoryStory
from demolib.overload import OverloadStory
from demolib.places import CERTS, HERE, HOME, STATE
from demolib.programs import Failed, end, start, wait
from demolib.story import Say, Story
from demolib.verdict import Check, Facts

STORIES: dict[str, type[Story]] = {"1": OverloadStory, "2": BatchStory, "3": MemoryStory, "4": IntruderStory}
LOG = HOME / "requests.jsonl"
LONGEST = 420.0  # seconds after which the load ends by itself
RESTORE = 300.0  # seconds in which all must be well again, or we go on without


@dataclass(frozen=True)
class Played:
    """What was measured, the checks in the order in which they are printed, and which evidence verified offline."""

    facts: Facts
    checks: Sequence[Check]
    entries: Sequence[Entry]
    verified: frozenset[int]
    forgeries: Sequence[str]  # the falsified copies that were tried


def play(story: Story, without: str, say: Say) -> Played:
    """Play it to its end. Raises Failed."""
    notes = []

    def note(text: str) -> None:
        notes.append((time.time(), text))
        say(text)

    wait(lambda: _answers(story.url), 30, f"{story.url}/ answers 200")
    used = usage.start(story.apps) if story.apps else []
    how = ["--rate", str(story.rate), "--seconds", str(LONGEST)]
    start("load", sys.executable, str(HERE / "load"), story.url, *how, output=LOG)
    note(f"load begins: {story.rate} accesses a minute")
    _warm(story)
    began = story.strike(without, note)

    def facts(requests: Sequence[Request] = ()) -> Facts:
        return story.facts(requests, [], journal.spooled(), [], began, notes, list(used))

    _recover(story, facts, without, say)
    end("load", within=answers.GREEN + 5)
    note("load ends")
    end("usage")
    entries, chain = _evidence(say)
    seen = facts(_requests())
    seen.evidence, seen.arrivals = [entry.event for entry in entries], journal.arrivals()
    checks = [*verdict.times(seen), *verdict.requests(seen, story.rate), *story.checks(seen), *verdict.steps(seen)]
    good, tried, proofs = _proofs(entries, chain, say)
    return Played(seen, [*checks, *proofs], entries, good, tried)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _requests() -> list[Request]:
    return answers.parse(LOG.read_text())


def _warm(story: Story) -> None:
    """Wait until the load has run for a while and the last seconds of it were all well."""
    began = time.time()

    def green() -> bool:
        requests = _requests()
        recent = [request for request in requests if request.due > time.time() - 5]
        return (
            time.time() - began > story.warm
            and len(recent) > story.rate / 25
            and all(request.good for request in recent)
        )

    wait(green, 90, f"{story.rate} accesses a minute are answered well")


def _recover(story: Story, facts: Callable[..., Facts], without: str, say: Say) -> None:
    """Wait until the shop is well again, or until it is plain that nothing will make it so."""
    try:
        wait(lambda: facts().answered(), story.patience, "what was agreed")
        say("it was done as agreed; waiting for 10 s of good answers")
        wait(lambda: facts(_requests()).green is not None, RESTORE + answers.GREEN, "10 s of good answers")
    except Failed as failure:
        say(f"{failure}" + (f" (without {without})" if without else ""))


def _evidence(say: Say) -> tuple[list[Entry], Path]:
    """Wait until the script engine has delivered its records, then fetch them all."""
    counts: list[int] = []

    def settled() -> bool:
        time.sleep(0.3)
        counts.append(evidence.count())
        return len(counts) > 2 and counts[-1] == counts[-2] == counts[-3]

    wait(settled, 20, "the D-Box at rest")
    entries, chain = evidence.fetch(HOME / "evidence")
    say(f"{len(entries)} entries fetched from the D-Box")
    return entries, chain


def _proofs(entries: list[Entry], chain: Path, say: Say) -> tuple[frozenset[int], list[str], list[Check]]:
    """Every entry verifies with dboxd stopped and no network; no falsified copy does."""
    end("dboxd")
    if not entries:
        return frozenset(), [], [Check("evidence", False, "there is no entry in the D-Box")]
    good = evidence.verify(entries, chain)
    say(f"{len(good)} entries verified offline; now falsified copies")
    one = entries[len(entries) // 2]
    root = (CERTS / "root.pem").read_bytes()
    true = forgery.Case("true", root, chain.read_bytes(), one.receipt.read_bytes(), one.octets.read_bytes())
    cases = list(forgery.cases(true, *evidence.foreign()))
    accepted = evidence.accepted(cases, HOME / "evidence")
    names = [case.name for case in cases]
    refused = f"{len(cases) - len(accepted)} of {len(cases)}" + (f"; not: {', '.join(accepted)}" if accepted else "")
    return (
        frozenset(good),
        names,
        [
            Check(
                "evidence verifies offline",
                len(good) == len(entries),
                f"{len(good)} of {len(entries)} entries, dboxd stopped",
            ),
            Check("falsified copies are refused", not accepted, f"{refused}: {', '.join(names)}"),
        ],
    )


def explore(story: Story) -> str:
    """What a person can do with what was left running."""
    stage.start_dboxd()
    conf = f"--config {HOME}/dre.conf"
    return f"""
It is left running for you:
  the service           {story.url}/
  its apps              dre-app {conf} list; dre-app {conf} stat --interval 1
  more load             {HERE}/load {story.url} --rate {story.rate} --seconds 60 >/dev/null
  the accident again    {story.again.format(conf=conf)}
  what was done         dscript {conf} history
  what happens          dre-monitor {conf} status; tail -f {STATE}/spool/ingest/*.jsonl
  the evidence          dbox-get {conf} --list; dbox-get {conf} 0 --octets
  the logs              {HOME}/log/
  end it                make demo-stop (or {HERE}/run --stop)"""
