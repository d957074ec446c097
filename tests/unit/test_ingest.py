# SPDX-License-Identifier: Apache-2.0
"""What the intake believes, and the spool that keeps it."""

import contextlib
import itertools
import json
import os
import pathlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from dre import event  # noqa: E402
from monitorlib import spool, trust  # noqa: E402

SEEN = "2026-11-23T08:00:00.123Z"
USERS = {part: frozenset({0}) for part in trust.SERVICES} | {"script": frozenset({0, 77}), "dbox": frozenset({0, 88})}


def line(type="shop.release", **optional):
    return event.format(event.Event(event.stamp(), "/host:h", type, 6, {"a": 1}, optional))


def admit(octets, uid):
    identity, made = trust.admit(octets, uid, SEEN, USERS)
    fields = json.loads(made)
    assert fields["id"] == identity and fields["seen"] == SEEN
    return fields


@pytest.mark.parametrize(
    "type, uid, claimed",
    [
        ("app.undone", 0, False),
        ("app.undone", 77, True),
        ("script.action.done", 77, False),
        ("script.action.done", 88, True),
        ("dbox.key.rotated", 88, False),
        ("watch.raised", 1000, True),
        ("shop.release", 0, False),
        ("shop.release", 1000, True),
        ("shop.release", None, True),
        ("app.undone", None, True),
    ],
)
def test_only_root_and_the_parts_own_user_are_more_than_a_claim(type, uid, claimed):
    assert admit(line(type), uid).get("claimed", False) == claimed


def test_a_sender_can_call_itself_claimed_but_not_proven():
    assert admit(line(claimed=True), 0)["claimed"] is True
    assert admit(line(claimed=False), 1000)["claimed"] is True
    assert "claimed" not in admit(line(claimed=False), 0)


def test_what_is_ours_to_say_is_not_taken_from_the_sender():
    fields = admit(line(seen="2000-01-01T00:00:00.000Z", late=3, skew=9), 0)
    assert "late" not in fields and "skew" not in fields


def test_keys_stand_in_the_order_that_rules_rely_on():
    odd = b'{"time":"%s","source":"/h","type":"a.b","goal":"G1","id":"x","data":{},"sev":3}' % SEEN.encode()
    assert list(admit(odd, None)) == ["time", "source", "type", "sev", "data", "id", "seen", "goal", "claimed"]


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 2000,
        b'{"a":' * 800,
        b'{"time":"x","source":"/h","type":"a.b"}',
        line()[:-3],
        line(id="a b"),
        line(id='"'),
        line(id=5),
        line(id="x" * 65),
        line(goal="x\ny"),
        b'{"time":"%s","source":"/h","type":"a.b","data":{"x":NaN}}' % SEEN.encode(),
        b'{"time":"%s","source":"/h","type":"a.b","data":{"x":"\\ud800"}}' % SEEN.encode(),
        b'{"time":"%s","source":"/h","type":"a.b","data":{"x":"%s"}}' % (SEEN.encode(), b"x" * 4000),
        b'{"time":"%s","source":"/h","type":"a.b","extra":1}' % SEEN.encode(),
        b'{"time":"%s","source":"/h","type":"a.b","data":%s1%s}' % (SEEN.encode(), b"[" * 1500, b"]" * 1500),
    ],
    ids=itertools.count(),  # not the lines, which have the time
)
def test_refuses_with_a_reason(octets):
    with pytest.raises(event.EventError):
        trust.admit(octets, 0, SEEN, USERS)


@given(st.binary(max_size=200))
def test_no_octets_make_it_fail_in_another_way(octets):
    for prefix in (b"", b'{"time":"%s","source":"/h","type":"a.b","data":' % SEEN.encode()):
        with contextlib.suppress(event.EventError):
            trust.admit(prefix + octets, None, SEEN, USERS)


def test_what_follows_a_dead_writers_half_line_is_found():
    whole = line().rstrip(b"\n")
    assert trust.salvage(whole[:50] + whole) == whole
    assert trust.salvage(b"rubbish") == b""
    assert trust.salvage(whole) == b""


def fill(box, count):
    for number in range(count):
        box.append(b'{"n":%d}\n' % number)


def read_all(reader):
    out = b""
    while chunk := reader.read():
        out += chunk
    return [json.loads(item)["n"] for item in out.splitlines()]


def test_reader_follows_over_segments_and_goes_on_where_it_was(tmp_path):
    box = spool.Spool(tmp_path, segment=100)
    fill(box, 50)
    assert len(spool.segments(tmp_path)) > 3
    reader = spool.Reader(tmp_path, 0)
    assert read_all(reader) == list(range(50))
    box.append(b'{"n":99}\n')
    assert read_all(reader) == [99]
    assert reader.offset == box.end


def test_old_segments_go_and_the_reader_counts_what_it_missed(tmp_path):
    box = spool.Spool(tmp_path, segment=100, limit=300)
    reader = spool.Reader(tmp_path, 0)
    fill(box, 200)
    assert sum(path.stat().st_size for _, path in spool.segments(tmp_path)) < 500
    got = read_all(reader)
    assert got[-1] == 199 and got == list(range(got[0], 200))
    assert reader.lost > 0


def test_a_line_torn_by_a_crash_is_cut_off_at_the_next_start(tmp_path):
    box = spool.Spool(tmp_path)
    fill(box, 3)
    box.close()
    with open(spool.segments(tmp_path)[0][1], "ab") as file:
        file.write(b'{"n":3')
    box = spool.Spool(tmp_path)
    box.append(b'{"n":4}\n')
    assert read_all(spool.Reader(tmp_path, 0)) == [0, 1, 2, 4]


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    box = spool.Spool(tmp_path)
    fill(box, 1)
    real = os.write
    monkeypatch.setattr(
        os,
        "write",
        lambda fd, octets: (_ for _ in ()).throw(OSError(28, "full")) if len(octets) < 5 else real(fd, octets[:5]),
    )
    with pytest.raises(OSError):
        box.append(b'{"n":1}\n')
    monkeypatch.undo()
    box.append(b'{"n":2}\n')
    assert read_all(spool.Reader(tmp_path, 0)) == [0, 2]


def test_tail_gives_whole_lines(tmp_path):
    box = spool.Spool(tmp_path, segment=100)
    fill(box, 50)
    lines = spool.tail(tmp_path, 150).splitlines()
    assert json.loads(lines[0]) and json.loads(lines[-1]) == {"n": 49}
    assert len(lines) < 50


def test_find_gives_the_event_and_the_worst_trust(tmp_path, settings):
    from dre import conf

    made = conf.load(settings())
    box = spool.Spool(made.core_state_dir / "spool" / "ingest")
    box.append(trust.admit(line(id="one"), 0, SEEN, USERS)[1])
    box.append(event.format(event.Event(event.stamp(), "/h", "a.b", 6, {"id": "two"}, {"id": "other", "seen": SEEN})))
    assert event.find(made, "one").type == "shop.release"
    assert "claimed" not in event.find(made, "one").optional
    assert event.find(made, "two") is None  # the word stands in data only
    assert event.find(made, "none") is None
    box.append(trust.admit(line(id="one"), None, SEEN, USERS)[1])
    assert event.find(made, "one").optional["claimed"] is True
