# SPDX-License-Identifier: Apache-2.0
"""The engine's time beside a host's clock that is slewed, set, and looked at by a process that is stopped at times."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dscript"))

from dscriptlib import clock  # noqa: E402


class Host:
    """Both clocks; *stops* is how long the process is stopped after each look at one of them."""

    def __init__(self, monkeypatch):
        self.boot, self.wall, self.stops = 100.0, 1000.0, []
        monkeypatch.setattr(clock.time, "time", lambda: self.look("wall"))
        monkeypatch.setattr(clock.time, "clock_gettime", lambda _: self.look("boot"))

    def look(self, which):
        seen = getattr(self, which)
        self.passes(self.stops.pop(0) if self.stops else 0.0)
        return seen

    def passes(self, seconds):
        self.boot += seconds
        self.wall += seconds


@pytest.fixture
def host(monkeypatch):
    return Host(monkeypatch)


def test_events_keep_their_order_though_the_engine_is_stopped_between_its_looks_at_the_clocks(host):
    ours = clock.Clock()
    first = ours.of(host.wall)
    host.passes(0.001)
    second = host.wall
    host.passes(0.001)
    for stopped in range(9):  # after which of the looks
        host.stops = [0.0] * stopped + [0.3]
        assert ours.of(second) - first == pytest.approx(0.001, abs=1e-6)


def test_stopped_at_its_begin_it_is_not_behind(host):
    for stopped in range(12):
        host.stops = [0.0] * stopped + [0.05]
        ours = clock.Clock()
        host.stops = []
        assert ours.of(host.wall) == pytest.approx(ours.now(), abs=0.051)


@pytest.mark.parametrize("jump", [-7200.0, -0.2, 0.2, 7200.0])
def test_a_clock_that_is_set_moves_no_event(host, jump):
    ours = clock.Clock()
    before = ours.of(host.wall)
    host.passes(1.0)
    host.wall += jump
    assert ours.of(host.wall - 0.25) - before == pytest.approx(0.75)


def test_what_is_from_the_future_happens_now(host):
    ours = clock.Clock()
    assert ours.of(host.wall + 500) == ours.now()


def test_it_begins_no_earlier_than_what_was_decided(host):
    ours = clock.Clock(5000.0)
    assert ours.now() == 5000.0 and ours.of(host.wall) == pytest.approx(5000.0)
