# SPDX-License-Identifier: Apache-2.0
"""What persons say to the engine by `dscript approve` and `dscript ack`: one file for each, until it is in the journal.

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

REQUEST = re.compile(r"[0-9a-f]{16}-[0-9]{1,4}-(act|revert)")
WORDS = ("approved", "refused", "acknowledged")


@dataclass(frozen=True)
class Answer:
    """What *by*, a user of this host, said to the request, and when."""

    request: str
    word: str
    by: str
    said: str
    text: str = ""


def give(conf: Conf, request: str, word: str, text: str) -> Answer:
    """Leave an answer for the engine, durable before this returns. Raises OSError."""
    answer = Answer(request, word, caller(), event.stamp(), text)
    directory = _directory(conf)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(directory / f"{request}.{word}", json.dumps(vars(answer)) + "\n")
    return answer


def caller() -> str:
    """The user who asks: who has become root by sudo is still named."""
    name = pwd.getpwuid(os.getuid()).pw_name
    behind = os.environ.get("SUDO_USER", "")
    return behind if name == "root" and re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", behind) else name


def waiting(conf: Conf) -> Iterator[Answer]:
    """The answers that wait, the first word of a request before another."""
    try:
        names = sorted(path for path in _directory(conf).iterdir() if path.suffix[1:] in WORDS)
    except OSError:
        return  # nobody has ever answered
    for path in names:
        with contextlib.suppress(OSError, ValueError, TypeError):
            answer = Answer(**json.loads(path.read_text()))
            if path.name == f"{answer.request}.{answer.word}":
                yield answer


def taken(conf: Conf, answer: Answer) -> None:
    """The answer is in the journal."""
    (_directory(conf) / f"{answer.request}.{answer.word}").unlink(missing_ok=True)


def _directory(conf: Conf) -> Path:
    return conf.core_state_dir / "script" / "answers"
