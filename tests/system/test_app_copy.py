# SPDX-License-Identifier: Apache-2.0
"""A clone and a renamed app run as any other: LXC knows them by their names, and the network by their addresses."""

import json
import subprocess

import app_ground
from app_ground import LXC, Ground

NAME, OTHER = "t-copy", "t-copy-two"


def lxc(name, *options):
    done = subprocess.run(["lxc-info", "-n", name, "-H", *options], capture_output=True, text=True)
    return done.stdout.strip()


def test_clone_of_a_running_app_and_rename(run, settings, tmp_path):
    tree = app_ground.make_tree(tmp_path / "tree")
    with Ground(run, settings) as app:
        app("create", NAME, "--base", tree, "--pids", "50")
        app("exec", NAME, "--", "true", code=1)
        (LXC / NAME / "delta/state").write_text("good\n")
        (LXC / NAME / "delta/etc").mkdir(exist_ok=True)
        (LXC / NAME / "delta/etc/machine-id").write_text("0" * 32 + "\n")
        app("start", NAME)
        assert "it is running" in app("clone", NAME, OTHER, code=1)
        assert "it is running" in app("rename", NAME, OTHER, code=1)
        app("snapshot", "save", NAME, "good", "--freeze")
        app("clone", NAME, OTHER, "--tag", "good")
        app("start", OTHER)
        assert app("exec", OTHER, "--", "cat", "/state") == "good"
        assert app("exec", OTHER, "--", "cat", "/etc/machine-id") != "0" * 32
        assert app("exec", NAME, "--", "cat", "/etc/machine-id") == "0" * 32
        links = [(lxc(name, "-s"), lxc(name, "-i"), lxc(name, "-c", "lxc.net.0.hwaddr")) for name in (NAME, OTHER)]
        assert [link[0] for link in links] == ["RUNNING", "RUNNING"]
        assert links[0][1] != links[1][1] and links[0][2] != links[1][2]
        digest = app("digest", OTHER)
        app("stop", NAME, OTHER, "--timeout", "1")
        app("rename", OTHER, f"{NAME}-new")
        assert app("digest", f"{NAME}-new") == digest
        app("start", f"{NAME}-new")
        assert (lxc(f"{NAME}-new", "-s"), lxc(OTHER, "-s")) == ("RUNNING", "")
        assert lxc(f"{NAME}-new", "-i") == links[1][1]
        assert app("exec", f"{NAME}-new", "--", "cat", "/state") == "good"
        assert json.loads(app("status", f"{NAME}-new", "--json"))["ip"] == [links[1][1]]
        assert [what for what in app.events() if what in ("app.cloned", "app.renamed")] == ["app.cloned", "app.renamed"]
