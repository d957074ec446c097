# SPDX-License-Identifier: Apache-2.0
"""Snapshots hold all that an app changed, and undo brings exactly that back; sha256sum and tar are the witnesses."""

import json
import os
import subprocess

import app_ground
import pytest
from app_ground import LXC, Ground

NAME = "t-undo"
DELTA = LXC / NAME / "delta"


@pytest.fixture
def app(run, settings, tmp_path):
    tree = app_ground.make_tree(tmp_path / "tree")
    (tree / "srv/old").mkdir(parents=True)
    (tree / "srv/old/file").write_text("of the tree\n")
    (tree / "srv/gone").write_text("to be deleted\n")
    with Ground(run, settings) as ground:
        before = app_ground.tree_digest(tree)
        ground("create", NAME, "--base", tree)
        ground("start", NAME)
        yield ground
        ground("destroy", "--force", NAME, code=0 if LXC.joinpath(NAME).exists() else 3)
        assert app_ground.tree_digest(tree) == before


def inside(app, script):
    return app("exec", NAME, "--", "sh", "-c", script)


def sha256sum(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def save(app, tag="good"):
    app("stop", NAME)
    app("snapshot", "save", NAME, tag)
    app("start", NAME)


def test_undo_brings_back_files_deletions_and_replaced_directories(app):
    inside(
        app, "rm /srv/gone; rm -r /srv/old; mkdir /srv/old; echo new >/srv/old/new; echo good >/state; ln -s x /link"
    )
    save(app)
    saved = json.loads(app("snapshot", "list", NAME, "--json"))
    assert list(saved) == ["tag", "created", "size", "digest", "scheduled", "description"]
    archive = app.place / "state/app/state" / NAME / "snapshot/good/delta.tar"
    assert (saved["digest"], saved["size"]) == (sha256sum(archive), archive.stat().st_size)
    assert app("digest", NAME) == saved["digest"]
    inside(app, "echo bad >/state; echo bad >/more; echo back >/srv/gone; rm -r /srv/old")
    assert app("digest", NAME) != saved["digest"]
    app("undo", NAME)
    assert app("status", NAME) == "running"
    assert app("digest", NAME) == saved["digest"]
    assert (
        inside(app, "cat /state; ls /srv /srv/old; test -e /more || echo none")
        == "good\n/srv:\nold\n\n/srv/old:\nnew\nnone"
    )
    assert os.getxattr(DELTA / "srv/old", "trusted.overlay.opaque") == b"y"
    app("undo", NAME, "good")  # the snapshot stays
    assert app.events()[-8:] == ["app.undo.accepted", "app.stopped", "app.started", "app.undone"] * 2


def test_undo_restores_the_limits_of_the_snapshot(app):
    app("limit", NAME, "--cpu", "90")
    save(app)
    app("limit", NAME, "--cpu", "10", "--pids", "30")
    app("undo", NAME)
    assert app("limit", NAME).splitlines()[0] == "cpu 90.0" and "pids none" in app("limit", NAME)


def test_bound_directories_outlive_an_undo(run, settings, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    with Ground(run, settings) as app:
        app("create", NAME, "--ip", "none", "--bind", f"{data}:/srv/data")
        app("snapshot", "save", NAME, "good")
        app("start", NAME)
        app("exec", NAME, "--", "sh", "-c", "echo order >/srv/data/orders")
        app("undo", NAME)
        assert app("exec", NAME, "--", "cat", "/srv/data/orders") == "order"
        app("destroy", "--force", NAME)
    assert (data / "orders").read_text() == "order\n"


def test_snapshots_need_a_stopped_app_and_a_free_tag(app):
    assert "it is running" in app("snapshot", "save", NAME, "good", code=1)
    app("stop", NAME)
    app("snapshot", "save", NAME, "good")
    assert "already" in app("snapshot", "save", NAME, "good", code=1)
    tag = app("snapshot", "save", NAME)
    assert [line.split()[0] for line in app("snapshot", "list", NAME).splitlines()] == ["good", tag]
    app("snapshot", "load", NAME, "good")
    app("snapshot", "load", NAME, "none", code=3)
    app("start", NAME)
    assert "it is running" in app("snapshot", "load", NAME, "good", code=1)
    app("snapshot", "delete", NAME, "good")
    app("snapshot", "delete", NAME, "good", code=3)
    app("undo", NAME, "good", code=3)
    app("snapshot", "save", NAME, "../x", code=2)
    assert json.loads(app("status", NAME, "--json"))["snapshots"] == [tag]


def test_undo_without_any_snapshot(app):
    assert "has no snapshot" in app("undo", NAME, code=3)
    assert app("status", NAME) == "running"


def test_damaged_snapshot_is_refused_and_the_app_runs_on(app):
    inside(app, "echo good >/state")
    save(app)
    inside(app, "echo later >/state")
    archive = app.place / "state/app/state" / NAME / "snapshot/good/delta.tar"
    with archive.open("r+b") as stream:
        stream.seek(600)
        stream.write(b"X")
    pid = json.loads(app("status", NAME, "--json"))["pid"]
    assert "is damaged" in app("undo", NAME, "good", code=1)
    assert json.loads(app("status", NAME, "--json"))["pid"] == pid
    assert inside(app, "cat /state") == "later"
    app("stop", NAME)
    assert "is damaged" in app("snapshot", "load", NAME, "good", code=1)
    app("start", NAME)
    assert inside(app, "cat /state") == "later"


def test_request_id_answers_as_the_first_time(app):
    save(app)
    app("undo", NAME, "good", "--request-id", "r1")
    inside(app, "echo after >/state")
    app("undo", NAME, "good", "--request-id", "r1")  # answered, not done
    assert inside(app, "cat /state") == "after"
    app("undo", NAME, "--request-id", "r1", code=2)
    app("limit", NAME, "--memory", "4K", "--request-id", "r2", code=1)
    app("stop", NAME)
    assert "in use" in app("limit", NAME, "--memory", "4K", "--request-id", "r2", code=1)
    first = app("snapshot", "save", NAME, "--request-id", "r3")
    assert app("snapshot", "save", NAME, "--request-id", "r3") == first


def test_intent_left_by_a_killed_undo_is_ended_by_recover(app):
    inside(app, "echo good >/state")
    save(app)
    inside(app, "echo bad >/state")
    intent = {"verb": "undo", "tag": "good", "stage": "load", "timeout": 1.0, "request": None}
    home = app.place / "state/app/state" / NAME
    (home / "intent.json").write_text(json.dumps(intent))
    app("recover")
    assert not (home / "intent.json").exists()
    assert inside(app, "cat /state") == "good"
