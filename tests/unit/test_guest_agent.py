# SPDX-License-Identifier: Apache-2.0
"""The VM ring's client of QEMU's agent and monitor, against answers that are stale, late, in pieces or errors."""

import base64
import json
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "vm"))

import qapi  # noqa: E402  (the VM ring's own module)


class Peer:
    """The other end: *answer* gets each message and its connection, and sends what it likes."""

    def __init__(self, path, answer, greeting=b""):
        self.path, self.answer, self.greeting, self.heard = path, answer, greeting, []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        connection, _ = self.listener.accept()
        connection.sendall(self.greeting)
        with connection.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line.lstrip(b"\xff"))
                self.heard.append(message)
                self.answer(message, connection)
        connection.close()

    def end(self):
        self.listener.close()


@pytest.fixture
def peer(tmp_path):
    peers = []

    def make(answer, greeting=b""):
        peers.append(Peer(tmp_path / "socket", answer, greeting))
        return peers[0].path

    yield make
    for one in peers:
        one.end()


def reply(connection, value, key="return", prefix=b""):
    connection.sendall(prefix + json.dumps({key: value}).encode() + b"\n")


def synchronised(message, connection):
    """Answer a sync; True when it was one."""
    if message["execute"] != "guest-sync-delimited":
        return False
    reply(connection, message["arguments"]["id"], prefix=b"\xff")
    return True


def test_stale_answers_before_the_sync_are_passed_over(peer):
    def answer(message, connection):
        if message["execute"] == "guest-sync-delimited":
            connection.sendall(b'{"return": {"exited": true}}\nhalf an ans\xff{"return": 1}\n')
            reply(connection, message["arguments"]["id"])  # the number alone, without the mark, is not enough
            synchronised(message, connection)
        else:
            reply(connection, "fresh")

    agent = qapi.Agent(peer(answer))
    assert agent.ask("guest-info") == "fresh"
    agent.close()


def test_sync_is_asked_again_until_the_agent_has_started(peer):
    asked = []

    def answer(message, connection):
        asked.append(message)
        if len(asked) > 1:
            synchronised(message, connection)

    agent = qapi.Agent(peer(answer))
    agent.sync(timeout=20, patience=0.1)
    assert len(asked) == 2
    agent.close()


def test_an_answer_that_comes_too_late_is_not_taken_for_the_next(peer):
    late = []

    def answer(message, connection):
        if message["execute"] == "guest-slow":
            late.append(message)
            return
        if late:  # it comes now, before the sync's answer
            reply(connection, "too late")
            late.clear()
        if not synchronised(message, connection):
            reply(connection, "the right one")

    agent = qapi.Agent(peer(answer))
    with pytest.raises(TimeoutError):
        agent.ask("guest-slow", timeout=0.2)
    assert agent.ask("guest-info") == "the right one"
    agent.close()


def test_an_answer_in_pieces_is_put_together(peer):
    def answer(message, connection):
        if not synchronised(message, connection):
            for octet in json.dumps({"return": "näh"}).encode() + b"\n":
                connection.sendall(bytes([octet]))

    agent = qapi.Agent(peer(answer))
    assert agent.ask("guest-info") == "näh"
    agent.close()


def test_an_error_is_refused_with_its_words(peer):
    def answer(message, connection):
        if not synchronised(message, connection):
            reply(connection, {"class": "GenericError", "desc": "no such file"}, key="error")

    agent = qapi.Agent(peer(answer))
    with pytest.raises(qapi.Refused, match="no such file"):
        agent.ask("guest-file-open", path="/nowhere")
    agent.close()


def test_the_end_of_the_other_side_is_told_at_once(peer):
    def answer(message, connection):
        if not synchronised(message, connection):
            connection.shutdown(socket.SHUT_RDWR)

    agent = qapi.Agent(peer(answer))
    begun = time.monotonic()
    with pytest.raises(ConnectionError):
        agent.ask("guest-info", timeout=30)
    assert time.monotonic() - begun < 20
    agent.close()


def test_nobody_there(tmp_path):
    with pytest.raises(TimeoutError, match="nobody listens"):
        qapi.Agent(tmp_path / "socket", timeout=0.1)


def executing(results, begun):
    """Answers guest-exec by noting it in *begun*, and guest-exec-status by the next of *results*."""

    def answer(message, connection):
        if synchronised(message, connection):
            return
        if message["execute"] == "guest-exec":
            begun.append(message["arguments"])
            reply(connection, {"pid": 77})
        else:
            assert message["arguments"] == {"pid": 77}
            reply(connection, results.pop(0))

    return answer


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def test_call_gives_what_the_program_gave(peer):
    begun = []
    results = [
        {"exited": False},
        {"exited": True, "exitcode": 3, "out-data": encoded("out\n"), "err-data": encoded("err\n")},
    ]
    agent = qapi.Agent(peer(executing(results, begun)))
    done = agent.call(["ls", "/a b"], timeout=9, stdin=b"\0in", WORD="x")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert begun[0]["arg"][-3:] == ["9", "ls", "/a b"]
    assert base64.b64decode(begun[0]["input-data"]) == b"\0in"
    assert "WORD=x" in begun[0]["env"] and f"PATH={qapi.PATH}" in begun[0]["env"]
    agent.close()


def test_call_tells_a_signal_and_its_own_timeout_from_a_status(peer):
    results = [
        {"exited": True, "signal": 11},
        {"exited": True, "exitcode": 124},  # at once: the program's own status
        {"exited": False},
        {"exited": True, "exitcode": 124, "out-data": encoded("so far")},
    ]
    agent = qapi.Agent(peer(executing(results, [])))
    assert agent.call("true").returncode == 139
    assert agent.call("exit 124").returncode == 124
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        agent.call("sleep 9", timeout=0.001)
    assert caught.value.output == "so far"
    agent.close()


def test_the_monitor_passes_over_events_and_waits_for_the_migration(peer):
    states = ["setup", "active", "completed"]

    def answer(message, connection):
        connection.sendall(b'{"event": "STOP", "timestamp": {}}\n')
        if message["execute"] == "query-migrate":
            reply(connection, {"status": states.pop(0)})
        else:
            reply(connection, {})

    monitor = qapi.Monitor(peer(answer, b'{"QMP": {}}\n'))
    monitor("migrate", uri="exec:cat")
    monitor.migrated(timeout=20)
    assert states == []
    monitor.close()


def test_a_failed_migration_is_refused(peer):
    def answer(message, connection):
        failed = message["execute"] == "query-migrate"
        reply(connection, {"status": "failed", "error-desc": "no room"} if failed else {})

    monitor = qapi.Monitor(peer(answer, b'{"QMP": {}}\n'))
    with pytest.raises(qapi.Refused, match="no room"):
        monitor.migrated(timeout=20)
    monitor.close()
