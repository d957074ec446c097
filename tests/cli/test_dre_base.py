# SPDX-License-Identifier: Apache-2.0
"""dre-base from the outside, without making a tree: refusals, list and delete on manifests written here."""

import json
import os

import pytest
from conftest import nobody


@pytest.fixture
def base(run, settings):
    conf = settings()
    return lambda *argv, **kwargs: run("dre-base", *argv, "--config", conf, **kwargs)


@pytest.fixture
def tree(tmp_path):
    """tree(NAME) makes what looks like a tree, with one package."""

    def make(name, packages=None):
        path = tmp_path / "state/base" / name
        (path / "etc").mkdir(parents=True)
        (path / "var/lib/dpkg").mkdir(parents=True)
        status = "Package: hello\nStatus: install ok installed\nArchitecture: all\nVersion: 2.10-3\n\n"
        (path / "var/lib/dpkg/status").write_text(status)
        manifest = {
            "name": name,
            "suite": "bookworm",
            "mirror": None,
            "wanted": ["hello"],
            "created": "2026-01-02T03:04:05.678Z",
            "size": 4096,
            # printf 'hello 2.10-3\n' | sha256sum
            "sha256": "ebba7247a84d69e66e5ea014818e525850ef489edda1d5794ce5784367be72dc",
            "packages": packages or {"hello": "2.10-3"},
        }
        (path / "etc/dre-base.json").write_text(json.dumps(manifest))
        return path

    return make


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_without_tree_or_verb_it_says_what_it_does_not_do(base):
    done = base()
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1 and b"system images are not built by this version" in done.stderr


@root_only
@pytest.mark.parametrize(
    "argv",
    [
        ["--tree", "../x"],
        ["--tree", "a" * 40],
        ["--tree", "t", "--suite", "x;reboot"],
        ["--tree", "t", "--suite=--hook-dir=/tmp"],
        ["--tree", "t", "--mirror", "file:///tmp"],
        ["--tree", "t", "--mirror", "http://host/ x main"],
        ["--tree", "t", "--package", "hello,$(reboot)"],
        ["--tree", "t", "--package", "hello", "?essential"],
        ["--tree", "t", "--output", "/nonexistent"],
        ["check", "a/b"],
        ["delete", "-rf"],
    ],
)
def test_words_that_are_not_what_they_should_be(base, argv, tmp_path):
    done = base(*argv)
    assert done.returncode == 2
    assert done.stderr.startswith(b"dre-base: ")
    assert not (tmp_path / "state/base").exists()


@root_only
@pytest.mark.parametrize("verb", ["check", "delete"])
def test_unknown_tree(base, verb, tmp_path):
    done = base(verb, "nosuch")
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == f"dre-base: nosuch: no such tree in {tmp_path}/state/base\n".encode()


def test_list_of_nothing(base):
    assert (base("list").returncode, base("list").stdout) == (0, b"")


def test_list_shows_trees_only(base, tree, tmp_path):
    tree("one")
    tree(".two.new")
    (tmp_path / "state/base/three").mkdir()
    assert base("list").stdout.split() == [b"one", b"bookworm", b"2026-01-02T03:04:05.678Z", b"4096", b"1"]
    row = json.loads(base("list", "--json").stdout)
    assert (row["name"], row["path"], row["packages"]) == ("one", str(tmp_path / "state/base/one"), 1)


@root_only
def test_the_same_wish_does_nothing_and_another_is_refused(base, tree):
    tree("one")
    done = base("--tree", "one", "--suite", "bookworm", "--package", "hello")
    assert (done.returncode, done.stderr) == (0, b"dre-base: one: already there\n")
    done = base("--tree", "one", "--suite", "trixie", "--package", "hello")
    assert (done.returncode, b"--replace" in done.stderr) == (1, True)


