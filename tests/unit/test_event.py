# SPDX-License-Identifier: Apache-2.0
"""Events: the one-line form in both directions, and what is refused; emitting without an intake spools."""

import json
import os
import re
import socket
import subprocess
import threading

import pytest
from dre import conf, event
from dre.errors import UsageError
from dre.event import Event, EventError
from hypothesis import given
from hypothesis import strategies as st

TIME = "2026-11-23T08:00:00.123Z"
LINE = b'{"time":"2026-11-23T08:00:00.123Z","source":"/host:h7/app:web1/httpd","type":"app.cpu","sev":4,"data":{}}\n'

words = st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)
events = st.builds(
    Event,
    st.floats(min_value=0, max_value=4e9).map(event.stamp),
    st.lists(st.from_regex(r"[A-Za-z0-9_.:@+-]{1,12}", fullmatch=True), min_size=1, max_size=4).map(
        lambda parts: "/" + "/".join(parts)
    ),
    st.lists(words, min_size=2, max_size=3).map(".".join),
    st.integers(0, 7),
    st.dictionaries(st.text(max_size=9), values, max_size=4),
    st.fixed_dictionaries(
        {},
        optional={"id": words, "goal": words, "seen": st.just(TIME), "late": st.floats(0, 9), "claimed": st.just(True)},
    ),
)


@given(events)
def test_what_is_formatted_is_parsed_to_the_same(made):
    try:
        line = event.format(made)
    except EventError as error:
        assert "4096 is the most" in str(error)
        return
    assert event.parse(line) == event.parse(line[:-1]) == event.parse(line.decode()) == made
    assert line.count(b"\n") == 1 and line.endswith(b"}\n") and len(line) <= 4096


@given(events)
def test_first_keys_can_be_found_without_a_json_parser(made):
    try:
        line = event.format(made).decode()
    except EventError:
        return
    match = re.match(r'\{"time":"([^"]{24})","source":"([^"]+)","type":"([^"]+)","sev":([0-7]),"data":\{', line)
    assert match and match.groups() == (made.time, made.source, made.type, str(made.sev))
    assert list(json.loads(line))[:5] == ["time", "source", "type", "sev", "data"]


@given(st.binary(max_size=200) | st.text(max_size=200) | values.map(lambda value: json.dumps({"time": value})))
def test_any_line_is_an_event_or_an_event_error(line):
    try:
        event.parse(line)
    except EventError as error:
        assert "\n" not in str(error)


def test_error_is_one_of_usage():
    assert issubclass(EventError, UsageError) and EventError.code == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'"sev":4', b'"sev":8', "severity"),
        (b'"sev":4', b'"sev":-1', "severity"),
        (b'"sev":4', b'"sev":4.0', "severity"),
        (b'"sev":4', b'"sev":true', "severity"),
        (b'"sev":4', b'"sev":"4"', "severity"),
        (b'"sev":4', b'"sev":null', "severity"),
        (b'"data":{}', b'"data":[]', "object"),
        (b'"data":{}', b'"data":null', "object"),
        (b'"data":{}', b'"data":{"x":NaN}', "cannot be written"),
        (b'"data":{}', b'"data":{"x":1e999}', "cannot be written"),
        (b'"data":{}', b'"data":{"x":"\\ud800"}', "cannot be written"),
        (b'"data":{}', b'"data":{"a":1,"a":2}', "twice"),
        (b'"data":{}', b'"data":{},"type":"script.go"', "twice"),
        (b'"data":{}', b'"data":{},"more":1', "unknown key 'more'"),
        (b'"data":{}', b'"data":{},"id":1', "id is of the wrong type"),
        (b'"data":{}', b'"data":{},"claimed":"false"', "claimed is of the wrong type"),
        (b'"data":{}', b'"data":{},"late":true', "late is of the wrong type"),
        (b'"type":"app.cpu"', b'"type":"app"', "event type"),
        (b'"type":"app.cpu"', b'"type":"app..cpu"', "event type"),
        (b'"type":"app.cpu"', b'"type":"App.cpu"', "event type"),
        (b'"type":"app.cpu"', b'"type":"app.cpu\\n"', "event type"),
        (b'"type":"app.cpu"', b'"type":7', "must be a string"),
        (b"/host:h7", b"host:h7", "source"),
        (b"/host:h7", b"/host:$(reboot)", "source"),
        (b"/host:h7", b"/host h7", "source"),
        (b"/host:h7", b"//host", "source"),
        (b"/host:h7", "/hôst".encode(), "source"),
        (b"08:00:00.123Z", b"08:00:00Z", "event time"),
        (b"08:00:00.123Z", b"08:00:00.123+00:00", "event time"),
        (b"08:00:00.123Z", b"25:00:00.123Z", "event time"),
        (b"2026-11-23", b"2026-02-30", "event time"),
        (b"2026-11-23", "２026-11-23".encode(), "event time"),
        (b'"type":"app.cpu","sev":4', b'"sev":4,"type":"app.cpu"', "first keys"),
        (b'{"time":', b'{"Time":', "first keys"),
        (b'{"time":', b'["time",', "not JSON"),
        (b"}\n", b"", "not JSON"),
        (b"}\n", b"} {}\n", "not JSON"),
        (b"h7", b"h\xff", "not JSON"),
    ],
)
def test_refusals(old, new, said):
    assert event.parse(LINE).source == "/host:h7/app:web1/httpd"
    broken = LINE.replace(old, new)
    assert broken != LINE
    with pytest.raises(EventError, match=re.escape(said)):
        event.parse(broken)


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"null", b"[]", b"1", b'"x"', b"{}", LINE.decode().encode("utf-16"), "\ud800"]
)
def test_lines_that_are_nothing_like_an_event(line):
    with pytest.raises(EventError):
        event.parse(line)


