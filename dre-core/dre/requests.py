# SPDX-License-Identifier: Apache-2.0
"""Outcomes remembered by request id: asked again with the same id, a verb answers as it did and does nothing.

One file per id in <state>/app/requests or <state>/sys/requests. An id that was begun and has no outcome belongs to a
killed call: the verb is done again, knowing that it may have been done already.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import files
from dre.conf import Conf
from dre.errors import DreError, UsageError

KEEP = 4096  # outcomes remembered; a caller that asks again does so soon


@dataclass(frozen=True)
class Outcome:
    """What the first call with this id answered."""

    code: int
    output: str
    error: str


@dataclass(frozen=True)
class Request:
    """An id at work: *outcome* is the first call's, *again* that an earlier call was killed."""

    outcome: Outcome | None
    again: bool
    remember: Callable[[Outcome], None]


def identity(text: str) -> str:
    """A request id. Raises UsageError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:+@-]{0,127}", text):
        raise UsageError(f"{text!r} is not a request id: 1 to 128 of A-Z a-z 0-9 . _ : + @ -")
    return text


@contextlib.contextmanager
def asked(conf: Conf, request: str, argv: Mapping[str, Any], kind: str = "app") -> Iterator[Request]:
    """Hold *request*: a second caller waits for the first and then gets its outcome. Raises UsageError."""
    path = _path(conf, request, kind)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    asked_for = json.loads(json.dumps(argv))
    with files.lock(path.with_suffix(".lock"), timeout=600):
        known = _read(path)
        if known is not None and known["argv"] != asked_for:
            raise UsageError(f"request id {request} was used for another command")

        def remember(outcome: Outcome) -> None:
            _write(path, {"argv": asked_for, **outcome.__dict__})

        outcome = None
        if known is None:
            _forget_oldest(path.parent)
            _write(path, {"argv": asked_for})
        elif "code" in known:
            outcome = Outcome(known["code"], known["output"], known["error"])
        yield Request(outcome, known is not None and outcome is None, remember)


def complete(conf: Conf, request: str | None, kind: str = "app") -> None:
    """Note that the verb of *request* was done, by whoever ended it after a kill."""
    path = _path(conf, request or "", kind)
    known = _read(path) if request else None
    if known is not None and "code" not in known:
        _write(path, {**known, **Outcome(0, "", "").__dict__})


def completed(conf: Conf, request: str | None, kind: str = "app") -> bool:
    """Whether *request* has an outcome by now."""
    known = _read(_path(conf, request, kind)) if request else None
    return known is not None and "code" in known


def _path(conf: Conf, request: str, kind: str) -> Path:
    return conf.core_state_dir / kind / "requests" / f"{request}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DreError(f"{path}: damaged: {error}") from None
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    files.write_atomic(path, json.dumps(content) + "\n", 0o600)


def _forget_oldest(directory: Path) -> None:
    entries = list(directory.glob("*.json"))
    if len(entries) < KEEP:
        return
    for path in sorted(entries, key=lambda entry: entry.stat().st_mtime)[: KEEP // 2]:
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)
