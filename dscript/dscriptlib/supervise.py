# SPDX-License-Identifier: Apache-2.0
"""The process between the engine and a program of a `run` step: it outlives the engine and notes what became of it.

Started as a script by dscriptlib.programs, which leaves it the locked note as a descriptor; it reads what to run from
its standard input. First it notes `begun`, then the outcome, each durable before it goes on. The program and all that
it starts are in a control group of their own, where there are those of version 2 and root calls; with it they end.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

KEPT = 64 * 1024  # octets of output that are read; a program that says more is killed
TOLD = 1200  # octets of them that the evidence holds
CGROUPS = Path("/sys/fs/cgroup")
PATIENCE = 5.0  # seconds until what was killed is gone
_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Run what standard input says."""
    asked = json.load(sys.stdin)
    note, group = int(asked["note"]), _group(str(asked["request"]))
    _write(note, f"begun {group or ''}\n".encode())
    try:
        outcome = _run(asked, group)
    finally:
        if group is not None:
            end(group)
    _write(note, json.dumps(outcome).encode() + b"\n")


def _group(request: str) -> Path | None:
    """A new control group of version 2 below ours; None where that cannot be."""
    with contextlib.suppress(OSError, StopIteration):
        ours = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        top = next(path for path in (CGROUPS, CGROUPS / "unified") if (path / "cgroup.procs").exists())
        made = top / ours.removeprefix("0::").lstrip("/") / f"dscript-{request}"
        made.mkdir(exist_ok=True)
        return made
    return None


def _enter(group: Path) -> None:
    with contextlib.suppress(OSError):  # then the process group has to do
        (group / "cgroup.procs").write_text("0")


def end(group: Path) -> None:
    """End all processes of *group*, and the group."""
    deadline = time.monotonic() + PATIENCE
    while group.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if (group / "cgroup.kill").exists():  # since Linux 5.14
                (group / "cgroup.kill").write_text("1")
            else:
                for pid in (group / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):  # busy until the last of them is gone
            group.rmdir()
            return
        time.sleep(0.01)


def _write(note: int, octets: bytes) -> None:
    os.write(note, octets)
    os.fsync(note)


def _run(asked: dict[str, Any], group: Path | None) -> dict[str, Any]:
    parent = os.getpid()

    def bind() -> None:  # killed with us it must not go on unseen
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    as_user = {key: asked[key] for key in ("user", "group", "extra_groups") if key in asked}
    if group is not None:
        _enter(group)  # what we start is born in it; the user it becomes could not enter
    try:
        process = subprocess.Popen(  # noqa: S603 - an argv that was agreed, no shell
            [asked["path"], *asked["arguments"]],
            env=asked["environment"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=bind,  # noqa: PLW1509 - there are no threads here
            **as_user,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"cannot start: {error}", "status": None, "output": "", "octets": 0, "sha256": ""}
    finally:
        if group is not None:
            _enter(group.parent)
    said, why = _listen(process, time.monotonic() + float(asked["timeout"]))
    with contextlib.suppress(ProcessLookupError):  # what it left in its process group ends, too
        os.killpg(process.pid, signal.SIGKILL)
    status = process.wait()
    text = said.decode(errors="replace")
    shown = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return {
        "error": why or (f"exit status {status}" if status else None),
        "status": status,
        "output": shown.encode()[:TOLD].decode(errors="ignore"),
        "octets": len(said),
        "sha256": hashlib.sha256(said).hexdigest(),
    }


def _listen(process: "subprocess.Popen[bytes]", deadline: float) -> tuple[bytes, str | None]:
    """What *process* says until it ends, and why it must be ended before that."""
    assert process.stdout is not None
    said = b""
    pidfd = os.pidfd_open(process.pid)
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        selector.register(pidfd, selectors.EVENT_READ)
        while True:
            ready = [key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
            if not ready:
                return said, "did not end in time"
            if process.stdout.fileno() in ready:
                block = os.read(process.stdout.fileno(), 65536)
                said += block
                if len(said) > KEPT:
                    return said[:KEPT], f"said more than {KEPT} octets"
                if not block:
                    selector.unregister(process.stdout)
            elif pidfd in ready:
                return said, None


if __name__ == "__main__":
    main()
