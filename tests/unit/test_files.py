# SPDX-License-Identifier: Apache-2.0
"""Atomic files and locks, with real processes that are killed."""

import io
import os
import random
import resource
import stat
import subprocess
import sys
import time

import pytest
from dre import files
from dre.errors import TimedOutError, UsageError

WRITER = """
import sys
from dre import files
number = 0
print("begun", flush=True)
while True:
    number += 1
    files.write_atomic(sys.argv[1], (b"%08d" % number) * 5000)
"""
HOLDER = """
import sys, time
from dre import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
ADDER = """
import sys
from dre import files
for _ in range(50):
    with files.lock(sys.argv[1] + ".lock"):
        number = int(open(sys.argv[1]).read())
        open(sys.argv[1], "w").write(str(number + 1))
"""


def python(code, *argv):
    """A process running *code* with the modules that this test has."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


@pytest.mark.parametrize("data", [b"octets\0", "text é", b""])
def test_what_is_written_is_there(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    files.write_atomic(path, data)
    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_mode_is_as_asked_whatever_the_umask(tmp_path, mask):
    old = os.umask(mask)
    try:
        files.write_atomic(tmp_path / "file", b"", mode=0o640)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "target").write_bytes(b"theirs")
    (tmp_path / "file").symlink_to("target")
    files.write_atomic(tmp_path / "file", b"ours")
    assert (tmp_path / "target").read_bytes() == b"theirs"
    assert not (tmp_path / "file").is_symlink()


def test_when_it_fails_the_old_file_stays_and_nothing_else(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        files.write_atomic(tmp_path / "file", b"x")
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(FileNotFoundError):
        files.write_atomic(tmp_path / "no/file", b"x")


def test_reading_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "octets"
    path.write_bytes(b"\0" * 10)
    assert files.read(path, 10) == b"\0" * 10
    for wrong, said in ((path, "more than 9 octets"), (tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(UsageError, match=said):
            files.read(wrong, 9)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"abc")))
    assert (files.read("-", 3), files.read("-", 3)) == (b"abc", b""), "stdin is not closed"
    with pytest.raises(UsageError, match="/dev/zero: more than 1000 octets"):
        files.read("/dev/zero", 1000)


def test_halves_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    others = ["file", ".file", ".file2.1.tmp", "file.1.tmp", ".file.1.gone"]
    for name in [*others, ".file.1.tmp", ".file.234.tmp"]:
        (tmp_path / name).touch()
    files.remove_halves(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == sorted(others)
    files.remove_halves(tmp_path / "no/file")
    (tmp_path / ".any.1.tmp").touch()
    files.remove_halves(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted({*others} - {".file2.1.tmp"})


def test_a_reader_never_sees_a_half_file_though_the_writer_is_killed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"00000000" * 5000)
    for _ in range(8):
        with python(WRITER, path) as writer:
            writer.stdout.readline()
            until = time.monotonic() + random.uniform(0, 0.03)  # the moment is what is tested
            while time.monotonic() < until:
                octets = path.read_bytes()
                assert octets == octets[:8] * 5000
            writer.kill()
        octets = path.read_bytes()
        assert octets == octets[:8] * 5000


def test_a_lock_keeps_others_out_until_its_holder_ends(tmp_path):
    lock = tmp_path / "run/lock"
    with python(HOLDER, lock) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TimedOutError, match="still locked by another command after 0.05 s"), files.lock(lock, 0.05):
            pytest.fail("two holders")
        holder.kill()  # the kernel drops the lock with the process
        with files.lock(lock, 10):
            pass
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_a_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), files.lock(tmp_path / "lock"):
        1 / 0  # noqa: B018
    with files.lock(tmp_path / "lock", 0):
        pass


def test_a_lock_is_no_link(tmp_path):
    (tmp_path / "target").write_bytes(b"")
    (tmp_path / "lock").symlink_to("target")
    with pytest.raises(OSError), files.lock(tmp_path / "lock"):
        pytest.fail("followed a link")


def test_a_program_started_under_a_lock_does_not_keep_it(tmp_path):
    with files.lock(tmp_path / "lock"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with files.lock(tmp_path / "lock", 0):
            pass
    finally:
        child.kill()
        child.wait()


def test_under_a_lock_no_step_of_several_processes_is_lost(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    adders = [python(ADDER, counter) for _ in range(4)]
    for adder in adders:
        with adder:
            assert adder.wait(60) == 0
    assert counter.read_text() == "200"


def test_a_small_tree_is_removed_and_nothing_behind_its_links(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").touch()
    (tree / "a/link").symlink_to(kept)
    os.mkfifo(tree / "fifo")
    assert files.remove_small(tree) is True
    assert not tree.exists() and (kept / "file").exists()


def test_a_large_or_deep_tree_is_left_to_others(tmp_path):
    wide = tmp_path / "wide"
    wide.mkdir()
    for number in range(201):
        (wide / str(number)).touch()
    deep = tmp_path / "deep"
    (deep / "/".join("d" * 20)).mkdir(parents=True)
    assert files.remove_small(wide) is False and files.remove_small(deep) is False
    assert len(list(wide.iterdir())) == 201 and deep.exists()
    assert files.remove_small(wide, 201) is True
    (tmp_path / "link").symlink_to(deep)
    assert files.remove_small(tmp_path / "link") is False


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")
def test_another_file_system_is_not_entered(tmp_path):
    inner = tmp_path / "tree/inner"
    inner.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    try:
        (inner / "file").touch()
        assert files.remove_small(tmp_path / "tree") is False
        assert (inner / "file").exists()
    finally:
        subprocess.run(["umount", inner], check=True)
    assert files.remove_small(tmp_path / "tree") is True


def test_a_write_that_fails_names_its_file(tmp_path):
    path = tmp_path / "app.json"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(OSError, match="app.json") as raised:
            files.write_atomic(path, "more than ten octets")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert raised.value.filename == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["app.json"] and path.read_text() == "old"
