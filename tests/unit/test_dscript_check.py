# SPDX-License-Identifier: Apache-2.0
"""`dscript check` finds parts of a script that do not fit together, and nothing in one that is well."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dscript"))

sys.path.append(str(ROOT / "sec-monitor"))

from dscriptlib import between, check, tables  # noqa: E402
from monitorlib import watchfile  # noqa: E402

STEP = "{action: restart, of: a, expect: {watch: cpu, within: 9s}}"
GOOD = """\
dscript: 1
name: x
monitors:
  - {id: busy, watch: cpu, of: a, above: 90%, clear: 70%}
responses:
  - id: first
    when: busy
    steps:
      - {action: restart, of: a, expect: {watch: cpu, within: 9s}}
    at-most: {attempts: 1, per: 1m}
    then: call
  - {id: call, steps: [{action: notify, to: owner}]}
"""


def said(text):
    return [str(finding) for finding in check.check(text.encode(), "F")[1]]


def test_a_good_script_has_no_finding():
    script, findings = check.check(GOOD.encode(), "F")
    assert findings == [] and script.name == "x"


@pytest.mark.parametrize("path", sorted((ROOT / "dscript" / "scripts").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_scripts_are_clean(path):
    script, findings = check.check(path.read_bytes(), str(path))
    assert findings == [] and script.name == path.stem


def test_the_shipped_scripts_fit_together():
    paths = sorted((ROOT / "dscript" / "scripts").glob("*.yaml"))
    assert len(paths) >= 8
    assert between.findings([(path.name, check.check(path.read_bytes(), path.name)[0]) for path in paths], {}) == []


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        (
            "clear: 70%",
            "clear: 70%, for: 400ms",
            "F:4:5: error: monitor 'busy' looks every 0.5 s, which is too seldom",
        ),
        ("responses:", "  - {id: m, watch: host-cpu}\nresponses:", "F:5:5: warning: monitor 'm' has no response"),
        (
            "then: call\n",
            "then: call\n  - {id: z, steps: [{action: notify, to: o}]}\n",
            "F:12:5: warning: response 'z'",
        ),
        (
            "expect: {watch: cpu, within: 9s}}\n",
            "expect: {watch: cpu, within: 9s}}\n      - {action: stop, of: a}\n    if-failed: revert\n",
            "F:9:9: warning: restart cannot be taken back, yet stop after it may fail",
        ),
        ("clear: 70%", "clear: 90%", "F:4:54: error: monitor 'busy': clear must be below above"),
        ("above: 90%, clear: 70%", "below: 9%, clear: 8%", "F:4:53: error: monitor 'busy': clear must be above below"),
        (STEP, "{action: threshold, monitor: b, above: 9, clear: 8}", "F:9:9: error: threshold: unknown monitor 'b'"),
        (STEP, "{action: threshold, monitor: busy, above: 9s, clear: 8s}", "F:9:9: error: threshold of monitor 'busy'"),
        (STEP, "{action: threshold, monitor: busy, above: 9, clear: 9}", "F:9:9: error: threshold of monitor 'busy'"),
        (STEP, "{action: threshold, monitor: busy, below: 9, clear: 19}", "F:9:9: error: threshold: monitor 'busy' is"),
        ("when: busy", "when: lazy", "F:7:11: error: unknown monitor 'lazy'"),
        ("then: call", "then: nobody", "F:11:11: error: unknown response 'nobody'"),
        ("watch: cpu, within", "watch: http, within", "F:9:42: error: expect: this script has no monitor 'http'"),
        ("    at-most: {attempts: 1, per: 1m}\n", "", "F:6:5: warning: response 'first' can repeat without end"),
        ("    then: call\n", "", "F:6:5: error: escalation of 'first' does not end in a person"),
        ("{action: notify, to: owner}", "{action: record, text: x}", "F:12:5: error: escalation of 'first' does not"),
    ],
)
def test_finding(old, new, finding):
    assert old in GOOD
    (only,) = said(GOOD.replace(old, new))
    assert only.startswith(finding)


def test_the_sampling_is_that_of_dre_watch():
    assert tables.EVERY == watchfile.EVERY


def together(*texts, here=None):
    scripts = []
    for number, text in enumerate(texts):
        script, findings = check.check(text.encode(), f"F{number}")
        assert script and not findings, findings
        scripts.append((f"F{number}", script))
    return [str(finding) for finding in between.findings(scripts, here or {})]


EMITS = """\
dscript: 1
name: %s
responses:
  - id: r
    when: %s
    steps:
      - {action: emit, type: %s}
      - {action: notify, to: owner}
    at-most: {attempts: 1, per: 1m}
