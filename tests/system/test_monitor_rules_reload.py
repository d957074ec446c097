# SPDX-License-Identifier: Apache-2.0
"""dre-monitor takes new rules on SIGHUP, loses no event by that, and goes on with the old ones when it refuses them.

dre-rules install has it do so, and takes the rules back when the correlator does not live with them.
"""

import json
import os
import signal
import subprocess

import pytest
from conftest import environment, program
from dre import event
from dre.spool import Spool
from test_monitor_recognises_overload import Monitor, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the monitor sets owners and priorities")
full = pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="as before a release: DRE_FULL=1")
RULE = r"""
type=Single
ptype=RegExp
pattern="source":"([^"]+)","type":"lab\.asked".*"n":(\d+)
desc=$2
action=write %script {"time":"%.year-%.mon-%.mdayT%.hmsstr.000Z","source":"$1","type":"lab.TOLD","data":{"n":$2}}
"""


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.fixture(params=["sec", "dre"])
def monitor(request, settings, tmp_path):
    made = Monitor(settings(DRE_MONITOR_CORRELATOR=request.param), tmp_path)
    yield made
    made.stop()


def stage(monitor):
    """The process of the correlator, as dre-monitor notes it: `status` itself may take as long as rules must live."""
    rows = json.loads((monitor.conf.core_run_dir / "monitor.json").read_text())["stages"]
    return next(row["pid"] for row in rows if row["stage"] in ("sec", "correlate"))


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


def command(monitor, *argv):
    """dre-rules as a program at work."""
    pipe = subprocess.PIPE
    words = [program("dre-rules"), *map(str, argv), "--config", monitor.config]
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment())


@pytest.mark.parametrize("monitor", ["sec", pytest.param("dre", marks=full)], indirect=True)
def test_installed_rules_are_in_force_and_go_back_with_a_correlator_that_dies(monitor, tmp_path):
    here = monitor.conf.core_etc_dir / "rules.d"
    new, worse = tmp_path / "lab.sec", tmp_path / "worse/lab.sec"
    worse.parent.mkdir()
    new.write_text(RULE.replace("TOLD", "new"))
    worse.write_text(RULE.replace("TOLD", "worse"))
    monitor.start("--without", "watch")
    before = stage(monitor)
    done = command(monitor, "install", new)
    assert done.communicate(timeout=60) and done.returncode == 0
    assert stage(monitor) not in (before, None)
    event.emit(monitor.conf, "lab.asked", event.host() + "/a", {"n": 1})
    until(lambda: monitor.events("lab.new"))

    before = stage(monitor)
    installing = command(monitor, "install", worse)
    pid = until(lambda: stage(monitor) not in (before, None) and stage(monitor))
    os.kill(pid, signal.SIGKILL)
    said = installing.communicate(timeout=60)[1]
    assert (installing.returncode, "the correlator ended with them" in said) == (1, True), said
    assert (here / "lab.sec").read_text() == new.read_text()
    until(lambda: stage(monitor) not in (pid, None))
    event.emit(monitor.conf, "lab.asked", event.host() + "/a", {"n": 2})
    until(lambda: {made["data"]["n"] for made in monitor.events("lab.new")} == {1, 2})
    assert 2 not in {made["data"]["n"] for made in monitor.events("lab.worse")}  # sec was told 1 again when it began
    rows = [json.loads(line) for line in command(monitor, "history", "--json").communicate()[0].splitlines()]
    assert [row["how"] for row in rows] == ["hand", "install", "install", "back"]
    assert rows[1]["version"] == rows[3]["version"] != rows[2]["version"]
    waiting = Spool(monitor.conf.core_state_dir / "spool/dbox/monitor").pending()
    assert [json.loads(record.octets)["id"] for record in waiting] == [row["id"] for row in rows]
