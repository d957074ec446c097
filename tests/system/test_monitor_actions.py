# SPDX-License-Identifier: Apache-2.0
"""Programs of actions.d as actions of rules, with both correlators: what they get, what they may, how they end."""

import json
import os
import pathlib
import signal
import stat
import time

import pytest
from dre import event
from test_monitor_recognises_overload import Monitor, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the monitor sets owners and priorities")
RULE = r"""
type=Single
continue=TakeNext
ptype=RegExp
pattern="source":"/host:[^/"]+/(\w+)","type":"lab\.asked".*"user":"((?:[^"\\]|\\.)*)"
desc=asked
action=cmdexec note $2 --from=$1; \
write %script {"time":"%.year-%.mon-%.mdayT%.hmsstr.000Z","source":"/x","type":"lab.told"}

type=Single
ptype=RegExp
pattern="type":"lab\.run","sev":[0-7],"data":\{"name":"([a-z]+)"
desc=run
action=cmdexec /etc/dre/actions.d/run $1
"""
NOTE = """#!/bin/sh
{ printf '%s|' "$@"; id -un; env | grep ^DRE_EVENT_ | sort; } >PLACE/note.$DRE_EVENT_ID.half
mv PLACE/note.$DRE_EVENT_ID.half PLACE/note.$DRE_EVENT_ID
"""
RUN = """#!/bin/sh
case $1 in
fail) echo it is broken; exit 3 ;;
talk) yes ;;
hang) sleep 300 & echo $$ $! >PLACE/hang; sleep 300 ;;
leave) sleep 300 & echo $! >PLACE/leave ;;
esac
"""


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.fixture(params=["sec", "dre"])
def monitor(request, settings, tmp_path):
    made = Monitor(settings(DRE_MONITOR_CORRELATOR=request.param), tmp_path)
    made.place = tmp_path / "place"
    made.place.mkdir()
    made.place.chmod(0o1777)
    directory = made.conf.core_etc_dir / "actions.d"
    directory.mkdir()
    for name, text in (("note", NOTE), ("run", RUN)):
        (directory / name).write_text(text.replace("PLACE", str(made.place)))
        (directory / name).chmod(0o755)
    (made.conf.core_etc_dir / "rules.d" / "lab.sec").write_text(RULE)
    made.start("--without", "watch")
    yield made
    made.stop()


def ask(monitor, type="lab.asked", **data):
    return event.emit(monitor.conf, type, event.host() + "/web", data)


def spooled(monitor, type):
    lines = [path.read_text() for path in (monitor.conf.core_state_dir / "spool" / "ingest").glob("*.jsonl")]
    return [json.loads(line) for line in "".join(lines).splitlines() if f'"type":"{type}"' in line]


def gone(pid):
    """Not there, and no zombie either."""
    return not pathlib.Path(f"/proc/{pid}").exists()


def test_a_program_gets_its_words_and_the_event(monitor):
    identity = ask(monitor, user="bob", n=3, **{"odd-key": "a b", "deep": {"x": [1]}})
    note = until(lambda: (monitor.place / f"note.{identity}").exists() and (monitor.place / f"note.{identity}"))
    words, *environment = note.read_text().splitlines()
    assert words == "bob|--from=web|nobody"
    told = dict(line.split("=", 1) for line in environment)
    assert told["DRE_EVENT_TYPE"] == "lab.asked" and told["DRE_EVENT_ID"] == identity
    assert told["DRE_EVENT_SOURCE"] == event.host() + "/web" and told["DRE_EVENT_SEV"] == "6"
    assert told["DRE_EVENT_CLAIMED"] == "no" and len(told["DRE_EVENT_TIME"]) == 24
    assert {key: told[f"DRE_EVENT_DATA_{key}"] for key in ("N", "ODD_KEY", "DEEP")} == {
        "N": "3",
        "ODD_KEY": "a b",
        "DEEP": '{"x": [1]}',
    }
    assert until(lambda: spooled(monitor, "monitor.action.done"))[0]["data"]["event"] == identity
    assert until(lambda: monitor.events("lab.told"))


HOSTILE = ["a b", "--help", "$(id)", "`id`;id", "x\ty", "x\ny", "a'b", "", "x" * 300, "\u00e9", "\\", "%s"]


