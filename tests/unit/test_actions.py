# SPDX-License-Identifier: Apache-2.0
"""Requests for programs: what an event holds makes no other program, no other argument, no other environment."""

import pathlib
import sys

import pytest
from dre import event
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from monitorlib import actions, rulecheck, secvars  # noqa: E402

EVENT = event.Event("2026-11-23T08:00:00.123Z", "/host:h7/web", "lab.asked", 6, {"user": "bob"}, {"id": "e1"})
LINE = event.format(EVENT).strip()
((_, _, TEXT),) = rulecheck.actions("cmdexec note $1 --from=$2 as it is", set())


def request(*values, line=LINE):
    """The line that a rule writes when its pattern matched *values*."""
    known = {b"%d" % number: value for number, value in enumerate(values, 1)}
    ((_, made),) = secvars.given([("write", TEXT.encode())], {**known, b"0": line})
    return secvars.variables(made, {}, b"d", 0)


def test_a_request_is_a_program_its_words_and_an_event():
    assert actions.parse(request(b"bob", b"web")) == actions.Request(
        "note", ("bob", "--from=web", "as", "it", "is"), EVENT
    )


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_whatever_an_event_holds_the_arguments_are_those_of_the_rule_or_none(one, two):
    try:
        made = actions.parse(request(one, two))
    except actions.RefusedError:
        return
    assert made.name == "note" and made.about == EVENT
    assert made.arguments == (one.decode(), f"--from={two.decode()}", "as", "it", "is")
    assert not made.arguments[0].startswith("-") and made.arguments[0].isprintable() and " " not in made.arguments[0]


@given(st.binary(max_size=200))
def test_no_octets_make_it_fail_in_another_way(octets):
    for line in (octets, b"1\t=note\t" + octets, b"2\t=note\t" + octets + b"\t" + LINE):
        try:
            assert actions.parse(line).name == "note"
        except actions.RefusedError:
            continue


def test_the_environment_holds_the_event_and_nothing_that_could_replace_our_own():
    data = {"path": "/x", "a-b": True, "a b": 2, "nul": "a\0b", "list": [1, "x"], "LD_PRELOAD": "x"}
    told = actions.environment(event.Event(EVENT.time, EVENT.source, EVENT.type, 3, data, {"claimed": True}))
    assert told["PATH"] == "/usr/sbin:/usr/bin:/sbin:/bin" and "LD_PRELOAD" not in told
    assert {key.removeprefix("DRE_EVENT_"): value for key, value in told.items() if key.startswith("DRE_")} == {
        "TIME": EVENT.time,
        "SOURCE": EVENT.source,
        "TYPE": EVENT.type,
        "SEV": "3",
        "ID": "",
        "CLAIMED": "yes",
        "DATA_PATH": "/x",
        "DATA_A_B": "true",
        "DATA_LIST": '[1, "x"]',
        "DATA_LD_PRELOAD": "x",
    }


@pytest.mark.parametrize("type", ["monitor.action.failed", "monitor.action.done"])
def test_what_actions_tell_leads_to_no_action(type):
    line = event.format(event.Event(EVENT.time, EVENT.source, type, 6, {}, {})).strip()
    with pytest.raises(actions.RefusedError, match="leads to no action"):
        actions.parse(request(b"a", b"b", line=line))
