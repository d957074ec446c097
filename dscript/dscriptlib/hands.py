# SPDX-License-Identifier: Apache-2.0
"""The part of the engine that stays root, so that what reads events and decides need not: it does steps, nothing else.

The engine, a user of its own, names a phase of a step of a version; what that is this process finds out by itself,
from scripts that root, or two persons, have put in force. So whoever takes the engine over can have done what was
agreed, and no more. It also hands on the engine's records, whose spools are root's.

A request is a datagram with a descriptor to answer by. When the engine is gone, this ends what it is at and then too.
"""

import contextlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dre import event, units
from dre.conf import Conf
from dre.errors import DreError, NotPermittedError

from dscriptlib import coprocess, store, versions
from dscriptlib.answers import REQUEST
from dscriptlib.doer import Doer, GoneError, Outcome
from dscriptlib.model import Script
from dscriptlib.state import Act
from dscriptlib.steps import Told

LIMIT = 1 << 17  # octets of a request
GONE = "the process that does the steps is gone"
PHASES = ("read", "act", "revert")
TELLING = ("notify", "ask", "record")  # they do nothing but tell persons, who must hear of what is refused
_FORMER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.%]{0,39}")  # never an option
_RUN = re.compile(r"[0-9a-f]{16}")


# --- the engine's side ---


class Caller(Doer):
    """A Doer that has it all done by the process at the other end of *control*."""

    def __init__(self, conf: Conf, config: str | None, control: socket.socket) -> None:
        super().__init__(conf, config)
        self.control = control

    def do(self, script: Script, act: Act, again: bool = False) -> Outcome:
        """As Doer.do. Raises GoneError."""
        asked = {"script": script.name, "sha256": script.sha256, "again": again, **asdict(act)}
        try:
            made = self._ask("step", asked)
        except GoneError:
            raise
        except DreError as error:
            return Outcome(str(error), 0.0)
        told = tuple(Told(**one) for one in made.pop("told"))
        return Outcome(**made, told=told)

    def watch(self, script: Script) -> None:
        """Have dre-watch told of the monitors of *script*."""
        self._ask("watch", {"script": script.name, "sha256": script.sha256})

    def record(self, line: bytes) -> None:
        """Have *line* put into the D-Box's spool."""
        self._ask("record", {"line": line.decode()})

    def drain(self) -> None:
        """Have the spool handed on to the D-Box."""
        self._ask("drain", {})

    def send(self, line: bytes) -> None:
        """Have *line* sent to the monitor."""
        self._ask("send", {"line": line.decode()})

    def _ask(self, what: str, values: Mapping[str, Any]) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                octets = json.dumps({"what": what, **values}).encode()
                if len(octets) > LIMIT:
                    raise DreError(f"{what}: a request of {len(octets)} octets")
                try:
                    socket.send_fds(self.control, [octets], [theirs.fileno()])
                except OSError:
                    raise GoneError(GONE) from None
            answer = b""
            while block := ours.recv(1 << 16):
                answer += block
        if not answer.endswith(b"\n"):
            raise GoneError(GONE)
        made: dict[str, Any] = json.loads(answer)
        if "error" in made and len(made) == 1:
            raise DreError(str(made["error"]))
        return made


