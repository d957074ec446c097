# SPDX-License-Identifier: Apache-2.0
"""dbox-put: files, batches of lines, requests that are made again, and a spool whose frames are chained."""

import gzip
import hashlib
import json
import os
import random
import subprocess
import time

import dboxkit
import pytest
from conftest import environment

box = dboxkit.box
KILLS = int(os.environ.get("DRE_KILLS", "2"))


def stored(box, stream="app"):
    """What the D-Box has of a stream, from its database: (seq, octets)."""
    import sqlite3

    query = "SELECT seq, octets FROM entry JOIN source ON source.number = entry.source WHERE stream = ?"
    with sqlite3.connect(box.database) as database:
        rows = database.execute(f"{query} ORDER BY entry.number", (stream,)).fetchall()
    database.close()
    return rows


def test_each_file_is_one_entry(box):
    box.start()
    names = [box.path / name for name in ("one", "two", "three")]
    for path in names:
        path.write_bytes(b"\x00octets of " + path.name.encode())
    rows = [json.loads(line) for line in box.good("dbox-put", "--json", *names).splitlines()]
    assert [(row["stream"], row["seq"]) for row in rows] == [("app", 1), ("app", 2), ("app", 3)]
    for row, path in zip(rows, names, strict=True):
        (box.path / "receipt").write_text(row["receipt"])
        box.good("dbox-verify", box.path / "receipt", path)
    # One that cannot be read: nothing of the others is recorded.
    for wrong, said in ((box.path / "none", b"none: No such file"), (box.path, b"Is a directory")):
        done = box.run("dbox-put", names[0], wrong)
        assert done.returncode == 2 and said in done.stderr
    (box.path / "empty").touch()
    assert box.run("dbox-put", names[0], box.path / "empty").returncode == 2
    assert len(stored(box)) == 3
    assert box.run("dbox-put", "--drain", names[0]).returncode == 2


def test_each_line_is_one_entry(box):
    box.start()
    lines = [b"line %d" % number for number in range(2500)]
    printed = box.good("dbox-put", "--batch", stdin=b"\n".join(lines) + b"\n\n")
    assert printed.count(b"c2sp.org/tlog-proof@v1\n") == 2500
    assert [octets for _, octets in stored(box)] == lines
    kept = sorted((box.state.parent / "spool/dbox/writer/receipts").iterdir())
    assert b"".join(map(gzip.decompress, (path.read_bytes() for path in kept))) == printed and len(kept) < 10
    (box.path / "receipt").write_bytes(b"c2sp" + printed.split(b"\nc2sp")[1234] + b"\n")
    box.good("dbox-verify", box.path / "receipt", "-", stdin=lines[1234])
    # NUL ends an entry that has newlines; the last one needs no end.
    assert box.good("dbox-put", "--batch", "-0", "--quiet", "--stream", "nul", stdin=b"a\nb\0c\n\0\0d") == b""
    assert stored(box, "nul") == [(1, b"a\nb"), (2, b"c\n"), (3, b"d")]
    assert box.run("dbox-put", "-0").returncode == 2


def test_a_request_made_again_is_recorded_once(box):
    put = ["dbox-put", "--request-id", "backup/2026-11-26"]
    done = box.run(*put, "--timeout", "1s", stdin=b"octets")
    assert done.returncode == 6 and b"waits as app 1" in done.stderr
    box.start()
    first = box.good(*put, stdin=b"octets")
    assert first and box.good(*put, stdin=b"octets") == first
    done = box.run(*put, stdin=b"other")
    assert done.returncode == 2 and b"was made before, with other octets" in done.stderr
    assert box.run("dbox-put", "--request-id", "a b", stdin=b"x").returncode == 2
    assert box.good("dbox-put", stdin=b"octets") != first
    assert stored(box) == [(1, b"octets"), (2, b"octets")]


