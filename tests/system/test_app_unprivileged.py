# SPDX-License-Identifier: Apache-2.0
"""Root of an app on a tree is a user of the host, and no file anywhere knows which one."""

import json
import os
import pathlib
import signal
import subprocess

import app_ground
import pytest
from app_ground import LXC, Ground, picture, wait_for

NAME = "t-unpr"
WHO = "echo $(stat -c %u:%g /etc /etc/made /srv/data /srv/data/theirs)"


@pytest.fixture
def data(tmp_path):
    """A directory of the host that belongs to user 33, with a file of root in it; nobody else may enter."""
    place = tmp_path / "data"
    place.mkdir(mode=0o700)
    os.chown(place, 33, 33)
    (place / "theirs").write_text("host\n")
    return place


@pytest.fixture
def app(run, settings, tmp_path, data):
    with Ground(run, settings) as ground:
        tree = app_ground.make_tree(tmp_path / "tree", ("chown",))
        ground("create", NAME, "--base", tree, "--bind", f"{data}:/srv/data")
        ground.tree = tree
        yield ground


def init_of(app, name=NAME):
    return json.loads(app("status", name, "--json"))["pid"]


def ids(pid):
    """The map of process *pid*, as the kernel has it."""
    return [pathlib.Path(f"/proc/{pid}/{kind}_map").read_text().split() for kind in ("uid", "gid")]


def inside(app, script, name=NAME):
    return app("exec", name, "--", "/bin/sh", "-c", script)


def test_each_has_ids_of_its_own(app):
    app("create", f"{NAME}2", "--base", app.tree, "--ip", "none")
    maps = []
    for name in (NAME, f"{NAME}2"):
        app("start", name)
        pid = init_of(app, name)
        users, groups = ids(pid)
        assert users == groups
        assert users[0] == "0"
        assert users[2] == "65536"
        first = int(users[1])
        assert first >= 65536
        assert pathlib.Path(f"/proc/{pid}").stat().st_uid == first
        maps.append(first)
        # Nobody else is given them: newuidmap would let a user have what /etc/subuid gives him.
        for file in ("/etc/subuid", "/etc/subgid"):
            lines = [line.split(":") for line in pathlib.Path(file).read_text().splitlines()]
            holding = {owner for owner, start, count in lines if int(start) <= first < int(start) + int(count)}
            assert holding == {"root"}
    assert abs(maps[0] - maps[1]) >= 65536


def test_files_do_not_know_the_ids(app, data):
    app("start", NAME)
    inside(app, "echo x >/etc/made; chown 7:8 /etc/made; echo x >/srv/data/mine; echo x >/etc/release")
    assert inside(app, WHO) == "0:0 7:8 33:33 0:0"
    made = (LXC / NAME / "delta/etc/made", data / "mine", LXC / NAME / "delta/etc/release")
    assert [(path.stat().st_uid, path.stat().st_gid) for path in made] == [(7, 8), (0, 0), (0, 0)]
    app("stop", NAME)
    # The same files under another map, the host's own, and back.
    for value, first in (("yes", "0"), ("no", None)):
        app("set", NAME, f"privileged={value}")
        app("start", NAME)
        assert ids(init_of(app))[0][1] == (first or ids(init_of(app))[1][1])
        assert (ids(init_of(app))[0][1] == "0") == (value == "yes")
        assert inside(app, WHO) == "0:0 7:8 33:33 0:0"
        app("stop", NAME)


def test_undo_keeps_them(app):
    app("start", NAME)
    before = ids(init_of(app))
    inside(app, "echo good >/etc/made; chown 7:8 /etc/made")
    app("stop", NAME)
    app("snapshot", "save", NAME, "good")
    app("start", NAME)
    inside(app, "rm -r /etc; mkdir /etc; echo bad >/etc/made")
    app("undo", NAME, "good")
    assert ids(init_of(app)) == before
    assert inside(app, f"cat /etc/made; {WHO}") == "good\n0:0 7:8 33:33 0:0"


