# SPDX-License-Identifier: Apache-2.0
"""`dscript why` answers from the journal alone: event, trust, monitors, guard, version, goal, action, outcome."""

import json
import subprocess

import pytest
from test_dscript import SCRIPT, Engine


@pytest.fixture
def past(run, tmp_path, settings):
    """An engine that has undone once, failed once, and is gone; its script and other files are, too."""
    config = settings()
    shop = tmp_path / "shop.yaml"
    shop.write_text(SCRIPT)
    digest = subprocess.run(["sha256sum", shop], capture_output=True, text=True).stdout.split()[0]
    one = Engine(tmp_path, config, shop)
    try:
        one.overload()
        one.wait(lambda: len(one.records("outcome")) == 3, "the undo")
        one.send("watch.cleared", {"script": "shop", "id": "slow"}, id="cleared")
        one.wait(lambda: len(one.records("outcome")) == 4, "the end")
        one.send("shop.overload", {"ids": "invented"}, spool=False, id="claim")
        one.wait(lambda: (tmp_path / "log/notify.log").exists(), "the notice")
    finally:
        one.stop()
    shop.unlink()
    return lambda *argv: run("dscript", "--config", config, "why", *argv), one, digest


def rows(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_by_run_request_and_event_the_same_run_is_told(past):
    why, one, digest = past
    intent = one.records("intent")[1]
    (row,) = rows(why("--json", intent["run"]))
    assert rows(why("--json", intent["request"])) == [row]
    assert rows(why("--json", "overload-raised")) == [row] == rows(why("--json", "rel"))[:1]
    assert (row["sha256"], row["goal"], row["script"], row["response"]) == (digest, "G26", "shop", "put-back")
    assert {item["id"]: item["proven"] for item in row["events"]} == {
        "rel": True,
        "raised": True,
        "overload-raised": True,
    }
    assert row["raised"] == ["slow"] and len(row["guard"]["put-back"]["attempts"]) == 1
    assert [(step["action"], step["phase"], step["outcome"]) for step in row["steps"]] == [
        ("limit", "act", "done"),
        ("undo", "act", "done"),
        ("limit", "revert", "done"),
    ]
    assert row["steps"][1]["argv"] == intent["argv"]
    assert (row["outcome"], row["restored"]) == ("done", True)


def test_a_person_reads_it(past):
    why, one, digest = past
    text = why(one.records("intent")[0]["run"]).stdout.decode()
    assert digest in text and "goal G26" in text
    for words in (
        "shop.overload overload-raised from /host:h/x (proven)",
        "raised then slow",
        "2 undo: done in ",
        "takes back  1 limit: done",
        'after: state=null why="web1: no such app"',
        "outcome     done, everything watched is clear",
    ):
        assert words in text, text


def test_a_claim_shows_its_doubt_and_that_nothing_was_touched(past):
    why, _, _ = past
    told = rows(why("--json", "claim"))
    assert {row["response"] for row in told} >= {"put-back"}
    refused = told[0]
    assert [item["doubt"] for item in refused["events"]][-1] == "event 'invented' is not in the intake's spool"
    assert refused["steps"] == [] and refused["outcome"] == "failed"
    assert "only claimed" in refused["told"][0]["reason"]


def test_an_event_without_consequence_and_an_unknown_id(past):
    why, _, _ = past
    (row,) = rows(why("--json", "cleared"))
    assert row["run"] is None and row["events"][0]["type"] == "watch.cleared"
    assert b"No response followed" in why("cleared").stdout
    done = why("nothing")
    assert done.returncode == 3 and b"knows no such event" in done.stderr
