# SPDX-License-Identifier: Apache-2.0
"""export and import: an app as one file comes back the same, and a hostile file makes nothing."""

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile

import pytest
from conftest import environment, program, restored

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: dre-app makes overlays and devices")
TREE = "small"


class Apps:
    """dre-app on scratch directories; nothing is started."""

    def __init__(self, run, config, place):
        self.run, self.config, self.place = run, config, place

    def __call__(self, *argv, code=0, stderr=False, **options):
        done = self.run("dre-app", "--config", self.config, *argv, **options)
        assert done.returncode == code, f"{argv}: {done.returncode}: {done.stderr.decode()}"
        return (done.stderr if code or stderr else done.stdout).decode().strip()

    def spec(self, name):
        return json.loads((self.place / "state/app/state" / name / "app.json").read_text())

    def left(self):
        """All that there is of apps."""
        return sorted(os.listdir(self.place / "lxc")), sorted(os.listdir(self.place / "state/app/state"))


@pytest.fixture
def tmp_path(module_path):
    """What each test begins with is made once and brought back."""
    return module_path


@pytest.fixture
def app(run, settings, tmp_path):
    shutil.rmtree(tmp_path)
    (tmp_path / "lxc").mkdir(parents=True)
    (tmp_path / "state/base" / TREE / "bin").mkdir(parents=True)
    (tmp_path / "state/base" / TREE / "bin/sh").touch()
    os.utime(tmp_path / "state/base" / TREE / "bin/sh", (0, 0))  # one tree for all tests, as its identity goes
    config = settings(DRE_APP_LXC_PATH=tmp_path / "lxc", DRE_BRIDGE_ADDRESS="10.231.101.1/24")
    return Apps(run, config, tmp_path)


@pytest.fixture
def web1(app, tmp_path):
    restored(tmp_path, lambda: make(app, tmp_path))
    return app


def make(app, tmp_path):
    (tmp_path / "data").mkdir()
    options = ("--memory", "64M", "--cpus", "0", "--env", "A=b", "--publish", "18080:80", "--autostart")
    app(
        *("create", "web1", "--base", TREE, "--privileged", *options, "--bind", f"{tmp_path}/data:/srv:ro"),
        *("--", "httpd", "-f", "a b"),
    )
    delta = tmp_path / "lxc/web1/delta"
    (delta / "su").write_text("x")
    (delta / "su").chmod(0o4755)
    os.mknod(delta / "gone", 0o20000, 0)
    app("snapshot", "save", "web1", "one", "--description", "first")
    (delta / "more").write_text("more")
    app("snapshot", "save", "web1", "two")
    (delta / "state").write_text("now")


def allow(app):
    return ("--allow-setuid", "--allow-privileged", "--allow-bind", app.place)


def test_comes_back_the_same(web1):
    file = web1.place / "web1.tar.zst"
    before = [web1("digest", "web1"), web1("snapshot", "list", "web1"), web1("limit", "web1")]
    spec = web1.spec("web1")
    web1("export", "--snapshots", "web1", file)
    assert subprocess.run(["zstd", "-tq", file]).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert "already" in web1("import", file, *allow(web1), code=1)
    web1("destroy", "web1")
    assert web1("import", file, *allow(web1)) == "web1"
    assert [web1("digest", "web1"), web1("snapshot", "list", "web1"), web1("limit", "web1")] == before
    assert {key for key, value in web1.spec("web1").items() if spec[key] != value} <= {"created", "request"}
    web1("snapshot", "load", "web1", "one")
    assert sorted(os.listdir(web1.place / "lxc/web1/delta")) == ["gone", "su"]


def test_plain_archive_is_what_tar_and_sha256sum_say(web1):
    file = web1.place / "web1.tar"
    web1("export", "--no-compress", "web1", file)
    assert subprocess.run(["tar", "-tf", file], capture_output=True, text=True).stdout == "manifest.json\ndelta.tar\n"
    inner = subprocess.run(["tar", "-xOf", file, "delta.tar"], capture_output=True, check=True).stdout
    head = json.loads(subprocess.run(["tar", "-xOf", file, "manifest.json"], capture_output=True, check=True).stdout)
    assert hashlib.sha256(inner).hexdigest() == head["delta"]["digest"] == web1("digest", "web1")
    web1("import", file, "--as", "web2", *allow(web1))


