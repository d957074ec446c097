# SPDX-License-Identifier: Apache-2.0
"""dre-app set: what it prints can be given back to it, and what is wrong changes nothing."""

import json
import os
import shlex

import pytest
from conftest import restored

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dre-app makes overlays and devices")


@pytest.fixture
def tmp_path(module_path):
    """What each test begins with is made once and brought back."""
    return module_path


@pytest.fixture
def app(app, tmp_path):
    (tmp_path / "data").mkdir(exist_ok=True)
    words = ("--env", "A=1", "--env", "B=two words", "--", "httpd", "-f", "a b")
    restored(tmp_path, lambda: app("create", "web1", *words))
    return app


def lines(text, key):
    return [line.partition(" ")[2] for line in text.splitlines() if line.startswith(f"{key} ")]


def test_print_set_print(app, tmp_path):
    text = app("set", "web1")
    assert (lines(text, "env"), lines(text, "bind")) == (["A=1", "B=two words"], ["-"])
    assert shlex.split(lines(text, "command")[0]) == ["httpd", "-f", "a b"]
    app("set", "web1", "env=C=3", f"bind={tmp_path}/data:/data:ro", f"bind={tmp_path}/data:/more", "--", "idler")
    row = json.loads(app("set", "web1", "--json"))
    assert (row["env"], row["command"]) == (["C=3"], ["idler"])
    assert row["bind"] == [f"{tmp_path}/data:/data:ro", f"{tmp_path}/data:/more"]
    config = (tmp_path / "lxc/web1/config").read_text()
    assert "lxc.environment = C=3\n" in config and "A=1" not in config
    assert (tmp_path / "lxc/web1/command").read_text().endswith("exec idler\n")
    app("set", "web1", *(f"bind={word}" for word in row["bind"]))
    app("set", "web1", "env=", "command=")
    row = json.loads(app("set", "web1", "--json"))
    assert (row["env"], row["command"], len(row["bind"])) == ([], [], 2)
    spool = (tmp_path / "state/spool/event/emitted.jsonl").read_text().splitlines()
    told = [json.loads(line)["data"]["keys"] for line in spool if '"app.set"' in line]
    assert told == [["env", "bind", "command"], ["env", "command"]], "the set that changed nothing is no event"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("colour=red",), "expected key=value; keys are"),
        (("env",), "expected key=value"),
        (("env=C=3", "bind=/no/such:/x"), "does not exist"),
        (("env=C=3", "env=x\ny"), "expected NAME=VALUE"),
        (("env=C=a\nlxc.hook.start = /x",), "control characters"),
        (("command=rm",), "keys are"),
        (("command=", "--", "x"), "given twice"),
    ],
)
def test_wrong_words_change_nothing(app, tmp_path, words, reason):
    before = (tmp_path / "lxc/web1/config").read_text(), app("set", "web1")
    assert reason in app("set", "web1", *words, code=2)
    assert before == ((tmp_path / "lxc/web1/config").read_text(), app("set", "web1"))


def test_unknown_app(app):
    assert app("set", "nope", code=3) == "dre-app: nope: no such app\n"
    assert app("set", "nope", "env=A=1", code=3) == "dre-app: nope: no such app\n"
