# SPDX-License-Identifier: Apache-2.0
"""dre-monitor: what it refuses before it starts anything, and status without a monitor."""


def test_only_some_stages_can_be_left_out(run, settings):
    done = run("dre-monitor", "run", "--without", "ingest", "--config", settings())
    assert done.returncode == 2 and b"--without ingest" in done.stderr


def test_status_without_a_monitor_is_3(run, settings, tmp_path):
    assert run("dre-monitor", "status", "--config", settings()).returncode == 3
    (tmp_path / "run").mkdir(exist_ok=True)
    # The file of one that was killed, whose pid another process has by now.
    (tmp_path / "run" / "monitor.json").write_text('{"pid": 1, "started": -1, "stages": []}')
    assert run("dre-monitor", "status", "--config", settings()).returncode == 3


def test_rules_and_pipes_that_cannot_be_used_are_refused(run, settings, tmp_path):
    rules = tmp_path / "etc" / "rules.d"
    rules.mkdir(parents=True)
    (rules / "a.sec").write_text("type=Single\nptype=PerlFunc\npattern=x\n")
    done = run("dre-monitor", "run", "--config", settings())
    assert done.returncode == 1 and b"a.sec:2: ptype" in done.stderr
    (rules / "a.sec").unlink()
    done = run("dre-monitor", "run", "--config", settings(DRE_MONITOR_PIPES="/run/a-b;c"))
    assert done.returncode == 1 and b"cannot name it" in done.stderr
    assert not (tmp_path / "run" / "events.sock").exists()
