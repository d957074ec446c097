# SPDX-License-Identifier: Apache-2.0
"""dre-correlate's engine: each type of rule in event time, to the second where a window begins and ends."""

import itertools
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "sec-monitor"))

from monitorlib import rulecheck, ruleindex, ruleset  # noqa: E402
from monitorlib.correlate import Correlator  # noqa: E402


def line(second, type="a.x", source="/host:h1", more=""):
    return (
        f'{{"time":"2026-11-23T08:{second // 60:02d}:{second % 60:02d}.500Z","source":"{source}","type":"{type}",'
        f'"sev":6,"data":{{{more}}},"id":"{type}-{second}"}}'
    ).encode()


def made(*texts, explain=False):
    books = [rulecheck.parse(f"/etc/r{n}.sec", text, {"script"}) for n, text in enumerate(texts)]
    assert [finding for book in books for finding in book.findings] == []
    rules, findings = ruleset.compile(books, {"script"})
    assert findings == []
    return Correlator(rules, ["script"], explain)


def rule(type="Single", pattern=r'"type":"a\.(\w)"', action="write %script $1 %s", **more):
    ptype = more.pop("ptype", "RegExp")
    keys = {"type": type, "ptype": ptype, "pattern": pattern, "desc": "d", "action": action, **more}
    return "".join(f"{key}={value}\n" for key, value in keys.items() if value is not None) + "\n"


def run(correlator, *lines):
    """What comes out, by the second at which it did."""
    found = []
    for one in lines:
        before = len(correlator.memory.out)
        correlator.feed([one])
        found += [(correlator.memory.now % 3600, item.text.decode()) for item in correlator.memory.out[before:]]
    return found


def seconds(found):
    return [second for second, _ in found]


def test_single_gives_what_was_matched():
    assert run(made(rule()), line(1), line(2, "b.x"), line(3, "a.y")) == [(1, "x d"), (3, "y d")]


def test_suppress_ends_the_file_and_context_decides():
    text = rule("Suppress", '"type":"a.y"', None, ptype="SubStr", desc=None, context="QUIET") + rule(
        action="create QUIET 5; write %script $1"
    )
    assert seconds(run(made(text), line(0), line(3, "a.y"), line(5, "a.y"), line(6, "a.y"))) == [0, 6]


def test_single_with_suppress_is_quiet_for_its_window_and_no_longer():
    text = rule("SingleWithSuppress", window=10)
    assert seconds(run(made(text), *map(line, (0, 5, 10, 11, 21, 22)))) == [0, 11, 22]


def test_threshold_slides_its_window_and_then_suppresses_to_its_end():
    text = rule("SingleWithThreshold", window=10, thresh=3, action2="write %script over %u")
    assert seconds(run(made(text), *map(line, (0, 9, 11, 12, 13)))) == [12]  # 0 is out of the window at 11
    assert seconds(run(made(text), *map(line, (0, 1, 10)))) == [10]
    late = run(made(text), *map(line, (0, 1, 2, 3, 10, 11)))
    assert late == [(2, "x d"), (11, "over 1795420811")]


def test_two_thresholds_rise_and_fall():
    text = rule(
        "SingleWith2Thresholds", window=10, thresh=2, window2=5, thresh2=0, desc2="calm", action2="write %script %s %u"
    )
    assert run(made(text), *map(line, (0, 1, 3, 8)), line(20, "b.x")) == [(1, "x d"), (20, "calm 1795420814")]


@pytest.mark.parametrize(
    ("ptype", "pattern", "texts"),
    [
        ("RegExp", '"text":"(one|two) (?:three)', ["one three", "two three", "one four", "xone three"]),
        ("RegExp", '"text":"web1', ["web1", "web12", "web", "xweb1"]),
        ("SubStr", "eb1", ["web1", "web12", "web", "eb1"]),
        ("RegExp", "(?i)WEB", ["web", "weB x", "wb"]),
        ("RegExp", "t.*(\\d)\\1", ["11", "12", "3344"]),
        ("NSubStr", "web1", ["web1", "x"]),
    ],
)
def test_among_many_rules_each_is_found_as_if_it_were_alone(ptype, pattern, texts):
    others = [rule(pattern=f'"text":"other{n}', action=f"write %script other {n}") for n in range(20)]
    others += [rule(ptype="SubStr", pattern=f"ever{n}", action="write %script never") for n in range(20)]
    others += [rule(ptype="SubStr", pattern=text, action="none", context="NEVER") for text in ("eb", "we", "ree", "x")]
    one = rule(ptype=ptype, pattern=pattern, action="write %script one")
    lines = [line(n, more=f'"text":"{text}"') for n, text in enumerate([*texts, "other7", "other"])]
    alone = run(made(one), *lines)
    crowd = run(made("".join(others) + one), *lines)
    assert [item for item in crowd if item[1] == "one"] == [item for item in alone if item[0] != len(texts)]
    assert [item for item in crowd if item[1] != "one"] == [(len(texts), "other 7")]


