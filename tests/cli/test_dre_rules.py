# SPDX-License-Identifier: Apache-2.0
"""dre-rules check: 0 acceptable, 1 refused with file:line and reason, 2 could not check."""

import json
import pathlib

from conftest import nobody

SHIPPED = pathlib.Path(__file__).resolve().parents[2] / "sec-monitor" / "rules"


def test_shipped_rules_are_acceptable(run, settings):
    done = run("dre-rules", "check", *sorted(SHIPPED.glob("*.sec")), "--config", settings())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_code_in_a_rule_is_refused_and_never_run(run, settings, tmp_path):
    file = tmp_path / "bad.sec"
    file.write_text(
        f"type=Single\nptype=PerlFunc\npattern=BEGIN {{ open(F, '>{tmp_path}/ran') }}\naction=shellcmd id\n"
    )
    done = run("dre-rules", "check", file, "--config", settings())
    assert done.returncode == 1
    assert [line.split(b": ")[0] for line in done.stdout.splitlines()] == [f"{file}:2".encode(), f"{file}:4".encode()]
    assert not (tmp_path / "ran").exists()
    rows = run("dre-rules", "check", file, "--json", "--config", settings()).stdout.splitlines()
    assert set(json.loads(rows[0])) == {"file", "line", "reason"}


def test_a_file_that_cannot_be_read_is_2_and_an_empty_or_foreign_one_1(run, settings, tmp_path):
    assert run("dre-rules", "check", tmp_path / "none", "--config", settings()).returncode == 2
    (tmp_path / "empty").write_text("")
    (tmp_path / "foreign").write_bytes(b"\x7fELF\x00\xff")
    for name in ("empty", "foreign"):
        assert run("dre-rules", "check", tmp_path / name, "--config", settings()).returncode == 1


RULE = (
    'type=SingleWithThreshold\nptype=RegExp\npattern="type":"a\\.(\\w+)"\ndesc=$1\nwindow=10\nthresh=2\n'
    "action=write %script two of $1; write %other $1\n"
)


def lines(*seconds):
    made = '{{"time":"2026-11-23T08:00:{0:02d}.000Z","source":"/host:h","type":"a.x","sev":6,"id":"e{0}"}}\n'
    return "".join(made.format(second) for second in seconds).encode()


def test_rules_are_tried_on_recorded_events_and_no_fifo_is_written_to(run, settings, tmp_path):
    config = settings(DRE_MONITOR_PIPES=f"{tmp_path}/script {tmp_path}/other")
    file = tmp_path / "new.sec"
    file.write_text(RULE)
    (tmp_path / "night").write_bytes(lines(1, 20, 25) + b"no event\n")
    before = sorted(tmp_path.iterdir())
    done = run("dre-rules", "test", file, "--events", tmp_path / "night", "--config", config)
    rows = [row.split("\t") for row in done.stdout.decode().splitlines()]
    at, rule = "2026-11-23T08:00:25.000Z", rows[0][1]
    assert rows == [[at, rule, "script", "e20,e25", "two of x"], [at, rule, "other", "e20,e25", "x"]]
    assert rule.endswith("new.sec:1") and done.returncode == 0
    assert b"left out 1 of 4 lines" in done.stderr
    assert sorted(tmp_path.iterdir()) == before  # a FIFO by that name would be a file now
    piped = run("dre-rules", "test", file, "--events", "-", "--json", "--config", config, stdin=lines(20, 25))
    row = json.loads(piped.stdout.splitlines()[0])
    assert (row["events"], row["pipe"], row["output"], row["rule"]) == (["e20", "e25"], "script", "two of x", rule)


def test_without_privilege_rules_are_tried_too(run, settings, tmp_path):
    config = settings(DRE_MONITOR_PIPES=f"{tmp_path}/script {tmp_path}/other")
    (tmp_path / "new.sec").write_text(RULE)
    argv = ("test", tmp_path / "new.sec", "--events", "-", "--config", config)
    assert run("dre-rules", *argv, stdin=lines(1, 2), prefix=nobody()).stdout.count(b"\n") == 2


def test_what_check_refuses_is_not_tried(run, settings, tmp_path):
    (tmp_path / "bad.sec").write_text("type=Single\nptype=SubStr\npattern=a\ndesc=d\naction=shellcmd id\n")
    (tmp_path / "good.sec").write_text(RULE.split("; ")[0] + "\n")
    names = (tmp_path / "good.sec", tmp_path / "bad.sec", "--config", settings())
    checked = run("dre-rules", "check", *names)
    tried = run("dre-rules", "test", *names, "--events", "-", stdin=lines(1, 2))
    assert (tried.returncode, tried.stdout) == (1, checked.stdout) and b"bad.sec:5: " in tried.stdout
    good = ("test", tmp_path / "good.sec", "--config", settings())
    assert run("dre-rules", *good).returncode == 2
    assert run("dre-rules", *good, "--events", tmp_path / "none").returncode == 2
    assert run("dre-rules", *good, "--events", tmp_path).returncode == 2
