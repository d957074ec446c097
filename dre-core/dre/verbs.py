# SPDX-License-Identifier: Apache-2.0
"""The table of verbs that dre-sys and dre-app share: how their arguments are read, and how a verb is answered twice.

A command names its groups of verbs, each a module with `add(verbs)`. Only the group of the verb that is asked for is
imported: a list shall not pay for what makes, moves and limits.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from dre import cli, units
from dre.cli import Context
from dre.errors import DreError, UsageError

Verb = Callable[[Context], int | None]
# The options of a command, not of its verbs, that take a value.
_VALUED = ("--config", "--allow", "--names", "--deadline")


class VerbParser(cli.Parser):
    """A parser that leaves what follows `--` alone; argparse would lose it behind options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse; what follows the first `--` becomes the end of `command`."""
        words = list(sys.argv[1:] if args is None else args)
        tail: list[str] = []
        if "--" in words:
            words, tail = words[: words.index("--")], words[words.index("--") + 1 :]
        found, rest = super().parse_known_args(self._options_first(words), namespace)
        if getattr(found, "command", None):
            self.error(f"unexpected {found.command[0]!r}: a command comes after --")
        if tail:
            if not hasattr(found, "command"):
                self.error("this verb takes no command after --")
            found.command = [*found.command, *tail]
        return found, rest

    def _options_first(self, words: list[str]) -> list[str]:
        """*words* with the options before the others: of `save NAME --freeze TAG` argparse would not take the TAG."""
        if self._subparsers is not None:
            return words  # what follows the verb is that parser's
        options: list[str] = []
        others: list[str] = []
        left = list(reversed(words))
        while left:
            word = left.pop()
            if not word.startswith("-") or word == "-":
                others.append(word)
                continue
            action = self._option_string_actions.get(word)
            if action is not None and action.nargs == "?":
                # Joined, for the same reason as below.
                word += f"={left.pop() if left and not left[-1].startswith('-') else action.const}"
            options.append(word)
            if action is not None and action.nargs is None:
                if not left:  # else it would take what is put after it
                    self.error(f"argument {word}: expected one argument")
                options.append(left.pop())
        return [*options, *others]


def parser(
    prog: str, description: str, groups: Mapping[str, str], argv: Sequence[str] | None
) -> argparse.ArgumentParser:
    """The parser of command *prog*; *groups* gives for each verb the module that adds it.

    Of all verbs, or only of the group that *argv* asks for. None of *argv* is refused here.
    """
    made = cli.parser(prog, description)
    if list(argv or ()) == ["--version"]:
        return made
    asked = groups.get(_verb(argv or ()))
    if asked is None:
        _add_serving(made)
    if asked is None and "--serve" in (argv or ()):
        made.set_defaults(function=lambda ctx: _serve(ctx, parser(prog, description, groups, None)))
        return made
    # With the name given argparse need not work it out, for which it imports what knows archives and terminals.
    table = made.add_subparsers(title="verbs", metavar="VERB", parser_class=VerbParser, prog=prog)
    for module in [asked] if asked else dict.fromkeys(groups.values()):
        importlib.import_module(module).add(table)
    return made


def _verb(argv: Sequence[str]) -> str:
    """The first word of *argv* that is neither an option nor the value of one."""
    words = iter(argv)
    for word in words:
        if word in _VALUED:
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def _add_serving(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("many calls in one process")
    text = "answer requests of JSON Lines on stdin by JSON Lines on stdout, in place of a verb"
    group.add_argument("--serve", action="store_true", help=text)
    text = "with --serve: only these verbs, separated by commas"
    group.add_argument("--allow", metavar="VERBS", dest="only_verbs", help=text)
    text = "with --serve: only names like this, or like one of several, separated by commas"
    group.add_argument("--names", metavar="GLOB", dest="only_names", help=text)
    text = "with --serve: kill what has not ended after S seconds (default: 600)"
    group.add_argument("--deadline", type=kind(units.duration), metavar="S", help=text)


def _serve(ctx: Context, made: argparse.ArgumentParser) -> int:
    from dre import serve  # what it needs is slow to import, and no other call wants it

    return serve.serve(ctx, made)


def changing(verbs: Any, name: str, function: Verb, help: str) -> argparse.ArgumentParser:
    """Add a verb that changes something: it takes a request id and answers a second time as it did the first."""

    def answer(ctx: Context) -> int | None:
        cli.need_root(f"{ctx.prog} {name}")
        if ctx.args.request_id is None:
            ctx.args.again = False
            return function(ctx)
        return _remembered(ctx, name, function)

    from dre import requests  # not for a list

    verb = cli.verb(verbs, name, answer, help)
    text = "asked again with the same ID, answer as the first time and do nothing"
    verb.add_argument("--request-id", type=kind(requests.identity), metavar="ID", help=text)
    return verb


def _remembered(ctx: Context, name: str, function: Verb) -> int:
    unasked = ("function", "verb", "endless", "config", "json", "quiet", "debug", "request_id")
    from dre import requests

    argv = {"verb": name, **{key: value for key, value in vars(ctx.args).items() if key not in unasked}}
    with requests.asked(ctx.conf, ctx.args.request_id, argv, ctx.prog.removeprefix("dre-")) as request:
        if request.outcome is None:
            stdout, ctx.out.stream = ctx.out.stream, io.StringIO()
            ctx.args.again = request.again
            code, error = 0, ""
            try:
                code = function(ctx) or 0
            except DreError as failure:
                code, error = failure.code, str(failure)
            outcome = requests.Outcome(code, ctx.out.stream.getvalue(), error)
            ctx.out.stream = stdout
            request.remember(outcome)
        else:
            outcome = request.outcome
    ctx.out.stream.write(outcome.output)
    if outcome.error:
        sys.stderr.write(f"{ctx.prog}: {outcome.error}\n")
    return outcome.code


def endless(verb: argparse.ArgumentParser, when: Callable[[argparse.Namespace], bool] = lambda _: True) -> None:
    """Mark a verb that talks to a person or goes on until it is interrupted, always or *when* its arguments say so."""
    verb.set_defaults(endless=when)


def family(verbs: Any, name: str, help: str, *inner: str) -> Any:
    """Add the verb *name* that has verbs of its own, named in *inner*; what is returned takes these."""

    def missing(ctx: Context) -> None:
        raise UsageError(f"{name}: a verb is missing: {', '.join(inner[:-1])} or {inner[-1]}")

    made = cli.verb(verbs, name, missing, help)
    return made.add_subparsers(title="verbs", metavar="VERB", parser_class=VerbParser, prog=made.prog)


def kind(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """*convert* as argparse wants it: its message must reach the user."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


