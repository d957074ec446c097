# SPDX-License-Identifier: Apache-2.0
"""A profile of one's own decides which system calls an app has; a file that others can write decides nothing."""

import os

import app_ground
import pytest
from app_ground import Ground

NAME = "t-secc"
PROFILE = "2\ndenylist\n[all]\nmkdir errno 99\nmkdirat errno 99\n"  # 99: an error that mkdir never gives by itself


@pytest.fixture
def place():
    """A directory of root below directories of root; pytest's own lie in /tmp, which is good enough for us too."""
    path = "/var/lib/t-seccomp.profile"
    yield path
    if os.path.exists(path):
        os.unlink(path)


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        ground.tree = app_ground.make_tree(tmp_path / "tree")
        yield ground


def write(path, text=PROFILE, mode=0o644, owner=0):
    with open(path, "w") as stream:
        stream.write(text)
    os.chmod(path, mode)
    os.chown(path, owner, owner)


@pytest.mark.parametrize("kind", ["--unprivileged", "--privileged"])
def test_a_refused_call_fails_inside(app, place, kind):
    write(place)
    app("create", NAME, "--base", app.tree, "--ip", "none", "--seccomp", place, kind)
    app("start", NAME)
    said = app("exec", NAME, "--", "/bin/mkdir", "/etc/new", code=1)
    assert "Cannot assign requested address" in said
    assert not (app_ground.LXC / NAME / "delta/etc/new").exists()
    pid = app("pid", NAME).split()[0]
    with open(f"/proc/{pid}/status") as stream:
        assert "Seccomp:\t2\n" in stream.read()
    app("stop", NAME)
    app("set", NAME, "seccomp=default")
    app("start", NAME)
    app("exec", NAME, "--", "/bin/mkdir", "/etc/new")


def test_profiles_that_are_refused(app, place, tmp_path):
    create = ("create", NAME, "--base", app.tree, "--ip", "none", "--seccomp")
    assert "expected default or the absolute path" in app(*create, "none", code=2)
    assert "expected default or the absolute path" in app(*create, "/etc/../tmp/x", code=2)
    assert "No such file" in app(*create, tmp_path / "none", code=2)
    write(place, owner=65534)
    assert "must be owned by root" in app(*create, place, code=2)
    write(place, mode=0o666)
    assert "must be owned by root" in app(*create, place, code=2)
    write(place, text="mkdir\n")
    assert "its first line must be 1 or 2" in app(*create, place, code=2)
    assert "its first line must be 1 or 2" in app(*create, "/var/lib", code=2)
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    write(loose / "profile")
    assert f"{loose} must be owned by root" in app(*create, loose / "profile", code=2)
    assert app("list") == ""


def test_a_profile_is_looked_at_again_at_the_start(app, place):
    write(place)
    app("create", NAME, "--base", app.tree, "--ip", "none", "--seccomp", place)
    write(place, mode=0o666)
    assert "must be owned by root" in app("start", NAME, code=2)
    os.unlink(place)
    assert "No such file" in app("start", NAME, code=2)
    assert app("list").split()[1] == "stopped"
    assert app_ground.picture(NAME)["mounts"] == []
