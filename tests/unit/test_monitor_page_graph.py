# SPDX-License-Identifier: Apache-2.0
"""A curve as shapes: where a value, a limit and a moment stand, and that nothing leaves the box."""

import pathlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

pytest.importorskip("flask", reason="python3-flask is not installed")
from monitorlib.page import graph  # noqa: E402
from monitorlib.trend import Point  # noqa: E402

BEGIN, END = 1_790_000_000, 1_790_003_600


def point(back, low, mean=None, high=None, bad=False):
    return Point(END - back, low, low if mean is None else mean, low if high is None else high, 1, bad)


def corners(points):
    return [tuple(map(float, one.split(","))) for one in points.split()]


def test_a_value_stands_where_the_scale_says():
    drawn = graph.draw([point(1800, 0, 5, 10), point(1790, 0, 5, 10)], [(BEGIN, 8, 2)], [], BEGIN, END, 10)
    assert drawn.top == 10.0 and drawn.scale == ["10", "7.5", "5", "2.5", "0"]
    (line,), (band,) = drawn.line, drawn.band
    assert [y for _, y in corners(line)] == [100.0, 100.0] and corners(line)[0][0] == 361.0
    assert [y for _, y in corners(band)] == [0.0, 0.0, 200.0, 200.0]
    assert corners(drawn.above) == [(0.0, 40.0), (720.0, 40.0)]


def test_a_limit_that_changed_is_a_stair_and_what_was_before_is_left_of_it():
    limits = [(BEGIN - 9999, 4, 1), (BEGIN - 99, 8, 1), (BEGIN + 1800, 2, 1)]
    drawn = graph.draw([], limits, [], BEGIN, END, 10)
    assert [x for x, _ in corners(drawn.above)] == [0.0, 360.0, 360.0, 720.0]
    assert graph.draw([], [], [], BEGIN, END, 10).above == ""


def test_raised_is_a_span_also_where_it_began_earlier_or_did_not_end():
    moments = [(BEGIN - 50, "raised", 9.0), (BEGIN + 900, "cleared", 1.0), (BEGIN + 1800, "raised", 9.0)]
    drawn = graph.draw([], [], moments, BEGIN, END, 10)
    assert drawn.raised == [(0.0, 180.0), (360.0, 360.0)]
    assert [(mark.x, mark.kind) for mark in drawn.marks] == [(180.0, "cleared"), (360.0, "raised")]
    assert "at 9" in drawn.marks[1].words


def test_a_gap_parts_the_line_and_a_lone_point_is_seen():
    drawn = graph.draw([point(back, 1) for back in (3000, 2990, 1000, 500, 490)], [], [], BEGIN, END, 10)
    assert [len(corners(one)) for one in drawn.line] == [2, 2, 2]


def test_peaks_survive_when_points_are_put_together():
    points = [point(back, 1, 1, 99 if back == 50_000 else 1, bad=back == 50_000) for back in range(86_400, 0, -10)]
    drawn = graph.draw(points, [], [], END - 86_400, END, 10)
    ((band,), (line,)) = drawn.band, drawn.line
    assert len(corners(line)) <= graph.COLUMNS + 1 and min(y for _, y in corners(band)) < 5.0
    assert len(drawn.bad) == 1


@given(
    st.lists(st.tuples(st.integers(-100, 4000), st.floats(-1e9, 1e9)), max_size=60),
    st.floats(-1e9, 1e9),
    st.lists(st.tuples(st.integers(-5000, 5000), st.sampled_from(["raised", "cleared"])), max_size=10),
)
def test_nothing_leaves_the_box(values, limit, moments):
    points = [point(back // 10 * 10, value) for back, value in sorted(values, reverse=True)]
    told = [(float(BEGIN + when), kind, 1.0) for when, kind in sorted(moments)]
    drawn = graph.draw(points, [(BEGIN - 1, limit, limit)], told, BEGIN, END, 10)
    shapes = [*drawn.band, *drawn.line, drawn.above, drawn.clear]
    assert all(0 <= x <= graph.WIDTH and 0 <= y <= graph.HEIGHT for shape in shapes for x, y in corners(shape))
    assert all(0 <= mark.x <= graph.WIDTH for mark in drawn.marks)
    assert all(left >= 0 and wide >= 1.0 for left, wide in drawn.raised)
    assert len(drawn.scale) == len(drawn.times) == 5 and drawn.top > 0
