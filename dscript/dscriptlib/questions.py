# SPDX-License-Identifier: Apache-2.0
"""The questions of `ask` steps that wait for a person, as the journal has them; and the page where they are answered.

The page tells where it is by a file in the run directory, so that a question can name its link.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dre.conf import Conf

from dscriptlib import journal, store
from dscriptlib.model import Script
from dscriptlib.state import State
from dscriptlib.steps import KINDS


@dataclass(frozen=True)
class Question:
    """What is asked: *ends* is when, in seconds since 1970, *default* is taken for the answer."""

    request: str
    script: Script
    response: str
    to: str
    text: str
    default: str
    ends: float


def waiting(conf: Conf) -> Iterator[Question]:
    """The questions that wait now."""
    now = time.time()
    for values in journal.states(store.directory(conf) / "journal").values():
        state = State.restore(values)
        script = store.version(conf, state.sha256)
        for run in state.runs.values() if script is not None else ():
            assert script is not None
            step = script.response(run.response).steps[run.step]
            if run.phase == "ask" and KINDS[step.action].asks and run.deadline is not None and now < run.deadline:
                to, text, default = (str(step.values[key]) for key in ("to", "text", "default"))
                request = f"{run.id}-{run.step}-act"
                yield Question(request, script, run.response, to, text, default, run.deadline)


def find(conf: Conf, request: str) -> Question | None:
    """The question of that request, while it waits."""
    return next((question for question in waiting(conf) if question.request == request), None)


def place(conf: Conf) -> Path:
    """The file that holds the page's address while it is there."""
    return conf.core_run_dir / "script-page" / "url"


def link(conf: Conf, request: str) -> str | None:
    """Where a person can answer *request* by a browser, if the page is there."""
    with contextlib.suppress(OSError):
        return f"{place(conf).read_text().strip()}/ask/{request}"
    return None