name = kind(units.name)


@kind
def count(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or not 0 < int(text) < 1 << 22:
        raise UsageError(f"{text!r} is not a number above 0")
    return int(text)


def add_name(verb: argparse.ArgumentParser) -> None:
    """The positional NAME."""
    verb.add_argument("name", metavar="NAME", type=name)


def add_names(verb: argparse.ArgumentParser) -> None:
    """The positional NAME…, at least one."""
    verb.add_argument("names", nargs="+", metavar="NAME", type=name)


def add_command(verb: argparse.ArgumentParser, help: str) -> None:
    """CMD, which may be left out; see VerbParser."""
    verb.add_argument("command", nargs="*", default=[], metavar="CMD", help=help)


def add_timeout(verb: argparse.ArgumentParser, default: float) -> None:
    """--timeout of a stop, in seconds."""
    text = f"kill what has not ended after S seconds (default: {default:g})"
    verb.add_argument("--timeout", type=kind(units.duration), default=default, metavar="S", help=text)


def each(
    ctx: Context,
    names: Sequence[str],
    work: Callable[[str], object],
    behind: Callable[[str], Iterable[str]] | None = None,
) -> None:
    """Do *work* on every name, whatever becomes of the others; the first failure is the answer, the others are said.

    With *behind* on several at once, each when those that this gives for it have ended; *names* has them before it.
    """

    def tried(item: str) -> DreError | None:
        try:
            work(item)
        except DreError as error:
            return error
        return None

    ended = _at_once(names, tried, behind) if behind and len(names) > 1 else map(tried, names)
    failures = [error for error in ended if error is not None]
    for failure in failures[1:]:
        sys.stderr.write(f"{ctx.prog}: {failure}\n")
    if failures:
        raise failures[0]


def start_each(
    ctx: Context, names: Sequence[str], after: Callable[[str], Iterable[str]], start: Callable[[str], object]
) -> None:
    """Do *start* on every name, one at a time; not on one that is *after* another where that failed."""
    failed: list[str] = []

    def started(name: str) -> None:
        failed.append(name)
        wanting = [other for other in after(name) if other in failed]
        if wanting:
            raise DreError(f"{name}: not started, for {wanting[0]} was not, which it is after")
        start(name)
        failed.remove(name)

    each(ctx, names, started)


def _at_once(
    names: Sequence[str], work: Callable[[str], DreError | None], behind: Callable[[str], Iterable[str]]
) -> list[DreError | None]:
    from concurrent import futures  # slow, and most calls are for one

    done: dict[str, futures.Future[DreError | None]] = {}

    def turn(item: str) -> DreError | None:
        # Those were given out before this one, so they are at work or done, whatever the number of threads.
        futures.wait([done[other] for other in behind(item) if other in done])
        return work(item)

    # Most of the work is in programs that are waited for, and they wait for the kernel.
    with futures.ThreadPoolExecutor(min(16, 2 * (os.cpu_count() or 1))) as pool:
        for item in names:
            if item not in done:
                done[item] = pool.submit(turn, item)
    return [done[item].result() for item in names]
