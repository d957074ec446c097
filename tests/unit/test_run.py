# SPDX-License-Identifier: Apache-2.0
"""Running other programs: argv and no shell, a deadline, errors that quote, and nothing left behind."""

import os
import sys
import time

import pytest
from dre import run
from dre.errors import DreError, MissingError, TimedOutError


def python(code, *argv):
    return [sys.executable, "-c", code, *argv]


def test_arguments_arrive_as_they_are():
    words = ["$HOME", "`id`", "a b", "", "*", "'\"", ";reboot", "\n"]
    done = run.run(python("import sys; print(sys.argv[1:])", *words))
    assert done.stdout.decode() == f"{words}\n"


def test_messages_are_in_the_c_locale_and_the_environment_is_added_to(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("KEPT", "1")
    code = "import os; print(os.environ['LC_ALL'], os.environ['KEPT'], os.environ['MORE'])"
    assert run.run(python(code), env={"MORE": "2"}).stdout == b"C 1 2\n"


def test_without_stdin_there_is_nothing_to_read():
    assert run.run(["cat"]).stdout == b""
    assert run.run(["cat"], stdin=b"x" * 200_000).stdout == b"x" * 200_000


def test_failure_quotes_the_command_and_its_last_words():
    with pytest.raises(DreError) as caught:
        run.run(["sh", "-c", "echo first >&2; echo last >&2; exit 3"])
    assert str(caught.value) == "sh -c echo first >&2; echo last >&2; exit 3: exit status 3: last"
    assert run.run(["false"], check=False).returncode == 1


def test_a_missing_program_is_named_with_its_package(monkeypatch):
    with pytest.raises(MissingError, match="^no-such-program: no such program$") as caught:
        run.run(["no-such-program"])
    assert caught.value.code == 6
    monkeypatch.setenv("PATH", "/nonexistent")
    for call in (lambda: run.run(["nft"]), lambda: run.need("nft"), lambda: run.follow(["nft"], print, timeout=5)):
        with pytest.raises(MissingError, match="^nft: no such program; apt-get install nftables$"):
            call()


@pytest.mark.parametrize("start", [run.run, lambda argv, timeout: run.follow(argv, print, timeout=timeout)])
def test_a_program_that_does_not_end_is_killed(start, tmp_path):
    file = tmp_path / "pid"
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(TimedOutError) as caught:
        start(python(code, str(file)), timeout=1.0)
    assert caught.value.code == 5 and "1 s" in str(caught.value)
    assert time.monotonic() - begun < 30
    if file.exists():  # else it was killed before it had begun
        assert not os.path.exists(f"/proc/{file.read_text()}")


def test_follow_gives_each_line_when_it_comes(tmp_path):
    """The child waits for a file that only the first line's arrival makes: late lines would time out."""
    code = """
import os, sys, time
sys.stderr.write("one\\n"); sys.stderr.flush()
while not os.path.exists(sys.argv[1]): time.sleep(0.01)
sys.stderr.write("two\\nthree without its end"); print("dropped"); sys.exit(7)
"""
    lines = []

    def listen(line):
        lines.append(line)
        (tmp_path / "seen").touch()

    assert run.follow(python(code, str(tmp_path / "seen")), listen, timeout=30) == 7
    assert lines == ["one", "two", "three without its end"]


def test_follow_gives_stdin():
    lines = []
    assert run.follow(["sh", "-c", "cat >&2"], lines.append, timeout=30, stdin=b"a\nb\n") == 0
    assert lines == ["a", "b"]
    assert run.follow(["true"], lines.append, timeout=30, stdin=b"nobody reads this") == 0


def test_an_error_of_the_listener_ends_the_program(tmp_path):
    def listen(line):
        raise KeyboardInterrupt

    code = "import os, sys, time; sys.stderr.write(f'{os.getpid()}\\n'); sys.stderr.flush(); time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.follow(python(code), listen, timeout=60)
    assert time.monotonic() - begun < 30
