# SPDX-License-Identifier: Apache-2.0
"""The skeleton of every command: options before and after the verb, output in both forms, errors to exit codes."""

import json
import os
import subprocess
import sys

import pytest
from dre import cli, errors
from dre.errors import DreError

COLUMNS = [("NAME", "name", 4), ("CPU", "cpu", 5), ("IP", "ip", 2)]
ROWS = [
    {"name": "web1", "cpu": 12.345, "ip": ["10.0.0.1", "10.0.0.2"]},
    {"name": "a-longer-name", "cpu": None, "ip": []},
]
PROGRAM = """
import sys
from dre import cli

def verb(ctx):
    for number in range(int(ctx.args.lines)):
        ctx.out.line(str(number))

parser = cli.parser("prog", "For a test.")
verbs = parser.add_subparsers()
cli.verb(verbs, "lines", verb, "print lines").add_argument("lines")
sys.exit(cli.main(parser))
"""


@pytest.fixture
def command(settings):
    """command(FUNCTION, ARG…) → exit code of `prog do`, whose work FUNCTION does."""
    conf = settings()

    def call(function, *argv):
        parser = cli.parser("prog", "For a test.")
        verbs = parser.add_subparsers(title="verbs", metavar="VERB")
        cli.verb(verbs, "do", function, "do it").add_argument("--number", type=int)
        return cli.main(parser, ["--config", conf, *argv])

    return call


def nothing(ctx):
    return None


@pytest.mark.parametrize("code", [None, 0, 1, 42])
def test_a_verb_returns_the_exit_code(command, code):
    assert command(lambda ctx: code, "do") == (code or 0)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("DreError", 1),
        ("UsageError", 2),
        ("NotFoundError", 3),
        ("NotPermittedError", 4),
        ("TimedOutError", 5),
        ("MissingError", 6),
    ],
)
def test_each_error_has_its_code_and_one_line(command, capsys, name, code):
    def verb(ctx):
        raise getattr(errors, name)("web1: the reason")

    assert command(verb, "do") == code
    assert capsys.readouterr() == ("", "prog: web1: the reason\n")


def test_no_two_errors_share_a_code():
    kinds = [DreError, *DreError.__subclasses__()]
    ours = {kind.__name__: kind.code for kind in kinds if kind.__module__ == "dre.errors"}
    assert sorted(ours.values()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("error", "code"), [(PermissionError(13, "denied", "/x"), 4), (OSError(28, "full", "/x"), 1)])
def test_errors_of_the_system_name_the_file(command, capsys, error, code):
    def verb(ctx):
        raise error

    assert command(verb, "do") == code
    assert capsys.readouterr().err.startswith("prog: /x: ")


def test_a_mistake_of_ours_is_not_hidden(command):
    def verb(ctx):
        raise KeyError("x")

    with pytest.raises(KeyError):
        command(verb, "do")


def test_an_interrupt_is_130(command):
    def verb(ctx):
        raise KeyboardInterrupt

    assert command(verb, "do") == 130


@pytest.mark.parametrize("argv", [("--debug", "do"), ("do", "--debug")])
def test_debug_shows_a_traceback(command, capsys, argv):
    def verb(ctx):
        raise DreError("reason")

    assert command(verb, *argv) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("prog: reason\n")


@pytest.mark.parametrize("argv", [("--quiet", "do"), ("do", "--quiet")])
def test_quiet_before_and_after_the_verb(command, capsys, argv):
    assert command(lambda ctx: ctx.say("done"), *argv) == 0
    assert capsys.readouterr() == ("", "")
    assert command(lambda ctx: ctx.say("done"), "do") == 0
    assert capsys.readouterr() == ("", "prog: done\n")


@pytest.mark.parametrize("argv", [("--json", "do"), ("do", "--json")])
def test_json_before_and_after_the_verb(command, capsys, argv):
    assert command(lambda ctx: ctx.out.table(ROWS, COLUMNS), *argv) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_json_is_one_line_whatever_the_text(command, capsys):
    row = {"text": 'two\nlines "quoted" é\u2028'}
    assert command(lambda ctx: ctx.out.json(row), "do", "--json") == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and json.loads(said) == row


def test_plain_rows_are_aligned_without_a_header_in_a_pipe(command, capsys):
    assert command(lambda ctx: ctx.out.table(ROWS, COLUMNS), "do") == 0
    assert capsys.readouterr().out == (
        "web1           12.3   10.0.0.1,10.0.0.2\na-longer-name  -      -\n"  # each value one word: for cut and awk
    )


def test_a_terminal_gets_a_header(command, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert command(lambda ctx: ctx.out.table(ROWS, COLUMNS), "do") == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["NAME", "CPU", "IP"]
    assert command(lambda ctx: ctx.out.table(ROWS, COLUMNS), "do", "--json") == 0
    assert "NAME" not in capsys.readouterr().out


@pytest.mark.parametrize(("terminal", "argv"), [(True, ["do"]), (False, ["do"]), (True, ["do", "--quiet"])])
def test_progress_is_for_terminals(command, capsys, monkeypatch, terminal, argv):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert command(lambda ctx: ctx.progress("half done"), *argv) == 0
    assert ("half done" in capsys.readouterr().err) == (terminal and argv == ["do"])


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["do", "--nosuch"], "--nosuch"),
        (["--nosuch", "do"], "--nosuch"),
        (["do", "--num", "3"], "--num"),  # no abbreviations: they would break when an option is added
        (["do", "--number", "x"], "'x'"),
        (["do", "--number"], "--number"),
        (["do", "surplus"], "surplus"),
        (["nosuch"], "nosuch"),
        ([], "a verb is missing"),
    ],
)
def test_wrong_usage_names_the_word_and_shows_one_usage_line(command, capsys, argv, named):
    assert command(nothing, *argv) == 2
    out, err = capsys.readouterr()
    first, usage = err.splitlines()
    assert out == "" and named in first and usage.startswith("usage: prog ")


@pytest.mark.parametrize(
    ("argv", "named"),
    [(["--nosuch=1"], ": --nosuch"), ([], ": NAME"), (["--quiet"], ": NAME"), (["--quiet", "--", "a", "--b"], "--b")],
)
def test_an_unknown_option_is_named_before_missing_arguments(capsys, argv, named):
    parser = cli.parser("prog", "For a test.")
    parser.add_argument("name", metavar="NAME")
    assert cli.main(parser, argv) == 2
    assert capsys.readouterr().err.splitlines()[0].endswith(named)


def test_a_missing_settings_file_is_refused(capsys, tmp_path):
    parser = cli.parser("prog", "For a test.")
    parser.set_defaults(function=nothing)
    assert cli.main(parser, ["--config", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"prog: {tmp_path}/none: no such file\n"


def test_a_reader_that_leaves_early_gets_no_traceback(settings):
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    argv = [sys.executable, "-c", PROGRAM, "--config", settings(), "lines", "200000"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as child:
        assert child.stdout.readline() == b"0\n"
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(30) == 141  # as a program killed by SIGPIPE has in the shell


@pytest.mark.skipif(os.geteuid() != 0, reason="is for root")
def test_root_may(capsys):
    cli.need_root("it")


def test_others_are_told_what_needs_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(errors.NotPermittedError, match="^dre-x up needs root$"):
        cli.need_root("dre-x up")
