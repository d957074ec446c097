# SPDX-License-Identifier: Apache-2.0
"""The module dre.dbox as its page shows it: the examples of the page are run, and what a reader gets is verified."""

import re
import subprocess
import sys

import dboxkit
import pytest
from conftest import ROOT, environment

box = dboxkit.box
PAGE = ROOT / "dre-core/man/dre.dbox.3.rst"


def blocks():
    """The literal blocks of the page."""
    return [re.sub("(?m)^    ", "", block) for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", PAGE.read_text())]


def run(box, text, stdin=b""):
    text = text.replace("conf.load(None)", f"conf.load({str(box.conf)!r})").replace('"myprogram"', '"writer"')
    done = subprocess.run(
        [sys.executable, "-c", text], input=stdin, capture_output=True, env=environment(), check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    return done


def test_the_synopsis(box):
    box.start()
    for number in range(3):
        box.put(b"earlier %d" % number, client="second")
    run(box, blocks()[0] + "\nassert receipt and entry.octets and list(rows)[-1]['seq'] == number, (receipt, entry)\n")


def test_the_example(box):
    text = blocks()[1]
    assert b"3 records wait: D-Box at" in run(box, text, b"one\ntwo\nthree\n").stderr
    box.start()
    assert run(box, text, b"one\ntwo\nthree\nfour\n").stderr == b""
    rows = box.good("dbox-get", "--json", "--search", "stream=app").splitlines()
    assert len(rows) == 4


def test_search_gives_all_and_get_verifies(box):
    from dre import dbox
    from dre.errors import NotFoundError, NotPermittedError
    from dre.evidence import VerifyError

    box.start()
    box.good("dbox-put", "--batch", "--quiet", stdin=b"".join(b"line %d\n" % number for number in range(2300)))
    client = dbox.Client(box.settings(), "reader")
    rows = list(client.search(stream="app"))
    assert [row["seq"] for row in rows] == list(range(1, 2301))
    assert len(list(client.search(stream="app", limit=7))) == 7
    entry = client.get(rows[1234]["index"])
    assert (entry.octets, entry.header.seq, entry.index) == (b"line 1234", 1235, rows[1234]["index"])
    assert client.verify(entry.receipt, entry.octets) == entry.header
    with pytest.raises(VerifyError, match="octets do not match"):
        client.verify(entry.receipt, b"other")
    with pytest.raises(NotFoundError):
        client.get(10**9)
    writer = dbox.Client(box.settings(), "writer")
    with pytest.raises(NotPermittedError):
        writer.get(1)
    client.close()
    writer.close()


def test_a_run_has_one_receipt_that_gives_those_of_all(box):
    from dre import dbox

    box.start()
    recorder = dbox.Recorder(box.settings(), "writer")
    assert recorder.record_all("app", [b"%d" % number for number in range(500)]) == list(range(1, 501))
    assert recorder.drain(30) == 500
    for number in (1, 250, 500):
        (box.path / "receipt").write_bytes(recorder.receipt("app", number))
        box.good("dbox-verify", box.path / "receipt", "-", stdin=b"%d" % (number - 1))
    assert recorder.receipt("app", 501) is None
