# SPDX-License-Identifier: Apache-2.0
"""Killed by SIGKILL at any moment, dboxd loses no acknowledged entry, makes none twice, and goes on."""

import os
import random
import subprocess
import threading

import dboxkit

box = dboxkit.box
ROUNDS = 6 if os.environ.get("DRE_FULL") == "1" else 3


def write(box, client, acknowledged, stop):
    """Send numbered records one after another until the server dies; keep what was acknowledged."""
    from dre import dbox
    from dre.errors import DreError

    sender = dbox.Client(box.settings(), client)
    sender.directory.mkdir(parents=True, exist_ok=True)
    seq = max(acknowledged, default=0) + 1
    try:
        while not stop.is_set():
            run = [b"%s %d" % (client.encode(), number) for number in range(seq, seq + random.choice([1, 1, 3, 20]))]
            for receipt in sender.append("app", seq, run):
                acknowledged[seq] = receipt
                seq += 1
    except DreError:
        pass  # it was killed
    finally:
        sender.close()


def test_acknowledged_entries_survive_sigkill(box):
    from dre import evidence

    kept = {"writer": {}, "second": {}}
    for _ in range(ROUNDS):
        box.start()
        stop = threading.Event()
        threads = [threading.Thread(target=write, args=(box, name, kept[name], stop)) for name in kept]
        for thread in threads:
            thread.start()
        threading.Event().wait(random.uniform(0.05, 0.6))
        box.stop(9)
        stop.set()
        for thread in threads:
            thread.join()
    assert all(kept.values()), "nothing was written: the test proves nothing"
    box.start()
    # Continue where the last acknowledgement was: what was written but not acknowledged must be recognised.
    for name in kept:
        last = max(kept[name])
        append(box, name, range(last + 1, last + 25))
    from dre import dbox

    reader = dbox.Client(box.settings(), "reader")
    reader.directory.mkdir(parents=True, exist_ok=True)
    head = reader.see(evidence.parse_note(reader.request("GET", "/v1/checkpoint").decode()))
    rows = [line.split() for line in box.good("dbox-get", "--list").decode().splitlines()]
    assert len(rows) == head.size and [int(row[0]) for row in rows] == list(range(head.size))
    for name, receipts in kept.items():
        for seq, receipt in receipts.items():
            octets = reader.request("GET", f"/v1/entries/{receipt.index}/octets")
            assert octets == b"%s %d" % (name.encode(), seq)
            reader.check(evidence.parse_receipt(reader.request("GET", f"/v1/entries/{receipt.index}/proof")), octets)
            # The old receipt still holds too, and its tree is the beginning of the present one.
            reader.check(receipt, octets)
        writer = evidence.parse_header(next(iter(receipts.values())).header).writer
        numbers = [int(row[3]) for row in rows if row[-1] == writer and row[2] == "app"]
        assert numbers == list(range(1, max(receipts) + 25))
    oldest = min((receipt for receipts in kept.values() for receipt in receipts.values()), key=lambda one: one.index)
    before = evidence.parse_head(oldest.note.text)
    path = dbox.unframe(reader.request("GET", f"/v1/consistency?old={before.size}&new={head.size}"))
    evidence.verify_consistency(before.size, before.root, head.size, head.root, path)
    reader.close()


def append(box, name, numbers):
    """Send these records, each by itself."""
    from dre import dbox

    sender = dbox.Client(box.settings(), name)
    try:
        for seq in numbers:
            sender.append("app", seq, [b"%s %d" % (name.encode(), seq)])
    finally:
        sender.close()


def limit_files(pid, size):
    """Set the soft limit as the user of the process, which needs no privilege; root may lack CAP_SYS_RESOURCE."""
    owner = os.stat(f"/proc/{pid}")
    argv = ["prlimit", "--pid", str(pid), f"--fsize={size}:"]
    subprocess.run(argv, user=owner.st_uid, group=owner.st_gid, extra_groups=[], check=True)


def test_full_disk_is_an_error_and_not_a_loss(box):
    """A file size limit stands for the full disk: the batch is refused, nothing half is left, and reading goes on."""
    box.start()
    first = box.put(b"before")
    limit_files(box.sequencer(), "200000")
    done = box.run("dbox-put", stdin=b"x" * 1_000_000)
    assert done.returncode == 6 and b"not written" in done.stderr and b"waits as app 2" in done.stderr
    before = box.good("dbox-get", "--list")
    limit_files(box.sequencer(), "unlimited")
    assert box.put(b"after")
    after = box.good("dbox-get", "--list").decode().splitlines()
    assert after[: len(before.splitlines())] == before.decode().splitlines()
    assert [line.split()[3] for line in after if line.split()[2] == "app"] == ["1", "2", "3"]
    assert first
