# SPDX-License-Identifier: Apache-2.0
"""The skeleton of every command: common options, verbs, and what a verb is given; with dre.columns and dre.ending."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from dre import __version__, conf, ending
from dre.columns import Column, Output, plain
from dre.ending import failure, leave, need_root
from dre.errors import UsageError

__all__ = [
    "Column",
    "Context",
    "Output",
    "Parser",
    "common",
    "failure",
    "harmless",
    "leave",
    "main",
    "need_root",
    "parser",
    "plain",
    "verb",
]
Before = Callable[..., None]  # what a process does before it becomes a program; see dre.attached.guard


class Help(argparse.HelpFormatter):
    """That of argparse, which is made for each argument and would load what knows archives to learn a width."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, **{"width": _width() - 2, **kwargs})


def _width() -> int:
    """The columns of the terminal, as shutil.get_terminal_size has them."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that names the wrong argument, then prints one usage line and not the whole help."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", Help)
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

    def work() -> int | None:
        args = made.parse_args(argv)
        if getattr(args, "function", None) is None:
            made.error("a verb is missing")
        verb: Callable[[Context], int | None] = args.function
        return verb(Context(made.prog, args, conf.load(args.config), Output(args.json)))

    return ending.call(made.prog, work, debug)
