# SPDX-License-Identifier: Apache-2.0
"""The report of one run as a page: one file without scripts, for phone and desk, beside a copy of the evidence.

All of it is made of what was measured and of the entries of the D-Box. Curves and style are the monitor's page's.
"""

import html
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from monitorlib.page import graph
from monitorlib.trend import Point

from demolib import answers, journal, verdict
from demolib.memory import FULL
from demolib.places import CERTS, HOME, REPORTS
from demolib.scenario import Played
from demolib.story import Story
from demolib.verdict import Check, Facts, Promise

BEFORE, AFTER = 8.0, 10.0  # seconds that are shown before the accident and after the restoration
WORDS = 200  # letters of an event's data that are shown
STYLES = (Path(graph.__file__).parent / "static/style.css", Path(__file__).parent / "report.css")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · D-RE</title>
<style>
{style}</style>
</head>
<body>
<header class="top"><div class="bar"><span class="brand">D-RE · the CD shop, scenario {number}</span></div></header>
<main>
<h1>{title} {badge}</h1>
<p class="muted">{conditions}</p>
{body}
</main>
<footer>Made by demo/run from the request log, the events and the entries of the D-Box of this run.</footer>
</body>
</html>
"""
Span = tuple[float, float]
Samples = Sequence[tuple[float, float]]  # when, and how much
T = TypeVar("T")


def write(story: Story, number: str, played: Played, code: int) -> Path:
    """Write report and evidence of scenario *number*, in place of what an earlier run left; where the report is."""
    place = REPORTS / number
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if played.entries:
        shutil.copytree(HOME / "evidence", place / "evidence", ignore=shutil.ignore_patterns("forged-*"))
        shutil.copy(CERTS / "root.pem", place / "evidence")
    path = place / "report.html"
    path.write_text(page(story, number, played, code), encoding="utf-8")
    return path


def page(story: Story, number: str, played: Played, code: int) -> str:
    """The page."""
    facts = played.facts
    span = _span(facts)
    parts = [
        _tiles(facts.promises()),
        _load(facts, span),
        _answers(facts, span),
        *(_usage(facts, span, story.watched) if facts.usage else []),
        _moments(facts),
        _actions(facts),
        _evidence(played),
        _card("What was agreed", f'<pre class="mono">{html.escape(story.script.read_text(encoding="utf-8"))}</pre>'),
        _checks(played.checks),
    ]
    conditions = (
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(facts.began))} UTC. {os.cpu_count()} processors, kernel "
        f"{os.uname().release}, load {os.getloadavg()[0]:.1f} at the end."
    )
    return PAGE.format(
        title=html.escape(story.title),
        number=html.escape(number),
        style="".join(path.read_text(encoding="utf-8") for path in STYLES),
        badge=_badge(code == 0, "D-RE did its job", "not all of it happened"),
        conditions=html.escape(conditions),
        body="\n".join(parts),
    )


def _span(facts: Facts) -> Span:
    """What is shown: the accident, with some time around it."""
    end = max((request.due for request in facts.requests), default=facts.began + AFTER)
    return facts.began - BEFORE, min(end, facts.green + AFTER) if facts.green else end


# --- curves ---


def _load(facts: Facts, span: Span) -> str:
    points = list[Point]()
    for second, requests in _seconds(facts.requests, lambda request: request.due, span):
        good, failed = sum(request.good for request in requests), any(request.failed for request in requests)
        points.append(Point(second, good, good, len(requests), len(requests), failed))
    legend = [("band", "sent in a second"), ("mean", "of those answered well"), ("bad", "some failed")]
    return _curve("Load", "requests a second", facts, span, points, [], legend)


def _answers(facts: Facts, span: Span) -> str:
    """Response times, over a logarithmic scale: 0 is 1 ms, 4 is 10 s."""
    points = list[Point]()
    for second, requests in _seconds(facts.requests, lambda request: request.due, span):
        took = [_magnitude(request.done - request.due) for request in requests]
        points.append(Point(second, min(took), statistics.median(took), max(took), len(took)))
    legend = [
        ("band", "least to longest"),
        ("mean", "median"),
        ("above", f"slow is over {answers.SLOW * 1000:g} ms"),
    ]
    limit = _magnitude(answers.SLOW)
    return _curve("Response time", "of the requests due in a second", facts, span, points, [(0.0, limit)], legend, _ms)


def _magnitude(seconds: float) -> float:
    return math.log10(min(max(seconds * 1000, 1.0), 10_000.0))  # no request waits longer


def _ms(magnitude: float) -> str:
    value = 10**magnitude
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"


def _usage(facts: Facts, span: Span, name: str) -> Iterable[str]:
    """Processor and memory of the app that tells most."""
    samples = [one for one in facts.usage if one.name == name]
    cpu = [(one.time, one.cpu) for one in samples if one.cpu is not None]
    limits = [(one.time, one.cpu_limit) for one in samples if one.cpu_limit]
    yield _measured(f"Processor of {name}", "percent of one core", facts, span, cpu, _changes(limits), "its limit")
    memory = [(one.time, one.full) for one in samples if one.full is not None]
    yield _measured(f"Memory of {name}", "percent of its limit", facts, span, memory, [(0.0, FULL)], f"{FULL:g} %")


def _measured(title: str, unit: str, facts: Facts, span: Span, samples: Samples, limits: Samples, words: str) -> str:
    points = list[Point]()
    for second, seen in _seconds(samples, lambda sample: sample[0], span):
        values = [value for _, value in seen]
        points.append(Point(second, min(values), statistics.fmean(values), max(values), len(values)))
    return _curve(title, unit, facts, span, points, limits, [("mean", "used"), ("above", words)])


def _changes(samples: Samples) -> list[tuple[float, float]]:
    """The samples that differ from the one before."""
    return [one for number, one in enumerate(samples) if number == 0 or samples[number - 1][1] != one[1]]


def _seconds(items: Iterable[T], when: Callable[[T], float], span: Span) -> list[tuple[int, list[T]]]:
    """The items of each whole second of *span*."""
    found: dict[int, list[T]] = {}
    for item in items:
        found.setdefault(int(when(item)), []).append(item)
    return sorted((second, those) for second, those in found.items() if span[0] <= second <= span[1] - 1)


def _curve(
    title: str,
    unit: str,
    facts: Facts,
    span: Span,
    points: Sequence[Point],
    limits: Samples,
    legend: Sequence[tuple[str, str]],
    word: Callable[[float], str] = "{:.4g}".format,
) -> str:
    marks = [(facts.began, "began", 0.0)]
    marks += [(facts.bad.due, "raised", 0.0)] if facts.bad else []
    marks += [(facts.green, "cleared", 0.0)] if facts.green else []
    drawn = graph.draw(points, [(since, above, above) for since, above in limits], marks, *span, 1)
    width, height = graph.WIDTH, graph.HEIGHT
    shapes = [f'<rect class="raised" x="{left}" width="{wide}" height="{height}"/>' for left, wide in drawn.raised]
    for quarter in (height / 4, height / 2, height * 3 / 4):
        shapes.append(f'<line class="rule" x1="0" x2="{width}" y1="{quarter}" y2="{quarter}"/>')
    shapes += [f'<polygon class="band" points="{one}"/>' for one in drawn.band]
    shapes += [f'<polyline class="mean" points="{one}"/>' for one in drawn.line]
    shapes += [f'<polyline class="above" points="{drawn.above}"/>'] if drawn.above else []
    shapes += [f'<line class="bad" x1="{at}" x2="{at}" y1="{height - 12}" y2="{height}"/>' for at in drawn.bad]
    shapes += [
        f'<line class="mark {mark.kind}" x1="{mark.x}" x2="{mark.x}" y1="0" y2="{height}"/>' for mark in drawn.marks
    ]
    legend = [*legend, ("mark began", "the accident"), ("raised", "until all is well")]
    scale = "".join(f"<span>{html.escape(word(drawn.top * part / 4))}</span>" for part in (4, 3, 2, 1, 0))
    zero = verdict.zero(facts)
    moments = [span[0] + (span[1] - span[0]) * part / 4 for part in range(5)]
    times = "".join(f"<span>{moment - zero:+.0f} s</span>" for moment in moments)
    return _card(
        f'{html.escape(title)} <span class="muted small">{html.escape(unit)}</span>',
        f'<div class="axes"><div class="scale" aria-hidden="true">{scale}</div><div class="plot">'
        f'<svg class="curve" viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(shapes)}</svg></div>'
        f'<div class="times" aria-hidden="true">{times}</div></div>'
        f'<ul class="legend">{"".join(f"<li>{_sign(kind)} {html.escape(text)}</li>" for kind, text in legend)}</ul>',
    )


def _sign(kind: str) -> str:
    """A piece of a curve, for the legend."""
    if kind in ("band", "raised"):
        shape = f'<rect class="{kind}" width="24" height="12"/>'
    elif kind in ("bad", "mark began"):
        shape = f'<line class="{kind}" x1="12" x2="12" y1="0" y2="12"/>'
    else:
        shape = f'<line class="{kind}" x1="0" x2="24" y1="6" y2="6"/>'
    return f'<svg viewBox="0 0 24 12" aria-hidden="true">{shape}</svg>'


# --- words ---


def _card(title: str, body: str) -> str:
    return f'<section class="card"><h2>{title}</h2>\n{body}</section>'


def _badge(ok: bool, good: str, bad: str) -> str:
    kind, mark, word = ("good", "✓", good) if ok else ("bad", "✗", bad)
    return f'<span class="badge {kind}"><span aria-hidden="true">{mark}</span> {word}</span>'


def _tiles(promises: Sequence[Promise]) -> str:
    tiles = []
    for one in promises:
        value = "–" if one.took is None else f"{one.took:.2f} s"
        aim = "" if one.aim is None else f'<br><span class="muted small">our aim: {one.aim:g} s</span>'
        met = _badge(one.check.ok, "met", "MISSED")
        words = f"{html.escape(one.name)}<b>{value}</b>at most {one.most:g} s {met}{aim}"
        tiles.append(f'<section class="card tile">{words}</section>')
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _moments(facts: Facts) -> str:
    """The time line: from a little before the accident to a little after, each moment as a dot on a track."""
    rows = verdict.line(facts)
    zero = verdict.zero(facts)
    begin = min(zero, facts.struck) - 1
    end = max([moment for moment, _ in rows if moment <= (facts.green or moment) + 1] or [zero]) + 1

    def x(moment: float) -> float:
        return round(min(100.0, max(0.0, 100 * (moment - begin) / (end - begin))), 2)

    bad = f'<rect class="bad" x="{x(zero)}" width="{x(facts.green or end) - x(zero):.2f}" height="8"/>'
    items = [
        f'<li><time>{moment - zero:+.2f} s</time><span>{html.escape(text)} <span class="muted small">'
        f'{verdict.clock(moment)}</span></span><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="track" x1="0" x2="100" y1="4" y2="4"/>{bad}'
        f'<line class="now" x1="{x(moment)}" x2="{x(moment)}" y1="4" y2="4"/></svg></li>'
        for moment, text in rows
    ]
    return _card("Time line", f'<ol class="moments">{"".join(items)}</ol>')


def _actions(facts: Facts) -> str:
    """What the script engine did, from its records in the D-Box."""
    begun = [event for event in facts.evidence if event["type"] == "script.step.begun"]
    ended = {
        event["data"]["request"]: event
        for event in facts.evidence
        if event["type"] in ("script.step.done", "script.step.failed", "script.step.refused")
    }
    rows = []
    for event in sorted(begun, key=journal.moment):
        data, end = event["data"], ended.get(event["data"]["request"])
        outcome = end["type"].rpartition(".")[2] if end else "not known"
        took = f"{end['data']['seconds']:.2f} s" if end and "seconds" in end["data"] else "–"
        what = " ".join(data["argv"]) or data["action"]
        rows.append(
            [
                verdict.clock(journal.moment(event)),
                html.escape(f"{data['response']}, step {data['step']}"),
                f'<span class="mono wrap">{html.escape(what)}</span>',
                _badge(outcome == "done", outcome, outcome),
                took,
            ]
        )
    return _card("Actions", _table(("Begun", "Of", "What", "Outcome", "Took"), rows))


def _evidence(played: Played) -> str:
    rows = []
    for entry in played.entries:
        event = entry.event
        data = json.dumps(event["data"], ensure_ascii=False)
        rows.append(
            [
                str(entry.index),
                verdict.clock(journal.moment(event)),
                f'<span class="mono">{html.escape(event["type"])}</span>',
                f'<span class="mono wrap small">{html.escape(data[:WORDS] + "…" * (len(data) > WORDS))}</span>',
                _badge(entry.index in played.verified, "verified", "refused"),
            ]
        )
    check = "dbox-verify --root evidence/root.pem --certs evidence/chain.pem evidence/0.receipt evidence/0.octets"
    words = (
        f"<p>{len(played.verified)} of {len(played.entries)} entries verified offline, with dboxd stopped and without "
        f"a network. {len(played.forgeries)} falsified copies of one were given to dbox-verify, too: see the checks. "
        f"The entries and their receipts lie beside this page:</p><pre>{check}</pre>"
    )
    table = _table(("Entry", "Time", "Type", "Data", "Proof"), rows)
    return _card("Evidence in the D-Box", f"{words}<details><summary>All entries</summary>{table}</details>")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; each row is a card where there is no room."""
    top = "".join(f'<th scope="col">{one}</th>' for one in head)
    body = ""
    for row in rows:
        cells = (f'<td data-label="{name}">{cell}</td>' for name, cell in zip(head, row, strict=True))
        body += f"<tr>{''.join(cells)}</tr>"
    return f'<div class="scroll"><table class="cards"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _checks(checks: Sequence[Check]) -> str:
    items = [
        f"<li>{_badge(check.ok, 'ok', 'FAILED')} {html.escape(check.name)}"
        f"{f': <span class=muted>{html.escape(check.detail)}</span>' if check.detail else ''}</li>"
        for check in checks
    ]
    return _card("Checks", f'<ul class="checks">{"".join(items)}</ul>')
