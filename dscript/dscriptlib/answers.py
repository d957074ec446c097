# SPDX-License-Identifier: Apache-2.0
"""What persons say to the engine by `dscript approve`, `dscript ack` and the page: a file until it is in the journal.

A question is answered once: who comes second, at the same moment even, is told.
Only who may write the directory, root or the user of the engine, can answer.
"""

import contextlib
import json
import os
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dre import event, files
from dre.conf import Conf
from dre.errors import DreError

REQUEST = re.compile(r"[0-9a-f]{16}-[0-9]{1,4}-(act|revert)")
WORDS = ("approved", "refused", "acknowledged")


@dataclass(frozen=True)
class Answer:
    """What *by*, a user of this host, said to the request, and when; *via* is how the page knew a person."""

    request: str
    word: str
    by: str
    said: str
    text: str = ""
    via: str = ""


def give(conf: Conf, request: str, word: str, text: str, by: str = "", via: str = "") -> None:
    """Leave an answer for the engine, durable before this returns; *by*: who says so, if not the caller.

    Raises DreError where there is one already, OSError.
    """
    answer = Answer(request, word, by or caller(), event.stamp(), text, via)
    path = _path(conf, answer)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine = path.with_name(f"{path.name}-{event.new_id()}")
    try:
        files.write_atomic(mine, json.dumps(vars(answer)) + "\n")
        os.link(mine, path)
    except FileExistsError:
        raise DreError(f"{request}: was answered already; the engine has not read it yet") from None
    finally:
        mine.unlink(missing_ok=True)
    files.fsync_dir(path.parent)


def given(conf: Conf, request: str) -> bool:
    """Whether an answer to the question waits for the engine."""
    return (directory(conf) / f"{request}.answer").exists()


def caller() -> str:
    """The user who asks: who has become root by sudo is still named."""
    name = pwd.getpwuid(os.getuid()).pw_name
    behind = os.environ.get("SUDO_USER", "")
    return behind if name == "root" and re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", behind) else name


def waiting(conf: Conf) -> Iterator[Answer]:
    """The answers that wait, the first word of a request before another."""
    try:
        names = sorted(path for path in directory(conf).iterdir() if path.suffix in (".answer", ".ack"))
    except OSError:
        return  # nobody has ever answered
    for path in names:
        with contextlib.suppress(OSError, ValueError, TypeError):
            answer = Answer(**json.loads(path.read_text()))
            if answer.word in WORDS and path == _path(conf, answer):
                yield answer


def taken(conf: Conf, answer: Answer) -> None:
    """The answer is in the journal."""
    _path(conf, answer).unlink(missing_ok=True)


def _path(conf: Conf, answer: Answer) -> Path:
    return directory(conf) / f"{answer.request}.{'ack' if answer.word == 'acknowledged' else 'answer'}"


def directory(conf: Conf) -> Path:
    return conf.core_state_dir / "script" / "answers"