def test_by_pipe_and_beside_the_first(web1):
    words = [program("dre-app"), "--config", web1.config]
    first = subprocess.Popen([*words, "export", "web1", "-"], env=environment(), stdout=subprocess.PIPE)
    argv = [*words, "import", "--as", "web2", *map(str, allow(web1)), "-"]
    second = subprocess.run(argv, env=environment(), stdin=first.stdout, capture_output=True, text=True, timeout=60)
    assert (first.wait(60), second.returncode) == (0, 0), second.stderr
    assert "its address is 10.231.101.3/24, for 10.231.101.2/24 is not free here" in second.stderr
    old, new = web1.spec("web1"), web1.spec("web2")
    assert {key for key in old if old[key] != new[key]} == {"name", "created", "ip", "publish", "autostart"}
    assert web1("digest", "web2") == web1("digest", "web1")


def test_of_a_snapshot(web1):
    file = web1.place / "one.tar"
    web1("export", "--tag", "one", "--no-compress", "web1", file)
    web1("import", file, "--as", "web2", *allow(web1))
    assert sorted(os.listdir(web1.place / "lxc/web2/delta")) == ["gone", "su"]
    assert web1("snapshot", "list", "web2") == ""


def test_what_may_do_harm_must_be_allowed(web1):
    file = web1.place / "web1.tar"
    web1("export", "web1", file)
    given = [("--allow-setuid",), ("--allow-privileged",), ("--allow-bind", web1.place)]
    before = web1.left()
    for missing, code, reason in ((0, 1, "--allow-setuid"), (1, 4, "--allow-privileged"), (2, 4, "--allow-bind")):
        words = [word for number, words in enumerate(given) for word in words if number != missing]
        assert reason in web1("import", file, "--as", "web2", *words, code=code)
        assert web1.left() == before


def test_changed_tree(web1):
    file = web1.place / "web1.tar"
    web1("export", "web1", file)
    (web1.place / "state/base" / TREE / "bin/new").touch()
    assert "is another here" in web1("import", file, "--as", "web2", *allow(web1), code=1)
    said = web1("import", file, "--as", "web2", *allow(web1), "--changed-base", stderr=True)
    assert "going on" in said


