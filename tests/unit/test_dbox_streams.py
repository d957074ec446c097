# SPDX-License-Identifier: Apache-2.0
"""Bounds of streams: settings read strictly, quota and rate held to the last octet, refusals counted once a minute."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "dbox"))
from dboxlib.log import QuotaError  # noqa: E402
from dboxlib.streams import Streams  # noqa: E402
from dre import streams  # noqa: E402
from dre.errors import UsageError  # noqa: E402


def made(text, **more):
    now, told = [100.0], []
    bounds = Streams(
        streams.parse(text), told=lambda kind, data: told.append((kind, data)), clock=lambda: now[0], **more
    )
    return bounds, now, told


def test_settings():
    found = streams.parse("app:quota=1K,rate=2.5,keep=7d,priority=0,signature=each,erasable=yes *:quota=10")
    assert found.of("app") == streams.Policy(1024, 2.5, 7 * 86400.0, 0, "each", True)
    assert found.of("other").quota == 10
    assert streams.parse("").of("x") == streams.DEFAULT and not streams.parse("").any_keeps()


@pytest.mark.parametrize(
    "text",
    ["app", "app:", "app:quota", "app:quota=x", "App:quota=1", "app:rate=0", "app:rate=-1", "app:priority=10"]
    + ["app:signature=all", "app:erasable=1", "app:unknown=1", "app:quota=1 app:quota=2", "app:quota=1,,rate=1"],
)
def test_wrong_settings(text):
    with pytest.raises(UsageError):
        streams.parse(text)


def test_quota_to_the_last_octet_and_one_warning():
    bounds, _, told = made("app:quota=1000")
    bounds.admit("app", 1, 1000)
    bounds.admit("app", 1, 300, 700)
    with pytest.raises(QuotaError) as caught:
        bounds.admit("app", 1, 301, 700)
    assert caught.value.full
    bounds.add("app", 1, 799)
    assert told == []
    bounds.add("app", 1, 1)
    bounds.add("app", 1, 1)
    assert told == [("dbox.quota.warning", {"stream": "app", "octets": 800, "quota": 1000})]
    bounds.add("app", 0, -100)
    bounds.add("app", 1, 100)
    assert len(told) == 2, "anew after it was below"


def test_rate_lets_a_burst_in_and_then_so_many_a_second():
    bounds, now, _ = made("app:rate=10")
    bounds.admit("app", 100, 1)
    with pytest.raises(QuotaError) as caught:
        bounds.admit("app", 20, 1)
    assert not caught.value.full and caught.value.retry_after == 3
    now[0] += caught.value.retry_after
    bounds.admit("app", 20, 1)
    bounds.admit("other", 10_000, 1)
    now[0] += 10
    bounds.admit("app", 5_000, 1)  # larger than the bucket: it goes when the bucket is full, and leaves a debt
    now[0] += 400
    with pytest.raises(QuotaError):
        bounds.admit("app", 1, 1)


def test_disk_by_priority():
    bounds, now, _ = made("alarm:priority=0 debug:priority=9", reserve=1000, free=lambda: (5000, 100_000))
    bounds.admit("alarm", 1, 100)
    with pytest.raises(QuotaError, match="debug"):
        bounds.admit("debug", 1, 100)
    with pytest.raises(QuotaError, match="app"):
        bounds.admit("app", 1, 100)
    for _ in range(19):
        bounds.admit("alarm", 1, 100)
    with pytest.raises(QuotaError, match="alarm"):
        bounds.admit("alarm", 1, 100)
    now[0] += 1
    bounds.admit("alarm", 1, 100)


def test_refusals_are_told_once_a_minute_and_together():
    bounds, now, _ = made("app:quota=1 other:rate=1")
    for _ in range(3):
        with pytest.raises(QuotaError):
            bounds.admit("app", 2, 10)
    assert bounds.report() == [{"stream": "app", "reason": "quota", "entries": 6, "octets": 30, "requests": 3}]
    bounds.reported()
    with pytest.raises(QuotaError):
        bounds.admit("app", 2, 10)
    assert bounds.report() == []
    now[0] += 61
    assert bounds.report()[0]["requests"] == 1
    bounds.reported()
    now[0] += 61
    assert bounds.report() == [] and bounds.refused == 8


def test_invented_streams_do_not_fill_the_memory():
    bounds, _, _ = made("")
    for number in range(10_000):
        bounds.admit(f"s{number}", 1, 1)
        bounds.add(f"s{number}", 1, 1)
    with pytest.raises(QuotaError, match="10000 streams"):
        bounds.admit("one-more", 1, 1)
    for number in range(50):
        bounds.count(f"x{number}", "queue", 1, 1)
    assert len(bounds.report()) <= 22