@root_only
@pytest.mark.parametrize("where", ["config", "state", "lower"])
def test_delete_refuses_while_an_app_uses_the_tree(base, tree, settings, run, tmp_path, where):
    path = tree("one")
    app = tmp_path / "lxc/web1"
    state = tmp_path / "state/app/state/web1"
    app.mkdir(parents=True)
    state.mkdir(parents=True)
    (app / "config").write_text(f"lxc.x = {path if where == 'config' else f'{path}2'}/x\n")
    (state / "app.json").write_text(json.dumps({"base": str(path if where == "state" else tmp_path)}))
    (app / "lower").symlink_to(path if where == "lower" else tmp_path)
    conf = settings(DRE_APP_LXC_PATH=tmp_path / "lxc")
    done = run("dre-base", "--config", conf, "delete", "one")
    assert (done.returncode, done.stderr) == (1, b"dre-base: one: used by web1; destroy them first\n")
    assert path.is_dir()
    (app / "lower").unlink()
    (app / "config").write_text("")
    (state / "app.json").unlink()
    assert run("dre-base", "--config", conf, "delete", "one").returncode == 0
    assert os.listdir(path.parent) == []


@root_only
def test_delete_refuses_what_it_did_not_make(base, tmp_path):
    (tmp_path / "state/base/mine").mkdir(parents=True)
    done = base("delete", "mine")
    assert (done.returncode, b"not made by dre-base" in done.stderr) == (2, True)
    assert (tmp_path / "state/base/mine").is_dir()


@root_only
@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (["one", ".one.new"], "old"),  # killed while building a replacement
        ([".one.old", ".one.new"], "new"),  # between the two renamings
        (["one", ".one.old"], "old"),  # after them
        (["one", ".one.gone"], "old"),  # in a delete, and made again
    ],
)
def test_the_remains_of_a_killed_call_are_finished_or_removed(base, tree, tmp_path, left, expected):
    for name in left:
        (tree(name) / "which").write_text("new" if name.endswith(".new") else "old")
    base("check", "one")
    assert os.listdir(tmp_path / "state/base") == ["one"]
    assert (tmp_path / "state/base/one/which").read_text() == expected


@root_only
def test_a_half_made_replacement_never_takes_the_place(base, tree, tmp_path):
    (tree(".one.old") / "which").write_text("old")
    (tmp_path / "state/base/.one.new/etc").mkdir(parents=True)  # no manifest: not whole
    base("check", "one")
    assert os.listdir(tmp_path / "state/base") == ["one"]
    assert (tmp_path / "state/base/one/which").read_text() == "old"


@root_only
def test_check_finds_each_kind_of_difference(base, tree):
    path = tree("one")
    assert base("check", "one").returncode == 0
    status = path / "var/lib/dpkg/status"
    text = status.read_text()
    status.write_text(text.replace("2.10-3", "2.10-4") + text.replace("hello", "other"))
    done = base("check", "one")
    assert done.returncode == 1
    assert done.stdout.decode().splitlines() == [
        "one: changed: hello: expected 2.10-3, found 2.10-4",
        "one: added: other: expected -, found 2.10-3",
    ]
    status.write_text(text.replace("hello", "other"))
    finding = [json.loads(line) for line in base("check", "one", "--json").stdout.splitlines()]
    assert [(row["finding"], row["package"]) for row in finding] == [("missing", "hello"), ("added", "other")]


@root_only
def test_check_finds_a_changed_manifest(base, tree):
    tree("one", packages={"hello": "2.10-9"})
    done = base("check", "one")
    assert done.returncode == 1
    assert done.stdout.startswith(b"one: manifest: ")


@root_only
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 1}', "\xff"])
def test_check_without_a_readable_manifest_could_not_check(base, tree, content):
    (tree("one") / "etc/dre-base.json").write_text(content)
    done = base("check", "one")
    assert (done.returncode, b"not a manifest" in done.stderr) == (2, True)


@root_only
def test_check_without_a_package_list_could_not_check(base, tree):
    (tree("one") / "var/lib/dpkg/status").unlink()
    assert base("check", "one").returncode == 2


def test_making_needs_root(run):
    done = run("dre-base", "--tree", "x", prefix=nobody())
    assert (done.returncode, done.stderr) == (4, b"dre-base: dre-base --tree needs root\n")
