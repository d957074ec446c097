# SPDX-License-Identifier: Apache-2.0
"""dre-event prints a line that reads back, converts both ways, and refuses what is no event."""

import json
import socket
import subprocess
import threading
import time

import pytest
from conftest import environment, program


def test_prints_one_line_with_the_three_first_keys_in_order(run, settings):
    done = run(
        "dre-event",
        "shop.release",
        "--source",
        "/host:h",
        "version=1.2",
        "n=007",
        "--sev",
        "4",
        "--goal",
        "G1",
        "--config",
        settings(),
    )
    assert done.returncode == 0 and done.stderr == b""
    (line,) = done.stdout.decode().splitlines()
    fields = json.loads(line)
    assert list(fields)[:3] == ["time", "source", "type"]
    assert fields["data"] == {"version": 1.2, "n": "007"}
    assert (fields["sev"], fields["goal"]) == (4, "G1")


@pytest.mark.parametrize("text", ['a"b', "a\nb", "$(id)", "%s%n", "{}", "1.10", "NaN", "true", "ü", "1e400", ""])
def test_a_value_that_is_no_number_reads_back_as_the_same_text(run, settings, text):
    done = run("dre-event", "a.b", f"k={text}", "--config", settings())
    assert done.stdout.count(b"\n") == 1
    assert json.loads(done.stdout)["data"] == {"k": text}


@pytest.mark.parametrize("text, value", [("0", 0), ("-3", -3), ("91.5", 91.5)])
def test_a_number_becomes_one(run, settings, text, value):
    done = run("dre-event", "a.b", f"k={text}", "--config", settings())
    assert json.loads(done.stdout)["data"] == {"k": value}


@pytest.mark.parametrize(
    "argv",
    [
        ["nodot"],
        ["a.b", "novalue"],
        ["a.b", "k=1", "k=2"],
        ["a.b", "--sev", "8"],
        ["a.b", "--source", "x y"],
        ["a.b", "=1"],
        [],
        ["a.b", "k=" + "x" * 4000],
        ["--from", "syslog", "--omprog", "--to", "dre1"],
        ["--from", "journal", "--omprog"],
        ["--omprog"],
        ["--from", "journal", "--follow"],
        ["--from", "syslog", "--cursor", "f"],
        ["a.b", "--from", "journal", "--cursor", "f"],
    ],
)
def test_refuses_what_is_no_event_with_status_2_and_one_reason(run, settings, argv):
    done = run("dre-event", *argv, "--config", settings())
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"dre-event: ")


def test_send_without_an_intake_spools_and_says_so(run, settings, tmp_path):
    done = run("dre-event", "a.b", "k=1", "--send", "--config", settings())
    assert done.returncode == 0 and done.stdout == b""
    assert b"spooled" in done.stderr
    (file,) = (tmp_path / "state/spool/event").glob("emitted*.jsonl")
    assert json.loads(file.read_text())["data"] == {"k": 1}


def test_send_that_can_neither_be_taken_nor_spooled_fails(run, settings, tmp_path):
    (tmp_path / "state").write_text("in the way")
    done = run("dre-event", "a.b", "--send", "--config", settings())
    assert done.returncode == 1
    assert b"nobody answers" in done.stderr


# --- conversions ---

LINE = b'{"time":"2026-11-23T08:00:00.123Z","source":"/host:h7/app:web1/httpd","type":"app.cpu","sev":4,"data":{}}\n'
FORMS = ["syslog", "journal", "cloudevents", "dre1"]


def converted(run, settings, *argv, stdin):
    return run("dre-event", *argv, "--config", settings(), stdin=stdin)


@pytest.mark.parametrize("form", FORMS)
def test_an_event_goes_to_each_form_and_back(run, settings, form):
    event = LINE.replace(b"}\n", b',"id":"i1"}\n')
    there = converted(run, settings, "--to", form, stdin=event * 2)
    assert (there.returncode, there.stderr) == (0, b"")
    back = converted(run, settings, "--from", form, stdin=there.stdout)
    assert (back.returncode, back.stderr, back.stdout) == (0, b"", event * 2)


@pytest.mark.parametrize("chain", [FORMS, FORMS[::-1], [FORMS[at] for at in (0, 2, 1, 3)]], ids=" ".join)
def test_an_event_goes_from_form_to_form(run, settings, chain):
    event = LINE.replace(b"}\n", b',"id":"i1"}\n')
    octets = converted(run, settings, "--to", chain[0], stdin=event).stdout
    for before, after in zip(chain, chain[1:], strict=False):
        octets = converted(run, settings, "--from", before, "--to", after, stdin=octets).stdout
    assert converted(run, settings, "--from", chain[-1], stdin=octets).stdout == event


@pytest.mark.parametrize(
    "form, octets",
    [
        ("syslog", b"<13>1 2003-10-11T22:14:15Z h a 1 m [x" + b" " * 1_000_000),
        ("syslog", b"<13>1 2003-10-11T22:14:15Z h a 1 m [x" + b' a="\\\\' * 100_000),
        ("syslog", b"Nov 26 10:00:00 " + b"a" * 1_000_000 + b":" * 1_000_000),
        ("journal", b'{"MESSAGE":' + b"[" * 1_000_000),
        ("journal", b"A=1\n" * 200_000),
        ("cloudevents", b"[" + b'{"a":' * 500_000),
        ("cloudevents", b"[" + b"0," * 20_000 + b"0]"),
        ("dre1", b"LogFormat=DRE1.0>" * 100_000),
        ("snmptrap", b"a\nUDP: [1]\n" + b"1." * 1_000_000),
        ("snmptrap", b'a\nUDP: [1]\n.1.2 "' + b"\\\n" * 1_000_000),
    ],
    ids=range(10),
)
def test_what_was_made_to_take_long_does_not(run, settings, form, octets):
    begun = time.monotonic()
    done = run("dre-event", "--from", form, "--config", settings(), stdin=octets, timeout=60)
    assert done.returncode in (0, 1) and b"Traceback" not in done.stderr
    assert time.monotonic() - begun < 20


