# SPDX-License-Identifier: Apache-2.0
"""Rates between two looks at an app, and what is read at a look."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from dre import stat
from dre.cgroup import Strain, Usage
from dre.stat import Sample, Watched


def sample(moment, cpu_ns=0, carried=(0, 0), strain=None, **used):
    usage = Usage(cpu_ns=cpu_ns, memory=0, memory_limit=None, cpu_limit=None, pids=1, running=True, **used)
    return Sample(moment, usage, strain or Strain(), carried)


def test_rates():
    before = sample(10.0, 1_000_000_000, (1000, 2000), Strain(periods=100, throttled=20), io_read=10, io_write=20)
    now = sample(12.0, 2_000_000_000, (5000, 2200), Strain(periods=120, throttled=25), io_read=210, io_write=20)
    assert now.rates(before) == {
        "cpu": 50.0,
        "io_read": 100.0,
        "io_write": 0.0,
        "net_rx": 2000.0,
        "net_tx": 100.0,
        "throttled": 25.0,
    }


def test_the_first_look_has_no_rates():
    assert set(sample(1.0).rates(None).values()) == {None}


def test_what_is_not_counted_has_no_rate():
    rates = sample(2.0, carried=None, io_read=5).rates(sample(1.0, carried=None))
    assert (rates["io_read"], rates["net_rx"], rates["cpu"], rates["throttled"]) == (None, None, 0.0, 0.0)


def test_counters_that_begin_again_are_no_negative_rate():
    assert sample(2.0, carried=(1, 1)).rates(sample(1.0, carried=(500, 500)))["net_rx"] == 0.0


class Group:
    """A group at *moment*, which notes when its pressure was read."""

    def __init__(self):
        self.moment, self.cpu, self.memory, self.waits, self.read = 100.0, 0, 0, 0.0, []

    def pulse(self):
        return (b"%d" % self.cpu,)

    def usage(self):
        return replace(sample(self.moment, self.cpu).used, memory=self.memory)

    def strain(self):
        return Strain()

    def frozen(self):
        return False

    def pressure(self):
        self.read.append(self.moment)
        return {"io": {"some": self.waits, "full": 0.0}}


@pytest.fixture
def looked_at(monkeypatch, tmp_path):
    """A group, and the Watched whose it is."""
    group = Group()
    home = SimpleNamespace(home=tmp_path, record_file=tmp_path / "record", directory=tmp_path, conf=None)
    watched = Watched(home)
    watched._row = {}
    monkeypatch.setattr(stat.time, "monotonic", lambda: group.moment)
    return group, watched


def look(group, watched, link=""):
    """Look a second later; the row when there is a new one."""
    group.moment += 1
    seen = watched._sample(group, link)
    return None if seen is None else watched._shown(seen)


def test_memory_of_a_group_that_does_nothing_is_read_now_and_then(looked_at):
    group, watched = looked_at
    group.memory = 5 << 20
    assert look(*looked_at)["memory"] == 5 << 20
    group.memory = 3 << 20  # the kernel has taken some
    rows = [row for _ in range(40) if (row := look(*looked_at)) is not None]
    assert [row["memory"] >> 20 for row in rows] == [5, 3]
    group.memory, group.cpu = 4 << 20, 1  # it has run
    assert look(*looked_at)["memory"] == 4 << 20


def test_what_its_link_carries_is_told_of_a_group_that_does_nothing(looked_at):
    look(*looked_at, "100 0 0 0 0 0 0 0 7")
    row = look(*looked_at, "250 0 0 0 0 0 0 0 7")
    assert (row["net_tx"], row["net_rx"], row["cpu"]) == (150.0, 0.0, 0.0)


def test_pressure_is_read_as_often_as_it_can_change(looked_at):
    group, watched = looked_at

    def rounds(number):
        group.read.clear()
        for _ in range(number):
            look(*looked_at)
        return [moment - (group.moment - number) for moment in group.read]

    assert rounds(8) == [1, 3, 5]  # it may have begun to wait before it was looked at
    assert rounds(20) == [7, 17]  # at rest, now and then
    group.cpu = 1  # it has run, and waits since
    assert rounds(2) == [1]
    group.waits = 3.0
    assert rounds(20) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert watched._last == {} and watched._pressure == {"io": {"some": 3.0, "full": 0.0}}
    group.waits = 0.0
    assert rounds(20) == [1, 11]
