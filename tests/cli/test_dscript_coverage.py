# SPDX-License-Identifier: Apache-2.0
"""Goals of a D-Case beside the scripts that answer them, as they stand after a run."""

import html.parser
import json

import dscriptkit
import pytest
from conftest import ROOT

YAML = """\
module: {name: cdshop}
G1: {text: The shop is open, supportedBy: [S1], inContextOf: [C1]}
S1: {text: by cause, supportedBy: [G26, G28, G29, G30]}
C1: {text: 2500 accesses a minute}
G26: {text: "A release that is too slow <is> put back"}
G28: {text: Memory does not run out}
G29: {text: Nobody knows}
G30: {text: Paper, supported-by: Sn1}
Sn1: {text: A review}
"""
# As D-Case Editor writes it; its first versions drew links from below, too.
XML = """\
<?xml version="1.0" encoding="UTF-8"?>
<dcase:Argument xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:dcase="{namespace}" id="_0">
  <rootBasicNode xsi:type="dcase:Evidence" id="_e" name="E1" desc="A review"/>
  <rootBasicNode xsi:type="dcase:Goal" id="_1" name="G1" desc="The shop&#xA; is open"/>
  <rootBasicNode xsi:type="dcase:Strategy" id="_s" name="S1" desc="by cause"/>
  <rootBasicNode xsi:type="dcase:Goal" id="_26" name="G26" desc="put back"/>
  <rootBasicNode xsi:type="dcase:Goal" id="_28" name="G28"/>
  <rootBasicNode xsi:type="dcase:Goal" id="_30" name="G30"/>
  <rootBasicLink xsi:type="dcase:SupportedBy" id="_a" source="#_1" target="#_s" name="LINK_1"/>
  <rootBasicLink xsi:type="dcase:SupportedBy" id="_b" source="#_s" target="#_26" name="LINK_2"/>
  <rootBasicLink xsi:type="dcase:SupportedBy" id="_c" source="#_28" target="#_s" name="LINK_3"/>
  <rootBasicLink xsi:type="dcase:SupportedBy" id="_d" source="#_s" target="#_30" name="LINK_4"/>
  <rootBasicLink xsi:type="dcase:SupportedBy" id="_f" source="#_30" target="#_e" name="LINK_5"/>
</dcase:Argument>
"""
OLD, NEW = "http://www.dependable-os.net/2010/03/dcase/", "http://www.dependable-os.net/2013/11/dcase_model/"
SCRIPTS = [ROOT / "dscript/scripts" / f"shop-{name}.yaml" for name in ("overload", "memory")]


