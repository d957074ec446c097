# SPDX-License-Identifier: Apache-2.0
"""Records wait while the D-Box is away and arrive later: in order, without gap or double, whoever is killed."""

import json
import subprocess
import sys
import threading
import time

import dboxkit
import pytest
from conftest import environment

box = dboxkit.box


def recorder(box, client="writer"):
    from dre import dbox

    return dbox.Recorder(box.settings(), client)


def delivered(box, stream):
    """(seq, octets) of a stream in the order of the log."""
    rows = map(json.loads, box.good("dbox-get", "--json", "--search", f"stream={stream}").splitlines())
    return [(row["seq"], box.good("dbox-get", row["index"], "--octets")) for row in rows]


def test_records_wait_and_arrive_in_order(box):
    from dre.errors import DreError

    spool = recorder(box)
    assert [spool.record("script", b"s%d" % number) for number in range(1, 6)] == [1, 2, 3, 4, 5]
    assert spool.record("app", b"a1") == 1
    assert spool.record("script", b"s6") == 6
    with pytest.raises(DreError, match="cannot be reached"):
        spool.drain(1.0)
    assert (spool.pending(), recorder(box).pending()) == (7, 7)
    box.start()
    assert spool.drain() == 7
    assert (spool.pending(), spool.drain()) == (0, 0)
    assert delivered(box, "script") == [(number, b"s%d" % number) for number in range(1, 7)]
    assert delivered(box, "app") == [(1, b"a1")]
    (box.path / "receipt").write_bytes(spool.receipt("script", 4))
    box.good("dbox-verify", box.path / "receipt", "-", stdin=b"s4")
    assert recorder(box).record("script", b"s7") == 7


def test_put_says_that_the_record_waits(box):
    done = box.run("dbox-put", "--timeout", "1s", stdin=b"early")
    assert done.returncode == 6 and b"waits as app 1" in done.stderr and done.stdout == b""
    box.start()
    box.put(b"late")
    assert delivered(box, "app") == [(1, b"early"), (2, b"late")]


WRITER = """
import sys
from dre import conf, dbox
spool = dbox.Recorder(conf.load(sys.argv[1]), "writer")
while True:
    print(spool.record("app", b"x" * 3000), flush=True)
"""


def test_killed_recorders_leave_no_gap_and_lose_nothing(box):
    said = 0
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(box.conf)], stdout=subprocess.PIPE, env=environment()
        )
        lines = [int(writer.stdout.readline())]
        time.sleep(0.05)
        writer.kill()
        lines += map(int, writer.stdout.read().split())
        writer.wait()
        # What a killed writer had made durable but not told of still has its number.
        assert lines == list(range(lines[0], lines[0] + len(lines))) and lines[0] in (said + 1, said + 2)
        said = lines[-1]
    pending = recorder(box).pending()
    assert pending in (said, said + 1)
    box.start()
    assert recorder(box).drain(60.0) == pending
    rows = [line.split() for line in box.good("dbox-get", "--search", "stream=app").decode().splitlines()]
    assert [int(row[3]) for row in rows] == list(range(1, len(rows) + 1))


def test_delivery_without_its_acknowledgement_is_recognised(box):
    """The spool as a drain leaves it that was killed after the D-Box had written: everything is sent again."""
    box.start()
    spool = recorder(box)
    for number in range(3):
        spool.record("app", b"%d" % number)
    state = spool.directory / "state"
    spool.drain()
    state.unlink()
    assert spool.pending() == 3
    assert recorder(box).drain() == 3
    assert delivered(box, "app") == [(1, b"0"), (2, b"1"), (3, b"2")]


def test_a_torn_tail_is_cut_and_damage_is_named(box):
    from dre.errors import DreError

    spool = recorder(box)
    for number in range(3):
        spool.record("app", b"record %d" % number)
    path = spool.directory / "records-1"
    whole = path.read_bytes()
    for rest in (b"dre-rec", b"dre-record/v1 app 4 100 " + b"0" * 64 + b"\nshort", b"\0" * 300):
        path.write_bytes(whole + rest)
        fresh = recorder(box)
        assert fresh.pending() == 3
        assert fresh.record("app", b"record 3") == 4
        path.write_bytes(whole)
    path.write_bytes(whole.replace(b"record 1", b"record X"))
    with pytest.raises(DreError, match="damaged at octet"):
        recorder(box).record("app", b"more")


def test_threads_may_record_while_one_drains(box):
    box.start()
    spool = recorder(box)
    numbers, errors = [], []

    def record():
        try:
            numbers.extend([spool.record("app", b"x") for _ in range(6)])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=record) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        spool.drain()
    spool.drain()
    assert not errors and sorted(numbers) == list(range(1, 19))
    assert [seq for seq, _ in delivered(box, "app")] == list(range(1, 19))
