# SPDX-License-Identifier: Apache-2.0
"""The state before an action and after it, as evidence: said where it is known, and never what a step fails by."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dscript"))

from dre import conf  # noqa: E402
from dscriptlib import lines, load  # noqa: E402
from dscriptlib.doer import Doer, Outcome  # noqa: E402
from dscriptlib.state import Act  # noqa: E402

TEXT = b"""\
dscript: 1
name: s
monitors: [{id: busy, watch: cpu, of: web1, above: 90%, clear: 70%}]
responses:
  - id: r
    when: busy
    steps:
      - {action: threshold, monitor: busy, above: 80%, clear: 60%}
      - {action: restart, of: nowhere}
      - {action: record, text: x}
"""
SCRIPT = load.load(TEXT, "F")[0]
AGREED, CHANGED = {"above": 90.0, "clear": 70.0}, {"above": 80.0, "clear": 60.0}


def act(step):
    return Act("0" * 16, "r", step, "act", ("e1",))


@pytest.fixture
def doer(settings):
    return Doer(conf.load(settings()), None)


def test_before_and_after(doer):
    done = doer.do(SCRIPT, act(0))
    assert (done.error, done.before, done.after) == (None, AGREED, CHANGED)


def test_before_is_not_known_of_what_may_have_begun_already(doer):
    done = doer.do(SCRIPT, act(0), again=True)
    assert (done.error, done.before, done.after) == (None, None, CHANGED)


def test_what_is_not_there_has_a_reason_in_place_of_a_state(doer, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    done = doer.do(SCRIPT, act(1))
    assert "dre-app" in done.error
    assert done.before == done.after == {"state": None, "why": "nowhere: no such app"}


def test_what_changes_nothing_has_none(doer):
    done = doer.do(SCRIPT, act(2))
    assert (done.error, done.before, done.after) == (None, None, None)
    assert '"after"' not in lines.ended(SCRIPT, act(2), done)[0]


def test_a_line_with_the_largest_states_fits():
    state = {"state": "running", "why": "x" * 200, "snapshots": ["a" * 31] * 4, "memory": 1 << 40, "pid": 4194304}
    many = Act("0" * 16, "r", 0, "act", tuple("e" * 36 for _ in range(16)))
    text, short = lines.ended(SCRIPT, many, Outcome("x" * 300, 1.0, None, (), state, state))
    assert len(text.encode()) < 4096 and '"before"' in text and '"before"' not in short
