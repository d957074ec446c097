# SPDX-License-Identifier: Apache-2.0
"""dre-app and dre-sys as processes that are asked again and again, held to the verbs and names of the scripts.

What no step of a script in force does (exec, create, bind …) they refuse, whoever asks.
"""

import contextlib
import json
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dre.errors import TIMED_OUT, DreError, MissingError, TimedOutError

from dscriptlib.model import Script, Step
from dscriptlib.steps import KINDS, container

GRACE = 10.0  # seconds that a process may need beyond the time of a verb
LONGEST = 86400.0  # seconds that they give a verb
AGAIN = 3  # attempts: one that was killed is asked again, under the same request id, what came of it
_LINE = 1 << 21  # octets of an answer, at most
_LIMITS = {"cpu": "1", "memory": "1", "pids": "1"}  # stand for what was read


@dataclass(frozen=True)
class Allowed:
    """What one program may do: verbs as of --allow, and names."""

    verbs: frozenset[str]
    names: frozenset[str]


def allowed(scripts: Iterable[Script], program: str) -> Allowed:
    """What the steps of *scripts* do by *program*, what takes them back, and what reads the state they change."""
    verbs, names = set(), set()
    for script in scripts:
        for step in (step for response in script.responses for step in response.steps):
            if step.container is not None and program_of(step) == program:
                names.update({step.container[1], str(step.values.get("as", step.container[1]))})
                verbs.update(_verbs(step))
    return Allowed(frozenset(verbs), frozenset(names))


def program_of(step: Step) -> str:
    """The program that does *step* to its container."""
    return "dre-sys" if "system" in step.values else "dre-app"


def _verbs(step: Step) -> set[str]:
    kind, name = KINDS[step.action], container(step.values)
    calls = [kind.argv(step.values)] if kind.argv else []
    calls += [kind.ask_former(step.values)] if kind.ask_former else []
    calls += [kind.compensate(step.values, _LIMITS)] if kind.compensate else []
    found = set()
    for words in calls:
        own = words[: next(place for place, word in enumerate(words) if word == name or word.startswith("-"))]
        found.add(" ".join(own))
    return found


@dataclass
class _Process:
    """One process; it does one thing at a time."""

    argv: tuple[str, ...]
    process: "subprocess.Popen[bytes]"
    number: int = 0
    rest: bytes = field(default=b"", repr=False)

    def ask(self, words: Sequence[str], timeout: float) -> dict[str, object] | None:
        """Its answer; None when it has ended, or must not be asked again."""
        self.number += 1
        asked = {"id": self.number, "argv": list(words), "deadline": min(timeout, LONGEST)}
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
            line = self._line(time.monotonic() + timeout + GRACE)
            answer = json.loads(line) if line else None
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) and answer.get("id") == self.number else None

    def _line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.rest and len(self.rest) < _LINE:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return b""
                block = os.read(self.process.stdout.fileno(), 1 << 16)
                if not block:
                    return b""
                self.rest += block
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    def end(self) -> None:
        """End it, and what it is at."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        self.process.kill()
        self.process.wait()


class Pool:
    """As many processes as are at work at once; those that are free wait for the next verb."""

    def __init__(self, options: Sequence[str]) -> None:
        self.options = tuple(options)
        self.free: list[_Process] = []
        self.lock = threading.Lock()

    def call(self, program: str, may: Allowed, words: Sequence[str], timeout: float) -> bytes:
        """The rows that *program* has for *words*, as lines. Raises DreError as dre.run does."""
        begin = (program, *self.options, "--serve", "--allow", ",".join(sorted(may.verbs)))
        argv = (*begin, "--names", ",".join(sorted(may.names)))
        for _ in range(AGAIN):
            one = self._take(argv)
            answer = one.ask(words, timeout)
            if answer is None:
                one.end()
                continue
            with self.lock:
                self.free.append(one)
            return _rows(program, words, answer)
        raise DreError(f"{program} {' '.join(words)}: was killed again and again; what came of it is not known")

    def _take(self, argv: tuple[str, ...]) -> _Process:
        with self.lock:
            fit = next((one for one in self.free if one.argv == argv), None)
            old = [one for one in self.free if one.argv != argv and one.argv[0] == argv[0]]  # of other scripts
            self.free = [one for one in self.free if one is not fit and one not in old]
        for one in old:
            one.end()
        if fit is not None and fit.process.poll() is None:
            return fit
        try:
            made = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "LC_ALL": "C"},
            )
        except FileNotFoundError:
            raise MissingError(f"{argv[0]} is not installed") from None
        return _Process(argv, made)


def _rows(program: str, words: Sequence[str], answer: dict[str, object]) -> bytes:
    code, rows, error = (answer.get(key) for key in ("code", "rows", "error"))
    if code != 0:
        said = str(error).strip().splitlines() or ["no message"]
        text = f"{program} {' '.join(words)}: exit status {code}: {said[-1]}"
        raise TimedOutError(text) if code == TIMED_OUT else DreError(text)
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows) if isinstance(rows, list) else b""
