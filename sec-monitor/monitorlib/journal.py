# SPDX-License-Identifier: Apache-2.0
"""dre-event --from journal --cursor FILE: the entries of this host's journal to the intake, each once it was written.

journalctl(1) reads the journal. FILE has the cursor of the last entry that the intake has, or the spool before it: what
comes after that is read the next time. An entry that is read twice has the same id both times.
"""

import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dre import cli, files, run
from dre.errors import DreError, UsageError
from dre.event import EventError

from monitorlib import convert, formats
from monitorlib.formats import journal

READ = 1 << 20  # octets at once
_CURSOR = re.compile(r"[ -~]{1,500}")


def send(ctx: cli.Context, place: Path, follow: bool, arguments: list[str]) -> None:
    """Hand over what is after the cursor in *place*; with *follow* for ever. *arguments* are more for journalctl.

    Raises DreError when journalctl fails, and UsageError when *place* holds no cursor.
    """
    cursor = _cursor(place)
    argv = [run.need("journalctl"), "--output=json", "--all", "--no-pager", "--quiet", *arguments]
    argv += ["--follow", "--no-tail"] if follow else []
    argv += [f"--after-cursor={cursor}"] if cursor else []
    intake = convert.Intake(ctx)
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryFile() as said, run.talk(argv, said) as child:
        assert child.stdout is not None
        try:
            for lines in _lines(child.stdout.fileno()):
                for line in lines:
                    cursor = _hand_over(ctx, intake, line) or cursor
                intake.flush()
                if cursor:
                    files.write_atomic(place, cursor + "\n", 0o600)
            status = child.wait(30)
            said.seek(0)
            why = said.read(300).decode(errors="replace").strip().partition("\n")[0]
            if status or follow:
                raise DreError(f"journalctl ended with {status}: {why or 'it should not have'}")
        except _Ended:
            child.kill()
        finally:
            intake.close()


class _Ended(SystemExit):
    """SIGTERM came: what was not handed over is read again."""


def _end(number: int, frame: Any) -> None:
    raise _Ended


def _cursor(place: Path) -> str:
    try:
        text = place.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{place}: {error}") from None
    if not _CURSOR.fullmatch(text):
        raise UsageError(f"{place}: not a cursor of the journal")
    return text


def _lines(fd: int) -> Iterator[list[bytes]]:
    """The lines that are there, as many as come at once."""
    rest = b""
    while octets := os.read(fd, READ):
        *lines, rest = (rest + octets).split(b"\n")
        if lines:
            yield lines


def _hand_over(ctx: cli.Context, intake: convert.Intake, line: bytes) -> str:
    """Give an entry to the intake; its cursor, or none. One that is no event is told."""
    try:
        intake.put(formats.line(journal.read(line)))
    except EventError as error:
        sys.stderr.write(f"{ctx.prog}: {cli.harmless(str(error)[: convert.TOLD])}\n")
    try:
        found = json.loads(line).get("__CURSOR")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return found if isinstance(found, str) and _CURSOR.fullmatch(found) else ""