def test_killed_batches_made_again_never_double(box):
    box.start()
    lines = [b"%d " % number + b"x" * random.Random(number).randrange(2000) for number in range(3000)]
    octets = b"\n".join(lines)
    for number in range(KILLS):
        child = subprocess.Popen(
            [dboxkit.program("dbox-put"), "--config", str(box.conf), "--batch", "--request-id", "run-1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        try:
            child.stdin.write(octets[: len(octets) * (number + 1) // (KILLS + 1)])
            child.stdin.flush()
            time.sleep(0.3 * random.random())
        except BrokenPipeError:
            pass
        child.kill()
        child.wait()
        child.stdin = None
    box.good("dbox-put", "--batch", "--request-id", "run-1", stdin=octets, timeout=120)
    found = [octets for _, octets in stored(box)]
    # A killed one may have been given half a line and no more; a whole line is there once.
    assert [one for one in found if one in set(lines)] == lines


def spool(box):
    from dre import conf
    from dre.spool import Spool

    return Spool(conf.load(str(box.conf)).core_state_dir / "spool/dbox/writer")


def frames(path):
    """Where each frame of version 2 begins and ends."""
    octets, found, at = path.read_bytes(), [], 0
    while at < len(octets):
        line = octets[at : octets.index(b"\n", at)]
        end = at + len(line) + 2 + int(line.split(b" ")[3])
        found.append(octets[at:end])
        at = end
    return found


def forged(frame, octets):
    """A frame with other octets and a sum that fits them."""
    words = frame.split(b"\n")[0].split(b" ")[1:-1]
    words[2] = b"%d" % len(octets)
    name = b" ".join(words)
    return b"dre-record/v2 %b %b\n%b\n" % (name, hashlib.sha256(name + b"\n" + octets).hexdigest().encode(), octets)


ATTACKS = {
    "control": (lambda all: all, None),
    "one rewritten": (lambda all: [*all[:2], forged(all[2], b"forged"), *all[3:]], b"chain broken"),
    "one removed": (lambda all: [*all[:2], *all[3:]], b"chain broken"),
    "first removed": (lambda all: all[1:], b"chain broken"),
    "two swapped": (lambda all: [all[0], all[2], all[1], *all[3:]], b"chain broken"),
    "one said twice": (lambda all: [*all[:2], all[1], *all[2:]], b"chain broken"),
    "octet flipped": (lambda all: [all[0], all[1].replace(b"record", b"rec0rd"), *all[2:]], b"damaged at octet"),
    "octet of the last flipped": (lambda all: [*all[:-1], all[-1].replace(b"record", b"rec0rd")], b"damaged at octet"),
    "line of the last changed": (lambda all: [*all[:-1], all[-1].replace(b"app", b"APP")], b"damaged at octet"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_changed_spool_is_refused(box, name):
    change, said = ATTACKS[name]
    here = spool(box)
    here.append("app", [b"record %d" % number for number in range(5)])
    path = here.directory / "records-1"
    path.write_bytes(b"".join(change(frames(path))))
    done = box.run("dbox-put", "--pending")
    assert (done.returncode == 0) is (said is None), done.stderr
    if said:
        assert said in done.stderr
        box.start()
        assert box.run("dbox-put", "--drain").returncode == 1
        assert stored(box) == []


def old(stream, seq, octets):
    name = f"{stream} {seq} {len(octets)}".encode()
    return b"dre-record/v1 %b %b\n%b\n" % (name, hashlib.sha256(name + b"\n" + octets).hexdigest().encode(), octets)


def test_an_older_spool_is_read_and_continued(box):
    here = spool(box)
    here.directory.mkdir(parents=True, exist_ok=True)
    delivered = old("app", 1, b"delivered")
    (here.directory / "records-1").write_bytes(delivered + old("app", 2, b"two") + old("script", 1, b"one"))
    (here.directory / "state").write_text(json.dumps({"file": 1, "offset": len(delivered), "acked": {"app": 1}}))
    assert here.append("app", [b"three"]) == [3]
    lines = [line.split() for line in box.good("dbox-put", "--pending").decode().splitlines()]
    assert lines == [["app", "2", "3"], ["script", "1", "3"], ["app", "3", "5"]]
    box.start()
    box.good("dbox-put", "--drain")
    assert (stored(box), stored(box, "script")) == ([(2, b"two"), (3, b"three")], [(1, b"one")])
    assert box.good("dbox-put", "--pending") == b"" == box.good("dbox-put", "--drain")


def test_the_chain_goes_on_in_the_next_file(box, monkeypatch):
    from dre import spool as module

    monkeypatch.setattr(module, "NEW_FILE", 1)
    here = spool(box)
    here.append("app", [b"one"], ["first"])
    (one,) = here.pending()
    state, run = here.next()
    here.delivered(state, run)
    assert not (here.directory / "records-1").exists()
    assert here.append("app", [b"one", b"two"], ["first", "second"]) == [1, 2]
    (frame,) = frames(here.directory / "records-2")
    assert frame.split(b" ")[5].decode() == one.sum
    assert spool(box).append("app", [b"two"], ["second"]) == [2]


def test_drain_says_that_records_still_wait(box):
    spool(box).append("app", [b"x"])
    done = box.run("dbox-put", "--drain", "--timeout", "1s")
    assert done.returncode == 6 and b"cannot be reached" in done.stderr