def test_pair_waits_for_its_window_and_uses_both_matches():
    text = rule(
        "Pair", r'"source":"/host:(\w+)","type":"a\.up"', "write %script up $1", desc="$1", window=10, ptype2="RegExp",
        pattern2=r'"source":"/host:$1","type":"a\.(down)"', desc2="%1 $1", action2="write %script %1 $1 %s",
    )  # fmt: skip
    h1, h2 = "/host:h1", "/host:h2"
    assert run(made(text), line(0, "a.up", h1), line(1, "a.down", h2), line(10, "a.down", h1)) == [
        (0, "up h1"),
        (10, "h1 down h1 down"),
    ]
    assert seconds(run(made(text), line(0, "a.up", h1), line(11, "a.down", h1))) == [0]


def test_many_pairs_wait_without_being_confused():
    text = rule(
        "Pair", r'"source":"/host:(\w+)","type":"a\.up"', "none", desc="$1", window=100, ptype2="RegExp",
        pattern2=r'"source":"/host:$1","type":"a\.down"', desc2="x", action2="write %script %1",
    )  # fmt: skip
    ups = [line(n % 50, "a.up", f"/host:m{n}") for n in range(50)]
    downs = [line(60, "a.down", f"/host:m{n}") for n in (7, 49, 7, 50)]
    assert run(made(text), *ups, *downs) == [(60, "m7"), (60, "m49")]


@pytest.mark.parametrize(
    "template",
    [
        r"^(\w+) $1$",
        r"h:$1 (.)\1",
        r"(?i)$1(?<n>b)|$2",
        r"\A$2",
        r"(?=.*$1)a",
        r"[^a]$2+",
        r"(?<=x)$1",
        r"$1?(\d)",
        "$1",
    ],
)
@pytest.mark.parametrize("values", itertools.product([b"a.b", b"", b"x(y", b"a\0b", b"\xe9"], repeat=2))
def test_one_form_of_a_second_pattern_for_all_pairs_matches_what_each_alone_would(template, values):
    second = ruleset.Second("RegExp", template, ((b"m", 1),), True)
    texts = second.texts({b"1": values[0], b"2": values[1]})
    if template.startswith("$1?") and not values[0]:
        with pytest.raises(re.error):  # nothing repeats; sec, too, begins no pair then
            second.make(texts)
        return
    pattern, words = second.make(texts)
    alone = second._make_alone(texts)
    first, other = values
    lines = [
        first,
        b"a " + first,
        b"h:" + first + b" zz",
        first + b"B",
        b"x" + first + other * 2,
        b"q\0" + first + b"1",
    ]
    for text in [*lines, b"\0".join(lines), b"", b"a", b"1"]:
        assert pattern.match(text) == alone.match(text)
        if words and pattern.match(text) is not None:
            assert set(words) & set(ruleindex.words(text))


def test_pair_with_window_acts_in_the_second_after_its_window():
    text = rule(
        "PairWithWindow", r'"type":"a\.up"', "write %script missed %u", window=10, ptype2="SubStr",
        pattern2='"type":"a.down"', desc2="e", action2="write %script met",
    )  # fmt: skip
    assert run(made(text), line(0, "a.up"), line(10, "a.down")) == [(10, "met")]
    assert run(made(text), line(0, "a.up"), line(10, "b.x"), line(30, "a.down")) == [(30, "missed 1795420811")]


