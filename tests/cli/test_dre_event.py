# SPDX-License-Identifier: Apache-2.0
"""dre-event prints a line that reads back, and refuses what is no event."""

import json

import pytest


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
