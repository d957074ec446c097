# SPDX-License-Identifier: Apache-2.0
"""dre-rules install, rollback, history, propose, pending, approve and reject, as people at a terminal use them."""

import json
import os

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as rules do")
RULE = "type=Single\nptype=SubStr\npattern={}\ndesc=x\naction=write %script x\n"


@pytest.fixture
def rules(run, settings, tmp_path, monkeypatch):
    """rules(ARG…, by="ann", code=0): what it printed, or said when it failed; rules.file(NAME, TEXT): a file."""
    (tmp_path / "etc/rules.d").mkdir(parents=True)
    monkeypatch.delenv("SUDO_USER", raising=False)
    keys = {"DRE_MONITOR_CORRELATOR": "dre"}  # sec is asked in the system ring

    def call(*argv, by="ann", code=0):
        prefix = ["env", f"SUDO_USER={by}"]
        done = run("dre-rules", *argv, "--config", settings(**keys), prefix=prefix)
        assert done.returncode == code and b"Traceback" not in done.stderr, (argv, done.returncode, done.stderr)
        return (done.stdout + done.stderr if code else done.stdout).decode()

    def file(name, word):
        (tmp_path / name).write_text(RULE.format(word))
        return tmp_path / name

    call.keys, call.file = keys, file
    call.here = lambda: {path.name: path.read_text() for path in (tmp_path / "etc/rules.d").glob("*")}
    return call


def test_installed_replaced_removed_and_back(rules):
    one = rules.file("one.sec", "a")
    rules("install", one, rules.file("two.sec", "b"), "--note", "first")
    assert rules.here() == {"one.sec": RULE.format("a"), "two.sec": RULE.format("b")}
    rules("install", rules.file("one.sec", "c"), "--remove", "two.sec", "--quiet")
    assert rules.here() == {"one.sec": RULE.format("c")}
    rules("rollback", "--quiet")
    assert rules.here() == {"one.sec": RULE.format("a"), "two.sec": RULE.format("b")}
    rules("rollback", "1")
    assert rules.here() == {}
    rows = [line.split("\t") for line in rules("history").splitlines()]
    assert [(row[0], *row[3:]) for row in rows[1:]] == [
        ("2", "install", "ann", "first"),
        ("3", "install", "ann"),
        ("4", "rollback", "ann", "to 2"),
        ("5", "rollback", "ann", "to 1"),
    ]
    assert [json.loads(line)["number"] for line in rules("history", "--json").splitlines()] == [1, 2, 3, 4, 5]


def test_what_is_not_acceptable_changes_nothing(rules):
    rules("install", rules.file("one.sec", "a"))
    bad = rules.file("bad.sec", "b")
    bad.write_text(RULE.format("b").replace("write %script x", "shellcmd id"))
    assert f"{bad}:5: " in rules("install", bad, code=1)
    assert f"{bad}:5: " in rules("propose", bad, code=1)
    odd = rules.file("odd.txt", "b")
    for words in ((), (odd,), ("/nonexistent.sec",), ("--remove", "two.sec"), (bad, bad)):
        rules("install", *words, code=2)
    rules("rollback", "9", code=3)
    rules("rollback", "x", code=2)
    assert rules.here() == {"one.sec": RULE.format("a")}
    assert len(rules("history").splitlines()) == 2


def test_with_four_eyes_nobody_is_alone(rules):
    rules.keys["DRE_MONITOR_FOUR_EYES"] = "yes"
    one = rules.file("one.sec", "a")
    assert "second person" in rules("install", one, code=4)
    identity = rules("propose", one, "--note", "for\tthe shop").strip()
    assert rules("pending").split("\t")[2:4] == ["ann", "+one.sec"]
    assert json.loads(rules("pending", "--json"))["changes"] == ["+one.sec"]
    assert "ann proposed it" in rules("approve", identity, code=4)
    assert rules.here() == {}
    rules("approve", identity, by="bob")
    assert rules.here() == {"one.sec": RULE.format("a")}
    assert rules("pending") == ""
    last = json.loads(rules("history", "--json").splitlines()[-1])
    assert (last["how"], last["by"], last["note"]) == ("approve", "bob", "ann: for\tthe shop")
    rules("approve", identity, by="bob", code=3)
    other = rules("propose", rules.file("one.sec", "b")).strip()
    rules("reject", other, by="bob")
    rules("reject", other, code=3)
    assert rules.here() == {"one.sec": RULE.format("a")}
