# SPDX-License-Identifier: Apache-2.0
"""SQLite and a real MariaDB server keep a log alike: the same entries, receipts, refusals, and no way to change any."""

import contextlib
import os
import sqlite3
import subprocess
import time

import dboxkit
import mariadbkit
import pytest

either = mariadbkit.either
WRITER = "a" * 64


def open_log(box):
    """A started sequencer of its own, and the log it answers for."""
    from dboxlib import remote

    log = (box.path / "sequencer.log").open("ab")
    end = log.tell()
    argv = [dboxkit.program("dbox-sequencer"), "--config", box.conf]
    process = subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL, env=dboxkit.environment())
    log.close()
    deadline = time.monotonic() + 60
    while b"listening on" not in (said := (box.path / "sequencer.log").read_bytes()[end:]):
        if process.poll() is not None:
            raise AssertionError(said.decode())
        assert time.monotonic() < deadline, said
        time.sleep(0.01)
    return process, remote.connect(box.settings())


@contextlib.contextmanager
def log_of(box):
    process, log = open_log(box)
    try:
        yield log
    finally:
        log.close()
        process.terminate()
        assert process.wait(30) == 0


def reader(box):
    from dboxlib import store

    return contextlib.closing(store.reading(box.settings()))


def test_entries_come_back_as_they_went_in(either):
    from dre import evidence

    odd = [b"\0\xff'\"\\%s?;--", b"x" * 70_000, b'{"type":"app.undone"}', os.urandom(16 << 20), b"the last one"]
    with log_of(either) as log:
        outcome = log.submit(WRITER, "app", 1, odd)
        assert log.submit(WRITER, "app", 1, odd).numbers == outcome.numbers, "twice is once"
        assert log.submit(WRITER, "other", 7, [b"one"]).numbers == [outcome.numbers[-1] + 1]
        for receipt, octets in zip(log.receipts(outcome.numbers, outcome), odd, strict=True):
            header, _ = evidence.bind(receipt, octets)
            assert (header.writer, header.stream, header.length) == (WRITER, "app", len(octets))
        key, when, value = log.signature(outcome.numbers[0])
        assert log.signature(outcome.numbers[0]) == (key, when, value) and len(value) >= 256
        size = log.newest()[0].size
    with reader(either) as store:
        assert [store.payload(number)[1] for number in outcome.numbers] == odd
        assert [row["index"] for row in dboxkit.found(store, stream="app")] == outcome.numbers
        assert [row["index"] for row in dboxkit.found(store, stream="app", type="app.undone")] == [outcome.numbers[2]]
        assert [row["index"] for row in dboxkit.found(store, text="e last on")] == [outcome.numbers[4]]
        assert [row["index"] for row in dboxkit.found(store, after=size - 2)] == [size - 1]
        fields = store.entry(outcome.numbers[1])
        assert [row["index"] for row in dboxkit.found(store, since=fields["time"], stream="other")] == [size - 1]
        assert sum(1 for _ in store.walk()) == size
    with log_of(either) as log:  # read back, it goes on
        assert log.newest()[0].size == size
        assert log.submit(WRITER, "app", 1, odd[:1]).numbers == outcome.numbers[:1]


def test_other_octets_under_a_taken_number_are_refused(either):
    from dboxlib.log import ConflictError

    with log_of(either) as log:
        log.submit(WRITER, "app", 1, [b"one", b"two"])
        size = log.newest()[0].size
        for parts in ([b"other"], [b"one", b"two", b"three", b"four"][::-1]):
            with pytest.raises(ConflictError, match="holds other octets"):
                log.submit(WRITER, "app", 1, parts)
        assert log.newest()[0].size == size
        assert log.submit(WRITER, "app", 2, [b"two", b"three"]).numbers == [size - 1, size]


