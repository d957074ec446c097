# SPDX-License-Identifier: Apache-2.0
"""dbox-audit against a D-Box that runs, its database and its memory: what an operator and cron see."""

import json
import shutil
import sqlite3
import subprocess

import dboxkit
import pytest

box = dboxkit.box


@pytest.fixture(scope="module")
def filled():
    made = dboxkit.copy()
    made.start()
    for number in range(4):
        made.put(b"entry %d" % number)
    made.good("dbox-put", "--batch", "--quiet", stdin=b"".join(b"line %d\n" % number for number in range(1500)))
    made.stop()
    yield made
    dboxkit.remove(made)


@pytest.fixture
def log(filled):
    made = dboxkit.Box(dboxkit.place())
    for part in ("etc", "state"):
        subprocess.run(["cp", "-a", filled.path / part, made.path / part], check=True)
    yield made
    dboxkit.remove(made)


def change(log, statement):
    with sqlite3.connect(log.database) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute(statement)
    database.close()


def last(done):
    return json.loads(done.stdout.splitlines()[-1])


def events(log):
    return [
        json.loads(line)
        for path in (log.path / "state/spool/event").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]


def test_a_sound_log_is_clean_by_each_way(log):
    log.start()
    (log.path / "receipt").write_bytes(log.put(b"kept"))
    over_https = log.run("dbox-audit", "--json")
    assert over_https.returncode == 0, over_https
    told = last(over_https)
    assert (told["clean"], told["first_bad"], told["octets"], told["since"]) == (True, None, False, 0)
    by_database = last(log.run("dbox-audit", "--json", "--forget", "--database", log.database))
    assert (by_database["clean"], by_database["octets"]) == (True, True)
    assert (by_database["entries"], by_database["size"]) == (told["entries"], told["size"])
    assert log.run("dbox-audit", "--quiet", "--seen", log.path / "receipt").stdout == b""
    log.stop()
    done = log.run("dbox-audit", "--database", f"sqlite:{log.database}")
    assert done.returncode == 0 and done.stdout.startswith(b"clean: log ")
    assert [event for event in events(log) if event["type"] == "dbox.tampered"] == []


def test_since_last_reads_only_what_is_new(log):
    log.start()
    whole = last(log.run("dbox-audit", "--since-last", "--json"))
    assert whole["since"] == 0 and whole["entries"] > 1500
    assert last(log.run("dbox-audit", "--since-last", "--json"))["entries"] == 0
    log.put(b"one more")
    told = last(log.run("dbox-audit", "--since-last", "--json"))
    assert (told["since"], told["entries"], told["size"]) == (whole["size"], 1, whole["size"] + 1)
    assert log.run("dbox-audit", "--since-last", "--forget").returncode == 2


def test_a_finding_names_the_first_bad_index_and_is_an_event(log):
    change(log, "UPDATE entry SET octets = x'00' WHERE number IN (700, 900)")
    done = log.run("dbox-audit", "--database", log.database)
    assert done.returncode == 1
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "entry 700: its octets do not match the digest in its header"
    assert lines[-1].startswith("first bad index 700 of log ")
    (event,) = [event for event in events(log) if event["type"] == "dbox.tampered" and event["data"].get("by")]
    assert (event["sev"], event["data"]["entry"]) == (1, 700)
    assert not (log.path / "state/audit").exists(), "what was found wrong must not be remembered as right"
    assert last(log.run("dbox-audit", "--json", "--database", log.database))["first_bad"] == 700


def test_an_old_backup_is_found_by_memory_and_by_a_receipt(log):
    backup = log.path / "backup"
    subprocess.run(["cp", "-a", log.state, backup], check=True)
    log.start()
    receipt = log.path / "receipt"
    receipt.write_bytes(log.put(b"later"))
    assert log.run("dbox-audit").returncode == 0
    log.stop()
    shutil.rmtree(log.state)
    backup.rename(log.state)
    log.start()
    size = last(log.run("dbox-audit", "--json", "--forget"))["size"]
    for argv in (["--seen", receipt], ["--seen", receipt, "--database", log.database]):
        done = log.run("dbox-audit", "--forget", *argv)
        assert done.returncode == 1 and f"first bad index {size}".encode() in done.stdout, done
    # The last clean audit was that of the old state; the fork that grows beyond it is found by its memory alone.
    for number in range(3):
        log.run("dbox-put", "--client", "second", stdin=b"fork %d" % number)
    done = log.run("dbox-audit", "--forget", "--seen", receipt)
    assert done.returncode == 1 and b"misbehaviour" in done.stdout
    assert done.stdout.count(b"\n    \xe2\x80\x94 ") >= 4, "the signatures of both heads are printed"


def test_memory_demands_that_the_log_goes_on(log):
    log.start()
    assert log.run("dbox-audit").returncode == 0
    (memory,) = (log.path / "state/audit").iterdir()
    fields = json.loads(memory.read_text())
    memory.write_text("{}")
    done = log.run("dbox-audit")
    assert done.returncode == 2 and b"not the memory of an audit" in done.stderr
    # A memory of more entries than there are now: the log was cut.
    log.put(b"later")
    memory.write_text(json.dumps(fields))
    log.run("dbox-audit")
    log.stop()
    change(log, "DELETE FROM entry WHERE number = (SELECT max(number) FROM entry)")
    change(log, "DELETE FROM head WHERE size = (SELECT max(size) FROM head)")
    for argv in ([], ["--since-last"]):
        done = log.run("dbox-audit", "--database", log.database, *argv)
        assert done.returncode == 1, done


def test_gaps_are_told(log):
    log.start()
    from dre import dbox

    client = dbox.Client(log.settings(), "second")
    with client.online():
        client.append("app", 5, [b"five", b"six"])
        client.append("app", 9, [b"nine"])
    client.close()
    done = log.run("dbox-audit")
    assert done.returncode == 0
    gaps = [
        line.split(" lacks ")[1] for line in done.stdout.decode().splitlines() if line.startswith("gap: stream app")
    ]
    assert gaps == ["1 to 4", "7 to 8"]
    assert log.run("dbox-audit", "--strict", "--quiet").returncode == 1


def test_what_cannot_be_checked_is_no_finding(log, tmp_path):
    (tmp_path / "none").write_bytes(b"not a database")
    for argv, code in (
        (["--database", tmp_path / "none"], 2),
        (["--database", tmp_path / "missing"], 6),
        (["--export", tmp_path / "none"], 2),
        (["--export", tmp_path / "missing"], 2),
        (["--database", log.database, "--root", tmp_path / "missing"], 2),
        (["--database", log.database, "--seen", tmp_path / "none"], 2),
        (["--client", "nobody"], 2),
        ([], 6),
    ):
        done = log.run("dbox-audit", *argv)
        assert done.returncode == code and done.stderr.count(b"\n") == 1, (argv, done)
