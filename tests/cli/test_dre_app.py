# SPDX-License-Identifier: Apache-2.0
"""dre-app's arguments, exit codes and output, on scratch directories and without starting anything."""

import concurrent.futures
import fcntl
import json
import os
import pathlib

import pytest
from conftest import nobody

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dre-app makes overlays and devices")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ((), "verb is missing"),
        (("create", "a/b"), "'a/b' is not a name"),
        (("create", "x" * 40), "is not a name"),
        (("create", "-x"), "required: NAME"),
        (("create", "web1", "--memory", "lots"), "not a size"),
        (("create", "web1", "--cpu", "0.2"), "below 1 percent"),
        (("start",), "required: NAME"),
        (("start", "web1", "--", "x"), "takes no command"),
        (("exec", "web1"), "command"),
        (("snapshot",), "verb is missing"),
        (("snapshot", "save", "web1", "a b"), "'a b' is not a name"),
        (("limit", "web1", "--pids", "-4"), "not a number above 0"),
        (("undo", "web1", "--timeout", "soon"), "not a duration"),
        (("start", "web1", "--request-id", "../x"), "not a request id"),
        (("create", "web1", "--memory", "99999999T"), "more than any host has"),
        (("create", "web1", "--cpu", "99999999"), "below 1000000"),
        (("stat", "--interval", "0"), "less than 100 ms"),
        (("frobnicate",), "frobnicate"),
    ],
)
def test_usage_errors(app, argv, reason):
    if argv[:1] == ("exec",) and os.geteuid() != 0:
        pytest.skip("privilege is asked for first")
    text = app(*argv, code=2)
    assert text.startswith("dre-app: ") and reason in text.partition("usage:")[0]


@pytest.mark.parametrize("argv", [("create", "web1"), ("start", "web1"), ("list",), ("status", "web1"), ("recover",)])
def test_without_privilege(run, argv):
    done = run("dre-app", *argv, prefix=nobody())
    assert (done.returncode, b"needs root" in done.stderr) == (4, True), done.stderr


@root
def test_create_list_status_destroy(app, tmp_path):
    app("create", "web1", "--base", tmp_path / "tree", "--memory", "64M", "--cpu", "150%", "--", "httpd", "-f", "a b")
    assert app("list") == "web1          stopped   10.231.101.2    -\n"
    row = json.loads(app("status", "web1", "--json", code=1) or app("--json", "list"))
    assert row == {
        "name": "web1",
        "state": "stopped",
        "ip": ["10.231.101.2"],
        "pid": None,
        "cpu": None,
        "memory": None,
        "memory_limit": 64 << 20,
        "cpu_limit": 150.0,
        "pids": None,
        "created": row["created"],
        "base": str(tmp_path / "tree"),
        "snapshots": [],
        "isolated": False,
    }
    assert (tmp_path / "lxc/web1/command").read_text().endswith("exec httpd -f 'a b'\n")
    app("create", "web1", code=1)
    app("destroy", "web1")
    assert (os.listdir(tmp_path / "lxc"), os.listdir(tmp_path / "tree")) == ([], ["bin"])
    app("destroy", "web1", code=3)


@root
def test_unknown_things_are_3(app, tmp_path):
    for argv in (
        ("start", "nope"),
        ("stop", "nope"),
        ("status", "nope"),
        ("stat", "nope"),
        ("exec", "nope", "--", "true"),
        ("undo", "nope"),
        ("snapshot", "list", "nope"),
        ("limit", "nope"),
        ("pid", "nope"),
        ("digest", "nope"),
        ("create", "web1", "--base", tmp_path / "no-tree"),
        ("create", "web1", "--base", "no-such-base"),
    ):
        text = app(*argv, code=3)
        assert text.startswith("dre-app: ") and text.count("\n") == 1
    assert app("list") == ""


@root
def test_several_names_and_one_unknown(app):
    for name in ("a", "b"):
        app("create", name, "--ip", "none")
    assert app("destroy", "a", "nope", "b", code=3) == "dre-app: nope: no such app\n"
    assert app("list") == ""


@root
def test_request_id(app):
    app("create", "web1", "--request-id", "r1")
    app("create", "web1", "--request-id", "r1")
    app("create", "web1", "--request-id", "r1", "--memory", "1M", code=2)
    app("create", "web1", code=1)
    app("destroy", "web1", "--request-id", "r2")
    app("create", "web1")
    app("destroy", "web1", "--request-id", "r2")  # answered only
    assert app("list").startswith("web1 ")


@root
def test_half_made_app_is_undone_by_the_next_verb(app, tmp_path):
    app("create", "web1")
    home = tmp_path / "state/app/state/web1"
    (home / "intent.json").write_text('{"verb": "create"}')
    (tmp_path / "lxc/web1/config").unlink()
    assert app("list").split()[:2] == ["web1", "partial"]
    app("status", "web1", code=3)
    assert (os.listdir(tmp_path / "lxc"), home.exists()) == ([], False)


@root
def test_tree_is_only_linked(app, tmp_path):
    before = sorted(map(str, pathlib.Path(tmp_path / "tree").rglob("*")))
    app("create", "web1", "--base", tmp_path / "tree")
    assert os.readlink(tmp_path / "lxc/web1/lower") == str(tmp_path / "tree")
    app("destroy", "web1")
    assert sorted(map(str, pathlib.Path(tmp_path / "tree").rglob("*"))) == before


@root
def test_create_waits_for_who_changes_its_tree(run, settings, tmp_path):
    """dre-base holds the tree's lock while it deletes or replaces it; the name of the lock is what dre-base made."""
    tree = tmp_path / "state/base/one"
    for part in ("bin", "etc", "var/lib/dpkg"):
        (tree / part).mkdir(parents=True)
    (tree / "bin/sh").touch()
    (tree / "var/lib/dpkg/status").touch()
    config = settings(DRE_APP_LXC_PATH=tmp_path / "lxc", DRE_BRIDGE_ADDRESS="10.231.101.1/24")
    (tmp_path / "lxc").mkdir()
    run("dre-base", "--config", config, "delete", "one")  # refused: it has no manifest
    (lock,) = (tmp_path / "run/lock").glob("base-one-*")
    with lock.open() as stream, concurrent.futures.ThreadPoolExecutor() as pool:
        fcntl.flock(stream, fcntl.LOCK_EX)
        create = pool.submit(run, "dre-app", "--config", config, "create", "web1", "--base", "one", "--ip", "none")
        concurrent.futures.wait([create], timeout=1.5)
        assert not create.done()
        tree.rename(tmp_path / "gone")
        fcntl.flock(stream, fcntl.LOCK_UN)
        done = create.result()
    assert (done.returncode, b"no such tree" in done.stderr) == (3, True), done.stderr
    assert os.listdir(tmp_path / "lxc") == [] and not (tmp_path / "state/app/state/web1").exists()


@root
def test_closed_streams(app, run, settings, tmp_path):
    """Closed ones must not become files of ours; what cannot be printed is a failure, and what need not is none."""
    app("create", "web1", "--base", tmp_path / "tree", "--ip", "none")

    def closed(*argv):
        script = 'exec "$@" <&- >&-'
        return run("dre-app", "--config", tmp_path / "dre.conf", *argv, prefix=("sh", "-c", script, "sh"))

    for argv in (("list",), ("--json", "list"), ("status", "web1")):
        done = closed(*argv)
        assert done.returncode == 1, (argv, done.stderr)
        assert done.stderr == b"dre-app: input or output: Bad file descriptor\n"
    done = closed("set", "web1", "env=A=1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert "env A=1" in app("set", "web1")
