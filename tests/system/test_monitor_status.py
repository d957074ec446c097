# SPDX-License-Identifier: Apache-2.0
"""dre-monitor status: numbers that add up, back-pressure that is seen, restarts that nobody asked for."""

import os
import signal
import time

import pytest
from dre import event
from test_monitor_recognises_overload import Monitor, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the monitor sets owners and priorities")
full = pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="as before a release: DRE_FULL=1")
PASS = 'type=Single\nptype=SubStr\npattern="type":"lab.asked"\ndesc=x\naction=write %script {"n":1,"type":"lab.told"}\n'


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.fixture(params=["sec", "dre"])
def monitor(request, settings, tmp_path):
    made = Monitor(settings(DRE_MONITOR_CORRELATOR=request.param), tmp_path)
    made.correlator = {"sec": "sec", "dre": "correlate"}[request.param]
    (made.conf.core_etc_dir / "rules.d" / "lab.sec").write_text(PASS)
    yield made
    made.stop()


def rows(monitor):
    return {row["stage"]: row for row in monitor.status()}


def late(n):
    """An event whose time is a minute ago."""
    made = event.Event(event.stamp(time.time() - 60), event.host() + "/a", "lab.asked", 6, {"n": n}, {})
    return event.format(made)


def test_numbers_add_up(monitor, run):
    monitor.start()
    for n in range(100):
        event.emit(monitor.conf, "lab.asked", event.host() + "/a", {"n": n})
    until(lambda: len(monitor.events("lab.told")) == 100)
    time.sleep(0.5)  # what has passed is older than the window
    with open(monitor.conf.core_run_dir / "events", "wb") as fifo:
        fifo.write(b"".join(map(late, range(7))) + b"no event\n" * 3)
    until(lambda: len(monitor.events("lab.told")) == 107)

    def told():
        found = rows(monitor)
        return found if found["ingest"]["refused"] == 3 and found["reorder"]["late"] == 7 else None

    found = until(told)
    # What the intake tells of itself comes on top: that it refused something.
    assert 110 <= found["ingest"]["in"] < 120

    def equal():
        made = rows(monitor)
        ingest, reorder = made["ingest"], made["reorder"]
        return made if ingest["in"] - 3 == ingest["out"] == reorder["in"] == reorder["out"] else None

    found = until(equal)
    assert found["ingest"]["dropped"] == found["reorder"]["dropped"] == 0
    if monitor.correlator == "correlate":
        found = until(lambda: (made := rows(monitor)) and made["correlate"]["in"] == made["reorder"]["out"] and made)
        assert found["correlate"]["out"] == 107
    done = run("dre-monitor", "status", "--config", monitor.config)
    assert done.returncode == 0, done.stdout
    assert all(len(line.split()) == 12 for line in done.stdout.decode().splitlines())


@pytest.mark.parametrize("monitor", ["dre", pytest.param("sec", marks=full)], indirect=True)
def test_a_stage_that_hangs_is_seen_and_the_exit_code_tells(monitor, run):
    monitor.start()
    hanging = monitor.pid(monitor.correlator)
    os.kill(hanging, signal.SIGSTOP)
    try:
        for n in range(20):
            event.emit(monitor.conf, "lab.asked", event.host() + "/a", {"n": n})
        until(lambda: (rows(monitor)[monitor.correlator]["waiting"] or 0) > 1000)
        assert run("dre-monitor", "status", "--config", monitor.config).returncode == 0
        until(lambda: (rows(monitor)[monitor.correlator]["lag"] or 0) > 10, 30)
        assert run("dre-monitor", "status", "--config", monitor.config).returncode == 1
    finally:
        os.kill(hanging, signal.SIGCONT)
    until(lambda: len(monitor.events("lab.told")) == 20)
    until(lambda: run("dre-monitor", "status", "--config", monitor.config).returncode == 0)


def test_a_reload_is_no_restart_and_a_death_is_one(monitor):
    monitor.start()
    before = rows(monitor)[monitor.correlator]
    monitor.process.send_signal(signal.SIGHUP)
    until(lambda: (now := rows(monitor)[monitor.correlator])["pid"] not in (None, before["pid"]) and now)
    assert rows(monitor)[monitor.correlator]["restarts"] == 0
    os.kill(monitor.pid(monitor.correlator), signal.SIGKILL)
    until(lambda: (now := rows(monitor)[monitor.correlator])["restarts"] == 1 and now["state"] == "running")
    assert {row["restarts"] for stage, row in rows(monitor).items() if stage != monitor.correlator} == {0}
