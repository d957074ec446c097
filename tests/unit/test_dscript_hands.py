# SPDX-License-Identifier: Apache-2.0
"""What stays root does what is agreed and nothing else, whatever an engine that was taken over asks for."""

import json
import pathlib
import socket
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dscript"))

from dre import conf, event  # noqa: E402
from dre.errors import DreError, MissingError, TimedOutError  # noqa: E402
from dscriptlib import coprocess, hands, load, store, versions  # noqa: E402
from test_dscript_versions import person  # noqa: E402

TEXT = b"""\
dscript: 1
name: s
monitors: [{id: busy, watch: cpu, of: web1, above: 90%, clear: 70%}]
responses:
  - id: r
    when: busy
    steps:
      - {action: threshold, monitor: busy, above: 80%, clear: 60%}
      - {action: record, text: here}
      - {action: limit, of: web1, cpu: 50, revert: on-failure}
      - {action: restart, of: web1, revert: never}
      - {action: emit, type: shop.closed}
"""


class World:
    def __init__(self, made, tmp_path):
        self.conf, self.place = made, tmp_path
        self.script = self.deploy(TEXT)
        self.hands = hands.Hands(made, None, [])

    def deploy(self, octets):
        script = load.load(octets, "F")[0]
        versions.deploy(self.conf, script, octets, "")
        return script

    def ask(self, what, **values):
        ours, theirs = socket.socketpair()
        self.hands.answer(json.dumps({"what": what, **values}).encode(), theirs)
        return json.loads(ours.makefile().read())

    def step(self, step=1, phase="act", **changes):
        act = {"run": "0" * 16, "response": "r", "step": step, "phase": phase, "events": [], "former": None}
        named = {"script": "s", "sha256": self.script.sha256, "again": False, "about": None}
        return self.ask("step", **{**act, **named, **changes})


@pytest.fixture
def world(settings, tmp_path):
    return World(conf.load(settings()), tmp_path)


def test_a_step_that_is_agreed_is_done(world):
    assert world.step()["told"] == [{"type": "script.record", "data": {"text": "here"}, "sev": 6}]
    assert world.step(0)["error"] is None
    assert store.thresholds(world.conf, "s") == {"busy": {"above": "80%", "clear": "60%"}}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"sha256": "0" * 64}, "never in force"),
        ({"sha256": "../../../../etc/passwd"}, "never in force"),
        ({"script": "../s"}, "'../s'"),
        ({"script": "other"}, "never in force"),
        ({"response": "other"}, "other"),
        ({"step": 99}, "IndexError"),
        ({"step": -1}, "not a phase"),
        ({"step": True}, "not a phase"),
        ({"phase": "exec"}, "not a phase"),
        ({"run": "x; id"}, "not a phase"),
        ({"phase": "revert", "step": 3}, "never taken back"),
        ({"phase": "revert", "step": 2, "former": {"cpu": "--memory"}}, "was never read"),
        ({"phase": "revert", "step": 2, "former": {"cpu": "9 --pids 1"}}, "was never read"),
        ({"phase": "revert", "step": 0, "former": {"above": "1%", "clear": "9%"}}, "never be clear"),
        ({"events": None}, "TypeError"),
    ],
)
def test_what_is_not_agreed_is_refused(world, changes, why):
    answer = world.step(**changes)
    assert why in answer["error"], answer
    assert store.thresholds(world.conf, "s") == {}


def test_a_version_that_waits_or_was_altered_is_refused_and_an_earlier_one_is_ended(world):
    other = TEXT.replace(b"here", b"there")
    script = load.load(other, "F")[0]
    store.keep(world.conf, script, other)
    assert "never in force" in world.step(sha256=script.sha256)["error"]
    world.deploy(other)
    assert world.step(sha256=script.sha256)["error"] is None and world.step()["error"] is None
    third = TEXT.replace(b"here", b"nowhere")
    world.script = world.deploy(third)
    (world.place / f"state/script/versions/{world.script.sha256}.yaml").write_bytes(TEXT.replace(b"here", b"evil"))
    assert "there is no version" in world.step()["error"]


def test_once_persons_are_registered_what_they_have_not_signed_can_only_be_taken_back(world):
    person(world.conf, "ann", "author")
    assert "is not signed by two persons" in world.step(0)["error"]
    assert store.thresholds(world.conf, "s") == {} and world.step()["error"] is None  # a person may be told
    assert "is not signed by two persons" in world.ask("watch", script="s", sha256=world.script.sha256)["error"]
    assert world.step(0, "revert", former={})["error"] is None


