# SPDX-License-Identifier: Apache-2.0
"""dre-reorder as a filter between pipes; `sort` is the witness."""

import json
import os
import random
import subprocess
import time

import pytest
from dre import event


def stream(count, seed=1):
    random.seed(seed)
    times = [
        f"2026-11-23T08:00:{ms // 1000:02d}.{ms % 1000:03d}Z" for ms in (random.randrange(60_000) for _ in range(count))
    ]
    return "".join(
        f'{{"time":"{t}","source":"/host:h","type":"a.b","data":{{"n":{n}}}}}\n' for n, t in enumerate(times)
    ).encode()


def test_replay_equals_a_stable_sort_by_time(run, settings):
    lines = stream(2000)
    done = run("dre-reorder", "--replay", "--window", "1m", "--config", settings(), stdin=lines)
    witness = subprocess.run(
        ["sort", "-s", "-k1.10,1.33"], input=lines, capture_output=True, env={"LC_ALL": "C", "PATH": os.environ["PATH"]}
    )
    assert done.returncode == 0
    assert done.stdout == witness.stdout


def test_live_loses_nothing_at_the_end_of_input(run, settings):
    lines = stream(500)
    done = run("dre-reorder", "--window", "10s", "--config", settings(), stdin=lines.rstrip(b"\n"))
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(item["data"]["n"] for item in events if item["type"] == "a.b") == list(range(500))


def test_late_events_are_marked_in_a_narrow_window_and_the_loss_is_told(run, settings):
    lines = stream(500)
    marked = run("dre-reorder", "--replay", "--window", "1s", "--config", settings(), stdin=lines)
    late = [line for line in map(json.loads, marked.stdout.splitlines()) if "late" in line]
    assert len(marked.stdout.splitlines()) == 500
    assert late and f"late {len(late)}".encode() in marked.stderr
    dropped = run("dre-reorder", "--replay", "--window", "1s", "--late", "drop", "--config", settings(), stdin=lines)
    assert f"dropped {500 - len(dropped.stdout.splitlines())}".encode() in dropped.stderr


def test_max_out_of_range_and_resume_with_replay_are_usage_errors(run, settings, tmp_path):
    assert run("dre-reorder", "--max", "0", "--config", settings()).returncode == 2
    assert run("dre-reorder", "--replay", "--resume", tmp_path / "r", "--config", settings()).returncode == 2
    assert run("dre-reorder", "--window", "soon", "--config", settings()).returncode == 2


def test_late_events_go_to_a_file_descriptor(run, settings, tmp_path):
    lines = stream(500)
    kept = tmp_path / "late"
    with kept.open("wb") as aside:
        argv = ("--replay", "--window", "1s", "--late", "divert", aside.fileno(), "--config", settings())
        done = run("dre-reorder", *argv, stdin=lines, pass_fds=[aside.fileno()])
    late = [json.loads(line) for line in kept.read_bytes().splitlines()]
    rest = [json.loads(line) for line in done.stdout.splitlines()]
    assert late and all(item["late"] > 0 for item in late) and not any("late" in item for item in rest)
    assert sorted(item["data"]["n"] for item in late + rest) == list(range(500))
    assert f"diverted {len(late)}".encode() in done.stderr


def test_a_wrong_clock_is_an_event(run, settings):
    now = time.time()
    lines = b""
    for second in range(10):
        seen = now - 20 + second
        made = event.Event(event.stamp(seen - 60), "/host:old", "a.b", 6, {}, {"seen": event.stamp(seen)})
        lines += event.format(made)
    done = run("dre-reorder", "--window", "0s", "--config", settings(), stdin=lines)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    (told,) = (item for item in events if item["type"] == "monitor.clock.skew")
    assert told["data"] == {"source": "/host:old", "skew": 60.0} and told["sev"] == 4
    assert [item.get("skew") for item in events if item["source"] == "/host:old"] == [None, None] + [60.0] * 8


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--late", "divert"), b"--late divert: expected mark, drop, or divert and the number"),
        (("--late", "divert", "x"), b"--late divert x: expected"),
        (("--late", "mark", "3"), b"--late mark 3: expected"),
        (("--late", "divert", "77"), b"--late divert 77: no such file descriptor is open"),
        (("--late", "divert", "0"), b"--late divert 0: cannot be written to"),
        (("--early", "--replay"), b"--early and --replay exclude each other"),
        (("--idle", "3s"), b"--idle is for --early"),
        (("--skew", "much"), b"'much' is not a duration"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(run, settings, argv, said):
    done = run("dre-reorder", *argv, "--config", settings(), stdin=b"")
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
