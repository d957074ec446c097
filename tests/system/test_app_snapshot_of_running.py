# SPDX-License-Identifier: Apache-2.0
"""A running app is saved only with --freeze, stands still while its files are copied, and runs on whatever happens."""

import json
import os
import signal
import subprocess

import app_ground
import pytest
from app_ground import LXC, Ground
from conftest import environment, program

NAME = "t-frozen"


@pytest.fixture
def app(run, settings, tmp_path):
    tree = app_ground.make_tree(tmp_path / "tree")
    with Ground(run, settings) as ground:
        ground("create", NAME, "--base", tree, "--ip", "none")
        ground("start", NAME)
        yield ground


def state():
    done = subprocess.run(["lxc-info", "-n", NAME, "-s", "-H"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def snapshots(app):
    return json.loads(app("list", "--json"))["snapshots"]


def test_freeze_saves_and_the_same_processes_run_on(app):
    assert "--freeze" in app("snapshot", "save", NAME, "good", code=1)
    # Two files written one after the other: a copy taken while it moves could have more in the second.
    app("exec", NAME, "--", "sh", "-c", "(while :; do echo x >>/a; echo x >>/b; done) </dev/null >/dev/null 2>&1 &")
    pid = json.loads(app("status", NAME, "--json"))["pid"]
    app("snapshot", "save", NAME, "good", "--freeze")
    assert (state(), json.loads(app("status", NAME, "--json"))["pid"]) == ("RUNNING", pid)
    assert app.events()[-3:] == ["app.frozen", "app.thawed", "app.snapshot.saved"]
    app("stop", NAME, "--timeout", "0")
    app("snapshot", "load", NAME, "good")
    sizes = [(LXC / NAME / "delta" / name).stat().st_size for name in ("a", "b")]
    assert 0 <= sizes[0] - sizes[1] <= 2


def test_an_app_frozen_by_somebody_stays_so(app):
    app("freeze", NAME)
    app("snapshot", "save", NAME, "good", "--freeze")
    assert state() == "FROZEN"
    app("thaw", NAME)


def test_killed_in_the_middle_it_is_thawed_by_the_next_verb(app):
    with (LXC / NAME / "delta/large").open("wb") as stream:
        stream.write(os.urandom(1 << 20) * 400)
    words = [program("dre-app"), "--config", app.config, "snapshot", "save", NAME, "good", "--freeze"]
    victim = subprocess.Popen(words, env=environment(), start_new_session=True)
    assert app_ground.wait_for(lambda: state() == "FROZEN")
    victim.send_signal(signal.SIGKILL)
    victim.wait(30)
    assert state() == "FROZEN"
    assert app("status", NAME) == "running"
    assert (state(), snapshots(app)) == ("RUNNING", [])
    app("snapshot", "save", NAME, "good", "--freeze")
    assert sorted(os.listdir(app.place / "state/app/state" / NAME / "snapshot")) == ["good"]
    assert not (app.place / "state/app/state" / NAME / "intent.json").exists()


def test_full_disk_leaves_nothing_half_and_the_app_running(run, settings, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    tree = app_ground.make_tree(tmp_path / "tree")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "dre-test", small], check=True)
    try:
        with Ground(run, settings, DRE_CORE_STATE_DIR=small) as app:
            app("create", NAME, "--base", tree, "--ip", "none")
            (LXC / NAME / "delta/state").write_text("good\n")
            app("snapshot", "save", NAME, "good")
            app("start", NAME)
            (LXC / NAME / "delta/large").write_bytes(os.urandom(6 << 20))
            for words in ((), ("--freeze",)):
                if not words:
                    app("stop", NAME)
                text = app("snapshot", "save", NAME, "later", *words, code=1)
                assert f"no space left in {small}" in text and text.count("\n") == 0, text
                assert os.listdir(small / "app/state" / NAME / "snapshot") == ["good"]
                app("start", NAME)
            assert state() == "RUNNING"
            app("undo", NAME, "good")
            assert app("exec", NAME, "--", "cat", "/state") == "good"
            assert not (LXC / NAME / "delta/large").exists()
    finally:
        subprocess.run(["umount", small], check=True)
