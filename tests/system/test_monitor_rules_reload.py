# SPDX-License-Identifier: Apache-2.0
"""dre-monitor takes new rules on SIGHUP, loses no event by that, and goes on with the old ones when it refuses them."""

import os
import pathlib
import signal
import tempfile

import pytest
from dre import event
from test_monitor_recognises_overload import Monitor, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the monitor sets owners and priorities")
RULE = r"""
type=Single
ptype=RegExp
pattern="source":"([^"]+)","type":"lab\.asked".*"n":(\d+)
desc=$2
action=write %script {"time":"%.year-%.mon-%.mdayT%.hmsstr.000Z","source":"$1","type":"lab.TOLD","data":{"n":$2}}
"""


@pytest.fixture
def tmp_path():
    """Where the correlator's own user gets to."""
    with tempfile.TemporaryDirectory(prefix="dre-test-", dir="/var/tmp", ignore_cleanup_errors=True) as name:
        path = pathlib.Path(name)
        path.chmod(0o711)
        yield path


@pytest.fixture(params=["sec", "dre"])
def monitor(request, settings, tmp_path):
    made = Monitor(settings(DRE_MONITOR_CORRELATOR=request.param), tmp_path)
    yield made
    made.stop()


def stage(monitor):
    """The process of the correlator."""
    return monitor.pid("sec" if monitor.conf.monitor_correlator == "sec" else "correlate")


def test_new_rules_are_taken_and_no_event_is_lost(monitor):
    file = monitor.conf.core_etc_dir / "rules.d" / "lab.sec"
    file.write_text(RULE.replace("TOLD", "old"))
    monitor.start("--without", "watch")

    def ask(begin, end):
        for n in range(begin, end):
            event.emit(monitor.conf, "lab.asked", event.host() + "/a", {"n": n})

    def told(type):
        return {made["data"]["n"] for made in monitor.events(type)}

    before = stage(monitor)
    ask(0, 50)
    until(lambda: told("lab.old") >= set(range(50)))
    file.write_text("type=Single\nptype=SubStr\npattern=x\ndesc=d\naction=shellcmd id\n")
    monitor.process.send_signal(signal.SIGHUP)
    until(lambda: "goes on with the rules as they were" in monitor.log.read_text())
    assert "lab.sec:5: " in monitor.log.read_text()
    assert stage(monitor) == before
    ask(50, 60)
    until(lambda: told("lab.old") >= set(range(60)))  # as before
    file.write_text(RULE.replace("TOLD", "new"))
    ask(60, 100)
    monitor.process.send_signal(signal.SIGHUP)
    ask(100, 200)
    until(lambda: stage(monitor) not in (before, None))
    ask(200, 210)
    until(lambda: told("lab.old") | told("lab.new") >= set(range(210)))
    assert told("lab.new") >= set(range(200, 210)) and not told("lab.old") & set(range(200, 210))
