# SPDX-License-Identifier: Apache-2.0
"""The sequencer killed by SIGKILL under load, again and again: no acknowledged entry is lost, none is there twice, and
no start takes what a kill left for tampering. So too with the database server killed, and with a disk that fills.

DRE_KILLS sets how often, for each kind of storage.
"""

import contextlib
import os
import random
import subprocess
import threading
import time

import dboxkit
import mariadbkit
import pytest
from test_dbox_storage import log_of, open_log, reader

KILLS = int(os.environ.get("DRE_KILLS", "2"))
WRITERS = 4
ROUND = 50


class Writer(threading.Thread):
    """Hands in runs until the sequencer dies, and remembers what was acknowledged."""

    def __init__(self, letter):
        super().__init__()
        self.writer = letter * 64
        self.acknowledged = {}  # seq: number
        self.heads = []
        self.log = None
        self.seq = 1

    def again(self, log):
        """A thread that goes on with *log* where this one ended."""
        made = Writer(self.writer[0])
        made.acknowledged, made.heads, made.seq, made.log = self.acknowledged, self.heads, self.seq, log
        return made

    def run(self):
        from dre.errors import DreError

        with contextlib.suppress(DreError):
            while True:
                parts = [octets(self.writer, seq) for seq in range(self.seq, self.seq + random.choice([1, 1, 5, 50]))]
                outcome = self.log.submit(self.writer, "app", self.seq, parts, timeout=30)
                self.acknowledged.update(zip(range(self.seq, self.seq + len(parts)), outcome.numbers, strict=True))
                self.heads.append(outcome.head)
                self.seq += len(parts)


def octets(writer, seq):
    return f"{writer[0]} {seq} ".encode() * (1 + seq % 40)


def check(box, writers, log):
    """All that was acknowledged is there, under its number, once; every tree head continues those before."""
    from dre import evidence

    head = log.newest()[0]
    with reader(box) as store:
        assert sum(1 for _ in store.walk()) == head.size
        for one in writers:
            known = store.known(one.writer, "app", 1, 10**9)
            assert {seq: known[seq].number for seq in one.acknowledged} == one.acknowledged
            assert sorted(known) == list(range(1, len(known) + 1))
            for seq in random.sample(sorted(one.acknowledged), min(20, len(one.acknowledged))):
                assert store.payload(one.acknowledged[seq])[1] == octets(one.writer, seq)
    for old in {seen.size: seen for one in writers for seen in one.heads}.values():
        evidence.verify_consistency(old.size, old.root, head.size, head.root, log.consistency(old.size, head.size))


@pytest.mark.parametrize("storage", ["sqlite", "mariadb"])
def test_sequencer_killed_under_load(storage):
    if storage == "mariadb":
        mariadbkit.needed()
    done = acknowledged = 0
    while done < KILLS:  # a fresh log now and then: reading a long one back is not what is tried here
        kills = min(ROUND, KILLS - done)
        box = mariadbkit.of(storage)
        try:
            acknowledged += killed(box, kills)
        finally:
            dboxkit.remove(box)
        done += kills
        print(f"{storage}: {done} kills, {acknowledged} acknowledged", flush=True)


def killed(box, kills):
    """Kill the sequencer so often, then look at everything; how much was acknowledged."""
    writers = [Writer(letter) for letter in "abcd"[:WRITERS]]
    for _ in range(kills):
        process, log = open_log(box)  # it would not start over a log that it takes for changed
        try:
            writers = [one.again(log) for one in writers]
            for one in writers:
                one.start()
            time.sleep(random.uniform(0.0, 0.25))
        finally:
            process.kill()
            process.wait()
        for one in writers:
            one.join()
        log.close()
    assert all(one.acknowledged for one in writers), "nothing was written: the test proves nothing"
    with log_of(box) as log:
        check(box, writers, log)
        assert not log.status()["tampered"]
    return sum(len(one.acknowledged) for one in writers)


