# SPDX-License-Identifier: Apache-2.0
"""Events in the forms of others: ours come back the same, others' become events by the rules of dre-event(1)."""

import base64
import json
import pathlib
import string
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from dre import event  # noqa: E402
from dre.event import Event, EventError  # noqa: E402
from monitorlib import formats  # noqa: E402
from monitorlib.formats import cloudevents, dre1, journal, plain, snmptrap, syslog  # noqa: E402
from test_event import TIME, events  # noqa: E402

MOST = event.LIMIT - event.ROOM


def converted(module, octets, size=None):
    """The events of *octets*, given in blocks of *size*; what is refused as the EventError."""
    size = size or len(octets) or 1
    blocks = [octets[at : at + size] for at in range(0, len(octets), size)]
    found = []
    for _, record in module.records(blocks):
        try:
            found.append(json.loads(formats.line(module.read(record))))
        except EventError as error:
            found.append(error)
    return found


def one(module, octets):
    """The one event of *octets*."""
    (found,) = converted(module, octets)
    if isinstance(found, EventError):
        raise found
    return found


hostile = st.sampled_from(['"]\\', "\\", '"', "]", ">", "\n", "\0", "\x7f", "\u2028", '{"time":"', "LogFormat=DRE1.0>"])
data = st.dictionaries(st.text(max_size=5) | st.just("ce"), st.text(max_size=20) | hostile | st.integers(), max_size=3)
ours = events | st.builds(lambda made, odd: Event(made.time, made.source, made.type, 3, odd), events, data)


@pytest.mark.parametrize("module", [syslog, journal, cloudevents, dre1, plain], ids=lambda one: one.__name__)
@settings(max_examples=40)  # a list of events is much to make up
@given(made=st.lists(ours, min_size=1, max_size=2), size=st.integers(1, 300))
def test_an_event_of_ours_comes_back_the_same(module, made, size):
    written = [module.write(one) for one in made]
    back = converted(module, b"".join(written), size)
    assert len(back) == len(made)
    for before, after in zip(made, back, strict=True):
        before = json.loads(event.format(before))
        if module is cloudevents and "id" not in before:
            assert after.pop("id")
        assert after == before


@pytest.mark.parametrize("module", [syslog, cloudevents, dre1], ids=lambda one: one.__name__)
@given(made=ours)
def test_a_record_is_one_line(module, made):
    assert module.write(made).count(b"\n") == 1


@given(st.lists(st.binary(max_size=20)), st.integers(1, 9))
def test_lines_are_those_of_split(parts, size):
    octets = b"\n".join(parts)
    blocks = [octets[at : at + size] for at in range(0, len(octets), size)]
    found = list(formats.lines(blocks))
    expected = octets.split(b"\n")
    assert [line for _, line in found] == (expected if expected[-1] else expected[:-1])
    assert [number for number, _ in found] == list(range(1, len(found) + 1))


def test_a_line_too_large_is_none_and_the_next_goes_on(monkeypatch):
    monkeypatch.setattr(formats, "LARGEST", 10)
    assert list(formats.lines([b"a\n", b"1234567", b"8901", b"\nb\n"])) == [(1, b"a"), (2, None), (3, b"b")]


# --- what others wrote ---

wild = st.binary(max_size=200) | st.text(max_size=100).map(str.encode)


@pytest.mark.parametrize("before", [b"<13>", b"<34>Oct 11 22:14:15 ", b"<1>1 2003-10-11T22:14:15Z h a 1 m ", b""])
@given(octets=wild)
def test_any_line_of_syslog_is_a_valid_event_or_refused(before, octets):
    for found in converted(syslog, before + octets.replace(b"\n", b"")):
        if not isinstance(found, EventError):
            event.parse(json.dumps(found))


