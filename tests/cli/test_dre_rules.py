# SPDX-License-Identifier: Apache-2.0
"""dre-rules check: 0 acceptable, 1 refused with file:line and reason, 2 could not check."""

import json
import pathlib

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
