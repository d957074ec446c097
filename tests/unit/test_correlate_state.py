# SPDX-License-Identifier: Apache-2.0
"""What dre-correlate keeps: its state cut anywhere goes on as if not cut; its inbox loses and doubles no octet."""

import itertools
import json
import os
import pathlib
import sys

import correlatekit as kit
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from monitorlib import inbox, rulecheck, ruleset, snapshot  # noqa: E402
from monitorlib.correlate import Correlator  # noqa: E402


def made(texts):
    books = [rulecheck.parse(f"r{n}.sec", text, {"script"}) for n, text in enumerate(texts)]
    rules, findings = ruleset.compile(books, {"script"})
    assert findings == [] and not any(book.findings for book in books)
    return Correlator(rules, ["script"])


def written(correlator):
    return [item.text for item in correlator.memory.out]


@pytest.mark.parametrize("seed", range(40))
def test_state_taken_up_elsewhere_goes_on_the_same(seed):
    maker = kit.Maker(seed)
    texts = [kit.TICKS, *(maker.files() if seed % 4 else [path.read_text() for path in kit.CORPUS])]
    lines = [line.encode() for line in (maker.events() if seed % 4 else kit.corpus_events(seed))]
    whole = made(texts)
    whole.feed(lines)
    found, cut = [], made(texts)
    for begin in range(0, len(lines), 23):
        state = json.dumps(snapshot.freeze(cut))
        cut = made(texts)
        assert snapshot.thaw(cut, json.loads(state)) == 0
        assert json.dumps(snapshot.freeze(cut)) == state
        cut.feed(lines[begin : begin + 23])
        found += written(cut)
    assert found == written(whole)


def test_operations_of_changed_rules_are_dropped_and_those_of_moved_rules_kept():
    rule = (
        "type=SingleWithThreshold\nptype=SubStr\npattern=a.x\ndesc=d\naction=write %script {}\nwindow=9\nthresh=2\n\n"
    )
    lines = [kit.line(second, "/host:h", "a.x").encode() for second in (1, 2)]
    first = made([rule.format("one") + rule.format("two")])
    first.feed(lines[:1])
    state = snapshot.freeze(first)
    other = made([rule.format("three") + rule.format("one").replace("\n\n", "\ncontinue=TakeNext\n\n")])
    assert snapshot.thaw(other, state) == 1
    moved = made(["# moved\n\n" + rule.format("one")])
    assert snapshot.thaw(moved, state) == 0
    moved.feed(lines[1:])
    assert written(moved) == [b"one"]


@given(
    st.lists(st.sampled_from([b"a", b"b", b"\n"]), max_size=40).map(b"".join), st.integers(0, 40), st.binary(max_size=5)
)
def test_overlap_finds_what_was_not_taken_out(spooled, left, more):
    left = min(left, len(spooled))
    waiting = spooled[len(spooled) - left :] + more
    found = inbox.overlap(spooled, waiting)
    assert found >= left and waiting.startswith(spooled[len(spooled) - found :])


class Died(Exception):
    """Stands for a kill -9 between two system calls."""


@pytest.mark.parametrize(("step", "nth"), itertools.product(("append", "remove", "read", "update"), range(4)))
def test_a_reader_that_dies_anywhere_has_each_line_once(tmp_path, monkeypatch, step, nth):
    end, begin = os.pipe()
    lines = [b"line %d" % n for n in range(3000)]
    os.write(begin, b"\n".join(lines[:1500]) + b"\n")
    count = itertools.count()

    def dying(function, late):
        def call(*args):
            if late:
                function(*args)
            die()
            return None if late else function(*args)

        return call

    def die():
        if next(count) == nth:
            raise Died

    reader = inbox.Inbox(end, tmp_path / "inbox", inbox.Mark(tmp_path / "mark"))
    with pytest.raises(Died), monkeypatch.context() as patch:
        if step == "append":
            patch.setattr(reader._spool, "append", dying(reader._spool.append, late=True))
        elif step == "update":
            patch.setattr(reader._mark, "update", dying(reader._mark.update, late=False))
        elif step == "remove":
            patch.setattr(reader, "_remove", dying(reader._remove, late=False))
        else:  # half of what was spooled is taken out, perhaps within a line
            remove = reader._remove
            patch.setattr(
                reader, "_remove", lambda size: remove(size // 2 + nth) and die() or remove(size - size // 2 - nth)
            )
        for n in range(10):
            reader.take()
            os.write(begin, b"\n".join(lines[1500 + 150 * n : 1650 + 150 * n]) + b"\n")
    reader = inbox.Inbox(end, tmp_path / "inbox", inbox.Mark(tmp_path / "mark"))
    while reader.take():
        pass
    found = reader.spooled(0, reader.end)
    assert found == lines[: len(found)] and len(found) >= 1500
    assert os.read(end, 10) == b"" if os.close(begin) else True
    os.close(end)


def test_half_a_line_waits_and_what_is_no_line_is_dropped_and_counted(tmp_path):
    end, begin = os.pipe()
    reader = inbox.Inbox(end, tmp_path / "inbox", inbox.Mark(tmp_path / "mark"))
    os.write(begin, b"one\ntwo")
    assert reader.take() == [b"one"] and reader.take() == []
    os.write(begin, b"\n")
    assert reader.take() == [b"two"]
    os.write(begin, b"x" * inbox.LONG)
    assert reader.take() == [] and reader.dropped == inbox.LONG
    os.write(begin, b"rest")
    os.close(begin)
    assert reader.take() == [] and reader.close() == b"rest" and reader.take() is None
    os.close(end)
