# SPDX-License-Identifier: Apache-2.0
"""Snapshots of apps that never run: descriptions, pruning, the schedule, and bases that have changed."""

import json
import os

import pytest
from conftest import restored

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dre-app makes overlays and devices")


@pytest.fixture
def tmp_path(module_path):
    """What each test begins with is made once and brought back."""
    return module_path


@pytest.fixture
def app(app, tmp_path):
    restored(tmp_path, lambda: app("create", "web1", "--base", tmp_path / "tree", "--ip", "none"))
    return app


def tags(app):
    return [line.split()[0] for line in app("snapshot", "list", "web1").splitlines()]


def meta(tmp_path, tag, **changes):
    path = tmp_path / "state/app/state/web1/snapshot" / tag / "meta.json"
    found = json.loads(path.read_text())
    if changes:
        path.write_text(json.dumps(found | changes))
    return found


def test_description(app):
    app("snapshot", "save", "web1", "good", "--description", "before 2.0: Müller")
    assert app("snapshot", "list", "web1").endswith("  before 2.0: Müller\n")
    app("snapshot", "save", "web1", "bad", "--description", "a\nb", code=2)
    app("snapshot", "save", "web1", "bad", "--description", "x" * 201, code=2)
    assert tags(app) == ["good"]


def test_prune(app):
    for tag in ("a", "d", "b", "c"):
        app("snapshot", "save", "web1", tag)
    assert app("snapshot", "prune", "web1", "--keep", "2") == "web1 a\nweb1 d\n"
    assert tags(app) == ["b", "c"]
    assert app("snapshot", "prune", "web1", "--keep", "2") == ""
    assert "not a number above 0" in app("snapshot", "prune", "web1", "--keep", "0", code=2)
    assert "--keep" in app("snapshot", "prune", "web1", code=2)
    app("snapshot", "prune", "nope", "--keep", "1", code=3)


def test_schedule(app, tmp_path):
    assert app("snapshot", "run") == ""
    app("set", "web1", "snapshot-every=1h", "snapshot-keep=2")
    app("snapshot", "save", "web1", "good")
    made = []
    for _ in range(3):
        made.append(app("snapshot", "run").removeprefix("web1 ").strip())
        assert app("snapshot", "run") == ""  # not due again
        meta(tmp_path, made[-1], created="2026-01-01T00:00:00.000Z")
    assert tags(app) == ["good", *made[1:]]  # what a person saved is never touched
    listed = [json.loads(line) for line in app("snapshot", "list", "web1", "--json").splitlines()]
    assert [row["scheduled"] for row in listed] == [False, True, True]
    app("set", "web1", "snapshot-every=none")
    assert app("snapshot", "run") == ""


@pytest.mark.parametrize("word", ["snapshot-every=1m", "snapshot-every=soon", "snapshot-keep=0", "snapshot-keep=x"])
def test_schedule_that_cannot_be(app, word):
    app("set", "web1", word, code=2)


def test_changed_tree_is_refused_unless_told(app, tmp_path):
    app("snapshot", "save", "web1", "good")
    app("snapshot", "load", "web1", "good")
    (tmp_path / "tree/bin/added").touch()
    (tmp_path / "tree/etc").mkdir()
    text = app("snapshot", "load", "web1", "good", code=1)
    assert f"its base {tmp_path}/tree has changed since snapshot good: its files are others" in text
    assert "has changed" in app("undo", "web1", "good", code=1)
    assert "going on" in app("snapshot", "load", "web1", "good", "--changed-base", stderr=True)


def test_what_changed_in_a_tree_of_packages_is_named(app, tmp_path):
    (tmp_path / "tree/etc").mkdir()
    (tmp_path / "tree/var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "tree/etc/dre-base.json").write_text("{}")
    status = tmp_path / "tree/var/lib/dpkg/status"
    block = "Package: {}\nStatus: {} ok installed\nArchitecture: all\nDescription: x\n Package: y\nVersion: {}\n\n"
    status.write_text(block.format("a", "install", "1") + block.format("b", "hold", "2"))
    app("snapshot", "save", "web1", "good")
    assert meta(tmp_path, "good")["base"]["packages"] == {"a:all": "1", "b:all": "2"}
    status.write_text(block.format("a", "install", "1.1") + block.format("c", "install", "3"))
    text = app("snapshot", "load", "web1", "good", code=1)
    assert "since snapshot good: a:all 1 → 1.1, b:all 2 → none, c:all none → 3; --changed-base goes on" in text
    (tmp_path / "tree/etc/dre-base.json").write_text("{ }")
    status.write_text(block.format("a", "install", "1") + block.format("b", "hold", "2"))
    assert "etc/dre-base.json is another" in app("snapshot", "load", "web1", "good", code=1)


def test_changed_host_is_said_and_no_obstacle(app, tmp_path):
    app("destroy", "web1")
    app("create", "web1", "--ip", "none")
    app("snapshot", "save", "web1", "good")
    assert app("snapshot", "load", "web1", "good", stderr=True) == ""
    base = meta(tmp_path, "good")["base"]
    meta(tmp_path, "good", base=base | {"packages": base["packages"] | {"dpkg:amd64": "0.1"}})
    assert "changed since snapshot good: dpkg:amd64 0.1 → " in app("snapshot", "load", "web1", "good", stderr=True)


def test_snapshot_of_an_older_version_has_no_base(app, tmp_path):
    app("snapshot", "save", "web1", "good")
    path = tmp_path / "state/app/state/web1/snapshot/good/meta.json"
    old = {
        key: value for key, value in meta(tmp_path, "good").items() if key not in ("base", "description", "scheduled")
    }
    path.write_text(json.dumps(old))
    assert app("snapshot", "load", "web1", "good", stderr=True) == ""


def test_without_tag_the_newest_is_taken_and_said(app, tmp_path):
    assert "has no snapshot" in app("snapshot", "load", "web1", code=3)
    assert "has no checkpoint" in app("checkpoint", "restart", "web1", code=3)
    delta = tmp_path / "lxc/web1/delta"
    for tag in ("older", "newer"):
        (delta / "state").write_text(tag)
        app("snapshot", "save", "web1", tag, "--description", f"the {tag}")
    (delta / "state").write_text("now")
    created = meta(tmp_path, "newer")["created"]
    said = app("snapshot", "load", "web1", stderr=True)
    assert said == f"dre-app: web1: to snapshot newer of {created} (the newer)\n"
    assert (delta / "state").read_text() == "newer"
    meta(tmp_path, "newer", scheduled=True)
    assert "(made on schedule; name a TAG for one of before)" in app("snapshot", "load", "web1", stderr=True)
    assert app("snapshot", "load", "web1", "older", stderr=True) == ""
    assert app("snapshot", "load", "web1", "--quiet", stderr=True) == ""
