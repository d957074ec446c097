# SPDX-License-Identifier: Apache-2.0
"""clone and rename of apps that never run: what goes with an app, what does not, and renames killed on their way."""

import json
import os
import shutil

import pytest
from conftest import restored

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dre-app makes overlays and devices")


@pytest.fixture
def tmp_path(module_path):
    """What each test begins with is made once and brought back."""
    return module_path


@pytest.fixture
def app(app, tmp_path):
    restored(tmp_path, lambda: make(app, tmp_path))
    return app


def make(app, tmp_path):
    options = ("--privileged", "--memory", "64M", "--env", "A=b", "--bind", f"{tmp_path}/tree:/srv:ro", "--autostart")
    app("create", "web1", "--base", tmp_path / "tree", *options, "--publish", "18080:80", "--", "httpd", "-f")
    delta = tmp_path / "lxc/web1/delta"
    (delta / "etc/ssh").mkdir(parents=True)
    (delta / "etc/machine-id").write_text("0" * 32 + "\n")
    for key in ("ssh_host_rsa_key", "ssh_host_rsa_key.pub", "sshd_config"):
        (delta / "etc/ssh" / key).write_text("x")
    os.mknod(delta / "etc/ssh/ssh_host_dsa_key", 0o20000, 0)
    (delta / "opaque").mkdir()
    os.setxattr(delta / "opaque", "trusted.overlay.opaque", b"y")


def spec(tmp_path, name):
    return json.loads((tmp_path / "state/app/state" / name / "app.json").read_text())


def names(app):
    return [line.split()[0] for line in app("list").splitlines()]


def test_clone(app, tmp_path):
    app("clone", "web1", "web2")
    old, new = spec(tmp_path, "web1"), spec(tmp_path, "web2")
    assert {key for key in old if old[key] != new[key]} == {"name", "created", "ip", "publish", "autostart"}
    assert (new["ip"], new["publish"], new["autostart"]) == ("10.231.101.3/24", [], False)
    config = [(tmp_path / "lxc" / name / "config").read_text() for name in ("web1", "web2")]
    assert [config[0].count("02:d7:0a:e7:65:02"), config[1].count("02:d7:0a:e7:65:03")] == [1, 1]
    assert "web1" not in config[1] and "web1" not in (tmp_path / "lxc/web2/command").read_text()
    delta = tmp_path / "lxc/web2/delta"
    assert sorted(os.listdir(delta / "etc/ssh")) == ["ssh_host_dsa_key", "sshd_config"]
    assert len((delta / "etc/machine-id").read_text()) == 33 and "0000" not in (delta / "etc/machine-id").read_text()
    assert os.getxattr(delta / "opaque", "trusted.overlay.opaque") == b"y"
    assert (tmp_path / "lxc/web1/delta/etc/machine-id").read_text() == "0" * 32 + "\n"
    assert "already" in app("clone", "web1", "web2", code=1)
    app("clone", "nope", "web3", code=3)
    app("clone", "web1", "web3", "--tag", "nope", code=3)
    assert names(app) == ["web1", "web2"]


def test_clone_of_a_snapshot(app, tmp_path):
    app("snapshot", "save", "web1", "good")
    app("limit", "web1", "--memory", "128M")
    (tmp_path / "lxc/web1/delta/later").touch()
    app("clone", "web1", "web2", "--tag", "good")
    assert not (tmp_path / "lxc/web2/delta/later").exists()
    assert spec(tmp_path, "web2")["limits"]["memory"] == 64 << 20
    assert app("snapshot", "list", "web2") == ""


def test_clone_keeps_what_hides_the_host_and_follows_no_links(app, tmp_path):
    app("create", "host1", "--ip", "none")
    delta = tmp_path / "lxc/host1/delta"
    shutil.rmtree(delta / "etc/ssh")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/ssh_host_rsa_key").touch()
    (delta / "etc/ssh").symlink_to(tmp_path / "victim")
    os.removexattr(delta / "root", "trusted.overlay.opaque")
    app("clone", "host1", "host2")
    assert os.listdir(tmp_path / "victim") == ["ssh_host_rsa_key"]
    assert os.getxattr(tmp_path / "lxc/host2/delta/root", "trusted.overlay.opaque") == b"y"
    assert spec(tmp_path, "host2")["ip"] is None


def test_rename(app, tmp_path):
    app("snapshot", "save", "web1", "good")
    (tmp_path / "log/app/web1.log.1").write_text("before\n")
    app("rename", "web1", "shop")
    assert names(app) == ["shop"]
    assert app("log", "shop", "--before") == "before\n"
    assert app("snapshot", "list", "shop").startswith("good")
    found = spec(tmp_path, "shop")
    assert (found["name"], found["ip"], found["publish"][0]["outside"]) == ("shop", "10.231.101.2/24", 18080)
    assert f"dir:{tmp_path}/lxc/shop/rootfs" in (tmp_path / "lxc/shop/config").read_text()
    app("snapshot", "load", "shop", "good")
    assert spec(tmp_path, "shop")["name"] == "shop"
    left = [str(path) for path in tmp_path.rglob("*web1*") if path.parts[-2] != "lock"]
    assert left == []
    app("create", "web1", "--ip", "none")
    assert "already" in app("rename", "shop", "web1", code=1)
    app("rename", "nope", "web2", code=3)
    assert "is not a name" in app("rename", "shop", "A", code=2)


def test_rename_of_what_others_wait_for_is_refused(app):
    app("create", "db1", "--ip", "none")
    app("set", "web1", "after=db1")
    assert "db1: web1 start after it" in app("rename", "db1", "db2", code=1)
    app("set", "web1", "after=")
    app("rename", "db1", "db2")


@pytest.mark.parametrize("asked", ["web1", "shop", "recover"])
def test_rename_killed_before_it_was_decided_is_forgotten(app, tmp_path, asked):
    home = tmp_path / "state/app/state"
    intent = json.dumps({"verb": "rename", "old": "web1", "new": "shop"})
    (home / "shop").mkdir()
    (home / "shop/intent.json").write_text(intent)
    app("recover") if asked == "recover" else app("status", asked, code=1 if asked == "web1" else 3)
    if asked == "web1":
        app("status", "shop", code=3)
    assert names(app) == ["web1"]
    assert os.listdir(home) == ["web1"]