@pytest.fixture
def dscript(settings, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without a dre-app that would list what this host has
    config = settings()

    def call(*argv):
        done = dscriptkit.call("--config", config, *argv)
        assert b"Traceback" not in done.stderr
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    return call


@pytest.fixture
def case(tmp_path):
    path = tmp_path / "case"
    path.write_text(YAML)
    return path


def rows(dscript, case, *scripts):
    found = [json.loads(line) for line in dscript("coverage", "--case", case, "--json", *scripts)[1].splitlines()]
    return {row["goal"]: row for row in found}


def journal(tmp_path):
    """What an engine would have left: the overload was answered, the memory is full, and its last response failed."""
    from dre import event
    from dscriptlib.journal import Journal

    made = Journal(tmp_path / "state/script/journal")
    records = []
    for name, response, goal, outcome in (
        ("shop-overload", "put-back", "G26", "failed"),
        ("shop-overload", "put-back", "G26", "done"),
        ("shop-memory", "restart-shop", "G28", "failed"),
    ):
        data = {"script": name, "response": response, "outcome": outcome}
        happened = event.Event(event.stamp(), "/host:h", "script.response.done", 5, data, {"id": outcome, "goal": goal})
        records.append({"kind": "tell", "line": event.format(happened).decode().strip()})
    made.append([*records, {"kind": "x", "states": {"shop-overload": {"raised": {"slow": []}, "runs": {}}}}])
    made.close()


def test_each_goal_has_its_answer_and_the_worst_below_it(dscript, case):
    status, out, _ = dscript("coverage", "--case", case, *SCRIPTS)
    assert status == 1 and [line.split()[:2] for line in out.splitlines()] == [
        ["G1", "open"],
        ["G26", "calm"],
        ["G28", "calm"],
        ["G29", "open"],
        ["G30", "argued"],
    ]
    found = rows(dscript, case, *SCRIPTS)
    assert found["G28"]["responses"] == ["shop-memory/restart-shop", "shop-memory/call-owner"]
    assert found["G28"]["monitors"] == ["shop-memory/full"] and found["G28"]["time"] is None
    case.write_text(YAML.replace(", G29", "").replace("G29: {text: Nobody knows}\n", ""))
    assert dscript("coverage", "--case", case, *SCRIPTS)[0] == 0
    case.write_text(YAML.replace("G26", "G27"))
    status, _, said = dscript("coverage", "--case", case, *SCRIPTS)
    assert status == 1 and "shop-overload/put-back: unknown goal 'G26'" in said


@pytest.mark.parametrize("namespace", [OLD, NEW])
def test_models_of_the_editor_are_read(dscript, case, namespace):
    case.write_text(XML.format(namespace=namespace))
    found = rows(dscript, case, *SCRIPTS)
    assert [(row["goal"], row["depth"], row["state"]) for row in found.values()] == [
        ("G1", 0, "calm"),
        ("G26", 2, "calm"),
        ("G28", 2, "calm"),
        ("G30", 2, "argued"),
    ]
    assert found["G1"]["text"] == "The shop is open"


def test_a_goal_shows_what_the_journal_knows(dscript, case, tmp_path):
    journal(tmp_path)
    found = rows(dscript, case, *SCRIPTS)
    assert [found[goal]["state"] for goal in ("G26", "G28", "G1")] == ["raised", "failed", "failed"]
    assert (found["G26"]["type"], found["G26"]["id"]) == ("script.response.done", "done")  # the newest one


class Page(html.parser.HTMLParser):
    """The text of each paragraph by its class."""

    def __init__(self, text):
        super().__init__()
        self.found, self.here = {}, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.here = dict(attrs).get("class") if tag == "p" else self.here
        if tag == "p":
            self.found.setdefault(self.here, []).append("")

    def handle_data(self, data):
        if self.found:
            self.found[self.here][-1] += data


def test_the_page_has_each_node_in_the_colour_and_with_the_word_of_its_state(dscript, case, tmp_path):
    journal(tmp_path)
    text = dscript("coverage", "--case", case, "--html", *SCRIPTS)[1]
    found = Page(text).found
    assert [line.split()[1] for line in found["failed"]] == ["G1", "G28"]
    (put_back,) = found["raised"]
    assert put_back.startswith("raised G26 A release that is too slow <is> put back") and "&lt;is&gt;" in text
    assert "answered by shop-overload/put-back" in put_back and "script.response.done done" in put_back
    assert [line.strip() for line in found["context"]] == ["C1 2500 accesses a minute"] and "<script" not in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("G1: {text: x, supportedBy: [G9]}", "'G9', which is not there"),
        ("G1: {text: x, supportedBy: [G2]}\nG2: {text: y, supportedBy: [G1]}", "rests on itself"),
        ("G1: &a {text: x}\nG2: *a", "anchor"),
        ("S1: {text: x}", "no goal in it"),
        ("<a/>", "not a model of D-Case Editor"),
        ("<a", "not XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "a document type is not needed"),
        (XML.format(namespace=NEW).replace("#_26", "#_27"), "'LINK_2' has an end that is no node"),
        (XML.format(namespace=NEW).replace('"G26"', '"G28"'), "two nodes have one name"),
        ("G1: {text: x}\n" + "#" * 300_000, "longer than 256 KiB"),
    ],
)
def test_what_is_no_case_is_refused(dscript, case, text, said):
    case.write_text(text)
    status, out, error = dscript("coverage", "--case", case)
    assert (status, out) == (2, "") and said in error
