# SPDX-License-Identifier: Apache-2.0
"""An attacker with full write access to the database is found, by dboxd at its start or by a client's memory.

The control comes first: the same handling without an attack must pass, or the others prove nothing.
"""

import shutil
import sqlite3
import subprocess

import dboxkit
import pytest

box = dboxkit.box

ATTACKS = {
    "control": ("", None),
    "time": ("UPDATE entry SET time = time - 1 WHERE number = 7", "entry 7 was changed"),
    "number of its writer": ("UPDATE entry SET seq = 70 WHERE number = 7", "entry 7 was changed"),
    "writer": ("UPDATE source SET writer = replace(writer, 'a', 'b')", "was changed"),
    "stream": ("UPDATE source SET stream = 'other' WHERE stream = 'app'", "was changed"),
    "digest": ("UPDATE entry SET digest = zeroblob(32) WHERE number = 7", "entry 7 was changed"),
    "length": ("UPDATE entry SET octets = x'00' WHERE number = 7", "entry 7 was changed"),
    "leaf": ("UPDATE entry SET leaf = zeroblob(32) WHERE number = 7", "entry 7 was changed"),
    "octets erased without a reason": ("UPDATE entry SET octets = NULL WHERE number = 7", "entry 7 was changed"),
    "delete a middle row": ("DELETE FROM entry WHERE number = 7", "entry 7 was changed: it is not there"),
    "delete and renumber": (
        "DELETE FROM entry WHERE number = 7;"
        "UPDATE entry SET number = -number WHERE number > 7; UPDATE entry SET number = -number - 1 WHERE number < 0",
        "does not match its newest tree head",
    ),
    "swap two rows": (
        "UPDATE entry SET number = -1 WHERE number = 7; UPDATE entry SET number = 7 WHERE number = 8;"
        "UPDATE entry SET number = 8 WHERE number = -1",
        "does not match its newest tree head",
    ),
    "truncate the tail": ("DELETE FROM entry WHERE number > 9", "does not match its newest tree head"),
    "replay a row at the tail": (
        "INSERT INTO entry SELECT (SELECT max(number) + 1 FROM entry), source, 99, time, type, digest, leaf, octets,"
        " salt FROM entry WHERE number = 7",
        "was changed",
    ),
    "entries without tree heads": ("DELETE FROM head", "entries without a tree head"),
}


def attack(box, statements):
    with sqlite3.connect(box.database) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.executescript(statements)
    database.close()


@pytest.fixture(scope="module")
def filled():
    made = dboxkit.copy()
    made.start()
    for number in range(8):
        made.put(b"entry %d" % number)
    made.stop()
    yield made
    dboxkit.remove(made)


@pytest.fixture
def log(filled):
    """A copy of a log of a dozen entries, with what its clients remember."""
    made = dboxkit.Box(dboxkit.place())
    for part in ("etc", "state"):
        subprocess.run(["cp", "-a", filled.path / part, made.path / part], check=True)
    yield made
    dboxkit.remove(made)


@pytest.mark.parametrize("name", ATTACKS)
def test_changed_database(log, name):
    statements, said = ATTACKS[name]
    attack(log, statements)
    if said is None:
        log.start()
        assert log.put(b"and on") and log.good("dbox-get", "7")
        return
    done = log.run("dboxd", timeout=30)
    assert done.returncode == 1 and said in done.stderr.decode(), done.stderr


def test_changed_octets_fail_their_receipt(log):
    """Of one length, so that the start does not see it: each reading does, and the receipt still tells the truth."""
    receipt = log.path / "receipt"
    log.start()
    true = log.good("dbox-get", "9", "--octets")
    log.stop()
    attack(log, f"UPDATE entry SET octets = x'{bytes(len(true)).hex()}' WHERE number = 9")
    log.start()
    receipt.write_bytes(log.good("dbox-get", "9", "--proof"))
    done = log.run("dbox-verify", receipt, "-", stdin=bytes(len(true)))
    assert done.returncode == 1 and b"octets do not match" in done.stderr
    assert log.run("dbox-verify", receipt, "-", stdin=true).returncode == 0
    done = log.run("dbox-get", "9", "--octets")
    assert done.returncode and not done.stdout
    assert "dbox.tampered" in log.good("dbox-get", "--list").decode()


def test_restored_backup_is_refused_by_the_client_that_saw_more(log):
    backup = log.path / "backup"
    subprocess.run(["cp", "-a", log.state, backup], check=True)
    log.start()
    log.put(b"later")
    log.good("dbox-get", "--head")
    log.stop()
    shutil.rmtree(log.state)
    backup.rename(log.state)
    log.start()
    done = log.run("dbox-get", "--head")
    assert done.returncode == 1 and b"is older than the one of size" in done.stderr
    # A fork: other entries until the size is the same, and then larger.
    for number, said in ((1, b"does not continue"), (2, b"does not continue")):
        log.run("dbox-put", "--client", "second", stdin=b"fork %d" % number)
        done = log.run("dbox-get", "--head")
        assert done.returncode == 1 and said in done.stderr
    # The writer notices as well, and keeps its record.
    done = log.run("dbox-put", stdin=b"after the restore")
    assert done.returncode == 1 and b"waits as" in done.stderr


def test_another_log_in_its_place_is_refused(log):
    log.start()
    log.good("dbox-get", "--head")
    log.stop()
    seen = (log.path / "state/spool/dbox/reader/head").read_text()
    (log.path / "state/spool/dbox/reader/head").write_text(seen.replace("/dbox/", "/dbox/other-"))
    log.start()
    done = log.run("dbox-get", "--head")
    assert done.returncode == 1 and b"wrong origin" in done.stderr
