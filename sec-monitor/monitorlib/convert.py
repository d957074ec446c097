# SPDX-License-Identifier: Apache-2.0
"""From one form of events to another, standard input to standard output or to the intake: what dre-event's filters do.

A record that is no event is told with the number of its line and counted; the others go on.
"""

import importlib
import socket
import sys
from typing import Any, BinaryIO

from dre import cli, event
from dre.conf import Conf
from dre.errors import DreError
from dre.event import EventError

from monitorlib import formats

TOLD = 300  # characters of a reason
FULL = b"no: spool: "  # how the intake begins to say that it can keep nothing


def convert(ctx: cli.Context, source: str, target: str) -> None:
    """Convert all of standard input. Raises DreError, once all is done, when records were refused."""
    reader, writer = _format(source), _format(target)
    out: Any = Intake(ctx) if ctx.args.send else Out(sys.stdout.buffer)
    done = refused = 0
    try:
        for number, record in reader.records(formats.blocks(sys.stdin.buffer, out.flush)):
            try:
                if record is None:
                    raise EventError(f"over {formats.LARGEST} octets")
                made = reader.read(record)
                out.put(formats.line(made) if target == "plain" else writer.write(formats.whole(made)))
                done += 1
            except EventError as error:
                refused += 1
                sys.stderr.write(f"{ctx.prog}: line {number}: {cli.harmless(str(error)[:TOLD])}\n")
        out.flush()
    finally:
        out.close()
    if refused:
        raise DreError(f"{refused} of {done + refused} records were refused")


def _format(name: str) -> Any:
    return importlib.import_module(f"monitorlib.formats.{name}")


class Out:
    """Standard output; what was put leaves when more is waited for."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._held: list[bytes] = []

    def put(self, line: bytes) -> None:
        """Take a record."""
        self._held.append(line)
        if len(self._held) > 1000:
            self.flush()

    def flush(self) -> None:
        """Let everything go."""
        if self._held:
            self._stream.write(b"".join(self._held))
            self._held.clear()
            self._stream.flush()

    def close(self) -> None:
        """Nothing is to be closed."""


def claimed(line: bytes) -> bytes:
    """The event *line* as claimed, with an id, should it be spooled and taken too. Raises EventError."""
    made = event.parse(line)
    optional = {"id": event.new_id(), **made.optional, "claimed": True}
    return event.format(event.Event(made.time, made.source, made.type, made.sev, made.data, optional))


class Intake:
    """The intake's socket, held open; what it does not acknowledge is spooled for it.

    Each event goes as claimed: that we have the right to speak to the intake says nothing of who wrote what we read.
    """

    def __init__(self, ctx: cli.Context) -> None:
        self._conf: Conf = ctx.conf
        self._ctx = ctx
        self._socket: socket.socket | None = None
        self._spooled = 0

    def put(self, line: bytes) -> None:
        """Hand over an event. Raises EventError when it is refused, DreError when it can be left nowhere."""
        line = claimed(line)
        answer = b"" if self._spooled else self.ask(line)
        if answer.startswith(b"no: ") and not answer.startswith(FULL):
            raise EventError(f"the intake refuses it: {answer[4:].decode(errors='replace')}")
        if answer != b"ok":
            directory = self._conf.core_state_dir / "spool" / "event"
            if not event.spool(directory, line):
                raise DreError(f"{self._conf.monitor_sink}: nobody answers, and {directory} cannot take the event")
            self._spooled += 1

    def ask(self, line: bytes) -> bytes:
        """The intake's answer to the event *line*, b"" when there is none."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._socket.settimeout(event.ACK_WAIT)
                self._socket.connect(str(self._conf.monitor_sink))
            self._socket.send(line)
            return self._socket.recv(4096)
        except OSError:
            self.close()  # an answer that comes late must not be taken for that of the next
            return b""

    def flush(self) -> None:
        """Each event is on its way at once; say what was spooled, and try the intake again."""
        if self._spooled:
            directory = self._conf.core_state_dir / "spool" / "event"
            self._ctx.say(f"{self._conf.monitor_sink}: nobody answers; {self._spooled} events spooled in {directory}")
            self._spooled = 0

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
