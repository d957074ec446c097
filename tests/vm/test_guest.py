# SPDX-License-Identifier: Apache-2.0
"""The guest itself: what tests run in it, and that a restored one is fit to be used and not the twin of another."""

import hashlib
import os
import subprocess
import time

import pytest


def test_it_has_the_present_time(shared_guest):
    before = time.time()
    inside = float(shared_guest.ok("date +%s.%N"))
    assert before - 5 < inside < time.time() + 5  # a saved state is minutes old, or days


def test_status_output_and_input_pass_through(shared_guest):
    done = shared_guest.call("cat; echo talk >&2; exit 7", stdin=b"data\n")
    assert (done.returncode, done.stdout, done.stderr) == (7, "data\n", "talk\n")
    assert shared_guest.call(["sh", "-c", 'echo "$1|$WORD"', "sh", "a b'c"], WORD="$x").stdout == "a b'c|$x\n"
    assert shared_guest.call("kill -SEGV $$").returncode == 128 + 11


def test_a_daemon_that_keeps_its_stdout_holds_up_nobody(shared_guest):
    assert shared_guest.ok("sleep 1000 & echo begun", timeout=30) == "begun\n"
    shared_guest.ok("pkill -x sleep")


def test_what_takes_too_long_is_killed_and_the_next_call_works(shared_guest):
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        shared_guest.call("echo begun; exec sleep 1000", timeout=2)
    assert caught.value.output == "begun\n"
    assert shared_guest.call("pgrep -x sleep").returncode == 1
    assert shared_guest.ok("echo $((6 * 7))") == "42\n"


def test_files_travel_unharmed(shared_guest, tmp_path):
    octets = os.urandom(3 << 20)
    (tmp_path / "there").write_bytes(octets)
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/script").write_text("#!/bin/sh\necho it runs\n")
    (tmp_path / "tree/below/script").chmod(0o755)
    shared_guest.push(tmp_path / "there", "/root/there")
    assert shared_guest.ok("sha256sum </root/there").split()[0] == hashlib.sha256(octets).hexdigest()
    shared_guest.pull("/root/there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == octets
    shared_guest.push(tmp_path / "tree", "/root/tree")
    assert shared_guest.ok("/root/tree/below/script") == "it runs\n"
