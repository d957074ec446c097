# SPDX-License-Identifier: Apache-2.0
"""The report of the demonstration: one file with all it needs, which acts by nothing and hides no miss."""

import html.parser
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "sec-monitor")]

import pytest  # noqa: E402
from demolib import evidence, report, scenario, verdict  # noqa: E402
from demolib.answers import Request  # noqa: E402

HOSTILE = "</pre><script>alert(1)</script>&"


def event(type, at, **data):
    return {"time": f"1970-01-01T00:16:{at - 960:06.3f}Z", "source": "/host:h", "type": type, "data": data}


def played(tmp_path, until=105, text="x"):
    """A run in which release v2 hurts from request 100 (1002.4) to *until*, which was recognised and undone."""
    requests = [
        Request(n, "cd", at := 1000 + n * 0.024, at, at + (0.5 if 100 <= n < until else 0.01), 200, "v1", None, None)
        for n in range(1200)
    ]
    step = {"response": "put-back", "step": 1, "action": "undo", "request": "r", "argv": ["undo", text], "seconds": 0.5}
    told = [
        event("shop.release", 1002.3, text=text),
        event("shop.overload", 1002.8),
        event("script.step.begun", 1002.9, **step),
        event("script.step.done", 1003.4, **step),
    ]
    entries = []
    for number, one in enumerate(told):
        path = tmp_path / f"{number}.octets"
        path.write_text(json.dumps(one))
        entries.append(evidence.Entry(number, path, path))
    accepted = event("app.undo.accepted", 1003.0)
    usage = [verdict.Usage(1000.5 + n, "shop-app", 70.0, 80.0 - 30 * (n == 5), 100, 200) for n in range(30)]
    notes = [(1000.0, "load begins"), (1002.29, text)]
    story = scenario.STORIES["1"]()
    facts = story.facts(requests, told, [accepted], [(1002.9, told[1])], 1002.29, notes, usage)
    checks = [*verdict.times(facts), *verdict.steps(facts)]
    return story, scenario.Played(facts, checks, entries, frozenset({0, 1, 2}), ["one octet"])


class Tags(html.parser.HTMLParser):
    """The tags that are open, none of which may be closed by another one's end."""

    void = {"meta", "br", "line", "rect", "polygon", "polyline"}

    def __init__(self):
        super().__init__()
        self.open, self.names = [], set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("text", ["plain words", HOSTILE])
def test_it_is_one_file_that_acts_by_nothing(tmp_path, text):
    story, run = played(tmp_path, text=text)
    page = report.page(story, "1", run, 1)
    tags = Tags()
    tags.feed(page)
    assert not tags.open and not tags.names & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r" on[a-z]+=|javascript:|(?:src|href)=|url\(", page)
    assert 'name="viewport"' in page and page.count('<svg class="curve"') == 4


def test_it_tells_what_was_measured_and_what_was_missed(tmp_path):
    story, run = played(tmp_path)
    page = report.page(story, "1", run, 1)
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "overload recognised 0.50 s at most 1 s ✓ met" in words
    assert "undo accepted 0.10 s" in words and "not all of it happened" in words
    assert "3 of 4 entries verified offline" in words and "✗ refused" in words
    assert "FAILED every step is in the D-Box" in words and "missing: raised" in words
    assert "undo x ✓ done 0.50 s" in words


def test_what_never_got_well_is_shown_to_the_end_and_called_missed(tmp_path):
    story, run = played(tmp_path, until=1200)
    words = " ".join(re.sub(r"<[^>]*>", " ", report.page(story, "1", run, 1)).split())
    assert "service restored – at most 300 s ✗ MISSED" in words


@pytest.mark.parametrize("magnitude, word", [(0, "1 ms"), (2, "100 ms"), (2.5, "316 ms"), (3, "1 s"), (4, "10 s")])
def test_the_scale_of_response_times_is_logarithmic(magnitude, word):
    assert report._ms(magnitude) == word


def test_no_answer_is_off_the_scale():
    assert (report._magnitude(0.0), report._magnitude(0.1), report._magnitude(10.02)) == (0.0, 2.0, 4.0)
