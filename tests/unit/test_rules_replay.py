# SPDX-License-Identifier: Apache-2.0
"""A replay of rules is bounded: what it may open, who it is, how long it takes and how much it holds."""

import ast
import contextlib
import os
import pathlib
import socket
import sys
import types

import pytest
from dre.errors import DreError, TimedOutError

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from monitorlib import replay  # noqa: E402


class Probe:
    """In place of a correlator: does in the confined process what *act* does, and writes what comes of it."""

    def __init__(self, act):
        self.act = act
        self.rules = types.SimpleNamespace(files=[])
        self.lines = self.refused = 0
        self.memory = types.SimpleNamespace(out=[], logged=[])

    def feed(self, lines):
        self.lines += len(lines)
        try:
            said = repr(self.act())
        except OSError as error:
            said = type(error).__name__ + os.strerror(error.errno)
        self.memory.out.append(types.SimpleNamespace(pipe="script", text=said.encode(), why=None))


def tried(act, **bounds):
    read, write = os.pipe()
    os.write(write, b"one\n")
    os.close(write)
    try:
        return list(replay.replay(Probe(act), read, lambda _: contextlib.nullcontext(), **bounds))
    finally:
        os.close(read)


FULL, NO_MORE = "Too many open files", "Resource temporarily unavailable"


@pytest.mark.parametrize(
    ("act", "refusal"),
    [
        (lambda: os.open("/etc/passwd", os.O_RDONLY), FULL),
        (lambda: os.open("/tmp/dre-rules-replay", os.O_WRONLY | os.O_CREAT), FULL),
        (lambda: socket.socket(), FULL),
        (lambda: os.fork() or os._exit(0), NO_MORE),
    ],
    ids=["read", "write", "network", "program"],
)
def test_nothing_can_be_opened_or_started(act, refusal):
    rows = tried(act)
    assert rows[0]["output"].endswith(refusal)
    assert rows[-1] == {"lines": 1, "refused": 0, "slow": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_becomes_nobody_who_matters():
    said = tried(lambda: (*os.getresuid(), *os.getresgid(), os.getgroups()))[0]["output"]
    *ids, groups = ast.literal_eval(said)
    assert len(ids) == 6 and 0 not in ids and groups == []


def test_time_is_bounded():
    def turn():
        while True:
            pass

    with pytest.raises(TimedOutError, match="more than 1 s"):
        tried(turn, seconds=1)


def test_memory_is_bounded():
    with pytest.raises(DreError, match="more than 256 MiB"):
        tried(lambda: len(bytearray(1 << 29)), octets=1 << 28)


def test_a_replay_that_nobody_reads_is_ended():
    read, write = os.pipe()
    os.write(write, b"one\n")
    rows = replay.replay(Probe(os.getpid), read, lambda _: contextlib.nullcontext())
    pid = int(next(rows)["output"])  # it waits for more events now
    rows.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    os.close(read)
    os.close(write)
