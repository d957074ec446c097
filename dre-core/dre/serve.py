# SPDX-License-Identifier: Apache-2.0
"""JSON Lines on stdin and stdout: one process that answers many calls of a command, the back-end of the C libraries.

A request is `{"id":1,"argv":["limit","web1","--cpu","50"]}`; answers come in the order of the requests. They are done
in a forked child: a deadline can end it as kill -9 would, and whatever goes wrong in it, the process lives and forks
another. Knows no verbs: the command brings its parser.
"""

import argparse
import base64
import binascii
import contextlib
import fnmatch
import gc
import io
import json
import os
import pickle
import select
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

from dre import cli, conf, event, run
from dre.cli import Before, Context
from dre.errors import DONE, FAILED, TIMED_OUT, USAGE, DreError, NotPermittedError, UsageError
from dre.supervisor import Supervisor

LINE = 1 << 20  # octets of a request or an answer, without its end
ROWS = LINE - (32 << 10)  # of them for the rows, which leaves room for id and error
CAPTURED = 360 << 10  # of stdout, and of stderr, of a program; base64 makes four of three
ERROR = 4096  # characters of an error
DEADLINE, LONGEST = 600.0, 86400.0  # seconds


@dataclass(frozen=True)
class Request:
    """What is asked for; *id* is the caller's own and comes back with the answer."""

    id: int | str | None
    argv: tuple[str, ...]
    deadline: float
    stdin: bytes


class RequestError(UsageError):
    """A line that is no request; *id* is that of the line where it has one."""

    def __init__(self, message: str, id: int | str | None = None) -> None:
        super().__init__(message)
        self.id = id


@dataclass
class Served(Context):
    """What a verb gets here: rows are collected, and a program that takes the verb's place is captured."""

    stdin: bytes = b""
    supervisor: Supervisor = field(default_factory=Supervisor)
    more: dict[str, Any] = field(default_factory=dict)

    def become(self, first: Before, program: str, *words: str, keep_files: bool = False) -> int:
        """Run *program* to its end; how it ended and what it printed become part of the answer.

        The supervisor ends it with us, in place of the guard that *first* begins.
        """
        done = self.supervisor.run((program, *words), self.stdin, CAPTURED)
        return self.pass_on(done.status, done.stdout, done.stderr, done.cut)

    def given(self) -> bytes:
        """What the request gives as standard input."""
        return self.stdin

    def pass_on(self, status: int, stdout: bytes, stderr: bytes, cut: bool) -> int:
        """Make a program's end and output part of the answer."""
        self.more = {"status": status, "stdout": _base64(stdout[:CAPTURED]), "stderr": _base64(stderr[:CAPTURED])}
        if cut or max(len(stdout), len(stderr)) > CAPTURED:
            self.more["truncated"] = True
        return DONE


