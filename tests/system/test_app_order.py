# SPDX-License-Identifier: Apache-2.0
"""--after and --autostart: what starts with the system, in which order, and that the end of the system stops all."""

import json

import app_ground
import pytest
from app_ground import LXC, Ground, picture, wait_for

PREFIX = "t-order"
WEB, DB, LOG, LONE = (f"{PREFIX}-{which}" for which in ("a-web", "b-db", "c-log", "d-lone"))


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        tree = app_ground.make_tree(tmp_path / "tree")

        def create(name, *options):
            ground("create", name, "--base", tree, "--ip", "none", *options)

        ground.create = create
        yield ground


def states(app):
    return {line.split()[0]: line.split()[1] for line in app("list").splitlines()}


def told(app, what):
    """The apps of which *what* was told, in that order."""
    lines = (app.place / "state/spool/event/emitted.jsonl").read_text().splitlines()
    return [row["data"]["name"] for row in map(json.loads, lines) if row["type"] == f"app.{what}"]


def test_started_with_the_system_in_order_and_stopped_in_the_reverse(app):
    before = picture(PREFIX)
    app.create(LOG)
    app.create(DB, "--after", LOG)
    app.create(WEB, "--after", f"{DB},{LOG}", "--autostart")
    app.create(LONE)
    app("autostart")
    assert states(app) == {WEB: "running", DB: "running", LOG: "running", LONE: "stopped"}
    assert told(app, "started") == [LOG, DB, WEB]
    app("start", LONE)
    app("freeze", DB)
    app("autostop")
    assert set(states(app).values()) == {"stopped"}
    stopped = told(app, "stopped")
    assert stopped.index(WEB) < stopped.index(DB) < stopped.index(LOG)
    assert picture(PREFIX)["mounts"] == before["mounts"]
    app("autostop")
    app("start", DB)
    assert states(app) == {WEB: "stopped", DB: "running", LOG: "running", LONE: "stopped"}
    app("set", LONE, "autostart=yes")
    app("set", WEB, "autostart=no")
    app("autostart")
    assert states(app) == {WEB: "stopped", DB: "running", LOG: "running", LONE: "running"}


def test_what_it_is_after_fails_and_so_it_is_not_started(app):
    data = app.place / "data"
    data.mkdir()
    app.create(DB, "--bind", f"{data}:/data")
    app.create(WEB, "--after", DB, "--autostart")
    app.create(LONE, "--autostart")
    data.rmdir()
    assert f"{DB}: cannot start" in app("autostart", code=1)
    assert states(app) == {WEB: "stopped", DB: "stopped", LONE: "running"}
    assert f"{WEB}: not started, for {DB} was not" in app("start", WEB, code=1)


def test_a_circle_and_unknown_names_are_refused(app):
    app.create(LOG)
    app.create(DB, "--after", LOG)
    app.create(WEB, "--after", DB)
    assert f"{LOG}: is after itself: {LOG} after {WEB} after {DB} after {LOG}" in app(
        "set", LOG, f"after={WEB}", code=2
    )
    assert "is after itself" in app("set", LOG, f"after={LOG}", code=2)
    assert "no such app" in app("set", LOG, f"after={LONE}", code=3)
    assert "no such app" in app("create", LONE, "--after", "t-nobody", code=3)
    assert "is after itself" in app("create", LONE, "--after", LONE, code=2)
    assert "is not a name" in app("create", LONE, "--after", "../x", code=2)
    assert LONE not in states(app)
    assert json.loads(app("set", LOG, "--json"))["after"] == []
    app("set", DB, "after=")
    app("set", LOG, f"after={WEB}")


def test_what_others_are_after_is_not_destroyed_unasked(app):
    app.create(DB)
    app.create(WEB, "--after", DB)
    assert f"{WEB} is after it" in app("destroy", DB, code=1)
    assert states(app) == {WEB: "stopped", DB: "stopped"}
    app("destroy", "--force", DB)
    assert f"{DB}: no such app" in app("start", WEB, code=3)
    app("set", WEB, "after=")
    app("start", WEB)
    app.create(DB)
    app("set", WEB, f"after={DB}")  # of a running one: nothing to wait for
    app("destroy", "--force", WEB, DB)
    assert states(app) == {}


def test_lxc_does_not_start_them_too(app):
    app.create(LONE, "--autostart")
    text = (LXC / LONE / "config").read_text()
    assert "lxc.start.auto" not in text
    app("autostart")
    assert wait_for(lambda: states(app)[LONE] == "running", timeout=60)