@given(
    st.text(max_size=20), st.text(max_size=90), st.dictionaries(st.text(max_size=9), st.text(max_size=900), max_size=9)
)
def test_what_is_written_fast_is_what_event_format_writes(host, program, data):
    source, _ = formats.place(host, program)
    try:
        made = formats.line(formats.Foreign(TIME, source, "syslog.message", 3, data, "a1"))
    except EventError:
        with pytest.raises(EventError):
            event.format(Event(TIME, source, "syslog.message", 3, data, {"id": "a1"}))
        return
    assert len(made) <= MOST
    again = event.parse(made)
    assert event.format(again) == made
    if "cut" not in again.data:
        assert again.data == data


@given(st.dictionaries(st.text(max_size=9), st.text(alphabet='a"\n\0é\U0001f600', max_size=4000), min_size=1))
@example({"message": "\0" * 4000})
@example({str(number): "" for number in range(3000)})
@example({"message": '"' * 100_000, "other": "short"})
def test_a_foreign_event_that_is_too_long_is_shortened_and_says_by_how_much(data):
    whole = len(json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode())
    made = json.loads(formats.line(formats.Foreign(TIME, "/host:h", "syslog.message", 3, data)))["data"]
    if "cut" not in data and "cut" in made:
        kept = json.dumps({key: made[key] for key in made if key != "cut"}, ensure_ascii=False, separators=(",", ":"))
        assert 0 < made["cut"] <= whole - len(kept.encode())
        assert all(data[key].startswith(made[key]) for key in made if key != "cut")
    elif "cut" not in data:
        assert made == data


@pytest.mark.parametrize(
    "line, source, sev, data",
    [
        (  # the examples of RFC 5424, section 6.5
            "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \ufeff'su root' failed for lonvick",
            "/host:mymachine.example.com/su",
            2,
            {"message": "'su root' failed for lonvick", "facility": "auth", "msgid": "ID47"},
        ),
        (
            '<165>1 2003-10-11T22:14:15.003Z h evntslog - ID47 [exampleSDID@32473 iut="3" eventSource="Application" '
            'eventID="1011"][examplePriority@32473 class="high"]',
            "/host:h/evntslog",
            5,
            {
                "message": "",
                "facility": "local4",
                "msgid": "ID47",
                "sd": {
                    "exampleSDID@32473": {"iut": "3", "eventSource": "Application", "eventID": "1011"},
                    "examplePriority@32473": {"class": "high"},
                },
            },
        ),
        (
            '<13>1 2026-11-26T10:00:00+09:00 h a 1 - [x p="a\\"\\]\\\\\\n" p="2"] m',
            "/host:h/a",
            5,
            {"message": "m", "facility": "user", "pid": 1, "sd": {"x": {"p": ['a"]\\\\n', "2"]}}},
        ),
        ("<34>Oct 11 22:14:15 m su: 'su root' failed", "/host:m/su", 2, {"message": "'su root' failed"}),
        ("Nov  6 10:00:00 h daemon.err app[1]: a: b", "/host:h/app", 3, {"message": "a: b", "pid": 1}),
        ("2026-11-26T10:00:00.123456+00:00 fe80::1 kernel: x", "/host:fe80::1/kernel", 5, {"message": "x"}),
        ("<13>Nov 26 19:22:00 root: a: b", "root", 5, {"message": "a: b"}),
        ("<13>Nov 26 19:22:00 h postfix/smtpd[1]: b", "/host:h/postfix-smtpd", 5, {"program": "postfix/smtpd"}),
        ("<13>Nov 26 19:22:00 h no tag", "/host:h", 5, {"message": "no tag"}),
        ("<0>text", "", 0, {"message": "text", "facility": "kern"}),
    ],
)
def test_lines_of_syslog(line, source, sev, data):
    made = one(syslog, line.encode())
    assert made["source"].endswith(source) and made["sev"] == sev
    assert made["data"].items() >= data.items()
    assert made["type"] == "syslog.message"


