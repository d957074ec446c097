# SPDX-License-Identifier: Apache-2.0
"""set: what is done to a running app is done for all keys or none, and again when it was killed."""

import json
import sys

import pytest
from dre import app, recovery, setting, spec
from dre.conf import Conf
from dre.errors import DreError

DONE = []


def act(app, old, new):
    DONE.append((old.env, new.env))
    if new.env.get("FAIL"):
        raise DreError("cannot")


def check(app, wanted):
    if "BAD" in wanted.env:
        raise DreError("bad")
    return wanted


@pytest.fixture
def web1(tmp_path, monkeypatch):
    DONE.clear()
    conf = Conf(core_state_dir=tmp_path, app_lxc_path=tmp_path / "lxc", core_run_dir=tmp_path / "run")
    made = app.App(conf, "web1")
    made.home.mkdir(parents=True)
    made.directory.mkdir(parents=True)
    monkeypatch.setattr(app.App, "state", lambda self: "running")
    monkeypatch.setattr(app.App, "refresh", lambda self, spec: (self.directory / "config").touch())
    made.store(spec.Spec(name="web1", base="host", created="x", env={"A": "1"}))
    return made


def live(monkeypatch, key="env", **changes):
    here = __name__
    sys.modules.setdefault(here, sys.modules[__name__])
    changed = {name: f"{here}:{value}" if value != spec.REFUSED else value for name, value in changes.items()}
    monkeypatch.setitem(spec.PROPERTIES, key, spec.replace(spec.PROPERTIES[key], **changed))


def test_without_a_hook_it_waits_for_the_next_start(web1):
    assert setting.change(web1, {"env": {"A": "2"}}) == ["env"]
    assert (web1.spec().env, DONE, web1.intent()) == ({"A": "2"}, [], None)
    assert setting.change(web1, {"env": {"A": "2"}}) == []


def test_a_hook_is_called_with_old_and_new(web1, monkeypatch):
    live(monkeypatch, live="act")
    assert setting.change(web1, {"env": {"A": "2"}}) == []
    assert DONE == [({"A": "1"}, {"A": "2"})]


def test_a_hook_that_fails_leaves_all_as_it_was(web1, monkeypatch):
    live(monkeypatch, live="act")
    with pytest.raises(DreError, match="cannot"):
        setting.change(web1, {"env": {"FAIL": "1"}, "command": ("x",)})
    assert (web1.spec().env, web1.spec().command, web1.intent()) == ({"A": "1"}, (), None)
    assert DONE[-1] == ({"FAIL": "1"}, {"A": "1"})


def test_refused_while_it_runs(web1, monkeypatch):
    live(monkeypatch, live=spec.REFUSED)
    with pytest.raises(DreError, match="env cannot change while it runs"):
        setting.change(web1, {"env": {"A": "2"}, "command": ("x",)})
    assert (web1.spec().env, web1.spec().command, web1.intent()) == ({"A": "1"}, (), None)


def test_a_check_refuses_before_anything_is_changed(web1, monkeypatch):
    live(monkeypatch, check="check", live="act")
    with pytest.raises(DreError, match="bad"):
        setting.change(web1, {"env": {"BAD": "1"}})
    assert (web1.spec().env, DONE, web1.intent()) == ({"A": "1"}, [], None)


def test_killed_after_its_intent_it_is_ended_by_the_next_verb(web1, monkeypatch):
    live(monkeypatch, live="act")
    with monkeypatch.context() as killed:
        killed.setattr(app.App, "store", lambda self, spec: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            setting.change(web1, {"env": {"A": "2"}})
    assert (json.loads((web1.home / "app.json").read_text())["env"], DONE) == ({"A": "1"}, [])
    assert recovery.settle(web1) == "set"
    assert (web1.spec().env, DONE, web1.intent()) == ({"A": "2"}, [({"A": "1"}, {"A": "2"})], None)


@pytest.mark.parametrize("word", ["true", "1", "", "YES"])
def test_a_flag_takes_yes_or_no(word):
    with pytest.raises(DreError, match="expected yes or no"):
        spec.yes(word)
