# SPDX-License-Identifier: Apache-2.0
"""push and pull reach files of the app and, whatever links it has made, never one of the host."""

import os
import pathlib
import stat
import subprocess

import app_ground
import pytest
from app_ground import LXC, Ground, picture, wait_for
from conftest import environment, program

NAME = "t-push"


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        ground("create", NAME, "--ip", "none", "--base", app_ground.make_tree(tmp_path / "tree"))
        yield ground


def test_push_and_pull(app, tmp_path):
    source = tmp_path / "release.bin"
    source.write_bytes(os.urandom(100_000))
    source.chmod(0o751)
    for state in ("stopped", "running"):
        app("push", NAME, source, "/etc/")
        app("push", NAME, source, f"/{state}")
        app("pull", NAME, f"/{state}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        made = LXC / NAME / "delta" / state
        assert made.stat().st_mode & 0o7777 == 0o751
        app("start", NAME)
    assert (LXC / NAME / "delta/etc/release.bin").read_bytes() == source.read_bytes()
    app("stop", NAME)
    app("pull", NAME, "/running", tmp_path / "again")
    assert picture(NAME)["mounts"] == []


def test_links_lead_nowhere_else(app, tmp_path):
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_text("the host's\n")
    app("start", NAME)
    app(
        "exec", NAME, "--", "sh", "-c", f"ln -s {host} /evil; ln -s {host}/file /evilfile; ln -s ../../../../{host} /up"
    )
    source = tmp_path / "file"
    source.write_text("pushed\n")
    for target in ("/evil/file", "/up/file"):
        app("push", NAME, source, target, code=3)  # no such directory inside
    app("push", NAME, source, "/evilfile")  # replaces the link
    assert (host / "file").read_text() == "the host's\n"
    assert sorted(os.listdir(host)) == ["file"]
    app("pull", NAME, "/evil/file", tmp_path / "stolen", code=3)
    assert not (tmp_path / "stolen").exists()


def test_pull_does_not_wait_for_a_fifo_or_read_a_device(app, tmp_path):
    app("start", NAME)
    app("exec", NAME, "--", "mkfifo", "/fifo")
    for path in ("/fifo", "/dev/zero", "/etc"):
        assert "not a regular file" in app("pull", NAME, path, tmp_path / "got", code=1)
    assert not (tmp_path / "got").exists()
    app("pull", NAME, "relative", tmp_path / "got", code=2)
    app("push", NAME, tmp_path, "/x", code=1)
    app("push", NAME, tmp_path / "missing", "/x", code=1)


def test_standard_streams_and_what_is_no_file(app, tmp_path):
    app("push", NAME, "-", "/typed", stdin=b"by hand\n")
    assert (LXC / NAME / "delta/typed").read_text() == "by hand\n"
    assert app("pull", NAME, "/typed", "-") == "by hand"
    assert "standard input has no name" in app("push", NAME, "-", "/etc", code=1)
    device = tmp_path / "null"
    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    app("pull", NAME, "/typed", device)
    assert stat.S_ISCHR(device.stat().st_mode), "the device was replaced by a file"
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    app("pull", NAME, "/typed", tmp_path / "link")
    assert (tmp_path / "file").read_text() == "by hand\n" and (tmp_path / "link").is_symlink()
    assert app("push", NAME, tmp_path / "file", "/no/such/place", code=3).endswith(
        f"{NAME}: /no/such: No such file or directory"
    )
    assert app("pull", NAME, "/typed", tmp_path / "no/such", code=1).endswith(
        f"{tmp_path}/no: No such file or directory"
    )


@pytest.mark.parametrize("state", ["stopped", "running"])
def test_killed_at_work_it_leaves_the_old_file_and_no_process(app, tmp_path, state):
    app("push", NAME, "-", "/file", stdin=b"old\n")
    if state == "running":
        app("start", NAME)
    before = picture(NAME)["mounts"]
    words = [program("dre-app"), "--config", app.config, "push", NAME, "-", "/file"]
    with subprocess.Popen(words, env=environment(), stdin=subprocess.PIPE) as victim:
        victim.stdin.write(b"half")  # the rest never comes
        victim.stdin.flush()
        children = pathlib.Path(f"/proc/{victim.pid}/task/{victim.pid}/children")
        assert wait_for(lambda: children.read_text().split() and list((LXC / NAME / "delta").glob(".file.*")), 30)
        (copier,) = children.read_text().split()
        victim.kill()
        assert wait_for(lambda: not os.path.exists(f"/proc/{copier}"))
    assert app("pull", NAME, "/file", "-") == "old"
    app("push", NAME, "-", "/file", stdin=b"new\n")
    assert app("pull", NAME, "/file", "-") == "new"
    assert picture(NAME)["mounts"] == before
