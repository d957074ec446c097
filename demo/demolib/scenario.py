# SPDX-License-Identifier: Apache-2.0
"""Scenario (1) of the CD shop, played on the prepared stage: load, a bad release, and what comes of it."""

import hashlib
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from demolib import answers, delta, evidence, forgery, journal, shop, stage, verdict
from demolib.places import APP, CERTS, HERE, HOME, STATE, URL
from demolib.programs import Failed, dre, end, start, wait
from demolib.verdict import Check, Facts

LOG = HOME / "requests.jsonl"
WARM = 10.0  # seconds of load before the release
LONGEST = 420.0  # seconds after which the load ends by itself
PATIENCE = 15.0  # seconds in which the undo must have been accepted
DELTA = Path("/var/lib/lxc") / APP / "delta"
ARCHIVE = STATE / "app/state" / APP / "snapshot" / shop.TAG / "delta.tar"

Say = Callable[[str], None]


def play(without: str, say: Say) -> tuple[Facts, list[Check]]:
    """Play it; what was measured, and the checks in the order in which they are printed."""
    notes = []

    def note(text: str) -> None:
        notes.append((time.time(), text))
        say(text)

    wait(_answers, 30, f"{URL}/ answers 200")
    start("load", sys.executable, str(HERE / "load"), URL, "--seconds", str(LONGEST), output=LOG)
    note("load begins: 2500 accesses a minute")
    _warm()
    before, deployed = _release(without, note)
    _recover(without, deployed, say)
    end("load", within=answers.GREEN + 5)
    note("load ends")
    entries, chain = _evidence(say)
    facts = Facts(
        answers.parse(LOG.read_text()),
        [entry.event for entry in entries],
        journal.spooled(),
        journal.arrivals(),
        deployed,
        notes,
    )
    checks = [
        *verdict.times(facts),
        *verdict.requests(facts),
        *_orders(facts),
        *_digests(before),
        *verdict.steps(facts),
    ]
    return facts, [*checks, *_proofs(entries, chain, say)]


def _answers() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _warm() -> None:
    """Wait until the load has run for a while and the last seconds of it were all well."""
    began = time.time()

    def green() -> bool:
        requests = answers.parse(LOG.read_text())
        recent = [request for request in requests if request.due > time.time() - 5]
        return time.time() - began > WARM and len(recent) > 100 and all(request.good for request in recent)

    wait(green, 90, "the shop answers 2500 accesses a minute well")


def _release(without: str, note: Say) -> tuple[str, float]:
    """Deploy the release; the digest of the app's delta with it, and when it was announced."""
    release = shop.GOOD if without == "release" else shop.BAD
    shop.deploy(release)
    digest = delta.of_directory(DELTA)
    moment = time.time()
    if without == "event":
        note(f"release {release} goes into service, unannounced")
    else:
        dre("dre-event", "--send", "shop.release", f"version={release}", f"app={APP}")
        note(f"release {release} announced and going into service")
    shop.reload()
    return digest, moment


def _recover(without: str, deployed: float, say: Say) -> None:
    """Wait until the shop is well again, or until it is plain that nothing will make it so."""

    def accepted() -> bool:
        return journal.first(journal.spooled(), "app.undo.accepted", deployed) is not None

    def well() -> bool:
        requests = answers.parse(LOG.read_text())
        bad = answers.first_bad(requests, deployed)
        return bad is not None and answers.restored(requests, bad.due) is not None

    try:
        wait(accepted, PATIENCE, "an undo")
        say("undo accepted; waiting for 10 s of good answers")
        wait(well, verdict.RESTORE + answers.GREEN, "10 s of good answers")
    except Failed as failure:
        say(f"{failure}" + (f" (without {without})" if without else ""))


def _evidence(say: Say) -> tuple[list[evidence.Entry], Path]:
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


def _orders(facts: Facts) -> list[Check]:
    placed = answers.orders(facts.requests)
    kept = shop.orders_kept(placed)
    ok = kept == len(set(placed)) == len(placed) > 0
    return [Check("every acknowledged order is in the database", ok, f"{kept} of {len(placed)}, asked by SQL")]


def _digests(before: str) -> list[Check]:
    """The app's delta is the snapshot's again, and was not in between."""
    saved, after = delta.of_archive(ARCHIVE), delta.of_directory(DELTA)
    noted = dre("dre-app", "snapshot", "list", APP, "--json").decode()
    whole = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() in noted
    return [
        Check(
            "the release changed the app",
            before != saved,
            f"digest of its delta {before[:16]}, of the snapshot {saved[:16]}",
        ),
        Check(
            "the undo brought the snapshot back",
            after == saved != before and whole,
            f"digest of its delta {after[:16]}",
        ),
    ]


def _proofs(entries: list[evidence.Entry], chain: Path, say: Say) -> list[Check]:
    """Every entry verifies with dboxd stopped and no network; no falsified copy does."""
    end("dboxd")
    if not entries:
        return [Check("evidence", False, "there is no entry in the D-Box")]
    good = evidence.verify(entries, chain)
    say(f"{len(good)} entries verified offline; now falsified copies")
    one = entries[len(entries) // 2]
    root = (CERTS / "root.pem").read_bytes()
    true = forgery.Case("true", root, chain.read_bytes(), one.receipt.read_bytes(), one.octets.read_bytes())
    cases = list(forgery.cases(true, *evidence.foreign()))
    accepted = evidence.accepted(cases, HOME / "evidence")
    refused = f"{len(cases) - len(accepted)} of {len(cases)}" + (f"; not: {', '.join(accepted)}" if accepted else "")
    return [
        Check(
            "evidence verifies offline",
            len(good) == len(entries),
            f"{len(good)} of {len(entries)} entries, dboxd stopped",
        ),
        Check("falsified copies are refused", not accepted, f"{refused}: {', '.join(case.name for case in cases)}"),
    ]


def explore() -> str:
    """What a person can do with what was left running."""
    stage.start_dboxd()
    conf = f"--config {HOME}/dre.conf"
    return f"""
It is left running for you:
  the shop              {URL}/
  its apps              dre-app {conf} list; dre-app {conf} stat --interval 1
  more load             {HERE}/load {URL} --seconds 60 >/dev/null
  the bad release again {HERE}/deploy {shop.BAD}
  what was done         dscript {conf} history
  what happens          dre-monitor {conf} status; tail -f {STATE}/spool/ingest/*.jsonl
  the evidence          dbox-get {conf} --list; dbox-get {conf} 0 --octets
  the logs              {HOME}/log/
  end it                make demo-stop (or {HERE}/run --stop)"""
