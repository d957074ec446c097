# SPDX-License-Identifier: Apache-2.0
"""dre-ingest as it runs: socket, FIFO, spool and stdout, and what survives kill -9."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time

import pytest
from conftest import environment, program
from dre import conf, event


def until(what, timeout=10):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if got := what():
            return got
        time.sleep(0.01)
    raise AssertionError("timed out")


class Ingest:
    def __init__(self, config, *argv):
        self.config = config
        self.conf = conf.load(config)
        self.argv = argv
        self.out = self.conf.core_run_dir.parent / "out"
        self.start()

    def start(self):
        with open(self.out, "ab") as out:
            self.process = subprocess.Popen(
                [program("dre-ingest"), "--config", self.config, "--quiet", *self.argv], stdout=out, env=environment()
            )
        until(self.answers)

    def answers(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, contextlib.suppress(OSError):
            probe.connect(str(self.conf.monitor_sink))
            return True
        return False

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(10)

    def events(self):
        return [json.loads(line) for line in self.out.read_bytes().splitlines()]

    def fifo(self, octets):
        fd = os.open(self.conf.core_run_dir / "events", os.O_WRONLY)
        os.write(fd, octets)
        os.close(fd)


@pytest.fixture
def ingest(settings):
    made = Ingest(settings())
    yield made
    if made.process.poll() is None:
        made.stop(signal.SIGKILL)


def line(n, **optional):
    return event.format(event.Event(event.stamp(), "/host:h", "shop.release", 6, {"n": n}, optional))


def whole(path):
    """The lines of *path* that are neither empty nor a mark for the reader."""
    return [one for one in path.read_bytes().split(b"\n")[:-1] if one and not one.startswith(b"#resume ")]


def numbers(events):
    return [item["data"]["n"] for item in events if item["type"] == "shop.release"]


def test_socket_is_acknowledged_once_the_line_is_in_the_spool(ingest):
    assert event.send(ingest.conf.monitor_sink, line(1, id="one"), wait=5)
    assert event.find(ingest.conf, "one").data == {"n": 1}
    until(lambda: numbers(ingest.events()) == [1])
    assert ingest.events()[0].get("claimed", False) == (os.geteuid() != 0)


def test_fifo_is_always_claimed_and_bad_lines_are_counted_and_survived(ingest):
    ingest.fifo(b"rubbish\n" + line(1) + b"\x00\xff\n" + line(2)[:40] + line(3) + b'{"time":"half')
    until(lambda: numbers(ingest.events()) == [1, 3])
    assert all(item["claimed"] for item in ingest.events() if item["type"] == "shop.release")
    ingest.fifo(b"\n")
    report = until(lambda: [item for item in ingest.events() if item["type"] == "monitor.refused"])
    until(lambda: sum(item["data"]["count"] for item in ingest.events() if item["type"] == "monitor.refused") == 4)
    assert report[0]["data"]["where"] == "fifo"


def test_refused_datagram_is_answered_with_the_reason(ingest):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(str(ingest.conf.monitor_sink))
        client.send(b"nonsense")
        assert client.recv(1000).startswith(b"no: not JSON")
        client.send(line(1))
        assert client.recv(1000) == b"ok"


def test_what_was_spooled_while_nobody_answered_is_picked_up(ingest):
    ingest.stop()
    event.emit(ingest.conf, "shop.release", "/host:h", {"n": 1})
    spooled = ingest.conf.core_state_dir / "spool" / "event"
    own = "" if os.geteuid() == 0 else f"-{os.geteuid()}"
    (spooled / f"dropped{own}").write_text("7\n")
    ingest.start()
    until(lambda: numbers(ingest.events()) == [1])
    (report,) = until(lambda: [item for item in ingest.events() if item["type"] == "monitor.dropped"])
    assert report["data"]["count"] == 7
    assert list(spooled.glob("*.jsonl")) == [] and list(spooled.glob("dropped*")) == []


def test_an_event_sent_twice_is_kept_once(ingest):
    twice = line(1, id="twice")
    assert event.send(ingest.conf.monitor_sink, twice) and event.send(ingest.conf.monitor_sink, twice)
    assert event.send(ingest.conf.monitor_sink, line(2))
    until(lambda: 2 in numbers(ingest.events()))
    assert numbers(ingest.events()) == [1, 2]
    ingest.stop(signal.SIGKILL)
    ingest.start()
    assert event.send(ingest.conf.monitor_sink, twice) and event.send(ingest.conf.monitor_sink, line(3))
    until(lambda: 3 in numbers(ingest.events()))
    assert numbers(ingest.events()).count(1) == 1


def test_nothing_acknowledged_is_lost_over_kill_9(ingest):
    sent = 0
    for _ in range(4):
        for _ in range(50):
            assert event.send(ingest.conf.monitor_sink, line(sent), wait=5)
            sent += 1
        ingest.stop(signal.SIGKILL)
        ingest.start()
    until(lambda: set(numbers(ingest.events())) == set(range(sent)))


def test_a_signal_at_any_moment_does_not_stop_the_intake(settings, tmp_path):
    ingest = Ingest(settings(), "--resume", str(tmp_path / "resume"))
    try:
        for n in range(400):
            for _ in range(5):
                ingest.process.send_signal(signal.SIGHUP)  # as the supervisor does when it has a new reader
            assert event.send(ingest.conf.monitor_sink, line(n, id=f"id{n}"), 10.0)
        until(lambda: set(numbers([json.loads(one) for one in whole(ingest.out)])) == set(range(400)))
    finally:
        assert ingest.stop() == 0


def test_a_stalled_reader_does_not_hold_the_intake_up(settings, tmp_path):
    made = conf.load(settings())
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [program("dre-ingest"), "--config", settings(), "--quiet"], stdout=write_end, env=environment()
    )
    try:
        until(lambda: event.send(made.monitor_sink, line(0), wait=5))
        for number in range(1, 1000):  # three times what the pipe holds
            assert event.send(made.monitor_sink, line(number), wait=5)
        os.close(write_end)
        got = b""
        while got.count(b"\n") < 1000:
            got += os.read(read_end, 65536)
        assert numbers(map(json.loads, got.splitlines())) == list(range(1000))
    finally:
        process.kill()
        process.wait()
        os.close(read_end)


def test_history_is_not_told_again_when_nobody_knows_how_far_it_was_read(ingest):
    assert event.send(ingest.conf.monitor_sink, line(1), wait=5)
    until(lambda: numbers(ingest.events()) == [1])
    ingest.stop()
    (ingest.conf.core_state_dir / "spool" / "ingest" / "forwarded").unlink()
    ingest.start()
    assert event.send(ingest.conf.monitor_sink, line(2), wait=5)
    until(lambda: 2 in numbers(ingest.events()))
    assert numbers(ingest.events()) == [1, 2]


def test_a_second_intake_is_refused(ingest, run):
    done = run("dre-ingest", "--config", ingest.config)
    assert done.returncode == 5
    assert b"locked" in done.stderr


@pytest.fixture
def another(ingest, tmp_path):
    """What another user spools while no intake answers; he is in the group that may."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != path.parent and path.stat().st_mode & 0o7 == 0:
            path.chmod(path.stat().st_mode | 0o1)
    spooled = ingest.conf.core_state_dir / "spool" / "event"

    def emit(*words):
        os.chown(spooled, -1, 65534)  # whom the intake gives it to may be no group of this host
        spooled.chmod(0o3770)
        user = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        argv = [*user, program("dre-event"), "--config", ingest.config, "--send", "shop.release", *words]
        return subprocess.run(argv, env=environment(), capture_output=True)

    emit.spooled = spooled
    return emit


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another user")
def test_what_another_user_spooled_is_taken_in(ingest, another):
    """Where fs.protected_regular is set, as Debian has it, his lock may not be opened as one that is to be made."""
    for number in (1, 2):
        ingest.stop()
        done = another(f"n={number}")
        assert b"nobody answers; spooled in" in done.stderr, (number, done.stderr)
        assert {path.name for path in another.spooled.iterdir()} >= {"emitted-65534.jsonl", "lock-65534"}
        ingest.start()
        until(lambda number=number: number in numbers(ingest.events()))
    assert numbers(ingest.events()) == [1, 2]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another user")
