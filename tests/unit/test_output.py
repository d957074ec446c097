# SPDX-License-Identifier: Apache-2.0
"""What an app prints: held to its size while the program writes, the newest kept, readers follow through it."""

import subprocess
import threading

import pytest
from dre import app, output
from dre.conf import Conf

LIMIT = 8192


@pytest.fixture
def web1(tmp_path):
    places = dict.fromkeys(("core_state_dir", "core_log_dir", "core_run_dir"), tmp_path)
    made = app.App(Conf(**places, app_lxc_path=tmp_path / "lxc"), "web1")
    output.begin(made)
    return made


def print_into(app, first, last):
    """As an app's shell does it: the file opened for appending."""
    argv = ["sh", "-c", f"exec >>{app.log}; seq {first} {last}"]
    subprocess.run(argv, check=True)


def numbers(*paths):
    return [int(line) for line in output.kept(paths, LIMIT)]


def test_cut_keeps_the_newest_and_the_program_goes_on_at_the_start(web1):
    print_into(web1, 1, 1000)
    assert not output.cut(web1, LIMIT)
    print_into(web1, 1001, 3000)
    assert output.cut(web1, LIMIT)
    assert (web1.log.stat().st_size, output.cut_off(web1).stat().st_size) == (0, LIMIT)
    print_into(web1, 3001, 3010)
    found = numbers(output.cut_off(web1), web1.log)
    assert found[1:] == list(range(found[1], 3011)), "from the first whole line on nothing is missing"
    assert web1.log.read_bytes().startswith(b"3001\n"), "no hole"


def test_a_program_that_writes_meanwhile_loses_only_what_falls_into_the_cut(web1):
    writer = subprocess.Popen(["sh", "-c", f"exec >>{web1.log}; seq 1 300000"])
    cuts = 0
    while writer.poll() is None:
        cuts += output.cut(web1, LIMIT)
    assert cuts > 0
    printed = "".join(f"{number}\n" for number in range(1, 300001))
    assert printed.endswith(web1.log.read_text()), "all since the last cut, which may have fallen into a line"
    assert output.cut_off(web1).read_text() in printed, "and before it the last that it took, in one piece"


def test_killed_between_rename_and_truncate_nothing_is_lost(web1):
    print_into(web1, 1, 3000)
    content = web1.log.read_bytes()
    output.cut_off(web1).write_bytes(content[-LIMIT:])
    assert output.cut(web1, LIMIT)
    assert output.cut_off(web1).read_bytes() == content[-LIMIT:]


def test_a_hole_of_any_size_is_read_and_cut_in_no_time(web1):
    with web1.log.open("r+b") as stream:
        stream.truncate(1 << 40)
    assert sum(map(len, output.kept([web1.log], LIMIT))) == LIMIT
    assert output.cut(web1, LIMIT)
    assert output.cut_off(web1).stat().st_size == LIMIT


def test_runs(web1):
    print_into(web1, 1, 3)
    output.begin(web1)
    assert (web1.log.read_bytes(), output.before(web1).read_bytes()) == (b"", b"1\n2\n3\n")
    print_into(web1, 4, 6)
    assert list(output.kept([web1.log], LIMIT, 2)) == [b"5\n", b"6\n"]


def test_follow_through_cut_and_start(web1, monkeypatch):
    monkeypatch.setattr(output, "PAUSE", 0.01)
    seen = []
    came = threading.Condition()

    def wait_for(number):
        with came:
            assert came.wait_for(lambda: f"{number}\n".encode() in seen, timeout=20), seen

    def read():
        for line in output.follow(web1, 0):
            with came:
                seen.append(line)
                came.notify()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    print_into(web1, 1, 2000)
    wait_for(2000)
    assert output.cut(web1, 4096)
    print_into(web1, 2001, 2002)
    wait_for(2002)
    output.begin(web1)
    print_into(web1, 2003, 2003)
    wait_for(2003)
    web1.log.unlink()
    reader.join(timeout=20)
    assert not reader.is_alive(), "the app is gone and it still follows"
    assert [int(line) for line in seen] == list(range(1, 2004))
