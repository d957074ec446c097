# SPDX-License-Identifier: Apache-2.0
"""dre-base from the outside, without the archive: refusals, list, check, delete and import on what is made here."""

import json
import os
import subprocess

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


@pytest.fixture
def image(tmp_path):
    """image(NAME) makes what dre-base would have made: an empty disk, a kernel that is none, a manifest."""

    def make(name, **changed):
        path = tmp_path / "state/base" / name
        path.mkdir(parents=True)
        qemu_img("create", "-f", "qcow2", path / "image.qcow2", "10M")
        (path / "vmlinuz").write_bytes(b"kernel")
        (path / "initrd.img").write_bytes(b"initrd")
        manifest = {
            "name": name,
            "size": 10 << 20,
            "sha256": digest(path / "image.qcow2"),
            "created": "2026-01-02T03:04:05.678Z",
            "imported": False,
            "suite": "bookworm",
            "wanted": [],
            "ssh_keys": [],
            "cmdline": "root=LABEL=x",
            "kernel_sha256": digest(path / "vmlinuz"),
            "initrd_sha256": digest(path / "initrd.img"),
            "packages_sha256": "ebba7247a84d69e66e5ea014818e525850ef489edda1d5794ce5784367be72dc",
            "packages": {"hello": "2.10-3"},
            **changed,
        }
        (path / "image.json").write_text(json.dumps(manifest))
        return path

    return make


def qemu_img(*argv):
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True, timeout=60)


def digest(path):
    return subprocess.run(["sha256sum", path], capture_output=True, check=True).stdout.split()[0].decode()


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
        ["--tree", "t", "--name", "i"],
        ["--tree", "t", "--size", "3G"],
        ["--tree", "t", "--if-older", "3d"],
        ["--name", "../x"],
        ["--name", "i", "--size", "much"],
        ["--name", "i", "--size", "100M"],
        ["--name", "i", "--if-older", "soon"],
        ["--name", "i", "--package", "$(reboot)"],
        ["--name", "i", "--ssh-key", "/etc/passwd"],
        ["--name", "i", "--ssh-key", "/dev/null"],
        ["import", "../x", "/etc/passwd"],
        ["import", "i", "/etc/passwd"],
        ["import", "i", "/dev/zero"],
        ["import", "i", "/etc", "--format", "raw"],
        ["import", "i", "/etc/passwd", "--format", "dmg"],
        ["check", "a/b"],
        ["delete", "-rf"],
    ],
)
def test_words_that_are_not_what_they_should_be(base, argv, tmp_path):
    done = base(*argv)
    assert done.returncode == 2
    assert done.stderr.startswith(b"dre-base: ")
    assert not (tmp_path / "state/base").exists() or os.listdir(tmp_path / "state/base") == []


@root_only
@pytest.mark.parametrize("verb", ["check", "delete"])
def test_unknown_tree(base, verb, tmp_path):
    done = base(verb, "nosuch")
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr == f"dre-base: nosuch: no such tree or image in {tmp_path}/state/base\n".encode()


def test_list_of_nothing(base):
    assert (base("list").returncode, base("list").stdout) == (0, b"")


def test_list_shows_trees_only(base, tree, tmp_path):
    tree("one")
    tree(".two.new")
    (tmp_path / "state/base/three").mkdir()
    assert base("list").stdout.split() == [b"one", b"tree", b"bookworm", b"2026-01-02T03:04:05.678Z", b"4096", b"1"]
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


@pytest.mark.parametrize(
    ("argv", "what"),
    [(["--tree", "x"], "dre-base --tree"), ([], "dre-base"), (["import", "x", "y"], "dre-base import")],
)
def test_making_needs_root(run, argv, what):
    done = run("dre-base", *argv, prefix=nobody())
    assert (done.returncode, done.stderr) == (4, f"dre-base: {what} needs root\n".encode())