@pytest.mark.parametrize(
    "line",
    [
        "nothing",
        "<192>x",
        "<13>1 2003-10-11T25:14:15Z h a - - - x",
        "<13>1 2003-02-29T20:14:15Z h a - - - x",
        "<13>1 2003-10-11T22:14:15Z h a - - [x",
        '<13>1 2003-10-11T22:14:15Z h a - - [x a="1]',
        '<13>1 2003-10-11T22:14:15Z h a - - [x a="1"][x b="2"] twice',
        '<13>1 2003-10-11T22:14:15Z h a - - [x a="1"]text',
        "<13>Xyz 11 22:14:15 h a: x",
        "<13>Feb 30 22:14:15 h a: x",
        '<13>1 2003-10-11T22:14:15Z h a - - [dre-event@32473 event="{}"]',
    ],
)
def test_what_is_no_line_of_syslog_is_refused(line):
    with pytest.raises(EventError):
        one(syslog, line.encode())


def entry(**fields):
    return {"__REALTIME_TIMESTAMP": "1795721559077123", "_HOSTNAME": "h", "SYSLOG_IDENTIFIER": "app", **fields}


def test_an_entry_of_the_journal():
    fields = entry(
        MESSAGE="hi", PRIORITY="3", _SYSTEMD_UNIT="a.service", _PID="12", SYSLOG_FACILITY="3", OWN=["a", "b"]
    )
    made = one(journal, json.dumps({**fields, "__CURSOR": "s=1;i=2", "BINARY": [255, 104]}).encode())
    assert (made["time"], made["source"], made["sev"]) == ("2026-11-26T19:32:39.077Z", "/host:h/app", 3)
    assert made["data"] == {
        "message": "hi",
        "facility": "daemon",
        "unit": "a.service",
        "pid": 12,
        "OWN": ["a", "b"],
        "BINARY": "\\xffh",
    }
    assert made["id"] == one(journal, json.dumps({"__CURSOR": "s=1;i=2", **fields}).encode())["id"]


texts = st.text(alphabet=string.ascii_letters + "=\n\0é", max_size=30)


@given(st.lists(st.dictionaries(st.from_regex(r"[A-Z][A-Z0-9]{0,6}", fullmatch=True), texts), min_size=1, max_size=3))
def test_the_export_format_and_json_tell_the_same(entries):
    exported = lines = b""
    for fields in entries:
        whole = entry(**{f"X_{key}": value for key, value in fields.items()})
        lines += json.dumps(whole).encode() + b"\n"
        for key, value in whole.items():
            octets = value.encode()
            length = len(octets).to_bytes(8, "little")
            exported += f"{key}\n".encode() + length + octets + b"\n" if "\n" in value else f"{key}={value}\n".encode()
        exported += b"\n"
    assert converted(journal, exported, 7) == converted(journal, lines)


@pytest.mark.parametrize(
    "octets",
    [
        b'{"MESSAGE":"no time"}',
        b'{"__REALTIME_TIMESTAMP":"1","MESSAGE":"a","MESSAGE":"b"}',
        b'{"__REALTIME_TIMESTAMP":"1","PRIORITY":"9"}',
        b'{"__REALTIME_TIMESTAMP":"1","MESSAGE":[256]}',
        b'{"__REALTIME_TIMESTAMP":"1","MESSAGE":[[["a"]]]}',
        b'{"__REALTIME_TIMESTAMP":"1","MESSAGE":{}}',
        b'{"__REALTIME_TIMESTAMP":"1","MESSAGE":NaN}',
        b'{"__REALTIME_TIMESTAMP":"1","MESSAGE":"\\ud800"}',
        b'{"__REALTIME_TIMESTAMP":"1","MESSAGE":"\xff"}',
        b'{"__REALTIME_TIMESTAMP":"9999999999999999999"}',
        b"[" * 100_000,
        b"MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\x7fx\n\n",
        b"__REALTIME_TIMESTAMP=1\nMESSAGE\n\x05\0\0\0\0\0\0\0x\n\n",
    ],
)
def test_what_is_no_entry_of_the_journal_is_refused(octets):
    with pytest.raises(EventError):
        one(journal, octets)