def start(conf: Conf, config: str | None, given: Sequence[Script]) -> socket.socket:
    """Start the process; *given* are scripts that the caller has named, in place of those deployed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        code = 1
        try:
            kept = os.dup2(theirs.fileno(), 3, inheritable=False)
            os.closerange(4, os.sysconf("SC_OPEN_MAX"))
            os.setsid()  # so that a terminal's SIGINT is the engine's alone
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.environ.pop("NOTIFY_SOCKET", None)
            Hands(conf, config, given).serve(socket.socket(fileno=kept))
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    return ours


# --- root's side ---


class Hands:
    """Does what is asked for, each in a thread."""

    def __init__(self, conf: Conf, config: str | None, given: Sequence[Script]) -> None:
        self.conf = conf
        self.given = {script.sha256: script for script in given}
        self.doer = Bound(conf, config, self.scripts)
        self.recording = threading.Lock()
        self.known: dict[str, Script] = {}  # read once: a version never changes
        self.force: tuple[store.Deployed | None, list[Script]] = (None, [])
        self.does: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
            **{"step": self.step, "watch": self.watch},
            **{"record": self.record, "drain": self.drain, "send": self.send},
        }

    def serve(self, control: socket.socket) -> None:
        """Answer until the engine is gone, and what it asked for is done."""
        threads: list[threading.Thread] = []
        while True:
            octets, fds, _, _ = socket.recv_fds(control, LIMIT, 1)
            if not octets:
                break
            if len(fds) == 1:
                threads = [thread for thread in threads if thread.is_alive()]
                threads.append(threading.Thread(target=self.answer, args=(octets, socket.socket(fileno=fds[0]))))
                threads[-1].start()
        for thread in threads:
            thread.join()

    def answer(self, octets: bytes, to: socket.socket) -> None:
        """Do what *octets* ask for."""
        try:
            asked = json.loads(octets)
            made = self.does[asked["what"]](asked)
        except (DreError, OSError) as error:
            made = {"error": str(error)}
        except Exception as error:  # whatever was asked, the others are still to be served
            made = {"error": f"{type(error).__name__}: {error}"}
        with to, contextlib.suppress(OSError):  # the engine has gone meanwhile
            to.sendall(json.dumps(made).encode() + b"\n")

    # --- what may be asked for ---

    def step(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Do a phase of a step."""
        act = _act(asked)
        script = self.agreed(asked)
        step = script.response(act.response).steps[act.step]
        if act.phase == "act" and step.action not in TELLING:
            self.signed(script)
        if step.revert == "never" and act.phase == "revert":
            raise NotPermittedError(f"{script.name}: step {act.step + 1} of {act.response} is never taken back")
        made = self.doer.do(script, act, asked["again"] is True)
        return {**vars(made), "told": [vars(one) for one in made.told]}

    def watch(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Tell dre-watch what the version in force watches."""
        script = self.agreed(asked)
        self.signed(script)
        if script.sha256 in self.given or store.in_force(self.conf, script.name) == script.sha256:
            store.watch(self.conf, script)
        return {}

    def record(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put an event line into the D-Box's spool."""
        octets = _line(asked)
        with self.recording:
            self.doer.record(octets)
        return {}

    def drain(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Hand the spool on."""
        with self.recording:
            self.doer.drain()
        return {}

    def send(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        """Tell the monitor of an event of the engine's, or of one that a script in force emits."""
        octets = _line(asked)
        told = event.parse(octets)
        if not told.type.startswith("script.") and told.type not in _emitted(self.scripts()):
            raise NotPermittedError(f"{told.type}: no script in force emits it")
        self.doer.send(octets)
        return {}

    # --- what is agreed ---

    def signed(self, script: Script) -> None:
        """Raise NotPermittedError where two persons should have signed *script*, unless it was given."""
        if script.sha256 not in self.given:
            versions.require(self.conf, script)

    def agreed(self, asked: Mapping[str, Any]) -> Script:
        """The version that is named, if it was ever in force. Raises DreError."""
        name, sha256 = units.name(str(asked["script"])), str(asked["sha256"])
        found = self.given.get(sha256)
        if found is None and not self.given:
            if not any(one.sha256 == sha256 for one in versions.history(self.conf, name)):
                raise NotPermittedError(f"{name}: version {sha256[:12]} was never in force")
            found = self._version(sha256)
        if found is None or found.name != name:
            raise NotPermittedError(f"{name}: there is no version {sha256[:12]}")
        return found

    def scripts(self) -> list[Script]:
        """The scripts in force."""
        if self.given:
            return list(self.given.values())
        files = store.deployed_files(self.conf)
        if files != self.force[0]:
            digests = [store.in_force(self.conf, path.stem) for path in store.deployed(self.conf)]
            self.force = (files, [made for one in digests if one and (made := self._version(one)) is not None])
        return self.force[1]

    def _version(self, sha256: str) -> Script | None:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            return None
        if sha256 not in self.known:
            script = store.version(self.conf, sha256)
            if script is None:
                return None
            self.known[sha256] = script
        return self.known[sha256]


class Bound(Doer):
    """A Doer whose dre-app and dre-sys are held to what the scripts of *force* do."""

    def __init__(self, conf: Conf, config: str | None, force: Callable[[], list[Script]]) -> None:
        super().__init__(conf, config)
        self.force = force
        self.pool = coprocess.Pool(self.options)

    def call(self, script: Script, argv: Sequence[str], timeout: float) -> bytes:
        """What the program prints."""
        program, words = argv[0], argv[1 + len(self.options) :]
        if program not in ("dre-app", "dre-sys"):
            return super().call(script, argv, timeout)
        may = coprocess.allowed([*self.force(), script], program)
        return self.pool.call(program, may, words, timeout)


def _act(asked: Mapping[str, Any]) -> Act:
    """The Act that is asked for. Raises NotPermittedError."""
    former, step, about = asked["former"], asked["step"], asked["about"]
    events = tuple(map(str, asked["events"]))
    act = Act(str(asked["run"]), str(asked["response"]), step, str(asked["phase"]), events, former, about)
    if not _RUN.fullmatch(act.run) or act.phase not in PHASES or type(act.step) is not int or act.step < 0:
        raise NotPermittedError("not a phase of a step")
    if act.phase == "act" and not REQUEST.fullmatch(act.request):
        raise NotPermittedError(f"{act.request[:60]!r} is not a request")
    for key, value in (former or {}).items():
        if not isinstance(value, str) or not _FORMER.fullmatch(value):
            raise NotPermittedError(f"{key}: {value!r} was never read")
    return act


def _line(asked: Mapping[str, Any]) -> bytes:
    octets = str(asked["line"]).encode()
    if b"\n" in octets or len(octets) >= event.LIMIT:
        raise NotPermittedError("not an event line")
    return octets


def _emitted(scripts: Sequence[Script]) -> set[str]:
    steps = [step for script in scripts for response in script.responses for step in response.steps]
    return {str(step.values["type"]) for step in steps if step.action == "emit"}