def test_push_gives_the_file_to_its_root(app, tmp_path):
    source = tmp_path / "file"
    source.write_text("pushed\n")
    for state in ("stopped", "running"):
        app("push", NAME, source, f"/etc/{state}")
        assert (LXC / NAME / "delta/etc" / state).stat().st_uid == 0
        app("start", NAME)
        assert inside(app, f"cat /etc/{state}; stat -c %u /etc/{state}") == "pushed\n0"
    inside(app, "mkdir -m 700 /etc/theirs; chown 33 /etc/theirs")
    app("push", NAME, source, "/etc/theirs/file")
    app("pull", NAME, "/etc/theirs/file", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "pushed\n"


def test_what_cannot_be_mapped_belongs_to_nobody(app):
    app("set", NAME, "bind=/proc/sys/kernel:/srv/kernel", "bind=/dev/null:/srv/null:ro")
    app("start", NAME)
    assert inside(app, "stat -c %u /srv/kernel/ostype; cat /srv/kernel/ostype; cat /srv/null") == "65534\nLinux"
    said = app("exec", NAME, "--", "/bin/sh", "-c", "echo t-unpr >/srv/kernel/hostname", code=2)
    assert "Permission denied" in said


def test_a_tree_that_cannot_be_mapped_is_refused(app, tmp_path):
    place = tmp_path / "ramfs"
    place.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "dre-test", place], check=True)
    try:
        subprocess.run(["cp", "-a", app.tree, place / "tree"], check=True)
        said = app("create", f"{NAME}2", "--base", place / "tree", "--ip", "none", code=6)
        assert f"the file system of {place}/tree cannot be mounted with mapped ids" in said
        assert "privileged" in said
        assert (picture(f"{NAME}2")["mounts"], picture(f"{NAME}2")["lxc"]) == ([], [])
        app("create", f"{NAME}2", "--base", place / "tree", "--ip", "none", "--privileged")
        app("start", f"{NAME}2")
        assert ids(init_of(app, f"{NAME}2"))[0][:2] == ["0", "0"]
        app("destroy", "--force", f"{NAME}2")
    finally:
        subprocess.run(["umount", place], check=True)


def test_tools_of_lxc(app):
    app("start", NAME)  # which brings the bridge up
    app("stop", NAME)
    subprocess.run(["lxc-start", "-n", NAME], check=True, timeout=30)
    done = subprocess.run(
        ["lxc-attach", "-n", NAME, "--clear-env", "--", "/bin/sh", "-c", WHO.replace("/etc/made", "/etc/passwd")],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == "0:0 0:0 33:33 0:0\n"
    assert app("status", NAME) == "running"
    subprocess.run(["lxc-stop", "-n", NAME, "-t", "5"], check=True, timeout=30)
    assert wait_for(lambda: picture(NAME)["mounts"] == [])


def test_killed_monitor_leaves_no_mounts_behind(app):
    app("start", NAME)
    status = pathlib.Path(f"/proc/{init_of(app)}/status").read_text()
    os.kill(int(status.partition("PPid:")[2].split()[0]), signal.SIGKILL)
    assert wait_for(lambda: app("list").split()[1] != "running")
    app("recover")
    assert picture(NAME)["mounts"] == []
    app("start", NAME)
    app("stop", NAME)
    assert picture(NAME)["mounts"] == []


def test_what_is_refused(app, tmp_path):
    app("start", NAME)
    said = app("set", NAME, "privileged=yes", code=1)
    assert "privileged cannot change while it runs" in said
    app("create", f"{NAME}2", "--base", app.tree, "--ip", "none", "--privileged")
    assert "has no ids of its own" in app("set", f"{NAME}2", "privileged=no", code=1)
    for words in (("--unprivileged",), ("--base", "host", "--unprivileged")):
        assert "--unprivileged needs a tree" in app("create", f"{NAME}3", *words, code=2)
    both = ("--base", app.tree, "--privileged", "--unprivileged")
    assert "exclude each other" in app("create", f"{NAME}3", *both, code=2)


def test_what_is_missing_is_named(app):
    (LXC / NAME / "lower").unlink()
    said = app("start", NAME, code=1)
    assert "cannot mount its layers: " in said
    assert f"{LXC / NAME / 'lower'}: No such file" in said
    assert picture(NAME)["mounts"] == []