def test_watermarks_let_time_pass_and_are_seen_by_no_rule():
    text = rule(ptype="TValue", pattern="TRUE", action="write %script seen; create C 2 (write %script end %u)")
    watermark = line(9, "dre.watermark")
    assert [text for _, text in run(made(text), line(0), watermark, line(9))] == ["seen", "end 1795420803", "seen"]


def test_time_never_goes_back():
    text = rule("SingleWithSuppress", window=10)
    assert seconds(run(made(text), line(20), line(5), line(31))) == [20, 31]


def test_a_clock_that_is_ahead_or_a_forged_time_moves_time_to_the_arrival_only():
    text = rule(action="create C 60 (write %script end); write %script x") + rule(pattern='"type":"b')
    ahead = line(3000, "b.x")[:-1] + b',"seen":"2026-11-23T08:00:05.000Z","claimed":true}'
    correlator = made(text)
    assert seconds(run(correlator, line(0), ahead, line(6, "b.x"))) == [0, 5, 6]
    assert correlator.memory.now % 3600 == 6


def test_contexts_are_created_set_filled_copied_and_ended():
    text = rule(
        action="create C_$1 9 (write %script end %s); add C_$1 one; add C_$1 two $1; copy C_$1 %v; write %script <%v>"
    ) + rule(pattern=r'"type":"b\.set"', action="set C_x 20")
    text += rule(pattern=r'"type":"b\.end"', action="obsolete C_x") + rule(
        pattern=r'"type":"b\.del"', action="delete C_x"
    )
    assert run(made(text), line(0), line(5, "b.set"), line(25, "b.x"), line(26, "b.x")) == [
        (0, "<one\ntwo x>"),
        (26, "end d"),
    ]
    assert run(made(text), line(0), line(5, "b.end")) == [(0, "<one\ntwo x>"), (5, "end d")]
    assert run(made(text), line(0), line(5, "b.del"), line(40)) == [(0, "<one\ntwo x>"), (40, "<one\ntwo x>")]


@pytest.mark.parametrize(
    ("context", "holds"),
    [("A", True), ("!A", False), ("A && B", False), ("A || B", True), ("!(A && B)", True), ("!A || !B", True),
     ("A || B && C", False), ("A || (B && C)", True), ("[A]", True), ("A_$1", True), ("[A_$1]", False)],
)  # fmt: skip
def test_conditions_are_those_of_sec_with_its_order(context, holds):
    text = rule(pattern=r'"type":"b\.y"', action="create A; create A_x") + rule(context=context)
    assert bool(run(made(text), line(0, "b.y"), line(1))) is holds


def test_jump_runs_the_sets_it_names_and_goto_passes_rules():
    jump = rule("Jump", r'"type":"a\.(\w)"', None, desc=None, cfset="to-$1", constset="no", **{"continue": "TakeNext"})
    main = jump + rule(action="write %script after", **{"continue": "GoTo Z"}) + rule(action="write %script passed")
    main += "label=Z\n\n" + rule(action="write %script last")
    sets = [
        "type=Options\njoincfset=to-x\nprocallin=no\n\n" + rule(action="write %script in x"),
        "type=Options\njoincfset=to-y\nprocallin=no\n\n"
        + rule(action="write %script in y", **{"continue": "EndMatch"}),
    ]
    found = [text for _, text in run(made(main, *sets), line(0), line(1, "a.y"), line(2, "a.z"))]
    assert found == ["in x", "after", "last", "in y", "after", "last"]


def test_a_set_that_jumps_to_itself_ends():
    text = "type=Options\njoincfset=me\n\n" + rule("Jump", "x", None, desc=None, cfset="me") + rule()
    assert made(text).rules.sets == {b"me": [0]}
    assert run(made(text), line(0)) == []  # DontCont: the rule behind the jump is not looked at, in either round


def test_negations_and_names_and_maps():
    text = rule(ptype="NSubStr", pattern='"type":"a', action="write %script no $1", **{"continue": "TakeNext"})
    text += rule(
        pattern=r'"type":"b\.(?<what>\w)', varmap="w=1; z=9", action="write %script $+{what}$+{w}$+{z}. $$ 100%%"
    )
    assert [text for _, text in run(made(text), line(0, "b.q"))] == ["no $1", "qq. $ 100%"]


