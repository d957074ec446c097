# SPDX-License-Identifier: Apache-2.0
"""Rates between two looks at an app."""

from dre.cgroup import Strain, Usage
from dre.stat import Sample


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