def line(type, **more):
    made = event.Event(event.stamp(), "/host:h", type, 5, {}, more)
    return event.format(made).decode().rstrip("\n")


def test_only_its_own_events_and_those_of_agreed_steps_are_sent(world):
    assert world.ask("send", line=line("script.action.done")) == world.ask("send", line=line("shop.closed")) == {}
    (spool,) = (world.place / "state/spool/event").glob("emitted*.jsonl")  # each user has one of its own
    told = [json.loads(text)["type"] for text in spool.open()]
    assert told[-2:] == ["script.action.done", "shop.closed"]
    for bad in (line("app.started"), line("shop.overload"), line("scripts.x")):
        assert "no script in force emits it" in world.ask("send", line=bad)["error"]
    assert "not an event line" in world.ask("send", line="{}\n" + line("script.x"))["error"]
    assert "not an event line" in world.ask("record", line="x" * 5000)["error"]
    assert "KeyError" in world.ask("shell")["error"]


PROGRAM = """#!/usr/bin/python3
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    with open({told!r}, "a") as told:
        told.write(f"{{asked['deadline']}} {{' '.join(asked['argv'])}} {{' '.join(sys.argv[1:])}}\\n")
    word = asked["argv"][0]
    if word == "die" and not os.path.exists({dead!r}):
        open({dead!r}, "w").close()
        os._exit(9)
    code = {{"fail": 3, "late": 5}}.get(word, 0)
    rows = [{{"a": 1}}] if word == "row" else []
    print(json.dumps({{"id": asked["id"], "code": code, "rows": rows, "error": "why" if code else ""}}), flush=True)
"""


def test_a_process_that_is_killed_is_asked_again_and_one_that_is_free_goes_on(tmp_path, monkeypatch):
    program, told = tmp_path / "dre-app", tmp_path / "told"
    program.write_text(PROGRAM.format(told=str(told), dead=str(tmp_path / "dead")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    pool = coprocess.Pool(["--config", "c"])
    may = coprocess.Allowed(frozenset({"stop", "limit"}), frozenset({"b", "a"}))
    try:
        assert pool.call("dre-app", may, ["row", "a"], 1e6) == b'{"a": 1}\n'
        (free,) = pool.free
        with pytest.raises(DreError, match="dre-app fail a: exit status 3: why"):
            pool.call("dre-app", may, ["fail", "a"], 5)
        with pytest.raises(TimedOutError):
            pool.call("dre-app", may, ["late", "a"], 5)
        assert pool.free == [free]
        assert pool.call("dre-app", may, ["die", "a"], 5) == b"" and pool.free != [free]
        pool.call("dre-app", coprocess.Allowed(frozenset({"stop"}), frozenset({"a"})), ["stop", "a"], 5)
        assert len(pool.free) == 1  # what was held to other scripts has ended
    finally:
        for one in pool.free:
            one.end()
    lines = told.read_text().splitlines()
    held = "--config c --serve --allow limit,stop --names a,b"
    assert lines[0] == f"86400.0 row a {held}" and [line.split()[1] for line in lines[-3:]] == ["die", "die", "stop"]
    with pytest.raises(MissingError):
        pool.call("dre-sys", may, ["row", "a"], 5)


def test_a_program_is_held_to_the_verbs_and_names_of_the_scripts():
    steps = """
      - {action: limit, of: a, cpu: 50}
      - {action: stop, of: b, revert: when-clear}
      - {action: snapshot, of: c}
      - {action: migrate, of: d, to: h2, as: e, copy-storage: yes}
      - {action: undo, system: f}
      - {action: isolate, system: g}
"""
    text = f"dscript: 1\nname: x\nresponses:\n  - id: r\n    when: {{event: a.b}}\n    steps: {steps}"
    script = load.load(text.replace(", revert: when-clear", "").encode(), "F")[0]
    may = coprocess.allowed([script], "dre-app")
    assert may.verbs == {"limit", "stop", "start", "snapshot save", "migrate"}
    assert may.names == {"a", "b", "c", "d", "e"}
    assert coprocess.allowed([script], "dre-sys").verbs == {"undo", "isolate", "rejoin"}