@pytest.mark.parametrize(
    ("which", "ended"), [("-1 d", 1), ("1", 1), ("", 1), ("0", 0), ("+1", 0), ("3", 0), ("1 e", 0)]
)
def test_reset_ends_what_a_rule_has_begun(which, ended):
    counting = rule("SingleWithThreshold", r'"type":"a\.x"', window=60, thresh=3)
    found = run(made(counting + rule(pattern='a.y"', ptype="SubStr", action=f"reset {which}".strip())),
                line(1), line(2), line(3, "a.y"), line(4), line(5), line(6))  # fmt: skip
    assert seconds(found) == [6 if ended else 4]


def test_an_operation_may_end_itself():
    text = rule("SingleWithSuppress", window=60, action="reset 0; write %script told")
    text += rule("Pair", r'"type":"b\.(x)"', window=9, ptype2="SubStr", pattern2="b.y", desc2="d", action2="reset 0")
    correlator = made(text)
    assert seconds(run(correlator, line(1), line(2), line(3, "b.x"), line(4, "b.y"), line(5, "b.x"))) == [1, 2, 3, 5]
    assert correlator.count == 1


def test_what_an_event_holds_is_never_read_as_a_variable():
    text = rule(pattern='"v":"([^"]*)"', action="assign %x $1; write %script %x $1 %s", desc="$1")
    assert run(made(text), line(0, more='"v":"%u $1 $$ %%"')) == [(0, "%u $1 $$ %% %u $1 $$ %% %u $1 $$ %%")]


def test_each_event_written_has_an_id_that_is_the_same_whenever_it_is_written():
    text = rule(
        action='write %script {"time":"T","type":"x.y"}; write %script {"time":"T","type":"x.y"}; write %script $0'
    )
    first, second, third = (text for _, text in run(made(text), line(0)))
    assert first != second and first.startswith('{"time":"T","type":"x.y","id":"') and third.encode() == line(0)
    assert [text for _, text in run(made(text), line(7, "b.x"), line(0))] == [first, second, third]


def test_each_output_is_explained_by_events_rule_and_state():
    text = rule(pattern=r'"type":"b\.up"', action="create UP 60") + rule(
        "SingleWithThreshold", window=10, thresh=2, context="UP", action="write %script hot"
    )
    correlator = made(text, explain=True)
    run(correlator, line(0, "b.up"), line(1), line(3))
    (item,) = correlator.memory.out
    assert item.why == {
        "time": "2026-11-23T08:00:03.000Z",
        "rule": "/etc/r0.sec:7",
        "type": "SingleWithThreshold",
        "desc": "d",
        "events": ["b.up-0", "a.x-1", "a.x-3"],
        "before": {"operation": {"since": 1795420801, "until": 1795420811, "count": 1}, "contexts": {"UP": True}},
        "after": {"operation": {"since": 1795420801, "until": 1795420811, "count": 2, "second": True},
                  "contexts": {"UP": True}},
    }  # fmt: skip


def test_a_flood_of_names_has_an_end_that_is_counted(monkeypatch):
    for module in ("memory", "correlate"):
        monkeypatch.setattr(f"monitorlib.{module}.MOST", 50)
    text = rule("SingleWithSuppress", '"source":"/host:(\\w+)"', "create C_$1", desc="$1", window=10)
    correlator = made(text)
    run(correlator, *(line(n // 100, source=f"/host:m{n}") for n in range(300)))
    assert (correlator.count, len(correlator.memory.contexts), correlator.memory.full) == (50, 50, 250)
    run(correlator, line(30, "b.x"))
    assert correlator.count == 1


def test_lines_that_are_no_events_are_left_out_and_counted():
    correlator = made(rule())
    bad = [b"", b"x", b'{"time":"2026-11-31T08:00:00.000Z","source":"/x"}', b'{"time":"yesterday"}', b"\xff" * 5000]
    assert run(correlator, *bad, line(1)) == [(1, "x d")]
    assert correlator.refused == len(bad)


def test_patterns_over_lines_and_contexts_of_sec_are_refused_with_their_line():
    book = rulecheck.parse("f", rule(ptype="RegExp2") + rule(context="SEC_INTERNAL_EVENT"), {"script"})
    assert book.findings == []
    assert [(finding.line) for finding in ruleset.compile([book], {"script"})[1]] == [2, 12]
