# SPDX-License-Identifier: Apache-2.0
"""dre-reorder as a filter between pipes; `sort` is the witness."""

import json
import os
import random
import subprocess


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