"""


def test_scripts_that_trigger_each_other_are_found_with_their_way():
    one, two = EMITS % ("one", "{event: a.b}", "c.d"), EMITS % ("two", "{event: c.d, after: x.y, within: 1m}", "a.b")
    assert together(one) == [] == together(one, EMITS % ("three", "{event: c.d}", "e.f"))
    text = "error: responses that trigger each other without end:"
    assert together(one, two) == [f"F0:7:9: {text} one/r -> two/r -> one/r", f"F1:7:9: {text} two/r -> one/r -> two/r"]
    watching = EMITS.replace("responses:", "monitors:\n  - {id: m, watch: event, type: c.d, within: 1m}\nresponses:")
    assert len(together(one, watching % ("two", "m", "a.b"))) == 2


def test_a_script_that_triggers_itself_by_its_escalation_is_found():
    text = EMITS % ("one", "{event: a.b}", "c.d") + "    then: s\n"
    text += "  - {id: s, steps: [{action: emit, type: a.b}, {action: notify, to: owner}]}\n"
    (only,) = together(text)
    assert only.endswith("one/s -> one/r -> one/s")


ACTS = """\
dscript: 1
name: %s
responses:
  - {id: r, when: {event: %s}, steps: [%s], at-most: {attempts: 1, per: 1m}, then: call}
  - {id: call, steps: [{action: notify, to: owner}]}
"""


@pytest.mark.parametrize(
    ("one", "two", "conflict"),
    [
        ("{action: stop, of: a}", "{action: undo, of: a}", True),
        ("{action: restart, of: a}", "{action: undo, of: a}", False),
        ("{action: restart, of: a}", "{action: undo, of: b}", False),
        ("{action: restart, of: a}", "{action: undo, system: a}", False),
        ("{action: freeze, of: a}", "{action: thaw, of: a}", True),
        ("{action: isolate, of: a}", "{action: freeze, of: a}", False),
        ("{action: limit, of: a, cpu: 5}", "{action: limit, of: a, cpu: 50}", True),
        ("{action: limit, of: a, cpu: 5}", "{action: limit, of: a, memory: 1G}", False),
        ("{action: undo, of: a, tag: x}", "{action: undo, of: a, tag: x}", False),
        ("{action: undo, of: a, tag: x}", "{action: undo, of: a, tag: y}", True),
    ],
)
def test_actions_against_each_other_on_one_container_are_found(one, two, conflict):
    found = together(ACTS % ("one", "a.b", one), ACTS % ("two", "c.d", two))
    assert [text.split(":")[:4] for text in found] == ([["F1", "4", "41", " warning"]] if conflict else [])


def test_an_escalation_is_no_conflict():
    text = ACTS % ("one", "a.b", "{action: restart, of: a}")
    text = text.replace("[{action: notify, to: owner}]", "[{action: undo, of: a}, {action: notify, to: owner}]")
    assert together(text) == []


def test_a_container_that_this_host_lacks_is_told_where_it_has_any():
    text = ACTS % ("one", "a.b", "{action: restart, of: web1}")
    assert together(text, here={"of": ["web1", "b"]}) == [] == together(text, here={"of": []})
    assert together(text, here={"of": ["web2"]}) == ["F0:4:41: warning: this host has no app 'web1' now"]


def test_a_longer_circle_is_found_where_it_closes():
    text = GOOD.replace("to: owner}]}", "to: owner}], then: first}")
    findings = said(text)
    assert "F:11:11: error: escalation goes round: first -> call -> first" in findings
    assert "F:12:60: error: escalation goes round: call -> first -> call" in findings


def test_when_clear_needs_something_to_be_clear():
    text = """\
dscript: 1
name: x
responses:
  - id: first
    when: {event: a.b}
    steps: [{action: limit, of: a, cpu: 5, revert: when-clear}, {action: notify, to: owner}]
    at-most: {attempts: 1, per: 1m}
"""
    (only,) = said(text)
    assert only.startswith("F:6:13: error: revert: when-clear needs a monitor")


def test_warnings_do_not_keep_a_script_from_running():
    script, findings = check.check(GOOD.replace("    at-most: {attempts: 1, per: 1m}\n", "").encode(), "F")
    assert script is not None and [finding.severity for finding in findings] == ["warning"]