def test_octets_are_erased_by_two_admins_and_the_proof_stays(either):
    from dre import evidence
    from dre.errors import DreError, NotPermittedError

    text = either.conf.read_text() + 'DRE_DBOX_STREAMS="app:erasable=yes"\n'
    if either.storage == "mariadb":
        either.conf.write_text(text)
        with log_of(either) as log:  # the account that appends may not, whoever asks
            number = log.submit(WRITER, "app", 1, [b"a secret"]).numbers[0]
            first, second = admins(log)
            with pytest.raises(DreError, match="denied"):
                log.erase(number, "wrong address", first, second)
        server = mariadbkit.server()
        server.sql(
            "CREATE USER IF NOT EXISTS eraser@localhost IDENTIFIED BY 'pass';"
            f"GRANT SELECT, UPDATE (octets, salt) ON {either.server_name}.entry TO eraser@localhost;"
            f"GRANT SELECT ON {either.server_name}.* TO eraser@localhost;"
        )
        word = either.path / "password"
        word.write_text("pass\n")
        word.chmod(0o400)
        os.chown(word, either.state.stat().st_uid, -1)
        url = server.url(either.server_name).replace("localhost", "eraser@localhost") + f"&password_file={word}"
        text += f'DRE_DBOX_DATABASE_ADMIN="{url}"\n'
    either.conf.write_text(text)
    with log_of(either) as log:
        outcome = log.submit(WRITER, "app", 5, [b"a secret", b"another"])
        number = outcome.numbers[0]
        before = log.receipts(outcome.numbers, outcome)[0]
        evidence.bind(before, b"a secret")
        assert len(before.salt) == 32
        first, second = admins(log)
        for wrong in ((first, first), (first, WRITER), ("", second)):
            with pytest.raises(NotPermittedError):
                log.erase(number, "wrong address", *wrong)
        log.erase(number, "wrong address", first, second)
        after = log.receipt(number)
        assert after.header == before.header and after.salt == b""
        with pytest.raises(DreError, match="already"):
            log.erase(number, "again", first, second)
        with reader(either) as store:
            assert store.payload(number)[1:] == (None, b"")
            assert store.entry(number)["erased"]["reason"] == "wrong address"
            told = dboxkit.told(store, type="dbox.erased")
            assert told[-1]["entry"] == number and told[-1]["second"] == second
            assert sum(1 for _ in store.walk()) == log.newest()[0].size
    if either.storage == "sqlite":
        assert b"a secret" not in either.database.read_bytes()
    with log_of(either) as log:
        assert log.receipt(number).header == before.header


def admins(log):
    """Two registered administrators."""
    for letter in "bc":
        log.register(letter * 64, f"admin-{letter}", "admin")
    return "b" * 64, "c" * 64


def test_what_is_there_cannot_be_changed_by_accident_or_by_the_account_that_appends(either):
    with log_of(either) as log:
        log.submit(WRITER, "app", 1, [b"one", b"two"])
    wrong = [
        "UPDATE entry SET octets = 'other'",
        "UPDATE entry SET time = 0",
        "DELETE FROM entry",
        "UPDATE head SET note = 'other'",
        "DELETE FROM head",
        "DELETE FROM epoch",
        "UPDATE source SET writer = 'other'",
        "DELETE FROM client",
    ]
    if either.storage == "sqlite":
        with sqlite3.connect(either.database) as database:
            for statement in wrong:
                with pytest.raises(sqlite3.IntegrityError):
                    database.execute(statement)
        return
    for user in ("dbox", "dbox-web"):
        for statement in [*wrong, *(["INSERT INTO type VALUES (1, 'x')"] if user == "dbox-web" else [])]:
            done = subprocess.run(
                mariadbkit.server().client(f"--user={user}", either.server_name, "-e", statement),
                user=user,
                capture_output=True,
                check=False,
            )
            assert done.returncode and b"denied" in done.stderr, (user, statement, done.stderr)


def test_streams_have_bounds_and_refusals_are_entries(either):
    from dboxlib.log import QuotaError

    bounds = "small:quota=1000,signature=none rated:rate=1 signed:signature=each"
    either.conf.write_text(either.conf.read_text() + f'DRE_DBOX_STREAMS="{bounds}"\n')
    with log_of(either) as log:
        log.submit(WRITER, "small", 1, [b"x" * 900])
        for _ in range(3):
            with pytest.raises(QuotaError, match="900 of its 1000") as caught:
                log.submit(WRITER, "small", 2, [b"x" * 101])
            assert caught.value.full and caught.value.retry_after
        log.submit(WRITER, "small", 2, [b"x" * 100])
        assert log.submit(WRITER, "small", 1, [b"x" * 900]).numbers, "what is there needs no room"
        log.submit(WRITER, "rated", 1, [b"x"] * 10)
        with pytest.raises(QuotaError, match="1 entries per second") as caught:
            log.submit(WRITER, "rated", 11, [b"x"] * 5)
        assert not caught.value.full and 1 <= caught.value.retry_after <= 5
        number = log.submit(WRITER, "signed", 1, [b"x"]).numbers[0]
        with reader(either) as store:
            assert store.signature(number) is not None, "made at once"
        status = {row["stream"]: row for row in log.status()["streams"]}
        assert status["small"]["octets"] == 1000 and status["small"]["refused"] == 3
    with reader(either) as store:
        told = dboxkit.told(store, type="dbox.refused")
    counted = {}
    for data in told:
        key = (data["stream"], data["reason"])
        counted[key] = counted.get(key, 0) + data["requests"]
    assert counted == {("small", "quota"): 3, ("rated", "rate"): 1}
    with log_of(either) as log:  # counted again from what is kept
        assert {row["stream"]: row["octets"] for row in log.status()["streams"]}["small"] == 1000


