# SPDX-License-Identifier: Apache-2.0
"""dre-event --from syslog --omprog: rsyslog's module omprog hands over messages and waits for "OK" after each.

That says that the intake has it, or the spool of emitters. Any other answer makes rsyslog keep it and send it again,
with the same uuid, which becomes the event's id: by it the intake knows what it has already. But a message that rsyslog
had begun to hand over when it was stopped is not sent again, so it is kept here as long as there is room. See the
omprog page of rsyslog, setting confirmMessages.
"""

import re
import sys

from dre import cli, event
from dre.event import EventError

from monitorlib import convert, formats
from monitorlib.formats import Foreign, syslog

_NAMED = re.compile(rb"([0-9A-Fa-f]{32}) (.*)", re.DOTALL)  # %uuid% of rsyslog
_RAW = "syslog.message", 5  # type and severity of what is no line of syslog: no message is lost


def run(ctx: cli.Context) -> None:
    """Serve rsyslog until it closes our standard input."""
    intake = convert.Intake(ctx)
    _say("OK")
    try:
        while line := sys.stdin.buffer.readline(formats.LARGEST):
            while line[-1:] != b"\n" and sys.stdin.buffer.readline(formats.LARGEST)[-1:] not in (b"", b"\n"):
                pass  # of one that is too long the rest is left out
            _say(_handed_over(ctx, intake, line.removesuffix(b"\n")))
    finally:
        intake.close()


def _handed_over(ctx: cli.Context, intake: convert.Intake, line: bytes) -> str:
    """The answer for one message; each other one than OK makes rsyslog send it again later."""
    found = _NAMED.fullmatch(line)
    text, identity = (found[2], found[1].decode().lower()) if found else (line, event.new_id())
    if not text.strip():
        return "OK"
    try:
        kept = convert.claimed(formats.line(_named(text, identity)))
        answer = intake.ask(kept)
    except EventError as error:  # an event of ours within that is none: it would be none the next time, too
        answer = b"no: " + str(error).encode()
    if answer == b"ok":
        return "OK"
    if answer.startswith(b"no: ") and not answer.startswith(convert.FULL):
        why = answer[4:].decode(errors="replace")
        sys.stderr.write(f"{ctx.prog}: {identity}: refused: {cli.harmless(why[: convert.TOLD])}\n")
        return "OK"
    if not answer and event.spool(ctx.conf.core_state_dir / "spool" / "event", kept, counted=False):
        return "OK"
    return "neither the intake nor its spool can keep it now"


def _named(text: bytes, identity: str) -> event.Event | Foreign:
    try:
        made = syslog.read(text)
    except EventError:
        made = Foreign(event.stamp(), event.host(), *_RAW, {"message": formats.text(text)})
    return made._replace(id=identity) if isinstance(made, Foreign) else made


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
