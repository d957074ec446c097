# SPDX-License-Identifier: Apache-2.0
"""dre-reorder's filter: order, stability, lateness, and nothing lost or doubled when it or the intake is killed."""

import json
import pathlib
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from dre import event  # noqa: E402
from monitorlib.reorder import Place, Reorder  # noqa: E402

T0 = 1_700_000_000.0


def line(offset, name="x"):
    return event.format(event.Event(event.stamp(T0 + offset), "/host:h", "t.e", 6, {"n": name})).rstrip(b"\n")


def names(lines):
    return [json.loads(item)["data"]["n"] for item in lines]


def test_live_lines_leave_in_time_order_when_the_window_has_passed():
    filter = Reorder(2.0)
    assert filter.take([line(1, "b"), line(0, "a"), line(1.5, "c")], T0 + 1.6) == []
    assert filter.due(T0 + 1.99) == []
    assert names(filter.due(T0 + 3.1)) == ["a", "b"]
    assert names(filter.rest()) == ["c"]


def test_equal_times_keep_the_order_of_arrival():
    filter = Reorder(1.0)
    filter.take([line(0, n) for n in "qwertz"], T0)
    assert names(filter.due(T0 + 5)) == list("qwertz")


def test_late_line_is_passed_at_once_and_says_by_how_much():
    filter = Reorder(1.0)
    filter.take([line(3, "x")], T0 + 3)
    filter.due(T0 + 5)  # everything up to 4 has been released
    (late,) = filter.take([line(2.5, "y")], T0 + 5)
    assert json.loads(late)["late"] == 1.5
    assert filter.stats.late == 1


def test_late_line_is_dropped_on_request_and_counted():
    filter = Reorder(1.0, late="drop")
    filter.due(T0 + 5)
    assert filter.take([line(2)], T0 + 5) == []
    assert filter.stats.dropped == 1


def test_fast_clock_neither_marks_others_late_nor_is_held_for_ever():
    filter = Reorder(1.0)
    filter.take([line(3600, "fast"), line(0, "right")], T0)
    assert names(filter.due(T0 + 1.001)) == ["fast", "right"]
    assert filter.take([line(0.5, "next")], T0 + 1.1) == []
    assert filter.stats.late == 0


def test_full_filter_releases_the_oldest_and_counts():
    filter = Reorder(10.0, most=3)
    out = filter.take([line(n, n) for n in (3, 1, 2, 4, 5)], T0 + 5)
    assert names(out) == [1, 2]
    assert filter.stats.forced == 2


def test_what_is_no_event_is_refused_and_counted_and_never_passed():
    filter = Reorder(1.0)
    bad = [b"hello", line(1)[:-2], b'{"time":"2026-99-99', b'{"source":"/x"}', b"#resume 5"]
    assert filter.take(bad, T0) == []
    assert filter.rest() == []
    assert filter.stats.refused == len(bad)


offsets = st.lists(st.integers(0, 5000).map(lambda ms: ms / 1000), max_size=60)


@given(offsets, st.integers(1, 7))
def test_replay_of_disorder_within_the_window_is_a_stable_sort(times, step):
    lines = [line(t, n) for n, t in enumerate(times)]
    filter = Reorder(6.0, replay=True)
    out = []
    for start in range(0, len(lines), step):
        out += filter.take(lines[start : start + step], 0.0)
        out += filter.due(0.0)
    out += filter.rest()
    assert out == sorted(lines, key=lambda item: item[9:33])


@given(offsets, st.integers(1, 7), st.floats(0, 3))
def test_every_line_leaves_exactly_once(times, step, window):
    filter = Reorder(window, most=20)
    out = []
    for start in range(0, len(times), step):
        now = T0 + start / 10
        out += filter.take([line(t, start + n) for n, t in enumerate(times[start : start + step])], now)
        out += filter.due(now)
    out += filter.rest()
    assert sorted(names(out)) == list(range(len(times)))


@given(offsets, st.data())
def test_killed_filter_goes_on_without_loss_and_without_doubles(times, data):
    """The spool is the list of lines; the filter dies after any step and starts anew from what it had noted."""
    lines = [line(t, n) for n, t in enumerate(times)]
    starts = [0]
    for item in lines:
        starts.append(starts[-1] + len(item) + 1)
    out = []
    place = Place()
    now = T0 + 5  # a stamp from the future would come again: its place in the order was the arrival's
    at = 0
    filter = None
    while at < len(lines) or filter is None:
        if filter is None:
            filter = Reorder(1.0, before=place)
            at = starts.index(place.oldest)
            # Whatever another reader left in the pipe comes first.
            out += filter.take([lines[0][7:], b"", b"#resume %d" % place.oldest], now) if lines else []
        step = data.draw(st.integers(1, 5))
        out += filter.take(lines[at : at + step], now)
        at = min(len(lines), at + step)
        now += data.draw(st.floats(0, 1.5))
        out += filter.due(now)
        if lines and filter.started:
            place = Place(filter.oldest(), filter.position, filter.passed)
        if at < len(lines) and data.draw(st.integers(0, 3)) == 0:
            filter = None
    out += filter.rest()
    assert sorted(names(out)) == list(range(len(lines)))


def test_killed_intake_repeats_what_the_living_filter_has_and_it_is_left_out():
    lines = [line(n / 10, n) for n in range(6)]
    filter = Reorder(1.0, before=Place())
    filter.take([b"", b"#resume 0", *lines[:4]], T0)
    again = len(lines[0]) + 1
    filter.take([b"", b"#resume %d" % again, *lines[1:]], T0)
    assert names(filter.rest()) == list(range(6))


