# SPDX-License-Identifier: Apache-2.0
"""The skeleton of every command: common options, verbs, output, and the one place that turns errors into exit codes."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, NoReturn

from dre import __version__, conf
from dre.errors import FAILED, USAGE, DreError, NotPermittedError, UsageError

Column = tuple[str, str, int]  # header, field name, least width
Before = Callable[..., None]  # what a process does before it becomes a program; see dre.attached.guard


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that names the wrong argument, then prints one usage line and not the whole help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.given = [str(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if "arguments are required" in message:  # argparse would name an unknown option only after these are there
            words = self.given[: self.given.index("--")] if "--" in self.given else self.given
            options = [word.partition("=")[0] for word in words if word.startswith("--")]
            unknown = [option for option in options if option not in self._option_string_actions]
            message = f"unrecognized arguments: {' '.join(unknown)}" if unknown else message
        raise UsageError(f"{message}\nusage: {' '.join(self.format_usage().split()).removeprefix('usage: ')}")


class Output:
    """Data on stdout: aligned columns for people and awk, or JSON Lines with the same fields."""

    def __init__(self, as_json: bool, stream: IO[str] | None = None) -> None:
        self.as_json = as_json
        self.stream = stream or sys.stdout

    def line(self, text: str) -> None:
        """Print one plain line."""
        self.stream.write(text + "\n")

    def json(self, row: Mapping[str, Any]) -> None:
        """Print one JSON object on one line."""
        self.line(json.dumps(row, ensure_ascii=False, separators=(",", ":")))

    def header(self, columns: Sequence[Column]) -> None:
        """Print the header line, only on a terminal and only for people."""
        if not self.as_json and self.stream.isatty():
            self.line("  ".join(f"{title:<{width}}" for title, _, width in columns).rstrip())

    def row(self, row: Mapping[str, Any], columns: Sequence[Column]) -> None:
        """Print one row: all its fields as JSON, or the *columns* of it."""
        if self.as_json:
            self.json(row)
        else:
            self.line("  ".join(f"{plain(row.get(key)):<{width}}" for _, key, width in columns).rstrip())

    def table(self, rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> None:
        """Print a header where one belongs, and all *rows*, each column as wide as its longest value."""
        rows = list(rows)
        wide = [
            (title, key, max([width, len(title), *(len(plain(row.get(key))) for row in rows)]))
            for title, key, width in columns
        ]
        self.header(wide)
        for row in rows:
            self.row(row, wide)


def plain(value: Any) -> str:
    """A value as one word for a column: unknown is `-`, a list is joined by commas."""
    if value is None or value == [] or value == "":
        return "-"
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    if isinstance(value, float):
        return f"{value:.1f}"
    return str(value)


@dataclass
class Context:
    """What a verb gets: the parsed arguments, the settings, the output, and a voice on stderr."""

    prog: str
    args: argparse.Namespace
    conf: conf.Conf
    out: Output

    def say(self, text: str) -> None:
        """Tell the person something, unless --quiet."""
        if not self.args.quiet:
            sys.stderr.write(f"{self.prog}: {text}\n")

    def progress(self, text: str) -> None:
        """Replace the progress line, only when stderr is a terminal."""
        if not self.args.quiet and sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()

    def become(self, first: Before, program: str, *words: str, keep_files: bool = False) -> int:
        """Let *program*, a path, take our place: status, stdin and stdout pass only without us in between.

        *first* is called in the process that becomes it. With *keep_files* it is one of LXC's, and must not change the
        files behind them; see dre.stdio.
        """
        sys.stdout.flush()
        if keep_files:
            from dre import stdio  # not for a list

            files = stdio.endangered()
            if files:
                return stdio.run([program, *words], files, first)
        first()
        return self._become(program, words)

    def given(self) -> bytes:
        """What standard input holds to its end, nothing where a person would have to type it."""
        return b"" if sys.stdin.isatty() else sys.stdin.buffer.read()

    def pass_on(self, status: int, stdout: bytes, stderr: bytes, cut: bool) -> int:
        """Let a program's end and output, had from elsewhere, be ours; *cut*: it printed more."""
        for stream, octets in ((sys.stdout, stdout), (sys.stderr, stderr)):
            if stream.isatty():
                lines = octets.decode(errors="replace").split("\n")
                octets = "\n".join(harmless(line.removesuffix("\r")) for line in lines).encode()
            stream.flush()
            stream.buffer.write(octets)
            stream.flush()
        if cut:
            self.say("its output was cut: it printed more than is passed on")
        return status

    def _become(self, program: str, words: Sequence[str]) -> NoReturn:
        os.execv(program, (program, *words))  # noqa: S606 - the words are the user's own, and no shell reads them