def test_a_refused_line_is_told_and_counted_and_the_others_go_on(run, settings):
    lines = b"<13>one\nno\x1b[31m\n\n<13>" + b"x" * 5_000_000 + b"\n<999>\n<13>" + b"y" * 9000 + b"\n"
    done = converted(run, settings, "--from", "syslog", "--quiet", stdin=lines)
    assert done.returncode == 1
    told = done.stderr.decode().splitlines()
    assert [line.partition(": ")[2].partition(": ")[0] for line in told[:3]] == ["line 2", "line 4", "line 5"]
    assert told[3:] == ["dre-event: 3 of 5 records were refused"]
    assert b"\x1b" not in done.stderr
    one, two = map(json.loads, done.stdout.splitlines())
    assert one["data"]["message"] == "one"
    assert two["data"]["message"].strip("y") == "" and len(two["data"]["message"]) + two["data"]["cut"] == 9000


def test_records_leave_while_more_are_waited_for(settings):
    argv = [program("dre-event"), "--from", "syslog", "--config", settings()]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as follower:
        for word in (b"one", b"two"):
            follower.stdin.write(b"<13>" + word + b"\n")
            follower.stdin.flush()
            assert json.loads(follower.stdout.readline())["data"]["message"].encode() == word
        follower.stdin.close()
        assert follower.wait(30) == 0


@pytest.mark.parametrize(
    "argv",
    [
        ["--from", "syslog", "a.b"],
        ["--to", "syslog", "--sev", "3"],
        ["--to", "syslog", "--send"],
        ["--from", "snmp"],
        ["--to", "snmptrap"],
        ["--from", "dre1", "--source", "/h"],
        ["--from", "dre1", "--goal", "G"],
        ["--send", "--goal", "G"],
    ],
)
def test_refuses_options_that_do_not_go_together(run, settings, argv):
    done = converted(run, settings, *argv, stdin=LINE)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"dre-event: ") and b"usage: dre-event" in done.stderr


class Answers:
    """An intake that answers each packet with the next of *answers*, the last one again and again."""

    def __init__(self, path, *answers):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.got, self.connections, self._answers = [], 0, answers
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self._listener.accept()
            self.connections += 1
            while packet := connection.recv(65536):
                connection.send(self._answers[min(len(self.got), len(self._answers) - 1)])
                self.got.append(json.loads(packet))


def test_send_hands_over_each_event_as_claimed(run, settings, tmp_path):
    intake = Answers(tmp_path / "run/events.sock", b"ok")
    done = converted(run, settings, "--from", "syslog", "--send", stdin=b"<13>one\n<13>two\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert [(event["data"]["message"], event["claimed"]) for event in intake.got] == [("one", True), ("two", True)]
    assert all(event["id"] for event in intake.got) and intake.connections == 1


def test_events_of_standard_input_are_handed_over_and_a_bad_line_is_named(run, settings, tmp_path):
    intake = Answers(tmp_path / "run/events.sock", b"ok")
    done = converted(run, settings, "--send", stdin=LINE + b"rubbish\n" + LINE)
    assert (done.returncode, done.stdout) == (1, b"") and b"dre-event: line 2: " in done.stderr
    assert all(made.pop("id") for made in intake.got)
    assert intake.got == [{**json.loads(LINE), "claimed": True}] * 2


def test_what_the_intake_refuses_is_told_and_what_it_cannot_keep_is_spooled(run, settings, tmp_path):
    Answers(tmp_path / "run/events.sock", b"no: a reason", b"no: spool: no space", b"ok")
    done = converted(run, settings, "--from", "syslog", "--send", stdin=b"<13>one\n<13>two\n")
    assert done.returncode == 1
    assert b"dre-event: line 1: the intake refuses it: a reason\n" in done.stderr
    (file,) = (tmp_path / "state/spool/event").glob("emitted*.jsonl")
    (event,) = map(json.loads, file.read_text().splitlines())
    assert event["data"]["message"] == "two" and event["claimed"] is True


def test_send_without_an_intake_spools_all_and_says_so(run, settings, tmp_path):
    done = converted(run, settings, "--from", "syslog", "--send", stdin=b"<13>one\n<13>two\n")
    assert done.returncode == 0 and b"2 events spooled" in done.stderr
    (file,) = (tmp_path / "state/spool/event").glob("emitted*.jsonl")
    assert file.read_text().count("\n") == 2


def test_send_that_can_leave_an_event_nowhere_stops(run, settings, tmp_path):
    (tmp_path / "state").write_text("in the way")
    done = converted(run, settings, "--from", "syslog", "--send", stdin=b"<13>one\n<13>two\n")
    assert done.returncode == 1 and done.stderr.count(b"nobody answers") == 1


def test_making_one_event_loads_no_conversion(settings):
    argv = ["/usr/bin/python3", "-v", program("dre-event"), "a.b", "--config", settings()]
    done = subprocess.run(argv, capture_output=True, env=environment(), timeout=60, check=True)
    assert b"monitorlib.cmd.dre_event" in done.stderr
    assert b"monitorlib.convert" not in done.stderr and b"monitorlib.formats" not in done.stderr
