# SPDX-License-Identifier: Apache-2.0
"""What other programs log becomes events: rsyslog, the journal and snmptrapd, each the real one, to a real dre-ingest.

The spool of the intake is the witness. Nothing is lost while the intake or the feed is killed, and what comes twice has
one id. With DRE_FULL=1 it is 50 000 messages and 1000 informs.
"""

import collections
import json
import os
import signal
import socket
import subprocess
import time

import pytest
import rsyslogkit
from conftest import ROOT, environment, program
from rsyslogkit import wait
from snmpkit import Traps, net_snmp

FULL = os.environ.get("DRE_FULL") == "1"
EXAMPLES = ROOT / "sec-monitor/examples"
REMOTE = "/lib/systemd/systemd-journal-remote"


class Intake:
    """dre-ingest in a directory of its own; nobody reads what it gives on."""

    def __init__(self, config, directory):
        self.config, self.directory = config, directory
        self.start()

    def start(self):
        argv = [program("dre-ingest"), "--config", self.config]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
        )

        def answers():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
                return asking.connect_ex(str(self.directory / "run/events.sock")) == 0

        wait(answers)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def events(self, type):
        """The events of that type in the spool, in order."""
        needle = f'"type":"{type}"'.encode()
        files = sorted((self.directory / "state/spool/ingest").glob("*.jsonl"))
        lines = [line for path in files for line in path.read_bytes().splitlines() if needle in line]
        return [json.loads(line) for line in lines]


@pytest.fixture
def intake(settings, tmp_path):
    for name in ("run", "state"):
        (tmp_path / name).mkdir()
    made = Intake(settings(), tmp_path)
    yield made
    made.kill()


def messages(intake, type="syslog.message"):
    """Each message and how many ids it has."""
    found = collections.defaultdict(set)
    for made in intake.events(type):
        assert made["claimed"] is True
        found[made["data"]["message"].strip()].add(made["id"])
    return {text: len(ids) for text, ids in found.items() if text.startswith("message ")}


# --- rsyslog ---


@pytest.fixture
def syslog(intake):
    argv = [program("dre-event"), "--config", intake.config, "--from", "syslog", "--omprog"]
    text = (EXAMPLES / "dre-events.conf").read_text()
    made = rsyslogkit.Syslog(rsyslogkit.rsyslogd(), text, "/usr/bin/dre-event --from syslog --omprog", argv)
    yield made
    made.remove()


def test_every_message_of_rsyslog_is_one_event(intake, syslog):
    count = 50_000 if FULL else 3000
    syslog.log(*(b"message %d" % number for number in range(count)))
    wait(lambda: len(intake.events("syslog.message")) >= count, 300)
    assert messages(intake) == {f"message {number}": 1 for number in range(count)}
    made = intake.events("syslog.message")
    assert len(made) == len({one["id"] for one in made})
    assert {(one["source"].rpartition("/")[2], one["sev"]) for one in made} >= {("test", 6)}


def test_no_message_is_lost_while_intake_and_feed_are_killed(intake, syslog):
    count = 0

    def more(number):
        nonlocal count
        syslog.log(*(b"message %d" % (count + one) for one in range(number)))
        count += number

    more(50)
    wait(lambda: len(messages(intake)) == count)
    for kill in range(int(os.environ.get("DRE_KILLS", "4"))):
        more(100)
        (intake.kill, syslog.kill)[kill % 2]()
        more(100)
        if kill % 2 == 0:
            intake.start()
        wait(lambda: len(messages(intake)) == count)
    intake.kill()
    more(50)
    syslog.stop()  # what is in its hands is kept in its queue
    syslog.start()
    intake.start()
    more(1)
    wait(lambda: len(messages(intake)) == count)
    assert set(messages(intake).values()) == {1}  # sent again it was the same event


def test_what_is_no_syslog_and_what_is_refused_holds_up_nothing(intake):
    forged = "<14>1 2026-11-26T10:00:00Z h p - - "
    forged += '[dre-event@32473 event="{}"] an event of ours that is none'
    lines = ["0" * 32 + " neither a priority nor a time", "1" * 32 + " " + forged, "no id <14>", "", "BEGIN"]
    argv = [program("dre-event"), "--config", intake.config, "--from", "syslog", "--omprog"]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(argv, input=text, capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout) == (0, "OK\n" * (1 + len(lines)))
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] in ([], [["dre-event", " " + "1" * 32]])
    made = {one["id"]: one["data"]["message"] for one in intake.events("syslog.message")}
    assert made["0" * 32] == "neither a priority nor a time"
    assert {"no id <14>", "BEGIN"} <= set(made.values())
    intake.kill()
    done = subprocess.run(argv, input="2" * 32 + " <14>x: y\n", capture_output=True, text=True, env=environment())
    assert done.stdout == "OK\nOK\n"
    intake.start()
    wait(lambda: "2" * 32 in {one["id"] for one in intake.events("syslog.message")})


