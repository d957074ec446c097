# SPDX-License-Identifier: Apache-2.0
"""Calling the programs of D-RE, and keeping those that stay up: started in sessions of their own, ended by us.

Each started process is noted in HOME/processes with its start time, so that `demo/run --stop` can end it later and
never another process that has got its number.
"""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from demolib.places import CONF, HOME, LOG

NOTES = HOME / "processes"


class Failed(Exception):
    """Something did not work; the message is for the person who started the demonstration."""


def call(*argv: str, stdin: bytes | None = None, timeout: float = 60, ok: tuple[int, ...] = (0,)) -> bytes:
    """What a program printed. Raises Failed with its last words when its status is none of *ok*."""
    done = status(*argv, stdin=stdin, timeout=timeout)
    if done.returncode not in ok:
        said = (done.stderr or done.stdout).decode(errors="replace").strip() or "no message"
        raise Failed(f"{shlex.join(argv)}: exit status {done.returncode}: {said[-600:]}")
    return done.stdout


def status(*argv: str, stdin: bytes | None = None, timeout: float = 60) -> "subprocess.CompletedProcess[bytes]":
    """Run a program to its end whatever its status. Raises Failed when it is missing or too slow."""
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    try:
        # A session of its own: Ctrl-C is ours to handle, and a verb half done would only be work for the clean-up.
        return subprocess.run(argv, capture_output=True, timeout=timeout, start_new_session=True, **given)
    except FileNotFoundError:
        raise Failed(f"{argv[0]}: no such program") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"{shlex.join(argv)}: no answer within {timeout:g} s") from None


def dre(program: str, *argv: str, **how: object) -> bytes:
    """`call` for a program of D-RE with the settings of the demonstration."""
    return call(program, "--config", str(CONF), *argv, **how)


def start(
    name: str, *argv: str, output: Path | None = None, more: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start a program that stays up, with *more* in its environment.

    What it says goes to LOG/<name>.log, its stdout to *output* where given.
    """
    with (LOG / f"{name}.log").open("ab") as log, (output or LOG / f"{name}.log").open("ab") as data:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=data,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **(more or {})},
        )
    NOTES.mkdir(exist_ok=True)
    (NOTES / name).write_text(json.dumps({"pid": process.pid, "began": began(process.pid)}))
    return process


def settle() -> None:
    """Wait for the threads that an interruption left at work: what they make must not come after the clearing."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()  # each call in it has its own deadline


def began(pid: int) -> int | None:
    """When process *pid* began, in ticks since boot; None when it is not alive."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else int(words[19])


def end(name: str, within: float = 10.0) -> None:
    """End the program started as *name*, if it still runs: SIGTERM, then SIGKILL for its whole session."""
    note = NOTES / name
    try:
        known = json.loads(note.read_text())
    except (FileNotFoundError, ValueError):
        return
    pid = known["pid"]
    if known["began"] is not None and began(pid) == known["began"]:
        os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(Failed):
            wait(lambda: began(pid) != known["began"], within, "the end")
        if began(pid) == known["began"]:
            os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)  # it may be a child of an earlier demo/run, and then it is not ours to reap
    note.unlink()


def running() -> list[str]:
    """The names of what was started and not ended."""
    return sorted(note.name for note in NOTES.iterdir()) if NOTES.is_dir() else []


def wait(condition: Callable[[], object], within: float, what: str) -> None:
    """Wait until *condition* holds. Raises Failed after *within* seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {within:g} s")
        time.sleep(0.02)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
