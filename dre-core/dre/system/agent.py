# SPDX-License-Identifier: Apache-2.0
"""The guest's agent, qemu-ga: programs run in a system, files in and out, and whether it answers at all.

What it says is the guest's word, and a guest may be hostile: each answer has a deadline and a bound, its fields are
taken as the type they must have or not at all, and text is shown without what would command a terminal. See the QEMU
Guest Agent Protocol Reference.
"""

import base64
import binascii
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dre.errors import DreError, MissingError, TimedOutError
from dre.system import hypervisor

ANSWER = 30  # seconds for one answer
CHUNK = 64 << 10  # octets of a file in one message; an emulated guest needs seconds for much more
_LONGEST = 8 << 20  # characters of an answer; libvirt takes no more than 10 MiB
OUTPUT = 64 << 20  # octets kept of each output of a program
_DIRECT = 1 << 20  # of both together that come in one answer; more of it would end libvirt's channel to the agent
# Runs a program with its output in files, in a session of its own so that all of it can be killed.
_WRAPPER = """
place=$1 most=$2
shift 2
mask=$(umask)
umask 077
[ -d "$place" ] || mkdir "$place" || exit 126
umask "$mask"
echo $$ >"$place/pid"
[ ! -e "$place/in" ] || exec <"$place/in"
"$@" >"$place/out" 2>"$place/err"
status=$?
if [ -s "$place/out" ] || [ -s "$place/err" ]; then
	if [ "$(cat "$place/out" "$place/err" | wc -c)" -gt "$most" ]; then
		echo "kept $place" >&2
		exit $status
	fi
	cat "$place/out"
	cat "$place/err" >&2
fi
rm -rf "$place"
exit $status
"""
_KILL = 'kill -KILL "-$(cat "$0/pid")"; rm -rf "$0"'
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