def test_full_disk(web1):
    words = [program("dre-app"), "--config", web1.config, "export", "web1", "-"]
    for more in ((), ("--no-compress",)):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([*words, *more], env=environment(), stdout=full, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 1 and b"No space left on device" in done.stderr, done.stderr
    assert "No such file" in web1("export", "web1", web1.place / "no/where", code=1)
    web1("export", "nope", web1.place / "x", code=3)
    assert not (web1.place / "x").exists() and not (web1.place / "x.part").exists()


GOOD = {}  # the members of the archive of a harmless app, by name


def good(app):
    if not GOOD:
        app("create", "web1", "--base", TREE, "--ip", "none")
        app("snapshot", "save", "web1", "one")
        app("export", "--snapshots", "--no-compress", "web1", app.place / "good.tar")
        app("destroy", "web1")
        with tarfile.open(app.place / "good.tar") as old:
            GOOD.update({member.name: old.extractfile(member).read() for member in old})
    (app.place / "state/app/state").mkdir(parents=True, exist_ok=True)
    return dict(GOOD)


def rewritten(app, change=None, delta=None):
    """That archive, with its manifest changed by *change*, or its *delta* replaced."""
    members = good(app)
    head = json.loads(members["manifest.json"])
    if delta is not None:
        members["delta.tar"] = delta
        head["delta"]["digest"] = hashlib.sha256(delta).hexdigest()
    if change:
        change(head)
    members["manifest.json"] = json.dumps(head).encode()
    file = app.place / "bad.tar"
    with tarfile.open(file, "w") as new:
        for name, octets in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(octets)
            new.addfile(info, io.BytesIO(octets))
    return file


def hostile(name, **fields):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as new:
        for member, given in ((".", {"type": tarfile.DIRTYPE}), (name, fields)):
            info = tarfile.TarInfo(member)
            for key, value in given.items():
                setattr(info, key, value)
            new.addfile(info)
    return stream.getvalue()


def put(*path, value):
    def change(head):
        for key in path[:-1]:
            head = head[key]
        head[path[-1]] = value

    return change


def test_the_harmless_archive_is_taken(app):
    assert app("import", rewritten(app)) == "web1"


@pytest.mark.parametrize(
    ("code", "reason", "change"),
    [
        (2, "control characters", put("app", "words", value=["env=A=x\nlxc.hook.start = /bin/sh"])),
        (2, "not taken from another host", put("app", "words", value=["seccomp=/etc/passwd"])),
        (2, "not taken from another host", put("app", "words", value=["lxc.hook.start=/bin/sh"])),
        (4, "--allow-bind", put("app", "binds", value=["/etc:/srv"])),
        (4, "--allow-privileged", put("app", "privileged", value=True)),
        (4, "--allow-privileged", put("app", "base", value="host")),
        (3, "no tree of dre-base's", put("app", "base", value="/")),
        (1, "is not here", put("app", "base", value="..")),
        (2, "description", put("app", "limits", value={"memory": "1\nlxc.hook.start = x"})),
        (2, "description", put("app", value=[])),
        (2, "format", put("format", value="dre-app/2")),
        (2, "not a name", put("name", value="../web1")),
        (2, "not a name", put("snapshots", 0, "tag", value="../../x")),
        (1, "damaged", put("snapshots", 0, "digest", value="0" * 64)),
        (1, "damaged", put("delta", "digest", value="0" * 64)),
        (1, "more than it says", put("snapshots", value=[])),
    ],
)
def test_hostile_manifests_make_nothing(app, code, reason, change):
    text = app("import", rewritten(app, change), code=code)
    assert reason in text and text.count("\n") == 0, text
    assert app.left() == ([], [])


@pytest.mark.parametrize(
    ("reason", "delta"),
    [
        ("no plain path", hostile("../../x")),
        ("absolute name", hostile("/etc/cron.d/x")),
        ("is a device", hostile("sda", type=tarfile.BLKTYPE, devmajor=8)),
        ("--allow-setuid", hostile("su", mode=0o4755)),
        ("not in the archive", hostile("a", type=tarfile.LNKTYPE, linkname="etc/shadow")),
        ("not an archive of a delta", b"x" * 2048),
    ],
)
def test_hostile_deltas_make_nothing(app, reason, delta):
    assert reason in app("import", rewritten(app, delta=delta), code=1)
    assert app.left() == ([], [])


def test_cut_and_foreign_files(app):
    file = rewritten(app)
    octets = file.read_bytes()
    for cut, code in (
        (octets[: len(octets) // 2], 1),
        (b"", 1),
        (b"hello\n" * 1000, 2),
        (b"\x28\xb5\x2f\xfd" + b"x" * 99, 1),
    ):
        file.write_bytes(cut)
        text = app("import", file, code=code)
        assert text.count("\n") == 0
        assert text.startswith((f"dre-app: {file}: ", "dre-app: web1: the archive is damaged: ")), text
        assert app.left() == ([], [])
    assert "No such file" in app("import", app.place / "nowhere", code=1)


def test_host_stays_hidden_although_the_archive_shows_it(app):
    app("create", "host1", "--ip", "none")
    app("snapshot", "save", "host1", "one")
    delta = app.place / "lxc/host1/delta"
    os.removexattr(delta / "root", "trusted.overlay.opaque")
    app("snapshot", "save", "host1", "two")
    app("export", "--snapshots", "host1", app.place / "host1.tar")
    app("import", "--as", "host2", "--allow-privileged", app.place / "host1.tar")
    new = app.place / "lxc/host2/delta"
    assert os.getxattr(new / "root", "trusted.overlay.opaque") == b"y"
    app("snapshot", "load", "host2", "two")
    assert os.getxattr(new / "root", "trusted.overlay.opaque") == b"y"


def test_export_to_what_is_no_file(app, web1, tmp_path):
    device = tmp_path / "null"
    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    app("export", "web1", device)
    assert stat.S_ISCHR(device.stat().st_mode), "the device was replaced by a file"
    full = tmp_path / "full"
    os.mknod(full, 0o600 | stat.S_IFCHR, os.makedev(1, 7))
    assert "No space left" in app("export", "web1", full, code=1)
    assert app("export", "web1", tmp_path, code=1).endswith(f"{tmp_path}: is a directory")
    assert app("export", "web1", tmp_path / "no/such", code=1).endswith(f"{tmp_path}/no: No such file or directory")
    (tmp_path / "link").symlink_to("backup")
    app("export", "web1", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "backup").stat().st_size


def test_archives_are_no_part_of_a_dialogue(app, web1):
    """--serve has the standard streams for itself."""
    requests = [["export", "web1", "-"], ["import", "-"], ["pull", "web1", "/more", "-"], ["push", "web1", "-", "/x"]]
    lines = b"".join(json.dumps({"argv": argv}).encode() + b"\n" for argv in [*requests, ["receive"]])
    answers = [json.loads(line) for line in app("--serve", stdin=lines).splitlines()]
    assert [answer["code"] for answer in answers] == [2] * 5
    assert all("standard input or output" in answer["error"] for answer in answers)
