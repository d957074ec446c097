# SPDX-License-Identifier: Apache-2.0
"""What is due at intervals: after the last time, a little early, and never where no interval is set."""

import time

import pytest
from dre import event, interval
from dre.errors import DreError


@pytest.mark.parametrize(("ago", "due"), [(0, False), (200, False), (271, True), (400, True)])
def test_it_is_due_when_the_interval_has_passed_since_the_last(ago, due):
    now = time.time()
    stamps = [event.stamp(now - 5000), event.stamp(now - ago)]
    assert interval.passed(300.0, lambda: stamps) is due


def test_at_first_it_is_due_and_without_an_interval_nothing_is_asked():
    assert interval.passed(300.0, list)
    assert not interval.passed(None, lambda: pytest.fail("asked"))


def test_one_that_cannot_be_read_keeps_no_other_back():
    def due(name):
        if name == "half":
            raise DreError("half made")
        return name != "idle"

    assert interval.those(["half", "idle", "web1"], due) == ["web1"]
