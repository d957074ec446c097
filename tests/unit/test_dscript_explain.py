# SPDX-License-Identifier: Apache-2.0
"""Every part of a script has its sentence, in both languages; and a graph shows what leads to what."""

import pathlib
import re
import shutil
import string
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dscript"))

from dscriptlib import explain, graph, load, phrases, tables  # noqa: E402
from dscriptlib.steps import KINDS  # noqa: E402
from test_dscript_load import AGREED, DESIGN, HEAD  # noqa: E402
from test_dscript_load import KINDS as MONITORS  # noqa: E402

MORE = """
  - {id: n, watch: memory, of: web1}
  - {id: o, watch: http, url: "http://10.0.0.1/", above: 1s, clear: 500ms}
  - {id: p, watch: host-cpu}
"""
STEPS = """\
responses:
  - id: all
    when: [a, {event: a.b}]
    goal: G9
    if-failed: revert
    then: call
    steps:
      - {action: limit, of: web1, cpu: 50, memory: 1536M, pids: 9, expect: {watch: cpu, within: 3s}}
      - {action: freeze, system: vm1, revert: when-clear}
      - {action: thaw, of: web1}
      - {action: isolate, of: web1, revert: never}
      - {action: rejoin, of: web1}
      - {action: restart, of: web1}
      - {action: stop, of: web1, revert: on-failure}
      - {action: checkpoint, of: web1, tag: t1}
      - {action: snapshot, of: web1}
      - {action: undo, of: web1, tag: good, timeout: 90s}
      - {action: migrate, system: vm1, to: host2, as: vm2, live: yes, copy-storage: yes, unencrypted: yes}
      - {action: emit, type: a.c}
      - {action: record, text: here}
      - {action: ask, to: boss, text: "may I?", default: refuse, timeout: 5m}
      - {action: run, argv: [job, x], user: backup}
      - {action: rules, version: 7, revert: when-clear}
      - {action: scan, system: vm1, finding: keylogger}
      - {action: threshold, monitor: d, above: 95%, clear: 85%, revert: on-failure}
  - {id: call, steps: [{action: notify, to: owner, text: look}]}
"""
CALL = "{id: call, steps: [{action: notify, to: owner}]}"
ALL = HEAD + "monitors:" + MONITORS + MORE.lstrip("\n") + STEPS


def lines(text, lang):
    script, findings = load.load(text.encode(), "F")
    assert not findings, findings
    return list(explain.explain(script, lang))


def fields(text):
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)


def test_both_languages_say_the_same_things():
    english, japanese = phrases.PHRASES["en"], phrases.PHRASES["ja"]
    assert english.keys() == japanese.keys()
    for key in english:
        assert set(fields(japanese[key])) == set(fields(english[key])), key


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_every_monitor_action_and_term_has_a_sentence(lang):
    assert {word for word in tables.WATCHES if f"watch: {word}" in ALL} == set(tables.WATCHES)
    assert {word for word in KINDS if f"action: {word}" in ALL} == set(KINDS)
    told = lines(ALL, lang)
    text = "\n".join(told)
    assert "{" not in text and "None" not in text
    for word in ["web1", "vm1", "G9", "good", "host2", "t1", "boss", "owner", "a.c", "job", "backup", "1536M", "look"]:
        assert word in text, word
    numbered = [line for line in told if re.match(r" {4}\d+\. ", line)]
    assert len(numbered) == len(KINDS)


def test_the_example_of_the_contract_reads_as_was_agreed():
    told = lines(DESIGN.decode(), "en")
    for line in (
        "It was agreed by owner and operator.",
        "  busy: raised when the processor use of the app web1 is above 90 % for 3 s; clear again below 70 %.",
        "  When busy is raised:",
        "    1. Limit the app web1 to 50 % of a processor.",
        "       Taken back when everything watched is clear: the limits from before are put back.",
        "  At most 3 times within 10 min.",
        "  After each time it is left alone for 1 min.",
        "  When slow is raised; or when the event shop.overload comes within 10 min after shop.release:",
        "    1. Put the app web1 back to good.",
        "       It has succeeded only if within 20 s this is clear: the time until the web server answers.",
        "  If a step fails, the next one is call-owner.",
    ):
        assert line in told, line
    japanese = lines(DESIGN.decode(), "ja")
    busy = (
        "アプリ「web1」の CPU 使用率が 90 % を超えて 3 秒続いたら異常とし、70 % を下回ったら正常に戻ったとみなします。"
    )
    assert f"  busy: {busy}" in japanese
    idle = HEAD + "monitors: [{id: m, watch: cpu, of: a, below: 5%, clear: 10%HOLD}]\n" + STEPS.replace("[a,", "[m,")
    assert "  m: raised when the processor use of the app a is below 5 %; clear again above 10 %." in lines(
        idle.replace("HOLD", ""), "en"
    )
    for hold, words in (("", "下回ったら"), (", for: 1h", "下回って 1 時間続いたら")):
        said = f"  m: アプリ「a」の CPU 使用率が 5 % を{words}異常とし、10 % を超えたら正常に戻ったとみなします。"
        assert said in lines(idle.replace("HOLD", hold), "ja")
    assert "    1. アプリ「web1」を「good」の状態に戻します。" in japanese
    assert "  10 分に 3 回までです。" in japanese


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_agreed_values_are_said_and_stand_in_the_sentences(lang):
    told = lines(AGREED, lang)
    assert [line for line in told if "most = 90%, calm = 70%" in line]
    assert "$" not in "".join(line for line in told if "two $most" not in line and "a$shop $most x" not in line)
    assert any("web1" in line and "90 %" in line for line in told)


def test_each_way_to_move_is_said():
    step = "{action: migrate, system: vm1, to: host2, live: yes, %s, without-snapshots: no}"
    told = {}
    for words in ("shared-storage: yes", "copy-storage: yes, tls: yes", "copy-storage: yes, unencrypted: yes"):
        text = HEAD + f"responses: [{{id: r, when: {{event: a.b}}, steps: [{step % words}], then: call}}, {CALL}]\n"
        told[words] = [line.strip() for line in lines(text, "en") if line.startswith("       ")]
    memory, waits = (
        "It goes on there with its memory, without being stopped.",
        "It has failed when it takes longer than 1 min.",
    )
    copied = "What its disks hold is copied there."
    assert list(told.values()) == [
        [memory, "Its disks stay where they are: both hosts see them.", waits],
        [memory, copied, "What is sent is encrypted by TLS.", waits],
        [memory, copied, "Whoever listens on the network between the two hosts can read what is sent.", waits],
    ]


def test_a_graph_shows_triggers_steps_and_escalation():
    script, _ = load.load(DESIGN, "F")
    text = graph.dot(script, "en")
    for edge in (
        '"monitor busy" -> "response slow-down";',
        '"event shop.overload" -> "response put-back" [label="shop.release ≤ 10 min"];',
        '"response put-back" -> "response call-owner" [style=dashed];',
    ):
        assert edge in text, edge
    if shutil.which("dot"):
        done = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=True)
        assert b"</svg>" in done.stdout and b"Put the app web1 back to good." in done.stdout


def test_a_text_cannot_leave_its_place_in_the_graph():
    text = HEAD + "responses: [{id: r, steps: [{action: notify, to: o, text: '\"]; x -> y [label=\"\\l'}]}]\n"
    script, _ = load.load(text.encode(), "F")
    drawn = graph.dot(script, "en")
    assert drawn.count('"]; x') == drawn.count('\\"]; x') == 1