def test_deep_nesting_is_refused_or_kept_but_never_a_crash():
    for depth in (10, 900, 1990):
        line = LINE.replace(b'"data":{}', b'"data":{"x":' + b"[" * depth + b"]" * depth + b"}")
        try:
            assert event.format(event.parse(line)) == line
        except EventError:
            assert depth > 10


def test_size_limit_is_4096_octets_with_the_newline():
    longest = Event(TIME, "/h", "a.b", 6, {"x": ""})
    room = 4096 - len(event.format(longest))
    assert len(event.format(Event(TIME, "/h", "a.b", 6, {"x": "y" * room}))) == 4096
    for text in ("y" * (room + 1), "é" * (room // 2 + 1)):
        with pytest.raises(EventError, match="4096 is the most"):
            event.format(Event(TIME, "/h", "a.b", 6, {"x": text}))
    with pytest.raises(EventError, match="4096 is the most"):
        event.parse(b" " * 4097)


def test_a_new_event_leaves_room_for_what_the_intake_adds():
    longest = Event(TIME, "/h", "a.b", 6, {"x": "y" * 3850})
    assert len(event.new_line(longest)) <= 4096 - 128
    with pytest.raises(EventError, match="is the most for a new one"):
        event.new_line(Event(TIME, "/h", "a.b", 6, {"x": "y" * 3999}))


@given(st.integers(0, 4_000_000_000_000))
def test_time_has_fixed_width_and_sorts(milliseconds):
    text = event.stamp(milliseconds / 1000)
    assert len(text) == 24
    assert abs(event.seconds(text) * 1000 - milliseconds) <= 1
    assert event.stamp(milliseconds / 1000 + 1) > text


def test_time_agrees_with_date():
    said = subprocess.run(["date", "-u", "-d", TIME, "+%s.%3N"], capture_output=True, check=True).stdout
    assert float(said) == event.seconds(TIME)


def test_ids_differ():
    made = {event.new_id() for _ in range(1000)}
    assert len(made) == 1000 and all(re.fullmatch("[0-9a-f]{16}", one) for one in made)


def test_this_host_is_a_source():
    event.format(Event(TIME, event.host(), "a.b"))


@pytest.fixture
def places(settings):
    return conf.load(settings())


def test_without_an_intake_an_event_is_spooled(places):
    identity = event.emit(places, "app.started", "/host:h/app:web1", {"x": 1})
    spooled = b"".join(path.read_bytes() for path in (places.core_state_dir / "spool/event").glob("*.jsonl"))
    made = event.parse(spooled)
    assert (made.type, made.data, made.optional["id"]) == ("app.started", {"x": 1}, identity)


def test_an_event_that_is_acknowledged_is_not_spooled(places):
    places.monitor_sink.parent.mkdir(parents=True)
    received = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(places.monitor_sink))
        server.listen(4)

        def serve():
            connection, _ = server.accept()
            received.append(connection.recv(8192))
            connection.send(b"ok")
            connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        # Its answer may come later than an emitter waits on a busy machine: send it with more patience.
        line = event.format(Event(TIME, "/h", "a.b"))
        assert event.send(places.monitor_sink, line, wait=10)
        thread.join(10)
    assert received == [line]
    assert not (places.core_state_dir / "spool").exists()


def test_a_socket_without_a_reader_does_not_lose_or_hold_the_event(places):
    places.monitor_sink.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(places.monitor_sink))
        server.listen(1)
        event.emit(places, "app.started", "/h", {})
    assert list((places.core_state_dir / "spool/event").glob("*.jsonl"))


def test_a_full_spool_counts_what_it_drops(places, monkeypatch):
    monkeypatch.setattr(event, "SPOOL_LIMIT", 300)
    for _ in range(5):
        event.emit(places, "app.started", "/h", {})
    directory = places.core_state_dir / "spool/event"
    kept = sum(path.read_bytes().count(b"\n") for path in directory.glob("*.jsonl"))
    dropped = sum(int(path.read_text()) for path in directory.glob("dropped*"))
    assert kept > 0 and dropped > 0 and kept + dropped == 5


def test_without_a_spool_the_callers_work_goes_on(places):
    places.core_state_dir.parent.mkdir(parents=True, exist_ok=True)
    places.core_state_dir.write_text("a file where the directory should be")
    assert re.fullmatch("[0-9a-f]{16}", event.emit(places, "app.started", "/h", {}))


def test_a_wrong_event_is_the_callers_mistake(places):
    with pytest.raises(EventError):
        event.emit(places, "nodot", "/h", {})
    assert not os.path.exists(places.core_state_dir / "spool")