def test_nothing_that_another_user_may_make_ends_the_intake(ingest, another, tmp_path):
    ingest.stop()
    for name in ("lock-1", "emitted-3.jsonl"):
        (another.spooled / name).mkdir()
    (another.spooled / "lock-2").symlink_to(tmp_path / "made")
    os.mkfifo(another.spooled / "lock-4")
    for user in (1, 2, 4):
        (another.spooled / f"emitted-{user}.jsonl").write_bytes(line(user))
        os.chown(another.spooled / f"emitted-{user}.jsonl", user, 65534)
    ingest.start()
    another("n=9")
    until(lambda: {4, 9} <= set(numbers(ingest.events())))
    until(lambda: [item for item in ingest.events() if item["type"] == "monitor.refused"])
    assert not (tmp_path / "made").exists() and {1, 2}.isdisjoint(numbers(ingest.events()))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as another user")
def test_another_users_spool_is_claimed_and_a_link_is_not_followed(ingest, tmp_path):
    spooled = ingest.conf.core_state_dir / "spool" / "event"
    (spooled / "emitted-65534.jsonl").write_bytes(line(1))
    os.chown(spooled / "emitted-65534.jsonl", 65534, 65534)
    secret = tmp_path / "secret"
    secret.write_bytes(line(2))
    (spooled / "emitted-1.jsonl").symlink_to(secret)
    until(lambda: numbers(ingest.events()) == [1])
    assert ingest.events()[0]["claimed"] is True
    until(lambda: [item for item in ingest.events() if item["type"] == "monitor.refused"])
    assert secret.exists() and 2 not in numbers(ingest.events())