@root_only
def test_list_shows_both_with_the_same_fields(base, tree, image, tmp_path):
    tree("one")
    image("two")
    image("three", imported=True, suite=None, packages=None)
    lines = [line.split() for line in base("list").stdout.decode().splitlines()]
    assert [line[:3] for line in lines] == [
        ["one", "tree", "bookworm"],
        ["three", "image", "-"],
        ["two", "image", "bookworm"],
    ]
    rows = [json.loads(line) for line in base("list", "--json").stdout.splitlines()]
    assert rows[0].keys() == rows[1].keys() == rows[2].keys()
    assert [(row["packages"], row["size"], row["path"]) for row in rows][1:] == [
        (None, 10 << 20, f"{tmp_path}/state/base/three"),
        (1, 10 << 20, f"{tmp_path}/state/base/two"),
    ]


@root_only
@pytest.mark.parametrize("argv", [["--tree", "it"], ["--name", "it"], ["--name", "it", "--replace"]])
def test_trees_and_images_share_their_names(base, tree, image, argv):
    (image if "--tree" in argv else tree)("it")
    done = base(*argv)
    assert (done.returncode, b"it: the name of " in done.stderr) == (1, True)


@root_only
def test_the_default_image_is_that_of_the_settings(run, settings, image):
    image("mine", size=2 << 30, mirror=None, suite=os_suite())
    done = run("dre-base", "--config", settings(DRE_SYS_DEFAULT_BASE="mine"))
    assert (done.returncode, done.stderr) == (0, b"dre-base: mine: already there\n")
    done = run("dre-base", "--config", settings(DRE_SYS_DEFAULT_BASE="/srv/mine.qcow2"))
    assert (done.returncode, b"DRE_SYS_DEFAULT_BASE is a path" in done.stderr) == (2, True)


def os_suite():
    argv = ["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"]
    return subprocess.run(argv, capture_output=True, check=True, text=True).stdout.strip()


@root_only
@pytest.mark.parametrize("more", [["--size", "3G"], ["--package", "hello"], ["--if-older", "36500d", "--size", "3G"]])
def test_another_wish_is_refused_without_replace(base, image, more):
    image("mine", size=2 << 30, suite=os_suite())
    done = base("--name", "mine", *more)
    assert (done.returncode, b"made with other options; use --replace" in done.stderr) == (1, True)


@root_only
def test_check_of_an_image_finds_each_changed_file(base, image):
    path = image("one")
    assert base("check", "one").returncode == 0
    with (path / "image.qcow2").open("r+b") as disk:
        disk.seek(0x10000)
        disk.write(b"\xff" * 64)
    (path / "vmlinuz").write_bytes(b"Kernel")
    (path / "initrd.img").unlink()
    done = base("check", "one", "--json")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [row["finding"] for row in found] == ["disk", "kernel", "initrd", "structure"]
    assert [row["found"] for row in found][:3] == [digest(path / "image.qcow2"), digest(path / "vmlinuz"), None]


@root_only
def test_check_of_an_image_finds_a_changed_manifest(base, image):
    image("one", packages={"hello": "2.10-4"})
    done = base("check", "one")
    assert (done.returncode, done.stdout.startswith(b"one: manifest: ")) == (1, True)


@root_only
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": 1}', "\xff"])
def test_check_of_an_image_without_a_readable_manifest_could_not_check(base, image, content):
    (image("one") / "image.json").write_text(content)
    done = base("check", "one")
    assert (done.returncode, b"not a manifest" in done.stderr) == (2, True)


@root_only
@pytest.mark.parametrize("layers", [1, 2])
def test_an_image_that_a_system_is_based_on_stays(base, image, tmp_path, layers):
    below = image("one") / "image.qcow2"
    for number in range(layers):
        over = tmp_path / f"state/sys/state/web{number}/disk.qcow2"
        over.parent.mkdir(parents=True)
        qemu_img("create", "-f", "qcow2", "-b", below, "-F", "qcow2", over)
        below = over
    users = ", ".join(f"web{number}" for number in range(layers))
    for argv in (["delete", "one"], ["--name", "one", "--replace"], ["import", "one", str(below), "--replace"]):
        done = base(*argv)
        assert (done.returncode, done.stderr) == (1, f"dre-base: one: used by {users}; destroy them first\n".encode())
    for number in range(layers):
        (tmp_path / f"state/sys/state/web{number}/disk.qcow2").unlink()
    assert base("delete", "one").returncode == 0
    assert os.listdir(tmp_path / "state/base") == []


