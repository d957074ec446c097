# SPDX-License-Identifier: Apache-2.0
"""dbox-put --omprog: rsyslog's module omprog hands over messages and waits for "OK": once they are durable.

A message that was confirmed is in the spool; one that was not is sent again by rsyslog, and known by its id: a line is
`ID TEXT`, and TEXT becomes an entry. See the omprog pages of rsyslog, settings confirmMessages and useTransactions.
"""

import re
import sys

from dre import cli
from dre.dbox import LARGEST, Recorder
from dre.errors import DreError, UsageError

from dboxlib import feed

_LINE = re.compile(rb"([A-Za-z0-9._:@/=-]{1,64}) (.+)", re.DOTALL)
Message = tuple[bytes, str]  # octets, request id


def run(ctx: cli.Context) -> None:
    """Serve rsyslog until it closes our stdin."""
    recorder = Recorder(ctx.conf, ctx.args.client, lean=[ctx.args.stream])
    transaction: list[Message] | None = None
    with feed.delivering(ctx.prog, recorder, ctx.args.timeout) as work:
        _say("OK")
        while line := sys.stdin.buffer.readline(LARGEST):
            line = line.removesuffix(b"\n")
            if line == b"BEGIN TRANSACTION":
                transaction, answer = [], "OK"
            elif line == b"COMMIT TRANSACTION":
                answer = _record(recorder, ctx.args.stream, transaction or [])
                transaction = None
                work.set()
            elif not line:
                answer = "OK"  # no octets, no entry
            elif transaction is not None:
                transaction.append(_message(line))
                answer = "DEFER_COMMIT"
            else:
                answer = _record(recorder, ctx.args.stream, [_message(line)])
                work.set()
            _say(answer)


def _message(line: bytes) -> Message:
    match = _LINE.fullmatch(line)
    return (match[2], match[1].decode()) if match else (line, "-")


def _record(recorder: Recorder, stream: str, messages: list[Message]) -> str:
    """Spool *messages*; the answer for rsyslog: everything but OK makes it send them again later."""
    try:
        _spool(recorder, stream, messages)
    except (DreError, OSError) as error:
        return f"not recorded: {error}".replace("\n", " ")[:500]
    return "OK"


def _spool(recorder: Recorder, stream: str, messages: list[Message]) -> None:
    if not messages:
        return
    octets, requests = zip(*messages, strict=True)
    try:
        recorder.record_all(stream, octets, requests)
    except UsageError:
        # An id that was there before with another text: not the same message, so it is an entry of its own.
        for one, request in messages:
            try:
                recorder.record(stream, one, request)
            except UsageError:
                recorder.record(stream, one)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
