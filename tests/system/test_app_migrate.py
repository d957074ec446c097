# SPDX-License-Identifier: Apache-2.0
"""An app moves to another host over ssh, wholly or not at all; a broken connection costs only what was on the way."""

import json
import os
import shutil
import subprocess

import app_ground
import pytest
from app_ground import LXC, Ground
from checkpoint_ground import with_path
from conftest import environment, program
from migrate_ground import There

NAME = "t-move"


@pytest.fixture
def here(run, settings, tmp_path):
    """The host it comes from, with a running app on a tree that both hosts have."""
    with Ground(with_path(run), settings) as ground:
        tree = app_ground.make_tree(ground.place / "state/base/small")
        (ground.place / "state").chmod(0o711)
        os.utime(tree, (1, 1))
        yield ground


@pytest.fixture
def there(run, here):
    with There(run) as other:
        subprocess.run(["cp", "-a", here.place / "state/base/small", other.trees], check=True)
        yield other


def make(here, *options):
    here("create", NAME, "--base", "small", "--ip", "10.231.101.71/24", *options)
    here("start", NAME)
    here("exec", NAME, "--", "sh", "-c", "echo kept >/kept; rm /etc/release; mkdir /srv; echo one >/srv/one")


def migrate(here, there, *argv, code=0):
    return here("migrate", "--ssh-config", there.ssh_config, *argv, code=code)


def grow(octets):
    (LXC / NAME / "delta/big").write_bytes(os.urandom(octets))


def test_a_running_app_runs_there_and_is_gone_here(here, there):
    make(here, "--env", "COLOUR=blue", "--memory", "200M", "--cpu", "70")
    inside = "cat /kept /srv/one; test -e /etc/release || echo gone; echo $COLOUR"
    row = json.loads(migrate(here, there, "--json", "--copy-storage", NAME, "there"))
    assert (row["name"], row["state"], row["host"]) == (NAME, "running", "there")
    assert row["ip"] == ["10.231.106.2"], "its address was none of that bridge"
    assert row["down"] > 0
    assert (there.place / "sshd.log").read_text().count("Accepted publickey") == 1, "each costs time while it is down"
    assert there("exec", NAME, "--", "sh", "-c", inside) == "kept\none\ngone\nblue"
    pid = there("pid", NAME).split()[0]
    name = "memory.max" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "memory.limit_in_bytes"
    assert app_ground.kernel(pid, "memory", name) == str(200 << 20)
    here("status", NAME, code=3)
    assert app_ground.picture(NAME)["lxc"] == []
    assert here.events()[-2:] == ["app.migrated", "app.destroyed"]
    arrived = [json.loads(line) for line in there.events() if '"app.migrated"' in line]
    assert [(event["data"]["arrived"], event["data"]["name"]) for event in arrived] == [(True, NAME)]
    assert list((there.place / "state/app/incoming").iterdir()) == []


def test_a_stopped_app_stays_stopped_and_keep_leaves_it_here_too(here, there):
    make(here)
    here("stop", NAME)
    migrate(here, there, "--keep", "--as", "t-move-2", NAME, "there")
    there("status", "t-move-2", code=1)
    assert (there.lxc / "t-move-2/delta/kept").read_text() == "kept\n"
    here("status", NAME, code=1)


def test_a_broken_connection_goes_on_where_it_broke(here, there):
    make(here)
    grow(6 << 20)
    words = [program("dre-app"), "--config", here.config, "migrate", "--ssh-config", there.ssh_config,
             "--bandwidth", "3M", NAME, "there"]  # fmt: skip
    digest = subprocess.run(["sha256sum", LXC / NAME / "delta/big"], capture_output=True, text=True).stdout.split()[0]
    with subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE) as mover:
        there.wait_for_octets(2 << 20)
        with there.growing():
            for session in there.sessions():
                os.kill(session, 9)
            _, said = mover.communicate(timeout=300)
    assert mover.returncode == 0, said
    moved = subprocess.run(["sha256sum", there.lxc / NAME / "delta/big"], capture_output=True, text=True).stdout
    assert moved.split()[0] == digest


def test_a_killed_move_of_a_stopped_app_goes_on_where_it_ended(here, there):
    make(here)
    grow(6 << 20)
    here("stop", NAME)
    words = [program("dre-app"), "--config", here.config, "migrate", "--ssh-config", there.ssh_config,
             "--bandwidth", "3M", NAME, "there"]  # fmt: skip
    with subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL) as mover:
        there.wait_for_octets(2 << 20)
        mover.kill()
    app_ground.wait_for(lambda: not there.sessions())
    assert there.received() >= 2 << 20
    here("status", NAME, code=1)
    with there.growing():
        migrate(here, there, NAME, "there")
    assert (there.lxc / NAME / "delta/big").stat().st_size == 6 << 20


@pytest.mark.parametrize("known", ["other", None])
def test_a_host_key_that_is_not_the_known_one_is_refused(here, there, known):
    make(here)
    there.trust(known)
    pid, before = here("pid", NAME), (there.place / "known_hosts").read_text()
    words = migrate(here, there, NAME, "there", code=4)
    assert "its host key is not known here, or not the one known" in words
    assert "ssh-keyscan" in words
    assert here("pid", NAME) == pid, "it was touched"
    assert (there.place / "known_hosts").read_text() == before
    assert there("list") == ""


def test_a_base_that_is_not_there_or_is_another_is_refused(here, there):
    make(here)
    pid = here("pid", NAME)
    (there.trees / "small/usr/bin/extra").write_text("another tree\n")
    assert "the base small is another here" in migrate(here, there, NAME, "there", code=1)
    shutil.rmtree(there.trees / "small")
    assert "its base small is not here" in migrate(here, there, NAME, "there", code=1)
    assert here("pid", NAME) == pid


def test_what_would_be_lost_or_is_taken_is_refused(here, there):
    make(here)
    here("snapshot", "save", "--freeze", NAME, "good")
    assert "its 1 snapshots would be lost; --keep" in migrate(here, there, NAME, "there", code=1)
    there("create", NAME, "--base", "small")
    assert "there is such an app already" in migrate(here, there, "--without-snapshots", NAME, "there", code=1)
    assert "--as gives it another name" in here("migrate", NAME, "localhost", code=1)
    migrate(here, there, "--without-snapshots", "--as", "t-move-2", NAME, "there")
    assert there("exec", "t-move-2", "--", "cat", "/kept") == "kept"


def test_an_app_that_cannot_start_there_runs_on_here(here, there):
    make(here)
    (there.place / "log").mkdir(exist_ok=True)
    (there.place / "log/app").write_text("a file where a directory has to be\n")
    migrate(here, there, NAME, "there", code=1)
    (there.place / "log/app").unlink()
    assert here("exec", NAME, "--", "cat", "/kept") == "kept"
    assert there("list") == ""
    migrate(here, there, NAME, "there")
    assert there("exec", NAME, "--", "cat", "/kept") == "kept"


def test_localhost_moves_to_another_name(here):
    make(here)
    here("migrate", NAME, "localhost", "--as", "t-move-2")
    assert here("exec", "t-move-2", "--", "cat", "/kept") == "kept"
    here("status", NAME, code=3)
