# SPDX-License-Identifier: Apache-2.0
"""The quick look of a list sees what the thorough one sees, and leaves to it what it cannot read."""

import json
import os

import pytest
from dre import cgroup, freezer, glance
from dre.app import App
from dre.cmd.app import listing
from dre.conf import Conf
from dre.errors import DreError
from dre.spec import Spec

ME = [os.getpid(), glance.started(os.getpid())]
GONE = [1 << 22, 1]


@pytest.fixture
def web1(tmp_path):
    """An app as create leaves it."""
    conf = Conf(core_state_dir=tmp_path / "state", app_lxc_path=tmp_path / "lxc", core_run_dir=tmp_path / "run")
    made = App(conf, "web1")
    for directory in (made.home, made.directory, made.record_file.parent):
        directory.mkdir(parents=True)
    (made.directory / "config").touch()
    store(made)
    return made


def store(app, **changes):
    app_json = Spec("web1", "host", "2026-11-23T08:00:00.000Z", **{"ip": "10.231.0.11/24", **changes}).to_json()
    (app.home / "app.json").write_text(app_json)


def both(app):
    """The row by the quick look, which must not have needed the thorough one, and is what that finds."""
    notes = f"{app.conf.place('core_run_dir')}/app/web1"
    row = glance._row("web1", str(app.home), str(app.directory), notes, glance.Host())
    assert [row] == [app.brief()] == list(glance.rows(app.conf))
    return row


@pytest.mark.parametrize("ip", ["10.231.0.11/24", None, "dhcp"])
@pytest.mark.parametrize("env", [{}, {"A": '\n "ip": "9.9.9.9/8",\n', "ip": "8.8.8.8"}, {"A": "ä\\"}])
def test_addresses(web1, ip, env):
    store(web1, ip=ip, env=env, command=('"ip": "7.7.7.7/8"',))
    shown = {"10.231.0.11/24": ["10.231.0.11"]}.get(ip, [])
    assert both(web1) == {"name": "web1", "state": "stopped", "ip": shown, "pid": None}
    web1.lease_file.write_text("10.231.0.99/24\n")
    assert both(web1)["ip"] == (["10.231.0.99"] if ip == "dhcp" else shown)


@pytest.mark.parametrize(
    ("record", "state"),
    [
        ({}, "stopped"),
        ({"wanted": True, "kept": True, "crashes": 1}, "crashed"),
        ({"wanted": True, "kept": False, "crashes": 0, "monitor": GONE, "init": GONE}, "crashed"),
        ({"wanted": False, "kept": False, "crashes": 0, "monitor": GONE, "init": GONE}, "stopped"),
        ({"wanted": True, "kept": False, "crashes": 0, "monitor": ME, "init": [ME[0], ME[1] + 1]}, "crashed"),
    ],
)
def test_what_does_not_run(web1, record, state):
    web1.remember(record)
    assert both(web1)["state"] == state
    web1.begin(verb="limit")
    assert both(web1)["state"] == "partial"


@pytest.mark.parametrize(("held", "state"), [(False, "running"), (True, "frozen")])
def test_what_runs(web1, monkeypatch, held, state):
    web1.remember({"wanted": True, "kept": False, "crashes": 0, "starting": True, "monitor": ME, "init": ME})
    monkeypatch.setattr(glance.Host, "holds", lambda self, pid: pid == ME[0] and held)
    assert both(web1) == {"name": "web1", "state": state, "ip": ["10.231.0.11"], "pid": ME[0]}


def test_without_files_it_is_partial(web1):
    (web1.directory / "config").unlink()
    assert both(web1)["state"] == "partial"
    (web1.home / "app.json").unlink()
    assert both(web1) == {"name": "web1", "state": "partial", "ip": [], "pid": None}


@pytest.mark.parametrize(
    "text", ["{}", "", '{"ip": "10.231.0.11/24"}', '{\n "ip": 5,\n "x": 1\n}', '{\n "ip": "\\u0031"\n}']
)
def test_what_looks_unlike_ours_is_left_to_the_thorough_look(web1, text):
    (web1.home / "app.json").write_text(text)
    assert glance._row("web1", str(web1.home), str(web1.directory), "/nowhere/web1", glance.Host()) is None
    assert list(glance.rows(web1.conf)) == [web1.brief()]
    store(web1)
    web1.record_file.write_text(json.dumps({"wanted": True, "init": GONE}, indent=1))
    assert list(glance.rows(web1.conf)) == [web1.brief()]


def test_names_are_those_of_apps_in_order(web1):
    for name in ("a", ".b.gone", "B", "z9"):
        (web1.home.parent / name).mkdir()
    assert glance.names(web1.conf) == ["a", "web1", "z9"]
    assert glance.names(Conf(core_state_dir=web1.home / "none")) == []


def test_the_freezer_is_found_as_the_other_groups_are(tmp_path):
    v1 = "9:freezer:/lxc.payload.web1-2/init.scope\n8:cpu,cpuacct:/lxc.payload.web1-2\n0::/lxc.payload.web1-2\n"
    assert freezer.file(v1, unified=False) == "freezer/lxc.payload.web1-2/freezer.state"
    assert freezer.file("0::/lxc.payload.web1/init.scope\n", unified=True) == "lxc.payload.web1/cgroup.events"
    with pytest.raises(ProcessLookupError):
        freezer.file("9:freezer:/\n", unified=False)
    assert cgroup.Group(v1, tmp_path).paths["freezer"] == tmp_path / "freezer/lxc.payload.web1-2"
    assert [freezer.held(f"populated 1\nfrozen {bit}\n", unified=True) for bit in (0, 1)] == [False, True]
    assert [freezer.held(f"{word}\n", unified=False) for word in ("THAWED", "FREEZING", "FROZEN")] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("words", "config"),
    [
        ("list", None),
        ("--quiet list", None),
        ("list --config F --debug", "F"),
        ("--config F list --config G", "G"),
        ("--config list list", "list"),
    ],
)
def test_a_list_that_needs_no_parser(words, config):
    assert listing.is_plain(words.split())
    assert listing._config(words.split()) == config


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--config list",
        "list list",
        "list --json",
        "--json list",
        "list --help",
        "list -- true",
        "list --config",
        "list --config=F",
        "--config --quiet list",
        "--version list",
        "status list",
    ],
)
def test_what_the_parser_is_to_read(words):
    assert not listing.is_plain(words.split())


def test_what_is_not_utf_8_is_damaged(web1):
    (web1.home / "intent.json").write_bytes(b'{"verb": "undo", "tag": "\xff"}')
    with pytest.raises(DreError, match="intent.json: damaged"):
        web1.intent()
    (web1.home / "intent.json").unlink()
    assert web1.intent() is None
    (web1.home / "app.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(DreError, match="app.json: damaged"):
        web1.spec()