def test_a_broken_entry_does_not_harm_the_next():
    good = b"__REALTIME_TIMESTAMP=1\nMESSAGE=good\n\n"
    bad = b"__REALTIME_TIMESTAMP=1\nMESSAGE\n\x03\0\0\0\0\0\0\0abcd\n\n"
    broken, whole = converted(journal, bad + good)
    assert isinstance(broken, EventError) and whole["data"] == {"message": "good"}


# The example of the specification of CloudEvents, JSON Event Format 1.0.2, section 3.2.
CLOUD = {
    "specversion": "1.0",
    "type": "com.example.someevent",
    "source": "/mycontext",
    "id": "A234-1234-1234",
    "time": "2018-04-05T17:31:00Z",
    "comexampleextension1": "value",
    "comexampleothervalue": 5,
    "unsetextension": None,
    "datacontenttype": "application/json",
    "data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": True},
}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("batch", [False, True])
def test_cloudevents_alone_in_a_batch_and_over_several_lines(indent, batch):
    octets = json.dumps([CLOUD, CLOUD] if batch else CLOUD, indent=indent).encode()
    made = converted(cloudevents, octets)
    assert len(made) == (2 if batch else 1)
    assert made[0] == {
        "time": "2018-04-05T17:31:00.000Z",
        "source": "/mycontext",
        "type": "com.example.someevent",
        "sev": 6,
        "data": {**CLOUD["data"], "ce": {"comexampleextension1": "value", "comexampleothervalue": 5}},
        "id": "A234-1234-1234",
    }


def test_a_bad_first_line_does_not_harm_the_rest():
    bad, good = converted(cloudevents, b'{"specversion":\n' + json.dumps(CLOUD).encode() + b"\n")
    assert isinstance(bad, EventError) and good["type"] == "com.example.someevent"


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"source": "https://github.com/cloudevents?x=1"}, {"source": "/https:/github.com/cloudevents-x-1"}),
        ({"type": "Com.GitHub.pull_request"}, {"type": "com.github.pull-request"}),
        ({"type": "alarm"}, {"type": "cloudevents.alarm"}),
        ({"sev": 3, "goal": "G1", "late": "1.5", "claimed": True}, {"sev": 3, "goal": "G1", "late": 1.5}),
        ({"time": "2018-04-05T17:31:00.123456789+09:00"}, {"time": "2018-04-05T08:31:00.123Z"}),
    ],
)
def test_attributes_of_cloudevents(change, expected):
    made = one(cloudevents, json.dumps({**CLOUD, **change}).encode())
    assert made.items() >= expected.items()
    for key in ("source", "type"):
        if key in change:
            assert made["data"]["ce"][key] == change[key]


def test_data_of_cloudevents_that_are_no_object_are_kept():
    octets = base64.b64encode(b"\0\xff").decode()
    bare = {key: CLOUD[key] for key in ("specversion", "type", "source", "id")}
    for given_, kept in (
        ({"data": [1, "a"]}, {"ce": {"data": [1, "a"]}}),
        ({"data_base64": octets, "subject": "s"}, {"ce": {"subject": "s", "data_base64": octets}}),
        ({"data": {"ce": 1}, "subject": "s"}, {"ce": {"subject": "s", "data": {"ce": 1}}}),
        ({"data": {"ce": 1}}, {"ce": 1}),
        ({"id": "a b"}, {"ce": {"id": "a b"}}),
        ({}, {}),
    ):  # fmt: skip
        assert one(cloudevents, json.dumps({**bare, **given_}).encode())["data"] == kept


@pytest.mark.parametrize(
    "change",
    [
        *({key: value} for key in ("id", "source", "type", "specversion") for value in (None, "", 5)),
        {"specversion": "0.3"},
        {"time": "yesterday"},
        {"Bad": 1},
        {"sev": "high"},
        {"claimed": "yes"},
        {"data_base64": "AA==", "data": {}},
        {"data": None, "data_base64": "?"},
        {"data": {"long": "x" * 5000}},
    ],
)
def test_what_is_no_cloudevent_is_refused(change):
    with pytest.raises(EventError):
        one(cloudevents, json.dumps({**CLOUD, **change}).encode())