def arrived(offset, seen, source="/host:h", name="x"):
    made = event.Event(event.stamp(T0 + offset), source, "t.e", 6, {"n": name}, {"seen": event.stamp(T0 + seen)})
    return event.format(made).rstrip(b"\n")


def test_late_lines_can_go_another_way():
    filter = Reorder(1.0, late="divert")
    filter.due(T0 + 5)
    assert filter.take([line(2, "a"), line(4.5, "b")], T0 + 5) == []
    assert names(filter.diverted) == ["a"] and json.loads(filter.diverted[0])["late"] == 2
    assert (filter.stats.taken, filter.stats.diverted, filter.held) == (2, 1, 1)


def test_no_event_is_younger_than_its_arrival_in_a_replay_either():
    filter = Reorder(1.0, replay=True)
    lines = [arrived(3600, 0, "/host:fast", "fast"), arrived(0.1, 0.2, name="a"), arrived(0.3, 0.4, name="b")]
    out = filter.take(lines, 0.0) + filter.rest()
    assert names(out) == ["fast", "a", "b"] and filter.stats.late == 0


def test_a_clock_that_is_wrong_is_found_told_and_found_right_again():
    filter = Reorder(0.5, skew=1.0)
    out = []
    for second in range(60):
        off = -7.0 if second < 20 else 0.0
        now = second + 0.25
        out += filter.take([arrived(second + off, now, "/host:slow", second), arrived(second, now)], T0 + now)
        out += filter.due(T0 + now)
    slow = [item for item in map(json.loads, out) if item["source"] == "/host:slow"]
    assert [item["data"]["n"] for item in slow if "late" in item] == [1], "the second, as two are no pattern"
    skewed = [item for item in slow if "skew" in item]
    assert {item["skew"] for item in skewed if item["data"]["n"] < 20} == {7.25}
    assert [source for source, _ in filter.clocks.changed] == [b"/host:slow"] * 2
    assert [skew for _, skew in filter.clocks.changed] == [7.25, 0.0]
    assert skewed[-1]["data"]["n"] < 30 and filter.stats.skewed == len(skewed)


def test_a_burst_after_a_stall_is_no_wrong_clock():
    filter = Reorder(2.0, skew=1.0)
    lines = [arrived(second, second + 0.1) for second in range(20)]
    filter.take([*lines, *(arrived(20 + n / 10, 30.5) for n in range(100)), arrived(31, 31.1)], T0 + 31.2)
    assert filter.clocks.changed == [] and filter.stats.skewed == 0


def test_early_what_all_sources_have_passed_does_not_wait():
    filter = Reorder(10.0, early=True, idle=5.0)
    filter.take(
        [arrived(0, 0.1, "/host:a", 1), arrived(1, 1.1, "/host:a", 2), arrived(0.5, 1.1, "/host:b", 3)], T0 + 1.1
    )
    assert names(filter.due(T0 + 1.1)) == [1]
    filter.take([arrived(3, 3.1, "/host:b", 4)], T0 + 3.1)
    assert names(filter.due(T0 + 3.1)) == [3], "what is as young as the last of a source may have company yet"
    filter.take([arrived(7, 7.1, "/host:b", 5)], T0 + 7.1)
    assert names(filter.due(T0 + 7.1)) == [2, 4], "a has been silent for too long to count"


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("off", [3.0, -3.0])
def test_a_hundred_thousand_events_with_delays_a_wrong_clock_and_a_stall(replay, off):
    chance = random.Random(off)
    window, wrong, stalled = 2.0, "/host:h3", "/host:h7"
    sent = []
    for number in range(100_000):
        at, source = number / 500, f"/host:h{chance.randrange(10)}"
        arrival = at + chance.expovariate(5)
        if source == stalled and 80 < at < 90:
            arrival = 90 + (arrival - at)
        sent.append((arrival, at, source, number))
    sent.sort()
    filter, out = Reorder(window, replay=replay, skew=1.0), []
    for start in range(0, len(sent), 10):
        part = sent[start : start + 10]
        lines = [arrived(at + off * (source == wrong), seen, source, n) for seen, at, source, n in part]
        now = T0 + part[-1][0]
        out += filter.take(lines, now) + filter.due(now)
    out += filter.rest()
    events = [json.loads(item) for item in out]
    assert sorted(item["data"]["n"] for item in events) == list(range(len(sent)))
    right = [item["data"]["n"] for item in events if "late" not in item and item["source"] != wrong]
    assert right == sorted(right), "numbers are in the true order"
    delay = {number: arrival - at for arrival, at, _, number in sent}
    for item in events:
        number = item["data"]["n"]
        if item["source"] == wrong:  # the first three seconds it takes to know
            assert "skew" in item or number < 500 * 4
        elif "late" in item:
            assert delay[number] > window - 0.1, "only who was held up for the window is late"
        else:
            assert delay[number] < window + 0.1
    late, skewed = (sum(key in item for item in events) for key in ("late", "skew"))
    told = filter.stats
    assert (told.taken, told.released, told.late, told.skewed) == (len(sent), len(sent), late, skewed)
    assert skewed > 9_000 and late > 300 and [source for source, _ in filter.clocks.changed] == [wrong.encode()]