def test_what_an_event_holds_is_a_word_or_nothing_runs(monitor):
    for user in HOSTILE:
        ask(monitor, user=user)
    last = ask(monitor, user="last")
    until(lambda: (monitor.place / f"note.{last}").exists())
    until(lambda: sum(told["data"]["count"] for told in spooled(monitor, "monitor.action.refused")) == len(HOSTILE))
    assert [path.name for path in monitor.place.iterdir()] == [f"note.{last}"]


def test_failure_talk_and_time_are_bounded_and_told_and_nothing_stays(monitor):
    ask(monitor, "lab.run", name="hang")
    for name in ("fail", "talk", "leave"):
        ask(monitor, "lab.run", name=name)
    hanging = until(lambda: (monitor.place / "hang").exists() and (monitor.place / "hang").read_text().split())
    failed = until(lambda: len(found := spooled(monitor, "monitor.action.failed")) >= 2 and found)
    by_reason = {told["data"].get("reason"): told["data"] for told in failed}
    assert by_reason[None]["status"] == 3 and by_reason[None]["output"] == "it is broken"
    assert by_reason["said more than 65536 octets"]["status"] == -signal.SIGKILL
    (left,) = until(lambda: (monitor.place / "leave").exists() and (monitor.place / "leave").read_text().split())
    until(lambda: gone(left))  # what a program leaves in its process group ends with it
    until(lambda: len(spooled(monitor, "monitor.action.failed")) == 3, timeout=25)
    assert "longer than 10 s" in spooled(monitor, "monitor.action.failed")[-1]["data"]["reason"]
    until(lambda: all(map(gone, hanging)))


@pytest.mark.parametrize("how", ["writable", "foreign", "outside", "missing", "directory"])
def test_a_program_that_is_not_roots_alone_is_not_run(monitor, how):
    path = monitor.conf.core_etc_dir / "actions.d" / "note"
    if how == "writable":
        path.chmod(0o775)
    elif how == "foreign":
        os.chown(path, 65534, 0)
    elif how == "outside":
        path.rename(monitor.place / "elsewhere")
        path.symlink_to(monitor.place / "elsewhere")
    elif how == "missing":
        path.unlink()
    else:
        path.parent.chmod(0o777)
    ask(monitor, user="bob")
    assert until(lambda: spooled(monitor, "monitor.action.refused"))[0]["data"]["count"] == 1
    assert not list(monitor.place.glob("note.*"))


def test_a_killed_runner_takes_its_programs_along_counts_them_and_the_next_one_works(monitor):
    ask(monitor, "lab.run", name="hang")
    shell, _ = until(lambda: (monitor.place / "hang").exists() and (monitor.place / "hang").read_text().split())
    runner = monitor.pid("act")
    os.kill(runner, signal.SIGKILL)
    until(lambda: gone(shell))
    assert until(lambda: [told for told in spooled(monitor, "monitor.dropped") if told["data"]["count"] == 1])
    identity = ask(monitor, user="bob")
    until(lambda: (monitor.place / f"note.{identity}").exists())
    assert monitor.pid("act") != runner
    time.sleep(0.5)
    assert (monitor.place / "hang").read_text().split()[0] == shell  # it was not run again
    os.kill(int((monitor.place / "hang").read_text().split()[1]), signal.SIGKILL)


def test_a_forged_event_says_that_it_is_claimed_and_our_own_lead_to_no_action(monitor):
    made = event.format(event.Event(event.stamp(), "/host:h1/web", "lab.asked", 6, {"user": "bob"}, {"id": "forged-1"}))
    with open(monitor.conf.core_run_dir / "events", "wb") as fifo:
        fifo.write(made)
    note = until(lambda: (monitor.place / "note.forged-1").exists() and (monitor.place / "note.forged-1"))
    assert "DRE_EVENT_CLAIMED=yes" in note.read_text()
    with open(monitor.conf.core_run_dir / "actions", "wb") as fifo:
        line = event.format(event.Event(event.stamp(), "/x", "monitor.action.failed", 6, {}, {})).strip()
        fifo.write(b"1\t=note\t" + line + b"\n1\t=../note\t" + made + b"garbage\n2\t=note\t?a\t?b\t" + made)
    until(lambda: sum(told["data"]["count"] for told in spooled(monitor, "monitor.action.refused")) == 4)
    assert len(list(monitor.place.glob("note.*"))) == 1


@pytest.mark.skipif(os.environ.get("DRE_TEST_INSTALLED") != "1", reason="for installed packages: DRE_TEST_INSTALLED=1")
def test_the_package_makes_the_directory_that_root_alone_writes():
    found = os.stat("/etc/dre/actions.d")
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o755)
