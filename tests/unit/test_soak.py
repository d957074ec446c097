# SPDX-License-Identifier: Apache-2.0
"""The soak judges by what it finds: for each invariant, a broken state is told and a whole one is not."""

import base64
import hashlib
import io
import pathlib
import sys
import tarfile

import pytest

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[2] / directory) for directory in ("soak", "demo")]

from soaklib import faults, invariants, processes  # noqa: E402
from soaklib.invariants import Absences, Log, Sample  # noqa: E402


def entry(number, octets=None):
    octets = octets or b"record %d" % number
    return b"dre-entry/v1\nseq %d\ndigest sha256 %s\n" % (number, hashlib.sha256(octets).hexdigest().encode()), octets


def log(count, *sizes):
    """A log of *count* entries with true heads of *sizes*, by our own product's tree."""
    from dre import evidence

    entries = [entry(number) for number in range(count)]
    tree = evidence.Tree()
    tree.append(evidence.leaf_hash(header) for header, _ in entries)
    return Log(entries, [(size, tree.root(size)) for size in (*sizes, count)])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 100])
def test_two_makers_of_the_tree_agree(count):
    whole = log(count, *range(1, count))
    assert invariants.false_heads(whole, [whole.heads[0]]) == []


def test_a_changed_removed_or_exchanged_entry_is_told():
    whole = log(9, 4)
    seen = [whole.heads[0]]
    assert invariants.false_entries(whole) == []
    changed = Log([*whole.entries[:2], (whole.entries[2][0], b"other"), *whole.entries[3:]], whole.heads)
    assert "octets" in invariants.false_entries(changed)[0]
    for entries in (
        whole.entries[:-1],
        [entry(99), *whole.entries[1:]],
        [whole.entries[1], whole.entries[0], *whole.entries[2:]],
    ):
        assert invariants.false_heads(Log(entries, whole.heads), seen)
    other = log(9, 4).heads[0][0], b"\0" * 32
    assert invariants.false_heads(whole, [other]) == ["the witness saw another tree of size 4"]
    assert invariants.false_heads(whole, [(10, other[1])]) == ["the witness saw another tree of size 10"]
    assert invariants.false_heads(whole, []) == ["no witness has seen the log"]
    assert invariants.false_heads(Log(whole.entries, whole.heads[:1]), seen) == ["no tree head covers the 9 entries"]


def test_an_export_is_read_as_its_page_says():
    whole = log(3)
    notes = [f"log\n{size}\n{base64.b64encode(root).decode()}\n\n- x\n".encode() for size, root in whole.heads]
    entries = [part for header, octets in whole.entries for part in (header, b"", octets)]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, rows in {"heads-0": notes, "entries-0": entries}.items():
            octets = b"".join(len(row).to_bytes(4, "big") + row for row in rows)
            member = tarfile.TarInfo(name)
            member.size = len(octets)
            tar.addfile(member, io.BytesIO(octets))
    stream.seek(0)
    read = invariants.read_log(stream)
    assert (list(read.entries), list(read.heads)) == (whole.entries, whole.heads)


def test_a_lost_or_doubled_record_is_told():
    whole = log(5)
    acknowledged = {number: octets for number, (_, octets) in enumerate(whole.entries)}
    assert invariants.lost_records(acknowledged, [b"never came"], whole) == []
    lost = invariants.lost_records({**acknowledged, 5: b"record 5"}, [], whole)
    assert lost == ["acknowledged records are not in the log: 5 (1)"]
    assert "not in the log: 2 (1)" in invariants.lost_records({2: b"other"}, [], whole)[0]
    twice = Log([*whole.entries, entry(5, b"record 1"), entry(6, b"unsure"), entry(7, b"unsure")], [])
    assert "twice" in invariants.lost_records(acknowledged, [], twice)[0]
    assert "unsure" in invariants.lost_records({}, [b"unsure"], twice)[0]


def test_a_receipt_without_its_entry_is_told():
    whole = log(4)
    header = base64.b64encode(whole.entries[2][0])
    text = b"c2sp.org/tlog-proof@v1\nextra %s\nindex 2\n\nlog\n4\nroot\n" % header
    assert invariants.receipts(text * 2) == [(2, whole.entries[2][0])] * 2
    assert invariants.lost_receipts(invariants.receipts(text), whole) == []
    assert invariants.lost_receipts(invariants.receipts(text.replace(b"index 2", b"index 1")), whole)
    assert invariants.lost_receipts(invariants.receipts(text.replace(b"index 2", b"index 4")), whole)


def test_a_lost_order_or_event_is_told():
    assert invariants.lost("orders", [1, 2, 3], {1, 2, 3, 4}) == []
    assert invariants.lost("orders", [1, 2, 3], {1, 3}) == ["acknowledged orders are lost: 2 (1)"]
    assert invariants.lost("orders", [1, 1], {1}) == ["orders were acknowledged twice"]


