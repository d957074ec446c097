# SPDX-License-Identifier: Apache-2.0
"""A simulation decides as the engine did, to the octet; and about event lines it shows what would come."""

import json
import zlib

import pytest
from test_dscript import SCRIPT as SHOP
from test_dscript import Engine

SCRIPT = SHOP.replace(
    "      - {action: limit",
    "      - {action: ask, to: operator, text: really, default: refuse, timeout: 1h}\n      - {action: limit",
).replace("monitors:", "monitors:\n  - {id: twice, watch: event, type: shop.overload, count: 2, within: 10s}")
SCRIPT += "  - {id: note, when: [twice], steps: [{action: record, text: twice}, {action: notify, to: owner}]}\n"


@pytest.fixture
def recorded(run, tmp_path, settings):
    """The journal of a run with a question, a kill, a restart, a window that ends by time, and a failed undo."""
    config = settings()
    shop = tmp_path / "shop.yaml"
    shop.write_text(SCRIPT)
    one = Engine(tmp_path, config, shop)
    try:
        one.overload()
        (asked,) = one.wait(lambda: [record for record in one.records("intent") if record["action"] == "ask"], "it")
        one.wait(lambda: one.records("outcome"), "the question")
        assert run("dscript", "--config", config, "approve", asked["request"]).returncode == 0
        one.wait(lambda: any(record["action"] == "undo" for record in one.records("intent")), "the undo")
        one.process.kill()
        one.process.communicate()
        (tmp_path / "calls.fail").touch()
        one = Engine(tmp_path, config, shop)
        one.send("watch.cleared", {"script": "shop", "id": "slow", "value": 0.1}, id="cleared")
        one.send("shop.overload", {"ids": "rel"}, id="again", spool=True)
        one.send("shop.overload", {"ids": "rel"}, id="third", spool=True)
        one.wait(lambda: "twice" in str(one.records("tell")), "the window")
        one.wait(lambda: one.records("tick"), "the time")
    finally:
        one.stop()
    return config, tmp_path / "state/script/journal", one


def printed(run, config, *argv, code=0):
    done = run("dscript", "--config", config, "simulate", "--json", *argv)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_recorded_run_is_decided_again_to_the_octet_and_what_is_not_it_is_told(run, recorded, tmp_path):
    config, journal, one = recorded
    decided = []
    for kind in ("event", "outcome", "answer", "tick"):
        decided += [record for record in one.records(kind)]
    decided.sort(key=lambda record: record["n"])
    assert {record["kind"] for record in decided if record["decided"].get("shop")} >= {"event", "outcome", "answer"}
    live = [json.dumps(command) for record in decided for command in record["decided"].get("shop", [])]
    shown = printed(run, config, "--events", journal)
    for row in shown:
        for key in ("time", "script", "argv", "text") if row["command"] == "act" else ("time", "script"):
            del row[key]
    assert [json.dumps(row) for row in shown] == live and len(live) > 8
    files = list(journal.glob("*.log"))
    assert printed(run, config, "--events", files[0]) == printed(run, config, "--events", journal)
    other = tmp_path / "other.yaml"
    other.write_text(SCRIPT.replace("text: really", "text: otherwise"))
    assert any("otherwise" in row.get("text", "") for row in printed(run, config, "--events", journal, other))
    alter(*files)
    done = run("dscript", "--config", config, "simulate", "--events", journal)
    assert done.returncode == 1 and b"the recorded run decided otherwise" in done.stderr


def alter(file):
    """Have the journal tell of another decision than was taken."""
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines):
        if b'"phase":"act"' in line and b'"decided"' in line:
            body = line[9:].replace(b'"phase":"act"', b'"phase":"revert"')
            lines[number] = b"%08x %s" % (zlib.crc32(body), body)
            break
    file.write_bytes(b"\n".join(lines) + b"\n")


EVENTS = """\
{"time":"2026-11-23T08:00:00.000Z","source":"/host:h","type":"shop.release","sev":5,"data":{},"id":"r"}
{"time":"2026-11-23T08:00:05.000Z","source":"/host:h","type":"shop.overload","sev":4,"data":{"ids":"r"},"id":"o"}
"""


def test_event_lines_show_actions_in_order_failures_and_answers(run, tmp_path, settings):
    (tmp_path / "shop.yaml").write_text(SHOP)
    (tmp_path / "events").write_text(EVENTS)
    argv = ("--events", tmp_path / "events", tmp_path / "shop.yaml")
    acts = [row["argv"] for row in printed(run, settings(), *argv) if row["command"] == "act"]
    words = [" ".join(argv[1:4]) for argv in acts]
    assert words == ["limit web1 --json", "limit web1 --cpu", "undo web1 good", "limit web1 --cpu"]
    failed = run("dscript", "--config", settings(), "simulate", *argv, "--fail", "undo").stdout.decode()
    assert "shop/call-owner: 1. Tell owner.\n" in failed and failed.startswith("2026-11-23T08:00:05.000Z shop/put-back")
    (tmp_path / "events").write_text(EVENTS.replace('"id":"r"}', '"id":"r","claimed":true}'))
    claimed = run("dscript", "--config", settings(), "simulate", *argv).stdout.decode()
    assert "limit may not rest on an event that is only claimed" in claimed and "1. Limit" not in claimed
    (tmp_path / "shop.yaml").write_text(SCRIPT)
    (tmp_path / "events").write_text(EVENTS)
    for words, result in (
        ((), "by=None"),
        (("--answer", "approve"), "Put the app web1 back"),
        (("--answer", "refuse"), "re"),
    ):
        assert result in run("dscript", "--config", settings(), "simulate", *argv, *words).stdout.decode()
    assert not (tmp_path / "state/script").exists()


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("--events", "/none"), 3, "no such file"),
        ((), 2, "--events"),
        (("--events", "/etc/hostname"), 2, "/etc/hostname:1: "),
        (("--events", "/dev/null", "--fail", "reboot"), 2, "unknown action"),
    ],
)
def test_mistakes_of_the_caller(run, settings, argv, code, words):
    done = run("dscript", "--config", settings(), "simulate", *argv)
    assert done.returncode == code and words in done.stderr.decode() and b"Traceback" not in done.stderr