def test_database_server_killed_under_load():
    mariadbkit.needed()
    server = mariadbkit.Server(dboxkit.place())
    box = mariadbkit.box(server)
    writers = [Writer(letter) for letter in "ab"]
    try:
        for _ in range(max(1, KILLS // 50)):
            process, log = open_log(box)
            try:
                writers = [one.again(log) for one in writers]
                for one in writers:
                    one.start()
                time.sleep(random.uniform(0.1, 0.5))
                server.stop(9)
                server.start()
            finally:
                for one in writers:  # they got an error, or go on with the server that is back
                    one.join(0.5)
                process.kill()
                process.wait()
            for one in writers:
                one.join()
            log.close()
        assert all(one.acknowledged for one in writers)
        with log_of(box) as log:
            check(box, writers, log)
    finally:
        server.stop(9)
        dboxkit.remove(box)
        subprocess.run(["rm", "-rf", server.path], check=False)


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of its own, which is soon full."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "dbox-test", path], check=False)
    if done.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=False)


def fill(box, expected, rounds=400):
    """Write until the disk refuses; what was acknowledged, and the refusal."""
    from dboxlib.log import QuotaError

    one, refusals = Writer("a"), []
    with log_of(box) as log:
        for _ in range(rounds):
            parts = [os.urandom(20_000) for _ in range(4)]
            try:
                outcome = log.submit(one.writer, "app", one.seq, parts)
            except QuotaError as error:
                assert error.full
                refusals.append(str(error))
                if len(refusals) == 3:
                    break
                continue
            one.acknowledged.update(zip(range(one.seq, one.seq + 4), outcome.numbers, strict=True))
            one.heads.append(outcome.head)
            one.seq += 4
        assert len(refusals) == 3 and all(expected in text for text in refusals), refusals
        yield one, log, refusals


def test_full_disk_refuses_and_loses_nothing():
    """Without a reserve the disk really fills up below SQLite; after room was made the log goes on."""
    box = dboxkit.copy(DRE_DBOX_RESERVE="0")
    kept = box.path / "kept"
    subprocess.run(["cp", "-a", box.state, kept], check=True)
    try:
        with small_disk(box.state, "8M"):
            subprocess.run(["cp", "-a", f"{kept}/.", box.state], check=True)
            for one, log, _ in fill(box, "not written"):
                size = log.newest()[0].size
                assert log.consistency(one.heads[0].size, size) is not None, "reading goes on"
                subprocess.run(["mount", "-o", "remount,size=32M", box.state], check=True)
                log.submit(one.writer, "app", one.seq, [b"there is room again"])
            with log_of(box) as log:
                assert log.newest()[0].size > size
                with reader(box) as store:
                    assert sum(1 for _ in store.walk()) == log.newest()[0].size
                    known = store.known(one.writer, "app", 1, 10**9)
                    assert {seq: known[seq].number for seq in one.acknowledged} == one.acknowledged
                    kinds = [row["type"] for row in dboxkit.found(store, stream="dbox")]
                    assert "dbox.refused" in kinds, kinds
    finally:
        dboxkit.remove(box)


def test_the_reserve_is_for_the_d_box_itself():
    """Writers are refused by priority while there is room for the D-Box's own entries, which tell of it."""
    from dboxlib.log import QuotaError

    box = dboxkit.copy(DRE_DBOX_RESERVE="2M", DRE_DBOX_STREAMS="alarm:priority=0 debug:priority=9")
    kept = box.path / "kept"
    subprocess.run(["cp", "-a", box.state, kept], check=True)
    try:
        with small_disk(box.state, "32M"):
            subprocess.run(["cp", "-a", f"{kept}/.", box.state], check=True)
            for one, log, refusals in fill(box, "octets are free on the D-Box's disk"):
                with pytest.raises(QuotaError, match="too few for stream debug"):
                    log.submit(one.writer, "debug", 1, [b"x" * 20_000])
                assert log.submit(one.writer, "alarm", 1, [b"x" * 20_000]).numbers
                assert log.status()["refused"] >= 13
                assert all(int(text.split()[0]) < 6 * 2 * 1024 * 1024 + 100_000 for text in refusals)  # priority 5
            with reader(box) as store, log_of(box):
                assert "dbox.refused" in [row["type"] for row in dboxkit.found(store, stream="dbox")]
    finally:
        dboxkit.remove(box)


@pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="DRE_FULL=1 fills a server's disk too")
def test_full_disk_below_a_database_server():
    mariadbkit.needed()
    place = dboxkit.place()
    with small_disk(place, "420M"):
        server = mariadbkit.Server(place, "--innodb-temp-data-file-path=ibtmp1:12M:autoextend")
        box = mariadbkit.box(server, DRE_DBOX_RESERVE="0")
        ballast = place / "ballast"
        try:
            free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
            ballast.write_bytes(bytes(max(free - 24 * 1024 * 1024, 0)))
            for one, log, _ in fill(box, "", 2000):
                ballast.unlink()
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline:
                    try:
                        log.submit(one.writer, "app", one.seq, [b"there is room again"])
                        break
                    except Exception:  # the server retries for a while by itself
                        time.sleep(0.2)
            with log_of(box) as log, reader(box) as store:
                assert sum(1 for _ in store.walk()) == log.newest()[0].size
                known = store.known(one.writer, "app", 1, 10**9)
                assert {seq: known[seq].number for seq in one.acknowledged} == one.acknowledged
                assert one.seq in known
        finally:
            server.stop(9)
            dboxkit.remove(box)
    subprocess.run(["rm", "-rf", place], check=False)