class Rows(io.StringIO):
    """A stream of JSON Lines that keeps what fits an answer, whole lines only."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.room = ROWS
        self.cut = False

    def write(self, text: str) -> int:
        """Take lines; each must come as a whole."""
        for line in text.splitlines():
            self.room -= len(_octets(line)) + 1
            if self.cut or self.room < 0:
                self.cut = True
                break
            self.lines.append(line)
        return len(text)


def serve(ctx: Context, made: argparse.ArgumentParser) -> int:
    """Answer requests until stdin ends, each as *made* parses it."""
    args = ctx.args
    deadline = DEADLINE if args.deadline is None else args.deadline
    server = Server(ctx.prog, made, args.config, deadline, _verbs(made, args.only_verbs), args.only_names)
    # What is there now is in every child; the collector would only copy its pages.
    gc.collect()
    gc.freeze()
    for line in _lines(server.requests):
        server.answer(line)
    return 0


def _verbs(made: argparse.ArgumentParser, text: str | None) -> list[str] | None:
    """The verbs of --allow; None for all. Raises UsageError."""
    if text is None:
        return None
    table = next(action for action in made._actions if isinstance(action, argparse._SubParsersAction))
    verbs = [" ".join(word.split()) for word in text.split(",")]
    for verb in verbs:
        if verb.partition(" ")[0] not in table.choices:
            raise UsageError(f"--allow: {verb!r} is not a verb")
    return verbs


def _lines(fd: int) -> Iterator[bytes | None]:
    """The lines that come by *fd*, without their ends; None for one that is too long."""
    begun, long = b"", False
    while block := os.read(fd, 1 << 16):
        *ends, rest = block.split(b"\n")
        for end in ends:
            line = begun + end
            yield None if long or len(line) > LINE else line
            begun, long = b"", False
        begun += rest
        if len(begun) > LINE:
            begun, long = b"", True
    if begun or long:
        yield None if long else begun


def parse(line: bytes | None, deadline: float) -> Request:
    """The request of one line; *deadline* is for one that gives none. Raises RequestError."""
    if line is None:
        raise RequestError(f"a line of more than {LINE} octets")
    try:
        fields = json.loads(line.decode(), object_pairs_hook=event.once)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise RequestError("a request is an object")
    identity = fields.get("id")
    whole = isinstance(identity, int) and not isinstance(identity, bool) and abs(identity) < 1 << 63
    if not (identity is None or whole or (isinstance(identity, str) and len(identity) <= 256)):
        raise RequestError("id: expected a number of at most 63 bits, or at most 256 characters")
    try:
        return _request(identity, fields, deadline)
    except UsageError as error:
        raise RequestError(str(error), identity) from None


def _request(identity: int | str | None, fields: Mapping[str, Any], deadline: float) -> Request:
    unknown = set(fields) - {"id", "argv", "deadline", "stdin"}
    if unknown:
        raise UsageError(f"unknown key {min(unknown)!r}")
    argv = fields.get("argv")
    if not isinstance(argv, list) or not all(isinstance(word, str) for word in argv):
        raise UsageError("argv: expected a list of strings")
    for word in argv:
        if "\0" in word or any("\ud800" <= character <= "\udfff" for character in word):
            raise UsageError("argv: a NUL or half a surrogate pair cannot stand in an argument")
    given = fields.get("deadline", deadline)
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 0 < given <= LONGEST:
        raise UsageError(f"deadline: expected seconds, above 0 and at most {LONGEST:g}")
    stdin = fields.get("stdin", "")
    try:
        octets = base64.b64decode(stdin, validate=True) if isinstance(stdin, str) else None
    except (binascii.Error, ValueError):
        octets = None
    if octets is None:
        raise UsageError("stdin: expected base64")
    return Request(identity, tuple(argv), float(given), octets)


@dataclass
class Child:
    """The process that does what is asked for, one request after another."""

    pid: int
    requests: IO[bytes]
    answers: int
    left: int = 500  # requests until another takes its place, so that nothing can pile up in it


class Server:
    """The process: its two channels, and what it may do."""

    def __init__(
        self,
        prog: str,
        made: argparse.ArgumentParser,
        config: str | None,
        deadline: float,
        allow: list[str] | None,
        names: str | None,
    ) -> None:
        self.prog, self.made, self.config, self.deadline = prog, made, config, deadline
        self.allow, self.names = allow, names
        self.child: Child | None = None
        self.supervisor = Supervisor()  # of the child
        # Kept for the protocol alone: what a verb, or a program it calls, reads or prints must not get into it.
        self.requests, self.answers = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(2, 1)
        os.close(null)

    def answer(self, line: bytes | None) -> None:
        """Answer one line."""
        try:
            request = parse(line, self.deadline)
        except RequestError as error:
            _write(self.answers, _answer(error.id, USAGE, [], str(error)))
        else:
            self._ask_child(request)

    def _ask_child(self, request: Request) -> None:
        if self.child is None or self.child.left == 0:
            self._end_child()
            self.child = self._fork()
        child, deadline = self.child, time.monotonic() + request.deadline
        child.left -= 1
        with contextlib.suppress(BrokenPipeError):  # it has been killed: then it gives no answer either
            pickle.dump(request, child.requests)
            child.requests.flush()
        answer = _received(child.answers, deadline)
        if answer is None:
            run.kill_family(child.pid)
            text = f"not done within {request.deadline:g} s; what was begun is ended by the next verb on it"
            answer = _answer(request.id, TIMED_OUT, [], text)
            child.left = 0
        elif not answer:
            answer = _answer(request.id, FAILED, [], "the process that was at work on it has been killed")
            child.left = 0
        _write(self.answers, answer)

    def _fork(self) -> Child:
        receiving, requests = os.pipe()
        answers, giving = os.pipe()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.close(requests)
            os.close(answers)
            self._be_child(receiving, giving, parent)
        os.close(receiving)
        os.close(giving)
        return Child(pid, os.fdopen(requests, "wb"), answers)

    def _end_child(self) -> None:
        if self.child is not None:
            with contextlib.suppress(BrokenPipeError):
                self.child.requests.close()
            os.close(self.child.answers)
            os.waitpid(self.child.pid, 0)

    def _be_child(self, receiving: int, giving: int, parent: int) -> NoReturn:
        try:
            # The work shall not outlive the process that was asked for it.
            run.die_with(parent)
            os.close(self.requests)
            os.close(self.answers)
            with os.fdopen(receiving, "rb") as stream, contextlib.suppress(EOFError):
                while os.getppid() == parent:
                    request = pickle.load(stream)  # noqa: S301 - from the process that forked this one
                    _write(giving, self._perform(request))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    def _perform(self, request: Request) -> bytes:
        """Do what is asked, and return the answer: what dre.cli.main does for a single call."""
        rows, said = Rows(), io.StringIO()
        more: dict[str, Any] = {}
        try:
            with contextlib.redirect_stderr(said):
                args = self._parsed(request.argv)
                # As for a single call, the settings are those of this moment.
                settings = conf.load(self.config)
                ctx = Served(self.prog, args, settings, cli.Output(True, rows), request.stdin, self.supervisor)
                code = args.function(ctx) or DONE
                more = ctx.more
            error = ""
        except (DreError, OSError) as failure:
            code, error = cli.failure(failure)
            error = error.partition("\n")[0]  # not the usage line
        except Exception as mistake:
            code, error = FAILED, f"{type(mistake).__name__}: {mistake}"
            traceback.print_exc()
        talk = said.getvalue()
        if code != DONE:
            told = [line.removeprefix(f"{self.prog}: ") for line in talk.splitlines()]
            error = "\n".join(([error] if error else []) + told)
        elif talk:
            sys.stderr.write(talk)
        if rows.cut:
            more["truncated"] = True
        return _answer(request.id, code, self._shown(rows.lines), error, **more)

    def _parsed(self, argv: tuple[str, ...]) -> argparse.Namespace:
        """The arguments, where they are allowed. Raises UsageError and NotPermittedError."""
        try:
            args = self.made.parse_args(argv)
        except SystemExit:
            raise UsageError("--help and --version are not answered here") from None
        ours = (args.config, args.only_verbs, args.only_names, args.deadline)
        if args.serve or any(value is not None for value in ours) or getattr(args, "verb", None) is None:
            raise UsageError("expected a verb and its arguments; all else was fixed with --serve")
        verb = args.verb.removeprefix(f"{self.made.prog} ")
        if getattr(args, "endless", None) and args.endless(args):
            raise UsageError(f"{verb}: wants standard input or output, or has no end; not to be had here")
        if self.allow is not None and not any(f"{verb} ".startswith(f"{word} ") for word in self.allow):
            raise NotPermittedError(f"{verb}: not among the verbs of --allow")
        if self.names is not None:
            self._permit_names(verb, args)
        args.config = self.config  # for what a verb starts: a receiver on this host, a keeper
        return args

    def _permit_names(self, verb: str, args: argparse.Namespace) -> None:
        given = {key: getattr(args, key) for key in NAMED if getattr(args, key, None) is not None}
        if not given:  # it may touch anything
            raise NotPermittedError(f"{verb}: takes no name, and --names is set")
        for value in given.values():
            for name in value if isinstance(value, (list, tuple)) else [value]:
                if not self._named(str(name)):
                    raise NotPermittedError(f"{name}: not among the names of --names")

    def _named(self, name: str) -> bool:
        """Whether *name* is like one of --names."""
        return any(fnmatch.fnmatchcase(name, glob) for glob in (self.names or "").split(","))

    def _shown(self, lines: list[str]) -> list[str]:
        """The rows as JSON: without those of names that are not allowed, and what is no object as one."""
        shown = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                line = json.dumps({"line": line})  # answered under a request id first asked for without --json
            elif self.names is not None and not self._named(str(row.get("name", ""))):
                continue
            shown.append(line)
        return shown


# Where the verbs keep the names of what they act on. An empty list is all there are, each in a row of its own.
NAMED = ("name", "names", "new")


def _received(fd: int, deadline: float) -> bytes | None:
    """The line that comes by *fd*; nothing where its writer was killed, None where the *deadline* passed."""
    answer = b""
    while not answer.endswith(b"\n"):
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        octets = os.read(fd, 1 << 16)
        if not octets:
            return b""
        answer += octets
    return answer


def _answer(identity: int | str | None, code: int, rows: list[str], error: str, **more: Any) -> bytes:
    """The line of an answer."""
    ends = {"error": error[:ERROR], **more}
    text = ",".join(f'"{key}":{_encode(value)}' for key, value in ends.items())
    return _octets(f'{{"id":{json.dumps(identity)},"code":{code},"rows":[{",".join(rows)}],{text}}}\n')


_encode = json.JSONEncoder(ensure_ascii=False).encode


def _octets(text: str) -> bytes:
    # What is not UTF-8 in a name of the host came in as half a surrogate pair: \udc80 is how JSON writes that.
    return text.encode(errors="backslashreplace")


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _write(fd: int, octets: bytes) -> None:
    rest = memoryview(octets)
    while rest:
        rest = rest[os.write(fd, rest) :]
