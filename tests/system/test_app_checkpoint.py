# SPDX-License-Identifier: Apache-2.0
"""A checkpoint holds memory and disk of one moment, and a restart brings both back, as often as it is asked.

The witness is the program in the app, asked over TCP, and the app's files as the host has them.
"""

import hashlib
import json
import os
import pathlib
import subprocess

import app_ground
import pytest
from checkpoint_ground import Counting, need_criu

NAME, ADDRESS = "t-ckpt", "10.231.101.61"
V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
OPEN_DEVICE = """
import os, sys
status = os.stat("/")
os.path.exists("/node") or os.mknod("/node", 0o60600, status.st_dev if len(sys.argv) < 2 else int(sys.argv[1]))
try:
    os.open("/node", os.O_RDONLY)
except OSError as error:
    print(error.errno)
"""


@pytest.fixture
def app(run, settings):
    need_criu()
    with Counting(run, settings, NAME, ADDRESS, "--memory", "300M", "--pids", "60") as ground:
        yield ground


def test_memory_file_offset_disk_and_socket_go_on_from_the_checkpoint_twice(app):
    app.ask("before")
    app("checkpoint", "save", NAME, "one")
    saved = int(subprocess.run(
        ["tar", "-xOf", app.checkpoints / "one/delta.tar", "./lines"], capture_output=True, text=True, check=True,
    ).stdout.split()[-1])  # fmt: skip
    assert app.ask("after")[0] == 2, "the app has not gone on after the save"
    (app.delta / "later").write_text("made after the checkpoint\n")
    links = set(os.listdir("/sys/class/net/dret1/brif"))
    for _ in range(2):
        app("checkpoint", "restart", NAME, "one")
        pid, mark, count, offset = app.ask()
        assert (pid, mark) == (2, "before"), "memory is not that of the checkpoint"
        assert count >= saved
        written = (app.delta / "lines").read_bytes()[:offset]
        # One line per count and each once: the file was rolled back with the memory, and its offset kept.
        assert [int(line) for line in written.split()] == list(range(1, count + 1))
        assert not (app.delta / "later").exists()
        (app.delta / "later").write_text("again\n")
        app.ask("after")
    assert set(os.listdir("/sys/class/net/dret1/brif")) == links
    row = json.loads(app("status", NAME, "--json"))
    assert (row["state"], row["ip"]) == ("running", [ADDRESS])
    names = ("memory.max", "pids.max") if V2 else ("memory.limit_in_bytes", "pids.max")
    found = [
        app_ground.kernel(row["pid"], controller, name)
        for controller, name in zip(("memory", "pids"), names, strict=True)
    ]
    assert found == [str(300 << 20), "60"]
    listed = json.loads(app("checkpoint", "list", NAME, "--json"))
    assert (listed["tag"], listed["kernel"]) == ("one", os.uname().release)
    assert app("log", NAME) == "begun"
    assert app.events()[-1] == "app.checkpoint.restarted"
    app("freeze", NAME)
    app("thaw", NAME)
    app("stop", NAME)


def test_devices_that_were_forbidden_stay_so(app):
    device = str(os.stat("/").st_dev if os.major(os.stat("/").st_dev) else os.makedev(7, 0))
    before = app("exec", NAME, "--", "/usr/bin/python3", "-c", OPEN_DEVICE, device)
    app("checkpoint", "save", NAME, "one")
    app("checkpoint", "restart", NAME, "one")
    assert before == app("exec", NAME, "--", "/usr/bin/python3", "-c", OPEN_DEVICE, device) == "1"  # EPERM
    assert app("exec", NAME, "--", "sh", "-c", "echo x >/dev/null; head -c1 /dev/zero | wc -c") == "1"


def test_an_isolated_app_comes_back_isolated(app):
    app("checkpoint", "save", NAME, "one")
    app("isolate", NAME)
    app("checkpoint", "restart", NAME, "one")
    (link,) = os.listdir("/sys/class/net/dret1/brif")
    assert pathlib.Path(f"/sys/class/net/{link}/operstate").read_text() == "down\n"
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    assert f'"{link}"' in rules
    app("rejoin", NAME)
    assert app.ask()[0] == 2


def test_undo_returns_to_a_checkpoint_that_is_named(app):
    app.ask("before")
    app("checkpoint", "save", NAME, "one")
    app.ask("after")
    app("undo", NAME, "one")
    assert app.mark() == "before"
    assert app.events()[-4:] == ["app.undo.accepted", "app.stopped", "app.started", "app.undone"]
    assert "no snapshot nosuch" in app("undo", NAME, "nosuch", code=3)
    assert "there is a checkpoint one already" in app("snapshot", "save", "--freeze", NAME, "one", code=1)


def test_stop_keeps_the_moment_for_a_later_restart(app):
    app.ask("before")
    app("checkpoint", "save", "--stop", NAME, "one")
    app("status", NAME, code=1)
    assert app_ground.picture(NAME)["mounts"] == []
    app("checkpoint", "restart", NAME, "one")
    assert app.mark() == "before"
    app("checkpoint", "delete", NAME, "one")
    assert app("checkpoint", "list", NAME) == ""
    assert "no checkpoint one" in app("checkpoint", "restart", NAME, "one", code=3)


def test_what_was_restored_is_saved_again_or_the_remedy_is_said(app):
    app("checkpoint", "save", NAME, "one")
    app("checkpoint", "restart", NAME, "one")
    app.ask("after")
    done = app.run("dre-app", "--config", app.config, "checkpoint", "save", NAME, "two")
    if done.returncode == 1:
        assert f"LXC saves nothing that it has restored; dre-app restart {NAME}" in done.stderr.decode()
        assert app.mark() == "after"
        app("restart", NAME)
        app("checkpoint", "save", NAME, "two")
    tags = [line.split()[0] for line in app("checkpoint", "list", NAME).splitlines()]
    assert tags == ["one", "two"]


def test_a_damaged_checkpoint_is_refused_and_the_app_runs_on(app):
    app("checkpoint", "save", NAME, "one")
    assert "there is a checkpoint one already" in app("checkpoint", "save", NAME, "one", code=1)
    (image,) = (app.checkpoints / "one/images").glob("pages-1.img")
    octets = bytearray(image.read_bytes())
    octets[1000] ^= 1
    image.write_bytes(octets)
    before = app("pid", NAME).split()[0]
    app.ask("after")
    words = app("checkpoint", "restart", NAME, "one", code=1)
    assert "checkpoint one is damaged: images/pages-1.img" in words
    assert hashlib.sha256(octets).hexdigest() in words
    assert app("pid", NAME).split()[0] == before
    assert app.mark() == "after"


def test_where_criu_cannot_restore_the_app_is_as_it_was(run, settings, tmp_path):
    need_criu()
    held = tmp_path / "held"
    held.mkdir()
    (held / "file").write_text("short\n")
    with Counting(run, settings, NAME, ADDRESS, "--bind", f"{held}:/held") as app:
        app("checkpoint", "save", NAME, "one")
        (app.delta / "later").write_text("made after the checkpoint\n")
        (held / "file").write_text("longer than it was\n")  # the program has it open, and criu looks at its size
        words = app("checkpoint", "restart", NAME, "one", code=1)
        assert "bad size" in words
        assert words.endswith("it is as it was before, running")
        assert (app.delta / "later").exists()
        assert app.mark() == "none", "it was started anew"
        (held / "file").write_text("short\n")
        app("checkpoint", "restart", NAME, "one")
        assert not (app.delta / "later").exists()