def test_a_response_without_an_end_is_told():
    begun, done = ({"type": f"script.{what}", "data": {"run": "r1"}} for what in ("step.begun", "response.done"))
    assert invariants.unfinished([begun, done]) == []
    assert invariants.unfinished([begun]) == ["responses were begun and have no end: r1 (1)"]


def test_what_stays_away_is_told_and_what_comes_back_in_time_is_not():
    seen = Absences()
    for now in range(0, 200, 10):
        seen.note(float(now), {"dscript"} if now % 80 else set())
    assert seen.broken() == [] and 50 < seen.longest["dscript"] < invariants.ABSENT
    for now in range(200, 320, 10):
        seen.note(float(now), {"keep"})
    assert seen.broken() == ["keep was away for 110 s"]


def samples(rate, what="memory", step=10, life=10_000, jump=0.0):
    """An hour of a process that grows by *rate* an hour and is replaced after *life* seconds, *jump* larger."""
    found = []
    for time in range(0, 3600, step):
        lives, age = divmod(time, life)
        value = (rate * age / 3600 + jump * lives, 0)
        value = value if what == "memory" else value[::-1]
        found.append(Sample("dboxd", lives, time, age, int(50e6 + value[0]), int(20 + value[1])))
    return found


def test_growth_is_told_within_a_life_and_over_lives():
    assert invariants.grown(invariants.growth(samples(1e6))) == []
    assert invariants.grown(invariants.growth(samples(40e6)))[0].startswith("memory of dboxd grew")
    assert invariants.grown(invariants.growth(samples(100, "descriptors")))[0].startswith("descriptors of dboxd")
    assert invariants.grown(invariants.growth(samples(40e6, life=900))), "a leak shows though the process is replaced"
    assert invariants.grown(invariants.growth(samples(0, life=300, jump=3e6))), "each life begins with more"
    assert invariants.growth(samples(40e6, life=100)) and not invariants.growth(samples(40e6)[:8])


def test_what_is_left_behind_is_told():
    assert invariants.leaked("mounts", ["a", "b"], ["b"]) == []
    assert invariants.leaked("mounts", ["a"], ["a", "c", "d"]) == ["mounts left behind: c, d (2)"]
    assert invariants.leaked("processes", ["a"], ["a", "a"]), "one more of the same"


def test_too_few_faults_are_told():
    enough = dict.fromkeys(faults.KINDS, 100)
    assert invariants.too_few(enough, faults.KINDS, 3600) == []
    assert invariants.too_few({"app": 400}, ["app"], 3600) == ["only 400 faults in 3600 s"]
    assert invariants.too_few(enough | {"disk": 0}, faults.KINDS, 3600) == ["no fault of the kind disk"]


def test_faults_come_from_the_seed_at_the_rate_that_was_promised():
    hour = faults.plan(1, 3600)
    assert len(hour) >= 1.2 * invariants.LEAST, "some find nobody"
    assert hour == faults.plan(1, 3600) != faults.plan(2, 3600)
    assert faults.plan(1, 360) == [fault for fault in hour if fault.at < 360]
    assert {fault.kind for fault in hour} == set(faults.KINDS)
    assert [fault.number for fault in hour] == list(range(len(hour)))


def test_each_service_is_spared_for_a_while_and_not_for_ever():
    from soaklib import services

    always = set(services.COMMANDS)
    for name in services.COMMANDS:
        free = [share / 10 for share in range(10) if name not in faults.spared(share / 10)]
        assert 0.4 <= 1 - len(free) / 10 < 1 and free
    assert all(always - set(faults.spared(share / 100)) for share in range(100))


def test_processes_are_read_as_the_kernel_tells_them():
    import os

    found = processes.table()
    assert found[os.getpid()].parent == os.getppid()
    assert found[os.getpid()] in processes.family(found, os.getppid())
    assert processes.memory(os.getpid()) > 1 << 20 and processes.descriptors(os.getpid()) >= 3
    made = {
        1: processes.Process(1, 0, 0, "init", ("init",)),
        2: processes.Process(2, 1, 0, "lxc-start", ("[lxc monitor] /var/lib/lxc shop-web",)),
        3: processes.Process(3, 2, 0, "sh", ("/bin/sh",)),
        4: processes.Process(4, 3, 0, "apache2", ("/usr/sbin/apache2",)),
    }
    assert [one.pid for one in processes.inside(made, "shop-web")] == [3, 4]
    assert processes.inside(made, "web") == [] and processes.of_apps(made, ["shop-web"]) == {2, 3, 4}
