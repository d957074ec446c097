# SPDX-License-Identifier: Apache-2.0
"""A full queue refuses at once, and a log that does not write answers within the time given."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "dbox"))
from dboxlib import log, sequencer, store  # noqa: E402


def test_queue_is_bounded_and_waiting_is_too():
    stuck = sequencer.Sequencer(None, None)  # never started: it takes nothing from its queue
    with pytest.raises(log.BusyError, match="not written within"):
        stuck.submit("w", "app", 1, [b"x" * 1000], timeout=0.05)
    with pytest.raises(log.BusyError, match="too many"):
        stuck.submit("w", "app", 2, [b"x" * sequencer.QUEUE_OCTETS], timeout=60)
    with pytest.raises(log.BusyError, match="too many"):
        stuck.submit("w", "app", 2, [b"x"] * sequencer.QUEUE_ENTRIES, timeout=60)


@pytest.mark.parametrize(
    ("octets", "kind"),
    [
        (b'{"time":"t","source":"s","type":"app.undone"}', "app.undone"),
        (b'{"type":7}', None),
        (b'{"type":"a\\nb"}', None),
        (b"[" * 4000, None),
        (b"{" * 4000, None),
        (b"\xff", None),
        (b'{"type":"x"}' + b" " * 5000, None),
    ],
)
def test_type_for_searching_is_only_taken_from_what_is_an_event(octets, kind):
    assert store.event_type(octets) == kind