def test_a_line_of_the_first_d_re():
    line = (
        "LogFormat=DRE1.0>Event=Traffic_Limit_Exceeded>TagSource=/Host:h/tag>EventSource=/Host:h/AppContainer:app-apa/"
        "httpd>EventDiscoverer=/Host:h/mon>Message=2600 > 2500"
    )
    made = one(dre1, line.encode())
    assert (made["source"], made["type"]) == ("/host:h/app:app-apa/httpd", "dre1.traffic-limit-exceeded")
    assert made["data"] == {
        "message": "2600 > 2500",
        "event": "Traffic_Limit_Exceeded",
        "tag": "/Host:h/tag",
        "discoverer": "/Host:h/mon",
    }
    logged = one(dre1, b"<172>Nov 26 10:00:00 h2 mon: " + line.encode())
    assert (logged["sev"], logged["data"]) == (4, made["data"]) and logged["time"][4:19] == "-11-26T10:00:00"


def test_to_dre1_has_the_fields_in_their_order():
    made = Event(TIME, "/host:h7/app:web1/httpd", "app.cpu", 4, {"said": ">"})
    fields = dre1.write(made).decode().rstrip("\n").split(">")
    assert [field.partition("=")[0] for field in fields] == [
        "LogFormat", "Event", "TagSource", "EventSource", "EventDiscoverer", "Message",
    ]  # fmt: skip
    assert fields[:4:3] == ["LogFormat=DRE1.0", "EventSource=/Host:h7/AppContainer:web1/httpd"]


@pytest.mark.parametrize("line", ["Event=a", "LogFormat=DRE1.0>Event=>Message=x", "LogFormat=DRE1.0>Message=x>Event=a"])
def test_what_is_no_line_of_the_first_d_re_is_refused(line):
    with pytest.raises(EventError):
        one(dre1, line.encode())


TRAP = b"""host.example
UDP: [10.0.0.1]:59007->[127.0.0.1]:162
.1.3.6.1.2.1.1.3.0 0:2:05:02.35
.1.3.6.1.6.3.1.1.4.1.0 .1.3.6.1.6.3.1.1.5.3
.1.3.6.1.2.1.2.2.1.1.2 2
"""


def test_a_quoted_value_of_a_trap_cannot_forge_another_variable():
    made = one(snmptrap, TRAP + b'.1.3.9.1 "say \\"\n.1.3.6.1.6.3.1.1.4.1.0 .1.3.9.9\n\\\\"\n.1.3.9.2 "last"\n')
    assert made["data"] == {
        "address": "10.0.0.1",
        "uptime": "0:2:05:02.35",
        "trap": "1.3.6.1.6.3.1.1.5.3",
        "1.3.6.1.2.1.2.2.1.1.2": 2,
        "1.3.9.1": 'say "\n.1.3.6.1.6.3.1.1.4.1.0 .1.3.9.9\n\\',
        "1.3.9.2": "last",
    }
    assert (made["source"], made["type"]) == ("/host:host.example", "snmp.trap")


def test_names_of_mibs_an_unknown_host_and_no_community():
    trap = b"""<UNKNOWN>
UDP/IPv6: [::1]:59007->[::1]:162
DISMAN-EVENT-MIB::sysUpTimeInstance 0:0:00:01.00
SNMPv2-MIB::snmpTrapOID.0 IF-MIB::linkDown
IF-MIB::ifIndex.2 2
SNMP-COMMUNITY-MIB::snmpTrapCommunity.0 "secret"
"""
    made = one(snmptrap, trap)
    assert made["source"] == "/host:::1" and b"secret" not in json.dumps(made).encode()
    assert made["data"]["trap"] == "IF-MIB::linkDown" and made["data"]["IF-MIB::ifIndex.2"] == 2


@pytest.mark.parametrize("octets", [b"x", b"a\nb\nc\n", TRAP.replace(b".4.1.0", b".4.9.0"), b"a\nb\n" + b"\xff" * 99])
def test_what_is_no_trap_is_refused(octets):
    with pytest.raises(EventError):
        one(snmptrap, octets)
