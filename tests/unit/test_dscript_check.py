# SPDX-License-Identifier: Apache-2.0
"""`dscript check` finds parts of a script that do not fit together, and nothing in one that is well."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dscript"))

from dscriptlib import check  # noqa: E402

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


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("clear: 70%", "clear: 90%", "F:4:54: error: monitor 'busy': clear must be below above"),
        ("when: busy", "when: lazy", "F:7:11: error: unknown monitor 'lazy'"),
        ("then: call", "then: nobody", "F:11:11: error: unknown response 'nobody'"),
        ("watch: cpu, within", "watch: http, within", "F:9:42: error: expect: this script has no monitor 'http'"),
        ("    at-most: {attempts: 1, per: 1m}\n", "", "F:6:5: warning: response 'first' can repeat without end"),
        ("    then: call\n", "", "F:6:5: error: escalation of 'first' does not end in a person"),
        ("then: call", "then: first", "F:11:11: error: escalation goes round: first -> first"),
        ("{action: notify, to: owner}", "{action: record, text: x}", "F:12:5: error: escalation of 'first' does not"),
    ],
)
def test_finding(old, new, finding):
    assert old in GOOD
    (only,) = said(GOOD.replace(old, new))
    assert only.startswith(finding)


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
