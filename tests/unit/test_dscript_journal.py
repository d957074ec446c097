# SPDX-License-Identifier: Apache-2.0
"""The journal survives a cut at any octet, passes over damage, and goes on in new files without losing a state."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dscript"))

from dre.errors import DreError  # noqa: E402
from dscriptlib import journal  # noqa: E402
from dscriptlib.follower import Follower, Once  # noqa: E402


def numbers(directory, after=0):
    return [record["n"] for record in journal.records(directory, after)]


def test_a_cut_at_any_octet_leaves_whole_records_and_a_writable_journal(tmp_path):
    first = tmp_path / "first"
    made = journal.Journal(first)
    made.append([{"kind": "a", "states": {"s": {"x": 1}}}])
    made.append([{"kind": "b", "states": {"s": {"x": 2}}, "text": "ü"}])
    made.close()
    (path,) = journal.paths(first)
    octets = path.read_bytes()
    ends = [position + 1 for position, octet in enumerate(octets) if octet == 10]
    for cut in range(len(octets) + 1):
        directory = tmp_path / f"cut-{cut}"
        directory.mkdir()
        (directory / path.name).write_bytes(octets[:cut])
        whole = sum(1 for end in ends if end <= cut)
        again = journal.Journal(directory)
        assert again.damaged == 0
        assert again.states == {0: {}, 1: {}, 2: {"s": {"x": 1}}, 3: {"s": {"x": 2}}}[whole]
        (record,) = again.append([{"kind": "c"}])
        assert numbers(directory)[-1] == record["n"] == max(whole, 1) + 1
        assert numbers(directory) == list(range(1, record["n"] + 1))
        again.close()


def test_a_damaged_record_is_passed_over_and_counted(tmp_path):
    made = journal.Journal(tmp_path)
    made.append([{"kind": "a"}])
    made.append([{"kind": "b"}])
    made.close()
    (path,) = journal.paths(tmp_path)
    octets = bytearray(path.read_bytes())
    octets[octets.index(b'"a"') + 1] ^= 1
    path.write_bytes(octets)
    again = journal.Journal(tmp_path)
    assert again.damaged == 1
    assert numbers(tmp_path) == [1, 3]
    again.close()


def test_new_files_begin_with_all_states(tmp_path):
    made = journal.Journal(tmp_path, limit=300)
    for count in range(30):
        made.append([{"kind": "event", "states": {f"s{count % 3}": count}}])
    made.close()
    assert len(journal.paths(tmp_path)) > 3
    every = numbers(tmp_path)
    assert every == list(range(1, len(every) + 1))
    assert numbers(tmp_path, after=20) == every[20:]
    for path in journal.paths(tmp_path)[:-1]:
        path.unlink()  # what an administrator may do with old ones
    again = journal.Journal(tmp_path, limit=300)
    assert again.states == {"s0": 27, "s1": 28, "s2": 29}
    again.close()


@pytest.mark.parametrize("line", [b"", b"x", b"00000000 {}", journal.encode({"n": "1"})[:-1], journal.encode([])[:-1]])
def test_what_is_no_record(line):
    assert journal.decode(line) is None


def test_a_follower_hands_on_in_order_and_goes_on_where_it_stopped(tmp_path):
    got, fail = [], [DreError("away"), None, DreError("away"), None, None]
    said = []

    def deliver(line):
        error = fail.pop(0)
        if error:
            raise error
        got.append(line)

    follower = Follower(tmp_path / "mark", deliver, lambda: None, Once(said.append))
    for number in (3, 4, 7):
        follower.hand(number, b"%d" % number)
    follower.start()
    while len(got) < 3:
        follower.join(0.01)
    follower.stop(5)
    assert not follower.is_alive()
    assert got == [b"3", b"4", b"7"] and said == ["away"]
    assert Follower(tmp_path / "mark", deliver, lambda: None, said.append).mark == 7


def test_a_follower_that_cannot_deliver_still_stops(tmp_path):
    def deliver(line):
        raise DreError("away")

    follower = Follower(tmp_path / "mark", deliver, lambda: None, lambda text: None)
    follower.start()
    follower.hand(1, b"x")
    follower.stop(5)
    assert not follower.is_alive()
    assert Follower(tmp_path / "mark", deliver, lambda: None, print).mark == 0
