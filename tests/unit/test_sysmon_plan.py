# SPDX-License-Identifier: Apache-2.0
"""The plan of dre-sysmon: what it accepts, that all that is wrong is told with its place, and when a look is due."""

import os
import sys
import time

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(ROOT / "sysmon"))
from sysmonlib import plan  # noqa: E402
from sysmonlib.cmd import dre_foxykbd, dre_libra, dre_lms  # noqa: E402

HEAD = "sysmon: 1\nlooks:\n"
PARSERS = {plan.LMS: dre_lms.make_parser, plan.LIBRA: dre_libra.make_parser, plan.FOXY: dre_foxykbd.make_parser}


def looks(*items):
    return HEAD + "".join(f"  - {{{item}}}\n" for item in items)


def test_the_example_is_a_plan_and_its_programs_take_its_words():
    found, wrong = plan.read(ROOT / "sysmon/examples/sysmon.yaml")
    assert wrong == []
    assert [look.name for look in found] == ["lms pay1", "libra pay1", "foxykbd pay1", "foxykbd-slow pay1"]
    for look in found:
        PARSERS[look.kind]().parse_args(["--stdout", *look.words()])
    assert found[1].words() == [
        *("pay1", "--mount", "/srv/data", "--except", "/srv/data/tmp", "--server", "10.231.0.1")
    ]
    assert (found[2].at, found[3].every) == (3 * 60 + 17, 7 * 86400.0)


def test_what_is_not_said_is_as_usual():
    found, wrong = plan.parse(looks("look: lms, system: a", "look: libra, system: a, mount: /x").encode(), "f")
    assert wrong == []
    assert [look.words() for look in found] == [["a", "--interval", "1.000s"], ["a", "--mount", "/x"]]
    assert found[1].every == 300


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("§[]", "the plan must be a mapping"),
        (HEAD.replace("1", "§2") + "  - {look: lms, system: a}", "expected 1"),
        ("sysmon: 1\nlooks: §[]", "at least one"),
        ("sysmon: 1\nlooks: §some", "must be a list"),
        ("§sysmon: 1", "lacks the key 'looks'"),
        (looks("look: lms, system: a") + "§more: 1", "unknown key 'more'"),
        (looks("look: lms, system: a, §mount: /x"), "unknown key 'mount'"),
        (looks("look: lms, system: a, §slow: yes"), "unknown key 'slow'"),
        (looks("look: lms, system: a, §at: 03:17"), "unknown key 'at'"),
        (looks("look: lms, system: a, §system: b"), "given twice"),
        (looks("look: lms, system: §A_b"), "is not a name"),
        (looks("look: lms, system: §[a]"), "expected one value"),
        (looks("look: lms, system:§ "), "the value is missing"),
        (HEAD + "  - §{look: all, system: a}\n", "one of lms, libra, foxykbd"),
        (HEAD + "  - §{look: libra, system: a}\n", "lacks the key 'mount'"),
        (HEAD + "  - §{look: lms}\n", "lacks the key 'system'"),
        (HEAD + "  - §words\n", "a look needs 'look'"),
        (looks("look: libra, system: a, mount: [/x, §y]"), "absolute path"),
        (looks("look: libra, system: a, mount: /x, server: §host"), "not an address"),
        (HEAD + "  - §{look: foxykbd, system: a}\n", "needs 'every' or 'at'"),
        (looks("look: foxykbd, system: a, at: §3:17"), "time of day"),
        (looks("look: foxykbd, system: a, at: §24:00"), "time of day"),
        (looks("look: foxykbd, system: a, at: §03:60"), "time of day"),
        (looks("look: foxykbd, system: a, at: §03:17, every: 1d"), "without 'every'"),
        (looks("look: foxykbd, system: a, every: §1s"), "at least 60s"),
        (looks("look: foxykbd, system: a, every: §soon"), "duration"),
        (looks("look: foxykbd, system: a, every: 1d, slow: §maybe"), "yes or no"),
        (looks("look: lms, system: a") + "  - §{look: lms, system: a, every: 2s}\n", "looked at twice"),
        (looks("look: lms, system: §*a"), "alias"),
        ("sysmon: 1\nlooks: §\t- {}", "not YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text, told):
    before = text.partition("§")[0] if "§" in text else ""
    line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1
    _, wrong = plan.parse(text.replace("§", "").encode(), "f.yaml")
    assert f"f.yaml:{line}:{column}: error: " in wrong[0] and told in wrong[0], wrong
    assert len(wrong) == 1


def test_all_that_is_wrong_is_told_in_its_order():
    _, wrong = plan.parse(looks("look: lms, system: A", "look: none", "look: lms, system: B").encode(), "f")
    assert [int(text.split(":")[1]) for text in wrong] == [3, 4, 5]


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda octets: octets.decode("latin-1")))
def test_any_text_is_read_or_refused(text):
    found, wrong = plan.parse((HEAD + text).encode(errors="replace"), "f")
    assert bool(found) or bool(wrong)


@pytest.fixture
def berlin(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    os.environ.pop("TZ", None)
    time.tzset()


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-11-28 03:16:59", "2026-11-28 03:17:00"),
        ("2026-11-28 03:17:00", "2026-11-29 03:17:00"),
        ("2026-11-30 20:00:00", "2026-12-01 03:17:00"),
        ("2026-12-31 20:00:00", "2027-01-01 03:17:00"),
        ("2026-10-24 20:00:00", "2026-10-25 03:17:00"),  # a day of 25 hours
        ("2026-03-28 20:00:00", "2026-03-29 03:17:00"),  # and one of 23
    ],
)
def test_a_look_at_a_time_of_day_is_due_then_and_not_made_up_for(berlin, monkeypatch, now, due):
    def seconds(text):
        return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))

    (look,), wrong = plan.parse(looks("look: foxykbd, system: a, at: 03:17").encode(), "f")
    assert wrong == []
    moment = seconds(now)
    monkeypatch.setattr(time, "time", lambda: moment)
    for last in (None, moment - 10 * 86400, moment):
        assert time.localtime(look.due(last)) == time.localtime(seconds(due))


def test_a_look_each_so_often_is_due_at_once_or_that_long_after_the_last():
    (look,), _ = plan.parse(looks("look: foxykbd, system: a, every: 1h").encode(), "f")
    assert (look.due(None), look.due(1000.0)) == (0.0, 4600.0)