class NonsenseError(DreError):
    """The agent's answer is not of the form that its protocol has."""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it printed, as far as the agent kept it."""

    status: int  # 128 + N when signal N ended it, as a shell has it
    stdout: bytes
    stderr: bytes
    cut: bool


@dataclass(frozen=True)
class Agent:
    """The agent of a running domain."""

    name: str
    domain: Any

    def ask(self, command: str, timeout: int = ANSWER, **arguments: Any) -> Any:
        """What *command* returns. Raises MissingError when no agent answers, DreError when it refuses."""
        import libvirt
        import libvirt_qemu

        text = json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command})
        try:
            answer = libvirt_qemu.qemuAgentCommand(self.domain, text, timeout, 0)
        except libvirt.libvirtError as error:
            code = hypervisor.code(error)
            if code == libvirt.VIR_ERR_AGENT_UNRESPONSIVE or "agent is not" in str(error):
                text = "its guest agent does not answer; is qemu-guest-agent installed and running there?"
                raise MissingError(f"{self.name}: {text}") from None
            with hypervisor.translated(self.name):
                raise
            raise
        try:
            if len(answer) > _LONGEST:
                raise ValueError
            return json.loads(answer)["return"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._nonsense(command) from None

    def _nonsense(self, command: str) -> NonsenseError:
        return NonsenseError(f"{self.name}: its guest agent's answer to {command} is none")

    def answers(self, timeout: int = 2) -> bool:
        """Whether it is there."""
        try:
            self.ask("guest-ping", timeout)
        except DreError:
            return False
        return True

    def wait(self, deadline: float) -> None:
        """Wait until it answers, at most until *deadline* (time.monotonic). Raises TimedOutError."""
        while not self.answers():
            if time.monotonic() > deadline:
                raise TimedOutError(f"{self.name}: its guest agent does not answer")
            time.sleep(0.1)

    def run(
        self,
        argv: Sequence[str],
        stdin: bytes = b"",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run *argv* as root in the guest until it ends. After *timeout* seconds kill it and raise TimedOutError."""
        place = f"/run/dre-exec.{secrets.token_hex(8)}"
        if len(stdin) > CHUNK:  # more in one message stops the conversation
            self.run(["mkdir", "-m", "700", place])
            self.write((stdin[start : start + CHUNK] for start in range(0, len(stdin), CHUNK)), f"{place}/in")
        given: dict[str, Any] = {
            "path": "setsid",
            "arg": ["-w", "/bin/sh", "-c", _WRAPPER, "dre-exec", place, str(_DIRECT), *argv],
            "env": [f"{key}={value}" for key, value in {**_ENVIRONMENT, **(env or {})}.items()],
            "capture-output": True,
        }
        if 0 < len(stdin) <= CHUNK:
            given["input-data"] = base64.b64encode(stdin).decode()
        pid = self._number(self.ask("guest-exec", **given), "pid", "guest-exec")
        try:
            ended = self._ended(argv, pid, timeout)
        except BaseException:
            # Interrupted, or too late: it shall not go on unseen. It may have ended by itself.
            self.ask("guest-exec", path="/bin/sh", arg=["-c", _KILL, place])
            raise
        return self._fetched(ended, place) if ended.stderr == f"kept {place}\n".encode() else ended

    def _fetched(self, ended: Ended, place: str) -> Ended:
        """What a program printed that is too much for one answer of the agent."""
        octets, cut = [], False
        for name in ("out", "err"):
            found = bytearray()
            for piece in self.read(f"{place}/{name}"):
                found += piece
                if len(found) > OUTPUT:
                    cut = True
                    break
            octets.append(bytes(found[:OUTPUT]))
        self.ask("guest-exec", path="rm", arg=["-rf", place])
        return Ended(ended.status, octets[0], octets[1], cut)

    def _ended(self, argv: Sequence[str], pid: int, timeout: float | None) -> Ended:
        begun = time.monotonic()
        while True:
            found = self.ask("guest-exec-status", pid=pid)
            if not isinstance(found, dict) or not isinstance(found.get("exited"), bool):
                raise self._nonsense("guest-exec-status")
            if found["exited"]:
                status = 128 + self._number(found, "signal", "") if "signal" in found else found.get("exitcode", 1)
                cut = bool(found.get("out-truncated") or found.get("err-truncated"))
                out, err = (self._octets(found.get(key, ""), "guest-exec-status") for key in ("out-data", "err-data"))
                return Ended(status if isinstance(status, int) else 1, out, err, cut)
            passed = time.monotonic() - begun
            if timeout is not None and passed > timeout:
                raise TimedOutError(f"{self.name}: {argv[0]}: no end within {timeout:g} s; killed")
            pause = min(2.0, 0.01 + passed / 10)  # each question costs the guest some time, and a line of its journal
            time.sleep(pause if timeout is None else min(pause, 0.01 + timeout - passed))

    def _number(self, found: Any, key: str, command: str) -> int:
        value = found.get(key) if isinstance(found, dict) else None
        if not isinstance(value, int):
            raise self._nonsense(command)
        return value

    def _octets(self, text: Any, command: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise self._nonsense(command) from None

    def write(self, pieces: Iterator[bytes], target: str, mode: str = "w") -> None:
        """Make or replace the guest's file *target* of *pieces*; *mode* is one of fopen(3)."""
        handle = self._opened(target, mode)
        try:
            for piece in pieces:
                while piece:
                    data = base64.b64encode(piece[:CHUNK]).decode()
                    given: dict[str, Any] = {"handle": handle, "buf-b64": data}
                    count = self._number(self.ask("guest-file-write", **given), "count", "guest-file-write")
                    if not 0 < count <= len(piece):
                        raise DreError(f"{self.name}: {target}: the guest took no more of it")
                    piece = piece[count:]
            self.ask("guest-file-flush", handle=handle)
        finally:
            self.ask("guest-file-close", handle=handle)

    def read(self, path: str) -> Iterator[bytes]:
        """The octets of the guest's file *path*, piece by piece."""
        handle = self._opened(path, "r")
        try:
            while True:
                found = self.ask("guest-file-read", handle=handle, count=CHUNK)
                octets = self._octets(found.get("buf-b64") if isinstance(found, dict) else None, "guest-file-read")
                if len(octets) > CHUNK:
                    raise self._nonsense("guest-file-read")
                if octets:
                    yield octets
                if found.get("eof") or not octets:
                    return
        finally:
            self.ask("guest-file-close", handle=handle)

    def _opened(self, path: str, mode: str) -> int:
        handle = self.ask("guest-file-open", path=path, mode=mode)
        if not isinstance(handle, int):
            raise self._nonsense("guest-file-open")
        return handle
