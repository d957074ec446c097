# SPDX-License-Identifier: Apache-2.0
"""exec leaves mode and owner of what stands behind its stdin, stdout and stderr, which LXC changes, as they are."""

import json
import os
import stat
import subprocess

import app_ground
import pytest
from app_ground import Ground, wait_for
from conftest import environment, program

NAME = "t-stdio"


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        ground("create", NAME, "--ip", "none", "--privileged", "--base", app_ground.make_tree(tmp_path / "tree"))
        ground("start", NAME)
        yield ground


def start(app, *command, **streams):
    argv = [program("dre-app"), "--config", app.config, "exec", NAME, "--", *command]
    return subprocess.Popen(argv, env=environment(), **streams)


def shown(path):
    found = os.stat(path)
    return oct(found.st_mode), found.st_uid, found.st_gid


def test_files_and_devices(app, tmp_path):
    page = tmp_path / "page"
    page.write_text("read by others\n")
    page.chmod(0o644)
    os.chown(page, 33, 34)
    device = tmp_path / "zero"
    os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    device.chmod(0o666)
    before = shown(page), shown(device)
    with page.open("rb") as stdin, (tmp_path / "out").open("wb") as stdout:
        os.fchmod(stdout.fileno(), 0o664)
        assert start(app, "sh", "-c", "cat; exit 7", stdin=stdin, stdout=stdout).wait(30) == 7
    assert (tmp_path / "out").read_text() == "read by others\n"
    with device.open("rb") as stdin:
        assert start(app, "dd", "bs=1", "count=1", stdin=stdin, stdout=subprocess.PIPE).communicate()[0] == b"\0"
    assert (shown(page), shown(device)) == before
    assert shown(tmp_path / "out")[0] == oct(0o664 | stat.S_IFREG)


def test_put_right_while_it_runs(app, tmp_path):
    """Whoever reads the page meanwhile must not wait for the program; and a signal ends it as before."""
    page = tmp_path / "page"
    page.write_text("read by others\n")
    page.chmod(0o644)
    with page.open("rb") as stdin:
        child = start(app, "sh", "-c", "echo begun; exec sleep 60", stdin=stdin, stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"begun\n"
        assert wait_for(lambda: shown(page)[0] == oct(0o644 | stat.S_IFREG))
        child.terminate()
        assert child.wait(10) != 0
        child.stdout.close()


def test_serve_answers_whatever_stands_behind_its_streams(app, tmp_path):
    (tmp_path / "in").write_text(json.dumps({"argv": ["exec", NAME, "--", "sh", "-c", "echo hi"]}) + "\n")
    with (tmp_path / "in").open() as stdin, (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        argv = [program("dre-app"), "--config", app.config, "--serve"]
        subprocess.run(argv, env=environment(), stdin=stdin, stdout=out, stderr=err, timeout=30, check=True)
    answer = json.loads((tmp_path / "out").read_text())
    assert (answer["code"], answer["status"], answer["stdout"]) == (0, 0, "aGkK")
    assert (tmp_path / "err").read_text() == ""
    assert {shown(tmp_path / name)[0] for name in ("in", "out", "err")} == {oct(0o644 | stat.S_IFREG)}