def harmless(text: str) -> str:
    """*text*, one line, without what would command a terminal: a container is not to be trusted with that."""
    import re  # late: a list has nothing of that kind

    return re.sub(r"[^\t\x20-\x7e\xa0-\U0010ffff]", lambda match: f"\\x{ord(match[0]):02x}", text)


def common(parser: argparse.ArgumentParser, top: bool) -> None:
    """Add the options that every command and every verb takes."""
    group = parser.add_argument_group("common options")

    def default(value: Any) -> Any:
        return value if top else argparse.SUPPRESS  # a verb's default must not overwrite what stood before the verb

    group.add_argument(
        "--config", metavar="FILE", default=default(None), help=f"settings to use instead of {conf.DEFAULT}"
    )
    group.add_argument("--json", action="store_true", default=default(False), help="print JSON Lines")
    group.add_argument("--quiet", action="store_true", default=default(False), help="say nothing on success")
    group.add_argument("--debug", action="store_true", default=default(False), help="show a traceback with an error")
    if top:
        parser.add_argument("--version", action="version", version=f"{parser.prog} (D-RE) {__version__}")


def verb(
    verbs: Any, name: str, function: Callable[[Context], int | None], help: str, **kwargs: Any
) -> argparse.ArgumentParser:
    """Add a verb to *verbs* (what `add_subparsers` returned); *function* does it and returns an exit code or None."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help, description=help, **kwargs)
    common(parser, top=False)
    parser.set_defaults(function=function, verb=parser.prog)
    return parser


def parser(prog: str, description: str, **kwargs: Any) -> Parser:
    """The parser of a command, with the common options."""
    made = Parser(prog=prog, description=description, **kwargs)
    common(made, top=True)
    return made


def main(made: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse *argv* (default sys.argv[1:]), call the `function` default of what was parsed, return the exit code."""
    debug = "--debug" in (sys.argv[1:] if argv is None else argv)
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _fill_closed()
    try:
        args = made.parse_args(argv)
        if getattr(args, "function", None) is None:
            made.error("a verb is missing")
        context = Context(made.prog, args, conf.load(args.config), Output(args.json))
        code = args.function(context)
        sys.stdout.flush()
        return code or 0
    except SystemExit as asked:  # --help and --version end this way
        return int(asked.code or 0)
    except BrokenPipeError:
        # The reader left, as `| head` does. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (DreError, OSError) as error:
        code, message = failure(error)
        return _fail(made.prog, message, code, debug)


def _fill_closed() -> None:
    """Put something behind standard streams that are closed: else a file of ours would get their numbers."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # What is written to a closed standard output must fail; complaints of a closed standard error cannot.
            os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)  # takes the lowest number, *fd*
            setattr(sys, name, os.fdopen(fd, "r" if name == "stdin" else "w", closefd=False))


def leave(code: int) -> NoReturn:
    """End the process at once: for Python to take itself apart costs more than most verbs."""
    with contextlib.suppress(OSError):  # main has told of what could not be written
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def failure(error: DreError | OSError) -> tuple[int, str]:
    """The exit code and the message of what a verb raised."""
    if isinstance(error, DreError):
        return error.code, str(error)
    code = NotPermittedError.code if isinstance(error, PermissionError) else FAILED
    return code, f"{error.filename or 'input or output'}: {error.strerror or error}"


def _fail(prog: str, message: str, code: int, debug: bool) -> int:
    if debug:
        import traceback  # slow, and rarely wanted

        traceback.print_exc()
    first, _, rest = message.partition("\n")
    sys.stderr.write(f"{prog}: {first}\n")
    if rest and code == USAGE:
        sys.stderr.write(f"{rest}\n")
    return code


def need_root(what: str) -> None:
    """Raise NotPermittedError unless the caller is root; *what* says for what."""
    if os.geteuid() != 0:
        raise NotPermittedError(f"{what} needs root")
