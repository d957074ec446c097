# SPDX-License-Identifier: Apache-2.0
"""Files of ours that somebody has damaged: one line that names the file, nothing lost, and other apps go on."""

import json
import os

import pytest
from conftest import restored

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dre-app makes overlays and devices")
DEEP = "[" * 100_000
BROKEN = ["", "{", "[]", "null", '{"x": 1}', pytest.param(DEEP, id="deep")]


@pytest.fixture
def tmp_path(module_path):
    """What each test begins with is made once and brought back."""
    return module_path


@pytest.fixture
def app(app, tmp_path):
    def make():
        for name in ("web1", "web2"):
            app("create", name, "--base", tmp_path / "tree", "--ip", "none")
            app("snapshot", "save", name, "good")

    restored(tmp_path, make)
    return app


@pytest.fixture
def home(app, tmp_path):
    return tmp_path / "state/app/state/web1"


@pytest.mark.parametrize("text", BROKEN)
def test_app_json(app, home, text):
    (home / "app.json").write_text(text)
    assert app("set", "web1", code=1).startswith(f"dre-app: {home}/app.json: damaged: ")
    assert app("list").startswith("web1 ")
    assert len(app("list").splitlines()) == 2


@pytest.mark.parametrize("text", BROKEN)
def test_intent(app, home, text):
    (home / "intent.json").write_text(text)
    for argv in (("start", "web1"), ("undo", "web1"), ("status", "web1")):
        assert app(*argv, code=1).startswith(f"dre-app: {home}/intent.json: damaged: ")
    assert app("list").split()[:2] == ["web1", "partial"]
    app("destroy", "--force", "web1")
    assert not home.exists()


def test_recover_and_autostart_go_on_with_the_others(app, home, tmp_path):
    (home / "intent.json").write_text("{")
    other = tmp_path / "state/app/state/web2"
    (other / "intent.json").write_text(json.dumps({"verb": "isolate", "isolated": False}))
    for verb in ("recover", "autostart"):
        assert f"{home}/intent.json: damaged" in app(verb, code=1)
        assert not (other / "intent.json").exists()
        (other / "intent.json").write_text(json.dumps({"verb": "isolate", "isolated": False}))


@pytest.mark.parametrize("text", BROKEN)
def test_snapshot(app, home, text):
    (home / "snapshot/good/meta.json").write_text(text)
    for argv in (("snapshot", "list", "web1"), ("snapshot", "load", "web1", "good"), ("undo", "web1")):
        assert app(*argv, code=1).startswith(f"dre-app: {home}/snapshot/good/meta.json: damaged: ")
    app("snapshot", "delete", "web1", "good")
    assert app("snapshot", "list", "web1") == ""


def test_an_app_without_app_json_is_not_taken_for_half_made(app, home, tmp_path):
    """A disk check may take that file alone; the rest is all that its owner has."""
    (home / "app.json").rename(tmp_path / "kept")
    delta = tmp_path / "lxc/web1/delta"
    (delta / "data").write_text("all I have")
    for argv in (("start", "web1"), ("status", "web1"), ("recover",), ("create", "web1"), ("undo", "web1")):
        assert f"{home}/app.json: missing" in app(*argv, code=1)
    assert (delta / "data").exists() and (home / "snapshot/good/delta.tar").exists()
    (tmp_path / "kept").rename(home / "app.json")
    app("snapshot", "load", "web1", "good")
    (home / "app.json").unlink()
    app("destroy", "web1", code=3)
    assert not home.exists() and not delta.exists()


def test_what_lxc_destroy_left_can_be_destroyed(app, home, tmp_path):
    (tmp_path / "lxc/web1").rename(tmp_path / "gone")
    assert app("list").split()[:2] == ["web1", "partial"]
    app("start", "web1", code=3)
    app("destroy", "web1")
    assert not home.exists() and "web1" not in app("list")
    app("destroy", "web1", code=3)
