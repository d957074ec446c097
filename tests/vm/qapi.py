# SPDX-License-Identifier: Apache-2.0
"""QEMU's two conversations, both JSON lines on a Unix socket: its monitor (QMP) and the agent in the guest (QGA).

Every call has a deadline. It knows nothing of images, saved states or tests.
"""

import base64
import contextlib
import json
import secrets
import socket
import subprocess
import time

CHUNK = 1 << 19  # octets of a file in one message; the agent reads 4 KiB at a time
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "USER": "root", "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}
GRACE = 20  # seconds between the guest's own time-out of a command and ours

# The agent waits for the last one who has a program's stdout, however long that daemon lives: so it gets files instead.
WRAPPER = """
place=$(mktemp -d /run/call.XXXXXX)
timeout --kill-after=5 "$@" >$place/out 2>$place/err
code=$?
cat $place/err >&2
cat $place/out
rm -r $place
exit $code
"""


class Refused(Exception):
    """The other side answered, and its answer is an error."""


class Wire:
    """Lines of JSON on a Unix stream socket."""

    def __init__(self, path, deadline):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.rest = b""
        while True:
            try:
                self.socket.connect(str(path))
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    self.socket.close()
                    raise TimeoutError(f"nobody listens at {path}") from None
                time.sleep(0.02)

    def close(self):
        self.socket.close()

    def send(self, message, deadline, prefix=b""):
        self._wait_until(deadline)
        self.socket.sendall(prefix + json.dumps(message).encode() + b"\n")

    def line(self, deadline):
        """The octets of the next line. Raises TimeoutError, and ConnectionError at the end of the stream."""
        while b"\n" not in self.rest:
            self._wait_until(deadline)
            octets = self.socket.recv(1 << 16)
            if not octets:
                raise ConnectionError("QEMU has ended")
            self.rest += octets
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def _wait_until(self, deadline):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self.socket.settimeout(left)


def value(answer):
    """What an answer returns. Raises Refused."""
    if "error" in answer:
        raise Refused(answer["error"].get("desc", str(answer["error"])))
    return answer["return"]


class Monitor:
    """QMP: stop, continue, save and restore the machine."""

    def __init__(self, path, timeout=120):
        self.wire = Wire(path, time.monotonic() + timeout)
        json.loads(self.wire.line(time.monotonic() + timeout))  # the greeting
        self("qmp_capabilities", timeout=timeout)

    def __call__(self, command, timeout=120, **arguments):
        """Run one command; events that come before its answer are passed over."""
        deadline = time.monotonic() + timeout
        self.wire.send({"execute": command, "arguments": arguments}, deadline)
        while True:
            answer = json.loads(self.wire.line(deadline))
            if "event" not in answer:
                return value(answer)

    def migrated(self, timeout):
        """Wait until the migration under way, out or in, has come to its end. Raises Refused and TimeoutError."""
        deadline = time.monotonic() + timeout
        while True:
            state = self("query-migrate", timeout=max(0.1, deadline - time.monotonic()))
            if state.get("status") == "completed":
                return
            if state.get("status") in ("failed", "cancelled"):
                raise Refused(state.get("error-desc", "the migration failed"))
            time.sleep(0.02)

    def close(self):
        self.wire.close()


class Agent:
    """QGA: run programs in the guest, read and write its files.

    An answer may come after its asker gave up. So a conversation begins, and begins again after a time-out, with
    guest-sync-delimited: what is not marked with its number is stale.
    """

    def __init__(self, path, timeout=120):
        self.wire = Wire(path, time.monotonic() + timeout)
        self.synchronised = False

    def sync(self, timeout=120, patience=5):
        """Ask, every *patience* seconds, until the agent answers to this very question: it may not have started yet."""
        deadline = time.monotonic() + timeout
        while True:
            number = secrets.randbelow(1 << 31)
            self.wire.send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, deadline, prefix=b"\xff")
            with contextlib.suppress(TimeoutError):
                if self._synchronised(number, min(deadline, time.monotonic() + patience)):
                    self.synchronised = True
                    return
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest agent did not answer in {timeout} s")

    def _synchronised(self, number, deadline):
        while True:
            _, mark, answer = self.wire.line(deadline).rpartition(b"\xff")
            # Without the mark, or with another number, it is the rest of an earlier conversation.
            with contextlib.suppress(ValueError):
                if mark and json.loads(answer).get("return") == number:
                    return True

    def ask(self, command, timeout=120, **arguments):
        """One command of the agent. Raises Refused, TimeoutError and ConnectionError."""
        if not self.synchronised:
            self.sync(timeout)
        deadline = time.monotonic() + timeout
        try:
            self.wire.send({"execute": command, "arguments": arguments}, deadline)
            answer = json.loads(self.wire.line(deadline))
        except BaseException:
            self.synchronised = False
            raise
        return value(answer)

    def call(self, command, timeout=120, stdin=b"", **variables):
        """Run *command*, an argv or a text for sh, and return its CompletedProcess with text.

        A signal is a status above 128, as in a shell. Raises subprocess.TimeoutExpired when it has not ended in
        *timeout* seconds; it was killed in the guest then.
        """
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        begun = time.monotonic()
        pid = self.ask(
            "guest-exec",
            path="/bin/sh",
            # The guest kills it, so that it is gone; the loop below only sees to an agent that says nothing.
            arg=["-c", WRAPPER, "call", str(timeout), *argv],
            env=[f"{key}={text}" for key, text in (ENVIRONMENT | variables).items()],
            **{"input-data": base64.b64encode(stdin).decode(), "capture-output": True},
        )["pid"]
        status = self._ended(pid, begun + timeout + GRACE)
        out, err = (base64.b64decode(status.get(key, "")).decode(errors="replace") for key in ("out-data", "err-data"))
        code = status["exitcode"] if "exitcode" in status else 128 + status["signal"]
        if code in (124, 137) and time.monotonic() - begun >= timeout:
            raise subprocess.TimeoutExpired(argv, timeout, out, err)
        return subprocess.CompletedProcess(argv, code, out, err)

    def _ended(self, pid, deadline):
        begun = time.monotonic()
        while True:
            status = self.ask("guest-exec-status", pid=pid)
            if status["exited"]:
                return status
            now = time.monotonic()
            if now > deadline:
                raise TimeoutError(f"process {pid} of the guest outlived its time-out")
            time.sleep(min(1.0, 0.02 + (now - begun) / 10))  # each question costs the guest some time

    def write(self, octets, target):
        """Make or replace the guest's file *target*."""
        handle = self.ask("guest-file-open", path=str(target), mode="w")
        try:
            for start in range(0, len(octets), CHUNK):
                data = base64.b64encode(octets[start : start + CHUNK]).decode()
                written = self.ask("guest-file-write", timeout=120, handle=handle, **{"buf-b64": data})["count"]
                if written != len(octets[start : start + CHUNK]):
                    raise Refused(f"{target}: written only in part")
        finally:
            self.ask("guest-file-close", handle=handle)

    def read(self, path):
        """The octets of a file of the guest."""
        handle = self.ask("guest-file-open", path=str(path), mode="r")
        octets = b""
        try:
            while True:
                piece = self.ask("guest-file-read", timeout=120, handle=handle, count=CHUNK)
                octets += base64.b64decode(piece["buf-b64"])
                if piece["eof"]:
                    return octets
        finally:
            self.ask("guest-file-close", handle=handle)

    def close(self):
        self.wire.close()