# --- The journal ---


def journal(path, numbers):
    """Add entries to a journal, by systemd's own program."""
    text = b"".join(
        b"__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%032x\n_HOSTNAME=h1\nMESSAGE=message %d\n\n"
        % (1_790_000_000_000_000 + number * 1000, number + 1, 7, number)
        for number in numbers
    )
    done = subprocess.run([REMOTE, f"--output={path}", "-"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not os.access(REMOTE, os.X_OK), reason="systemd-journal-remote is not installed")
def test_the_journal_goes_on_where_it_was(intake, tmp_path):
    file, cursor = tmp_path / "x.journal", tmp_path / "cursor"
    argv = [program("dre-event"), "--config", intake.config, "--from", "journal", "--cursor", cursor]

    def feed():
        done = subprocess.run([*argv, "--", f"--file={file}"], capture_output=True, text=True, env=environment())
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    journal(file, range(50))
    feed()
    assert messages(intake, "journal.message") == {f"message {number}": 1 for number in range(50)}
    journal(file, range(50, 60))
    feed()
    feed()
    assert len(intake.events("journal.message")) == 60
    cursor.unlink()  # killed before it was written: all is read again
    feed()
    assert messages(intake, "journal.message") == {f"message {number}": 1 for number in range(60)}
    cursor.write_text("\1\n")
    done = subprocess.run([*argv, "--", f"--file={file}"], capture_output=True, text=True, env=environment())
    assert (done.returncode, "not a cursor" in done.stderr) == (2, True)


@pytest.mark.skipif(not os.access(REMOTE, os.X_OK), reason="systemd-journal-remote is not installed")
def test_a_follower_that_is_killed_goes_on(intake, tmp_path):
    file, cursor = tmp_path / "x.journal", tmp_path / "cursor"
    words = ["--config", intake.config, "--from", "journal", "--cursor", cursor, "--follow"]
    argv = [program("dre-event"), *words, "--", f"--file={file}"]
    number = 0
    journal(file, range(1))
    for kill in range(int(os.environ.get("DRE_KILLS", "3"))):
        feed = subprocess.Popen(argv, env=environment(), start_new_session=True, stderr=subprocess.PIPE)
        journal(file, range(number + 1, number + 40))
        number += 39
        if kill % 2:
            time.sleep(0.3)
            os.killpg(feed.pid, signal.SIGKILL)
            feed.communicate()
        else:
            wait(lambda: len(messages(intake, "journal.message")) == number + 1)  # noqa: B023
            feed.terminate()
            assert feed.wait(30) == 0, feed.stderr.read()
            feed.communicate()
    subprocess.run(
        [*argv[: argv.index("--follow")], *argv[argv.index("--follow") + 1 :]], check=True, env=environment()
    )
    assert messages(intake, "journal.message") == {f"message {one}": 1 for one in range(number + 1)}


# --- snmptrapd ---


def test_every_trap_and_inform_is_one_event(intake, tmp_path):
    handler = f"{program('dre-event')} --config {intake.config} --from snmptrap --send"
    with Traps(net_snmp(), tmp_path / "snmp", handler) as traps:
        count = 1000 if FULL else 25
        for number in range(count):
            # An inform that its sender repeats, because the answer was late, would be another one.
            kind = "-v2c -Ci -t 30 -r 0" if number % 10 else "-v2c"
            traps.send(kind, "", f".1.3.6.1.4.1.32473.0.{number + 1}", ".1.3.6.1.4.1.32473.1", "i", number)
            if number == count // 2:
                intake.kill()  # the handler spools
            if number == count // 2 + 3:
                intake.start()
        wait(lambda: len(intake.events("snmp.trap")) >= count, 120)
        made = intake.events("snmp.trap")
        assert sorted(one["data"]["1.3.6.1.4.1.32473.1"] for one in made) == list(range(count))
        assert len({one["id"] for one in made}) == count
        assert all("nobody answers" in line for line in traps.said().splitlines()), traps.said()
