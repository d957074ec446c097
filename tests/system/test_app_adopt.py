# SPDX-License-Identifier: Apache-2.0
"""adopt: a container made by lxc-create becomes an app where it lies; what cannot is refused and stays as it was."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import app_ground
import pytest
from app_ground import LXC, Ground, picture, wait_for
from conftest import environment, program

KILLS = int(os.environ.get("DRE_KILLS", "2"))
NAME = "t-adopt"
# What a real init does, in short: it runs as process 1 and ends at its own signal.
INIT = "#!/bin/sh\ntrap 'echo going down; exit 0' USR1\necho init is $$\nwhile :; do sleep 0.1; done\n"


def lxc(tool, *argv, check=True):
    done = subprocess.run([tool, "-n", NAME, *map(str, argv)], capture_output=True, text=True, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make(place, *lines, rootfs=None):
    """A container as lxc-create makes it, with a small tree as its root file system."""
    settings = place / "lxc.conf"
    settings.write_text(
        "".join(f"{line}\n" for line in ("lxc.net.0.type = empty", "lxc.signal.halt = SIGUSR1", *lines))
    )
    lxc("lxc-create", "-t", "none", "-f", settings)
    inside = LXC / NAME / "rootfs"
    if inside.exists():
        inside.rmdir()
    tree = app_ground.make_tree(rootfs or inside)
    (tree / "sbin/init").write_text(INIT)
    (tree / "sbin/init").chmod(0o755)
    text = (LXC / NAME / "config").read_text()
    kept = [line for line in text.splitlines() if not line.startswith("lxc.rootfs.path")]
    (LXC / NAME / "config").write_text("\n".join([*kept, f"lxc.rootfs.path = dir:{tree}", ""]))
    return tree


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        assert not (LXC / NAME).exists()
        try:
            yield ground
        finally:
            for line in reversed(ground("list").splitlines()):  # a failed test may leave one on the tree of another
                ground.run("dre-app", "--config", ground.config, "destroy", "--force", line.split()[0])
            ground._destroy_all()
            lxc("lxc-stop", "-k", check=False)
            shutil.rmtree(LXC / NAME, ignore_errors=True)


def test_from_lxc_create_to_destroy(app, tmp_path):
    before = picture(NAME)
    make(tmp_path, "lxc.environment = GREETING=good day", "lxc.cgroup.pids.max = 50", "lxc.cgroup2.pids.max = 50")
    lxc("lxc-start")
    lxc("lxc-attach", "--", "sh", "-c", "echo theirs >/state")
    assert "it is running" in app("adopt", NAME, code=1)
    lxc("lxc-stop", "-k")
    app("adopt", NAME)
    app("adopt", NAME)  # again: 0
    assert json.loads(app("limit", NAME, "--json"))["pids_limit"] == 50
    app("start", NAME)
    assert wait_for(lambda: app("log", NAME) == "init is 1", timeout=60)
    assert app("exec", NAME, "--", "sh", "-c", "cat /state; echo $GREETING") == "theirs\ngood day"
    assert lxc("lxc-info", "-s", "-H").strip() == "RUNNING"
    app("stop", NAME)
    assert app("log", NAME) == "init is 1\ngoing down", "it was killed and not asked"
    app("snapshot", "save", NAME, "good")
    app("start", NAME)
    app("exec", NAME, "--", "sh", "-c", "echo ours >/state; rm /etc/release")
    app("undo", NAME, "good")
    assert app("exec", NAME, "--", "cat", "/state", "/etc/release") == "theirs\nfrom the tree"
    app("destroy", "--force", NAME)
    assert picture(NAME) == before


def test_a_shared_tree_is_its_base_and_stays(app, tmp_path):
    tree = make(tmp_path, rootfs=tmp_path / "shared")
    digest = app_ground.tree_digest(tree)
    app("adopt", NAME)
    app("start", NAME)
    app("exec", NAME, "--", "sh", "-c", "echo ours >/state")
    app("destroy", "--force", NAME)
    assert app_ground.tree_digest(tree) == digest


def test_an_overlay_keeps_what_was_changed(app, tmp_path):
    tree = make(tmp_path, rootfs=tmp_path / "shared")
    upper = LXC / NAME / "overlay/delta"
    upper.mkdir(parents=True)
    (upper / "state").write_text("theirs\n")
    config = LXC / NAME / "config"
    config.write_text(config.read_text().replace(f"dir:{tree}", f"overlay:{tree}:{upper}"))
    app("adopt", NAME)
    app("start", NAME)
    assert app("exec", NAME, "--", "cat", "/state", "/etc/release") == "theirs\nfrom the tree"
    assert app("exec", NAME, "--", "cat", "/proc/1/comm") == "init"
    app("set", NAME, "--", "sleep", "1000")
    app("restart", NAME)
    assert app("log", NAME, "--before") == "init is 1\ngoing down", "it was killed and not asked"
    assert app("exec", NAME, "--", "sh", "-c", "cat /proc/1/comm /proc/2/comm") == "dre-init\nsleep"


def test_with_a_program_of_its_own(app, tmp_path):
    make(tmp_path)
    app("adopt", NAME, "--ip", "10.231.101.88/24", "--", "sh", "-c", "echo as an app; sleep 1000")
    app("start", NAME)
    assert wait_for(lambda: app("log", NAME) == "as an app", timeout=60)
    row = json.loads(app("status", NAME, "--json"))
    assert (row["ip"], row["base"]) == (["10.231.101.88"], f"{LXC / NAME}/base")


def test_refused_as_it_is(app, tmp_path):
    tree = make(tmp_path, "lxc.hook.pre-start = /bin/true")
    config = LXC / NAME / "config"
    original, digest = config.read_text(), app_ground.tree_digest(tree)

    def refused(reason, text):
        config.write_text(text)
        assert reason in app("adopt", NAME, code=1)
        assert (config.read_text(), app_ground.tree_digest(tree)) == (text, digest)
        assert app("list") == "" and sorted(os.listdir(LXC / NAME)) == ["config", "rootfs"]

    refused("lxc.hook.pre-start = /bin/true: an app cannot have that", original)
    plain = original.replace("lxc.hook.pre-start = /bin/true\n", "")
    config.write_text(plain)
    assert "not an address of" in app("adopt", NAME, "--ip", "10.9.9.9/24", code=2)
    (tree / "sbin/init").rename(tree / "sbin/not-init")
    digest = app_ground.tree_digest(tree)
    refused("it has no /sbin/init", plain)
    refused("is not a directory", plain.replace(str(tree), "/no/such/tree"))
    refused("neither a directory nor an overlay", plain.replace("dir:", "zfs:"))
    (LXC / NAME / "partial").touch()
    config.write_text(plain)
    assert "has not finished" in app("adopt", NAME, code=1)
    app("adopt", "t-nobody", code=3)
    app("adopt", "../x", code=2)


def test_its_tree_does_not_vanish_under_another_app(app, tmp_path):
    make(tmp_path)
    app("create", f"{NAME}-2", "--base", LXC / NAME / "rootfs", "--ip", "none")
    assert f"is the base of {NAME}-2" in app("adopt", NAME, code=1)
    app("destroy", f"{NAME}-2")
    app("adopt", NAME)
    app("create", f"{NAME}-2", "--base", LXC / NAME / "base", "--ip", "none")
    assert f"is the base of {NAME}-2" in app("destroy", "--force", NAME, code=1)
    assert f"is the base of {NAME}-2" in app("rename", NAME, f"{NAME}-3", code=1)
    app("destroy", f"{NAME}-2")
    app("rename", NAME, f"{NAME}-3")
    app("start", f"{NAME}-3")
    assert app("exec", f"{NAME}-3", "--", "cat", "/etc/release") == "from the tree"
    assert json.loads(app("status", f"{NAME}-3", "--json"))["base"] == f"{LXC / NAME}-3/base"
    app("stop", f"{NAME}-3", "--timeout", "1")
    app("clone", f"{NAME}-3", NAME)
    app("start", NAME)
    assert app("exec", NAME, "--", "cat", "/etc/release") == "from the tree"
    assert "is the base of" in app("destroy", f"{NAME}-3", code=1)
    app("destroy", "--force", NAME)
    app("destroy", f"{NAME}-3")


def test_killed_at_any_moment_it_is_theirs_or_ours(app, tmp_path):
    words = [program("dre-app"), "--config", app.config, "adopt", NAME, "--ip", "none"]
    make(tmp_path)
    begun = time.monotonic()
    subprocess.run(words, env=environment(), check=True, capture_output=True)
    duration = time.monotonic() - begun
    ours = 0
    for number in range(KILLS):
        app("destroy", "--force", NAME)
        make(tmp_path)
        original = (LXC / NAME / "config").read_text()
        victim = subprocess.Popen(words, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
        # The first half is the start of Python, where nothing can happen yet.
        time.sleep(duration * random.uniform(0.5, 1))
        os.killpg(victim.pid, signal.SIGKILL) if victim.poll() is None else None
        victim.wait()
        if app("list"):
            ours += 1
            app("recover")
        else:
            assert (LXC / NAME / "config").read_text() == original, number
            assert sorted(os.listdir(LXC / NAME)) == ["config", "rootfs"], number
            app("adopt", NAME)
        app("start", NAME)
        assert app("exec", NAME, "--", "cat", "/etc/release") == "from the tree"
    print(f"{ours} of {KILLS} kills found it adopted, or just being so")


def test_a_container_of_the_busybox_template(app, tmp_path):
    if not (os.path.exists("/usr/share/lxc/templates/lxc-busybox") and shutil.which("busybox", path="/bin:/usr/bin")):
        pytest.skip("no lxc-busybox or no busybox: apt-get install lxc busybox-static")
    settings = tmp_path / "lxc.conf"
    settings.write_text("lxc.net.0.type = empty\n")
    lxc("lxc-create", "-t", "busybox", "-f", settings)
    app("adopt", NAME)
    app("start", NAME)
    assert app("exec", NAME, "--", "cat", "/proc/1/comm").strip() == "init"
    app("stop", NAME)
    assert "going down" in app("log", NAME)
