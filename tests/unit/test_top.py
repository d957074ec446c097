# SPDX-License-Identifier: Apache-2.0
"""The table of top: order, sizes for people, and never more than the screen holds."""

import pytest
from dre import stat, top


def row(name, **fields):
    keys = ("cpu", "memory", "memory_limit", "pids", *stat.FIELDS)
    return {"name": name, "state": "running", **dict.fromkeys(keys), **fields}


ROWS = [row("a", cpu=1.0, memory=5 << 20, pids=2), row("b"), row("c", cpu=90.0, memory=1 << 20, pids=9)]


@pytest.mark.parametrize(("by", "names"), [("cpu", "cab"), ("memory", "acb"), ("pids", "cab"), ("name", "abc")])
def test_order(by, names):
    assert "".join(item["name"] for item in top.ordered(ROWS, by)) == names


@pytest.mark.parametrize(
    ("octets", "text"),
    [(None, "-"), (0, "0"), (999, "999"), (1023, "1.0K"), (5 << 20, "5.0M"), (200 << 30, "200G"), (3 << 50, "3072.0T")],
)
def test_sizes(octets, text):
    assert top.size(octets) == text


def test_a_frame_fits_its_screen():
    lines = top.frame(ROWS, "cpu", 40, 4)
    assert [len(line) <= 40 for line in lines] == [True] * 4
    assert lines[2].startswith("c ") and lines[3].startswith("a ")
    assert top.frame(ROWS, "cpu", 10, 1)[0]


def test_what_is_not_known_is_a_dash_and_pressure_is_what_some_feel():
    felt = {"cpu": {"some": 12.5, "full": 1.0}, "memory": {}, "io": {"some": 0.0}}
    line = top.frame([row("a", pressure=felt)], "cpu", 200, 9)[2]
    assert line.split()[-3:] == ["12.5", "-", "0.0"]
    assert top.frame([row("a")], "cpu", 200, 9)[2].split()[2:] == ["-"] * 13