@root_only
def test_an_image_that_a_process_has_open_stays(base, image):
    with (image("one") / "image.qcow2").open("rb"):
        done = base("delete", "one")
    assert (done.returncode, done.stderr) == (
        1,
        f"dre-base: one: used by process {os.getpid()}; destroy them first\n".encode(),
    )


@root_only
@pytest.mark.parametrize("format", ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "raw"])
def test_import_takes_what_virtual_machines_have(base, tmp_path, format):
    raw = tmp_path / "raw"
    with raw.open("wb") as disk:
        disk.truncate(8 << 20)
        disk.seek(510)
        disk.write(b"\x55\xaa")
        disk.seek(3 << 20)
        disk.write(b"marker")
    qemu_img("convert", "-f", "raw", "-O", format, raw, tmp_path / "disk")
    done = base("import", "mine", tmp_path / "disk")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    path = tmp_path / "state/base/mine"
    assert sorted(os.listdir(path)) == ["image.json", "image.qcow2"]
    assert (path.stat().st_mode & 0o777, (path / "image.qcow2").stat().st_mode & 0o777) == (0o755, 0o644)
    told = json.loads(
        subprocess.run(["qemu-img", "info", "--output=json", path / "image.qcow2"], capture_output=True).stdout
    )
    manifest = json.loads((path / "image.json").read_text())
    assert (told["format"], told["virtual-size"]) == ("qcow2", manifest["size"])
    assert (manifest["imported"], manifest["cmdline"], manifest["sha256"]) == (True, None, digest(path / "image.qcow2"))
    qemu_img("convert", "-O", "raw", path / "image.qcow2", tmp_path / "back")
    octets = (tmp_path / "back").read_bytes()
    assert octets[: 8 << 20] == raw.read_bytes() and not any(octets[8 << 20 :])
    assert base("check", "mine").returncode == 0
    done = base("import", "mine", tmp_path / "disk")
    assert (done.returncode, done.stderr) == (1, b"dre-base: mine: already there; use --replace\n")
    assert base("import", "mine", tmp_path / "disk", "--replace").returncode == 0


@root_only
@pytest.mark.parametrize(
    "argv",
    [
        ["-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", "disk"],
        ["-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "disk", "10M"],
        ["-f", "vmdk", "-o", "subformat=monolithicFlat", "disk", "10M"],
    ],
    ids=["backing", "data-file", "extent"],
)
@pytest.mark.parametrize("more", [[], ["--format", "qcow2"], ["--format", "vmdk"]], ids=["", "qcow2", "vmdk"])
def test_import_refuses_what_would_bring_another_file(base, tmp_path, monkeypatch, argv, more):
    monkeypatch.chdir(tmp_path)
    qemu_img("create", *argv)
    done = base("import", "mine", tmp_path / "disk", *more)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert str(tmp_path / "disk").encode() in done.stderr and b".mine.new" not in done.stderr
    assert os.listdir(tmp_path / "state/base") == []


@root_only
def test_import_of_what_is_not_there_or_said_to_be_raw(base, tmp_path):
    assert base("import", "mine", tmp_path / "nothing").returncode == 3
    (tmp_path / "text").write_bytes(b"anything\n" * 512)
    assert base("import", "mine", tmp_path / "text").returncode == 2
    assert base("import", "mine", tmp_path / "text", "--format", "raw").returncode == 0
    qemu_img("convert", "-O", "raw", tmp_path / "state/base/mine/image.qcow2", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "text").read_bytes()


@root_only
@pytest.mark.parametrize(
    ("left", "expected"),
    [(["one", ".one.new"], "old"), ([".one.old", ".one.new"], "new"), (["one", ".one.gone"], "old")],
)
def test_the_remains_of_a_killed_call_for_an_image(base, image, tmp_path, left, expected):
    for name in left:
        (image(name) / "which").write_text("new" if name.endswith(".new") else "old")
    base("check", "one")
    assert os.listdir(tmp_path / "state/base") == ["one"]
    assert (tmp_path / "state/base/one/which").read_text() == expected
