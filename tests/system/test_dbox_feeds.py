# SPDX-License-Identifier: Apache-2.0
"""rsyslog and the journal as feeds: every message once and in order, whoever is away or killed; losses are entries."""

import json
import os
import re
import signal
import sqlite3
import subprocess

import dboxkit
import pytest
import rsyslogkit
from conftest import ROOT, environment
from rsyslogkit import wait

REMOTE = "/lib/systemd/systemd-journal-remote"
EXAMPLE = ROOT / "dbox/examples/dre-dbox.conf"


@pytest.fixture(scope="module")
def box():
    made = dboxkit.copy()
    for name in ("syslog", "journal", "answered"):
        made.good("dbox-init", "--client", name, "--role", "writer")
    yield made
    dboxkit.remove(made)


def entries(box, stream):
    """The octets of a stream's entries, in order, from the database itself."""
    database = sqlite3.connect(box.database)
    query = (
        "SELECT octets FROM entry JOIN source ON source.number = entry.source WHERE stream = ? ORDER BY entry.number"
    )
    rows = [octets for (octets,) in database.execute(query, (stream,))]
    database.close()
    return rows


# --- rsyslog ---


def test_what_omprog_answered_outlives_it(box):
    """rsyslog sends again what had no answer, and no other message of the transaction."""
    argv = [dboxkit.program("dbox-put"), "--config", box.conf, "--client", "answered", "--stream", "answered"]
    with subprocess.Popen([*argv, "--omprog"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as put:
        assert put.stdout.readline() == b"OK\n"
        for line, answer in (
            (b"BEGIN TRANSACTION", b"OK"),
            (b"id1 one", b"DEFER_COMMIT"),
            (b"id2 two", b"DEFER_COMMIT"),
        ):
            put.stdin.write(line + b"\n")
            put.stdin.flush()
            assert put.stdout.readline() == answer + b"\n"
        put.kill()
    again = b"BEGIN TRANSACTION\nid2 two\nid3 three\nCOMMIT TRANSACTION\n"
    done = subprocess.run([*argv, "--omprog", "--timeout", "0.1"], input=again, capture_output=True, env=environment())
    assert done.stdout == b"OK\nOK\nDEFER_COMMIT\nDEFER_COMMIT\nOK\n"
    waiting = subprocess.run([*argv, "--pending"], capture_output=True, env=environment(), check=True).stdout
    assert [line.split() for line in waiting.splitlines()] == [
        [b"answered", b"1", b"3"],
        [b"answered", b"2", b"3"],
        [b"answered", b"3", b"5"],
    ]
    receipts = box.path / "state/spool/dbox/answered/receipts"
    receipts.mkdir()
    (receipts / ".answered-1.tlog-proof.1.tmp").write_bytes(b"half a rec")  # of one that was killed just then
    box.start()
    subprocess.run([*argv, "--drain"], env=environment(), check=True)
    box.stop()
    assert entries(box, "answered") == [b"one", b"two", b"three"]
    assert not [name for name in os.listdir(receipts) if name.startswith(".")]


def test_rsyslog_delivers_every_message_once(box):
    argv = [dboxkit.program("dbox-put"), "--config", box.conf, '"$@"']
    syslog = rsyslogkit.Syslog(rsyslogkit.rsyslogd(), EXAMPLE.read_text(), "/usr/bin/dbox-put", argv)
    count = 0

    def more(number):
        nonlocal count
        for _ in range(number):
            syslog.log(b"message %d" % count)
            count += 1

    def ours():
        found = [re.search(rb" test - - - +(message \d+)$", octets) for octets in entries(box, "syslog")]
        return [match[1] for match in found if match]

    try:
        more(20)  # the D-Box is away
        wait(lambda: syslog.pids())
        spool = box.path / "state/spool/dbox/syslog"
        wait(lambda: (spool / "records-1").exists() and b"message 19" in (spool / "records-1").read_bytes())
        assert ours() == []
        box.start()
        wait(lambda: len(ours()) == 20)
        for _ in range(2):  # the program is killed while messages come
            more(30)
            syslog.kill()
            more(30)
            wait(lambda: len(ours()) >= count)
        box.stop()
        more(20)
        syslog.stop()  # what is in its hands is spooled, or kept in its queue
        syslog.start()
        more(5)
        box.start()
        wait(lambda: len(ours()) >= count)
        assert ours() == [b"message %d" % number for number in range(count)]
        # The loss counters of rsyslog itself are there.
        wait(lambda: any(b"rsyslogd-pstats" in octets and b"dre-dbox" in octets for octets in entries(box, "syslog")))
        receipts = box.path / "state/spool/dbox/syslog/receipts"
        wait(lambda: receipts.exists() and os.listdir(receipts) == ["syslog-last.tlog-proof"])
    finally:
        syslog.remove()


# --- The journal ---


def journal(path, numbers, seqnums=None):
    """A journal file with these messages, written by systemd's own program."""
    text = b""
    for number in numbers:
        text += b"__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%032x\nMESSAGE=message %d\n\n" % (
            1_790_000_000_000_000 + number * 1000,
            number + 1,
            7,
            number,
        )
    done = subprocess.run([REMOTE, f"--output={path}", "-"], input=text, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def recorded(box, stream):
    return [json.loads(octets) for octets in entries(box, stream)]


def messages(box, stream):
    return [row["MESSAGE"] for row in recorded(box, stream) if "MESSAGE" in row]


@pytest.fixture
def running(box):
    if box.server is None:
        box.start()
    return box


@pytest.mark.skipif(not os.access(REMOTE, os.X_OK), reason="systemd-journal-remote is not installed")
def test_the_journal_is_recorded_once(running, tmp_path):
    box, path = running, tmp_path / "x.journal"
    feed = ["dbox-journal", "--stream", "real", "--", f"--file={path}"]
    journal(path, range(50))
    box.good(*feed)
    assert messages(box, "real") == [f"message {number}" for number in range(50)]
    # What journalctl says itself is what was recorded.
    said = subprocess.run(
        ["journalctl", f"--file={path}", "-o", "json", "--all"], capture_output=True, check=True
    ).stdout.splitlines()
    assert recorded(box, "real") == [json.loads(line) for line in said]
    box.good(*feed)
    assert len(entries(box, "real")) == 50
    # Killed after the spool and before the receipt: the cursor is an old one, and nothing doubles.
    cursor = box.path / "state/spool/dbox/journal/real.cursor"
    cursor.unlink()
    box.good(*feed)
    assert len(entries(box, "real")) == 50


FAKE = """#!/bin/sh
# A journalctl that prints what a file holds, from the cursor on, and follows it when asked to.
after= follow=
for word; do case "$word" in --after-cursor=*) after=${word#*=} ;; --follow) follow=1 ;; esac; done
if [ "$after" ]; then sed "1,/$(printf %s "$after" | sed 's/[;=]/./g')/d" JOURNAL; else cat JOURNAL; fi
[ "$follow" ] && exec tail -n 0 -f JOURNAL
exit 0
"""


@pytest.fixture
def fake(running, tmp_path):
    """The journal as a file of lines, beside a fake journalctl."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/journalctl"
    program.write_text(FAKE.replace("JOURNAL", str(tmp_path / "journal")))
    program.chmod(0o755)
    (tmp_path / "journal").touch()
    return tmp_path / "journal"


def with_fake(fake):
    """A command's environment in which the fake is found first."""
    path = environment().get("PATH", os.environ["PATH"])
    return ["env", f"PATH={fake.parent}/bin:{path}"]


def line(number, source="5"):
    cursor = f"s={source};i={number:x};b=1;m=2;t=3;x=4"
    return json.dumps({"__CURSOR": cursor, "MESSAGE": f"message {number}"}) + "\n"


def test_what_the_journal_lost_is_an_entry(running, fake):
    box = running
    fake.write_text("".join(map(line, [1, 2, 5])))
    box.good("dbox-journal", "--stream", "lossy", before=with_fake(fake))
    with fake.open("a") as stream:
        stream.write("".join(map(line, [6, 17])) + line(1, "6") + line(2, "6"))
    box.good("dbox-journal", "--stream", "lossy", before=with_fake(fake))
    box.good("dbox-journal", "--stream", "lossy", before=with_fake(fake))
    # The same entries in other words, as after an upgrade of systemd, are the same entries.
    (box.path / "state/spool/dbox/journal/lossy.cursor").unlink()
    fake.write_text(fake.read_text().replace('"MESSAGE"', '"__SEQNUM": "1", "MESSAGE"') + line(3, "6"))
    box.good("dbox-journal", "--stream", "lossy", before=with_fake(fake))
    rows = recorded(box, "lossy")
    assert [row["MESSAGE"].split()[1] for row in rows if "MESSAGE" in row] == ["1", "2", "5", "6", "17", "1", "2", "3"]
    lost = [(at, row["data"]["entries"]) for at, row in enumerate(rows) if row.get("type") == "dbox.feed.lost"]
    assert lost == [(2, 2), (5, 10)]


def test_a_killed_follower_doubles_and_loses_nothing(running, fake):
    box = running
    number = 0
    for kill in range(int(os.environ.get("DRE_KILLS", "2"))):
        child = subprocess.Popen(
            [
                *with_fake(fake),
                dboxkit.program("dbox-journal"),
                "--config",
                str(box.conf),
                "--stream",
                "killed",
                "--follow",
            ],
            env=environment(),
            start_new_session=True,
        )
        with fake.open("a") as stream:
            for _ in range(200):
                number += 1
                stream.write(line(number))
                stream.flush()
        try:
            if kill % 2:
                wait(lambda at=number: len(messages(box, "killed")) > at - 150)
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    box.good("dbox-journal", "--stream", "killed", before=with_fake(fake))
    assert messages(box, "killed") == [f"message {at + 1}" for at in range(number)]


def test_the_follower_ends_in_order(running, fake):
    box = running
    fake.write_text(line(1))
    child = subprocess.Popen(
        [*with_fake(fake), dboxkit.program("dbox-journal"), "--config", str(box.conf), "--stream", "ended", "--follow"],
        env=environment(),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait(lambda: messages(box, "ended") == ["message 1"])
    finally:
        child.terminate()
    assert (child.wait(30), child.stderr.read()) == (0, b"")
    cursor = box.path / "state/spool/dbox/journal/ended.cursor"
    assert cursor.read_text() == "s=5;i=1;b=1;m=2;t=3;x=4\n"
    cursor.write_text("nonsense\n")
    done = box.run("dbox-journal", "--stream", "ended", before=with_fake(fake))
    assert done.returncode == 1 and b"not a cursor" in done.stderr


def test_a_journalctl_that_fails_is_told_of(running, fake):
    program = fake.parent / "bin/journalctl"
    program.write_text("#!/bin/sh\necho 'no such journal' >&2\nexit 1\n")
    done = running.run("dbox-journal", "--stream", "fails", before=with_fake(fake))
    assert done.returncode == 1 and b"journalctl ended with 1: no such journal" in done.stderr
