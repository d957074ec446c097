# SPDX-License-Identifier: Apache-2.0
"""The FIFO of dscript: a flood does not hold up what else is to be done, and lines come whole."""

import os
import pathlib
import sys
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dscript"))

from dscriptlib.fifo import Fifo  # noqa: E402


@pytest.fixture
def fifo(tmp_path):
    made = Fifo(tmp_path / "script", lambda text: None)
    yield made
    made.close()


def test_lines_come_whole_and_one_too_long_is_cut(fifo):
    out = os.open(fifo.path, os.O_WRONLY)
    os.write(out, b"one\ntw")
    assert list(fifo.lines()) == [b"one"]
    os.write(out, b"o\n" + b"x" * 5000 + b"\nthree\n")
    found = list(fifo.lines())
    assert (found[0], found[-1]) == (b"two", b"three") and len(found) == 3
    assert list(fifo.lines()) == []
    os.close(out)


def test_a_flood_leaves_a_turn_for_everything_else(fifo):
    ended = threading.Event()

    def flood():
        out = os.open(fifo.path, os.O_WRONLY)
        while not ended.is_set():
            os.write(out, b"a line that comes again and again\n" * 100)
        os.close(out)

    writer = threading.Thread(target=flood)
    writer.start()
    try:
        turns = []
        while len(turns) < 3:
            count = 0
            for _ in fifo.lines():
                count += 1
                assert count < 10_000, "it never ends"
            turns += [count] if count else []
    finally:
        ended.set()
        while writer.is_alive():
            list(fifo.lines())
        writer.join()