def test_octets_go_when_their_time_is_over():
    box = dboxkit.copy(DRE_DBOX_STREAMS="short:keep=1s")
    try:
        with log_of(box) as log:
            gone = log.submit(WRITER, "short", 1, [b"soon forgotten", b"soon forgotten too"]).numbers
            kept = log.submit(WRITER, "long", 1, [b"kept"]).numbers
            header = log.receipt(gone[0]).header
        time.sleep(1.1)
        with log_of(box) as log, reader(box) as store:
            late = log.submit(WRITER, "short", 3, [b"young"]).numbers
            deadline = time.monotonic() + 30
            while store.payload(gone[0])[1] is not None:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            while {row["stream"]: row["octets"] for row in log.status()["streams"]}["short"] != len(b"young"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert store.payload(gone[1])[1] is None and store.payload(kept[0])[1] == b"kept"
            assert store.payload(late[0])[1] == b"young"
            assert log.receipt(gone[0]).header == header
            told = dboxkit.told(store, type="dbox.expired")
            assert told == [{"stream": "short", "first": gone[0], "last": gone[1], "entries": 2}]
            assert sum(1 for _ in store.walk()) == store.entries()
        assert b"soon forgotten" not in box.database.read_bytes()
    finally:
        dboxkit.remove(box)


def test_a_second_sequencer_does_not_start(either):
    with log_of(either) as log:
        log.submit(WRITER, "app", 1, [b"one"])
        done = either.run("dbox-sequencer")
        assert done.returncode == 1 and b"another sequencer" in done.stderr
        # The same with settings of its own socket, as another host would have.
        other = either.path / "other.conf"
        other.write_text(either.conf.read_text().replace(f"{either.path}/run", f"{either.path}/run2"))
        done = subprocess.run(
            [dboxkit.program("dbox-sequencer"), "--config", other],
            capture_output=True,
            env=dboxkit.environment(),
            timeout=30,
            check=False,
        )
        assert done.returncode == 1 and b"another sequencer writes this log" in done.stderr, done.stderr
        assert log.submit(WRITER, "app", 2, [b"two"]).numbers


def test_a_sequencer_whose_epoch_is_over_ends_and_forks_nothing(either):
    """As after a partition: the lock is gone, and a second real process takes the log while the first still writes."""
    from dre.errors import DreError

    first, log = open_log(either)
    before = log.submit(WRITER, "app", 1, [b"one"]).numbers[0]
    other = dboxkit.Box.__new__(dboxkit.Box)
    other.__dict__.update(either.__dict__)
    other.conf = either.path / "other.conf"
    other.conf.write_text(either.conf.read_text().replace(f"{either.path}/run", f"{either.path}/run2"))
    if either.storage == "sqlite":
        (either.state / "sequencer.lock").unlink()
    else:
        held = mariadbkit.server().sql(f"SELECT is_used_lock('dre-dbox.{either.server_name}')").strip()
        mariadbkit.server().sql(f"KILL {held}")
    second, new = open_log(other)
    assert new.submit(WRITER, "app", 2, [b"by the second"]).numbers == [before + 1]
    with pytest.raises(DreError, match="another sequencer has taken over"):
        log.submit(WRITER, "app", 3, [b"by the first"])
    assert first.wait(30) == 4
    assert new.submit(WRITER, "app", 3, [b"by the second"]).numbers == [before + 2]
    new.close()
    second.terminate()
    assert second.wait(30) == 0
    with reader(either) as store:
        assert store.payload(before + 2)[1] == b"by the second"
        assert sum(1 for _ in store.walk()) == before + 3


def test_a_server_that_acknowledges_too_early_is_refused():
    mariadbkit.needed()
    box = mariadbkit.box()
    server = mariadbkit.server()
    try:
        for setting, value, back in (
            ("innodb_flush_log_at_trx_commit", 2, 1),
            ("max_allowed_packet", 1 << 20, 64 << 20),
        ):
            server.sql(f"SET GLOBAL {setting} = {value}")
            try:
                done = box.run("dbox-sequencer")
            finally:
                server.sql(f"SET GLOBAL {setting} = {back}")
            assert done.returncode == 1 and f"{setting} is {value}".encode() in done.stderr, done.stderr
    finally:
        dboxkit.remove(box)


def test_dbox_init_makes_the_tables_on_a_server():
    mariadbkit.needed()
    server = mariadbkit.server()
    server.sql(
        "DROP DATABASE IF EXISTS initialised; CREATE DATABASE initialised;" + mariadbkit.ACCOUNTS.format("initialised")
    )
    box = dboxkit.Box(dboxkit.place(), DRE_DBOX_DATABASE=server.url("initialised"))
    try:
        box.good("dbox-init", *dboxkit.owner())
        box.good("dbox-init", "--client", "writer", "--role", "writer")
        box.start()
        assert b"c2sp.org/tlog-proof" in box.put(b"octets")
        assert server.sql("SELECT count(*) FROM initialised.entry").strip() == "2"
        box.stop()
        subprocess.run(["rm", "-r", box.certs], check=True)
        done = box.run("dbox-init")
        assert done.returncode == 1 and b"holds entries" in done.stderr
    finally:
        dboxkit.remove(box)
