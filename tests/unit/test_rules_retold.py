# SPDX-License-Identifier: Apache-2.0
"""What a new sec is told of the past: the events that its rules remember, quietly, and what may have had no answer."""

import math
import os
import pathlib
import sys

import pytest
from dre import conf, event

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sec-monitor"))

from monitorlib import retell, rulecheck, spool  # noqa: E402

NOW = 1_800_000_000.0
SECOND = "window=9\nthresh=2\ndesc2=x\naction2=none\nwindow2=70\nthresh2=1\n"
RULE = "type={}\nptype=SubStr\npattern=a\ndesc=x\naction={}\n"


def line(ago, type="lab.failed", filler=0):
    made = event.Event(event.stamp(NOW - ago), "/host:h", type, 6, {"x": "y" * filler}, {"id": f"{type}-{ago}"})
    return event.format(made).rstrip(b"\n")


@pytest.fixture
def told(settings, tmp_path):
    def tell(lines, unread=b"", remembered=None, window=0.0):
        directory = tmp_path / "state" / "spool" / "ingest"
        made = spool.Spool(directory)
        made.append(b"".join(one + b"\n" for one in lines))
        made.close()
        for _, path in spool.segments(directory):
            os.utime(path, (NOW, NOW))
        (directory / "reorder.resume").write_bytes(b"0 0 %s\n" % event.stamp(NOW).encode())
        return retell.again(conf.load(settings()), NOW, unread, remembered or {}, window)

    return tell


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (RULE.format("Single", "none"), 0),
        (RULE.format("SingleWithSuppress", "none") + "window=30\n", 30),
        (RULE.format("SingleWith2Thresholds", "none") + SECOND, 70),
        (RULE.format("Single", "create A 40 (set B 90 (none))"), 90),
        (RULE.format("Single", "create A"), math.inf),
        (RULE.format("Single", "set A - (none)"), 0),
        (RULE.format("Pair", "none") + "ptype2=SubStr\npattern2=b\ndesc2=x\naction2=none\n", math.inf),
        (RULE.format("Single", "create A 5") + "\n" + RULE.format("Single", "create B 60"), 60),
    ],
)
def test_how_long_rules_remember(text, seconds):
    book = rulecheck.parse("f", text, set())
    assert book.findings == []
    assert rulecheck.memory(book, set()) == seconds


def test_the_window_is_told_quietly_and_what_had_no_answer_live(told):
    old, within, recent, unread = line(400), line(200), line(5), line(1)
    made = told([old, within, recent, unread], unread + b"\n", window=300.0)
    assert (made.quiet, made.live, made.lost) == ([within], [recent, unread], 0)


def test_a_remembered_type_is_told_from_farther_back(told):
    lines = [line(900, "shop.release"), line(800), line(50, "shop.release"), line(40)]
    made = told(lines, remembered={"shop.release": 1000}, window=45.0)
    assert made.quiet == [lines[0], lines[2], lines[3]]


def test_what_is_too_much_to_be_told_is_counted_and_the_newest_is_told(told, monkeypatch):
    monkeypatch.setattr(retell, "HISTORY", 1000)
    lines = [line(ago, filler=100) for ago in range(300, 100, -10)]
    made = told(lines, window=3600.0)
    assert made.quiet and made.quiet == lines[-len(made.quiet) :]
    assert made.lost == len(lines) - len(made.quiet)


def test_each_piece_is_whole_and_has_both_words_around_it():
    lines = [line(ago, filler=ago * 7) for ago in range(1, 500)]
    pieces = list(retell.pieces(lines, retell.QUIET, retell.LIVE))
    assert all(len(one) <= 4096 and one.startswith(b"#quiet\n{") and one.endswith(b"}\n#live\n") for one in pieces)
    inner = b"".join(one.removeprefix(retell.QUIET).removesuffix(retell.LIVE) for one in pieces)
    assert inner.splitlines() == lines
