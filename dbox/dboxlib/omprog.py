# SPDX-License-Identifier: Apache-2.0
"""dbox-put --omprog: rsyslog's module omprog hands over messages and waits for "OK": once they are durable.

A message that was confirmed is in the spool; one that was not is sent again by rsyslog, and known by its id: a line is
`ID TEXT`, and TEXT becomes an entry. Of a transaction rsyslog sends again only the message that had no answer when we
were killed, and none when it is stopped itself: each is written to the spool before it is answered, and the COMMIT
makes all durable. See the omprog pages of rsyslog, settings confirmMessages and useTransactions.
"""

import functools
import re
import sys
from collections.abc import Callable

from dre import cli
from dre.dbox import LARGEST, Recorder
from dre.errors import DreError, UsageError

from dboxlib import feed

_LINE = re.compile(rb"([A-Za-z0-9._:@/=-]{1,64}) (.+)", re.DOTALL)


def run(ctx: cli.Context) -> None:
    """Serve rsyslog until it closes our stdin."""
    recorder, stream = Recorder(ctx.conf, ctx.args.client, lean=[ctx.args.stream]), ctx.args.stream
    within = False  # a transaction
    with feed.delivering(ctx.prog, recorder, ctx.args.timeout) as work:
        _say("OK")
        while line := sys.stdin.buffer.readline(LARGEST):
            line = line.removesuffix(b"\n")
            if line == b"BEGIN TRANSACTION":
                within, answer = True, "OK"
            elif line == b"COMMIT TRANSACTION":
                within, answer = False, _tried(recorder.sync, "OK")
                work.set()
            elif not line:
                answer = "OK"  # no octets, no entry
            elif within:
                answer = _tried(functools.partial(_spool, recorder, stream, line, durable=False), "DEFER_COMMIT")
            else:
                answer = _tried(functools.partial(_spool, recorder, stream, line, durable=True), "OK")
                work.set()
            _say(answer)


def _tried(step: Callable[[], None], good: str) -> str:
    """*good* once *step* is done; every other answer makes rsyslog send again later."""
    try:
        step()
    except (DreError, OSError) as error:
        return f"not recorded: {error}".replace("\n", " ")[:500]
    return good


def _spool(recorder: Recorder, stream: str, line: bytes, *, durable: bool) -> None:
    match = _LINE.fullmatch(line)
    octets, request = (match[2], match[1].decode()) if match else (line, "-")
    try:
        recorder.record_all(stream, [octets], [request], durable=durable)
    except UsageError:
        # An id that was there before with another text: not the same message, so it is an entry of its own.
        recorder.record_all(stream, [octets], durable=durable)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
