# SPDX-License-Identifier: Apache-2.0
"""An app knows its name and whom to ask for others, by files that are brought up to date until it changes them."""

import pathlib
import subprocess

import app_ground
import pytest
from app_ground import LXC, Ground

NAME = "t-etc"
FILES = ("resolv.conf", "hosts", "hostname")


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings, DRE_BRIDGE_DNS="no") as ground:
        ground.tree = app_ground.make_tree(tmp_path / "tree")
        for name in FILES:
            (ground.tree / "etc" / name).write_text("of the tree\n")
        yield ground


@pytest.fixture
def resolvers():
    """What an app can ask, by the host's own file; the test says nothing where the host has no such name server."""
    text = pathlib.Path("/etc/resolv.conf").read_text()
    found = [line for line in text.splitlines() if line.startswith("nameserver ") and ":" not in line]
    found = [line for line in found if not line.startswith("nameserver 127.")]
    if not found:
        pytest.skip("the host asks itself, or nobody")
    return found


def read(app, name, where=NAME):
    return app("exec", where, "--", "cat", f"/etc/{name}")


def test_they_hold_what_is_so(app, resolvers):
    app("create", NAME, "--base", app.tree, "--ip", "10.231.101.77/24")
    app("start", NAME)
    assert [line for line in read(app, "resolv.conf").splitlines() if line.startswith("nameserver")] == resolvers
    assert f"10.231.101.77 {NAME}.dre {NAME}" in read(app, "hosts").splitlines()
    assert "127.0.0.1 localhost" in read(app, "hosts").splitlines()
    assert read(app, "hostname") == NAME
    assert all((app.tree / "etc" / name).read_text() == "of the tree\n" for name in FILES)
    # They are there from the create on, so that a start changes nothing.
    app("stop", NAME)
    app("snapshot", "save", NAME, "one")
    digest = app("digest", NAME)
    app("start", NAME)
    assert app("digest", NAME) == digest
    app("stop", NAME)
    app("set", NAME, "ip=10.231.101.78/24")
    app("start", NAME)
    assert f"10.231.101.78 {NAME}.dre {NAME}" in read(app, "hosts").splitlines()


def test_without_a_network_nobody_is_asked(app):
    app("create", NAME, "--base", app.tree, "--ip", "none")
    app("start", NAME)
    assert read(app, "resolv.conf") == "of the tree"
    assert f"127.0.1.1 {NAME}.dre {NAME}" in read(app, "hosts").splitlines()


def test_what_the_app_changed_is_its_own(app):
    app("create", NAME, "--base", app.tree)
    app("start", NAME)
    app("exec", NAME, "--", "/bin/sh", "-c", "echo own >>/etc/hosts; rm /etc/hostname; ln -s ../run/x /etc/hostname")
    hosts = read(app, "hosts")
    assert hosts.endswith("\nown")
    app("stop", NAME)
    app("set", NAME, "ip=10.231.101.78/24")
    app("start", NAME)
    assert read(app, "hosts") == hosts
    assert (LXC / NAME / "delta/etc/hostname").is_symlink()
    # What it removes it is given again.
    app("exec", NAME, "--", "rm", "/etc/hosts")
    app("stop", NAME)
    app("start", NAME)
    assert f"10.231.101.78 {NAME}.dre {NAME}" in read(app, "hosts").splitlines()


@pytest.mark.parametrize("kind", ["--unprivileged", "--privileged"])
def test_a_link_leads_to_no_file_of_the_host(app, tmp_path, kind):
    target = tmp_path / "target"
    target.mkdir()
    app("create", NAME, "--base", app.tree, kind)
    app("start", NAME)
    app("exec", NAME, "--", "/bin/sh", "-c", f"rm -r /etc; ln -s {target} /etc")
    app("stop", NAME)
    app("start", NAME)
    assert list(target.iterdir()) == []
    app("exec", NAME, "--", "/bin/sh", "-c", "rm /etc; mkdir /etc; mkfifo /etc/hosts")
    app("stop", NAME)
    app("start", NAME)
    assert app("exec", NAME, "--", "stat", "-c", "%F", "/etc/hosts") == "fifo"


def test_a_killed_write_is_done_again(app):
    app("create", NAME, "--base", app.tree)
    half = LXC / NAME / "delta/etc/.hosts.dre"
    half.write_text("half")
    subprocess.run(["rm", LXC / NAME / "delta/etc/hosts"], check=True)
    app("start", NAME)
    assert f"{NAME}.dre" in read(app, "hosts")
    assert not half.exists()


def test_the_host_as_base_has_its_own_but_for_resolv_conf(app, resolvers):
    app("create", NAME)
    app("start", NAME)
    lines = read(app, "resolv.conf").splitlines()
    assert [line for line in lines if line.startswith("nameserver")] == resolvers
    assert read(app, "hosts") == pathlib.Path("/etc/hosts").read_text().strip()
