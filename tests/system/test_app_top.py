# SPDX-License-Identifier: Apache-2.0
"""top on a real terminal: rows, sorting by keys, and the terminal as it was, however it ends; elsewhere it refuses."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios

import pytest
from app_ground import Ground, wait_for
from conftest import environment, program


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        yield ground


@contextlib.contextmanager
def terminal(app, *words):
    """top at work on a terminal of 30 lines; gives its process and a function that returns what is shown by now."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 150, 0, 0))
    argv = [program("dre-app"), "--config", app.config, "top", "--interval", "200ms", *words]
    before = termios.tcgetattr(theirs)
    process = subprocess.Popen(argv, env=environment(), stdin=theirs, stdout=theirs, start_new_session=True)
    shown = ""

    def screen():
        nonlocal shown
        while select.select([ours], [], [], 0.05)[0]:
            shown += os.read(ours, 65536).decode()
        return shown

    process.settings = lambda: termios.tcgetattr(theirs)
    process.before = before
    process.keys = lambda keys: os.write(ours, keys)
    try:
        yield process, screen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def order(screen):
    """The names in the last whole frame."""
    frames = re.split(r"\x1b\[H", screen())[:-1]
    return re.findall(r"^(t-top\w) ", frames[-1], re.MULTILINE) if frames else []


def ended(process, screen):
    """Its exit status; it is read meanwhile, or it could not write its last words."""
    return wait_for(lambda: (screen(), process.poll() is not None)[1], 60) and process.returncode


def test_rows_sorting_and_leaving(app):
    app("create", "t-topa")
    app("create", "t-topb", "--cpu", "20", "--", "sh", "-c", "while :; do :; done")
    app("start", "t-topa", "t-topb")
    with terminal(app) as (process, screen):
        assert wait_for(lambda: order(screen) == ["t-topb", "t-topa"], 60)
        assert "2 apps, 2 running" in screen()
        process.keys(b"n")
        assert wait_for(lambda: order(screen) == ["t-topa", "t-topb"], 60)
        process.keys(b"xc")
        assert wait_for(lambda: order(screen) == ["t-topb", "t-topa"], 60)
        app("destroy", "--force", "t-topb")
        assert wait_for(lambda: order(screen) == ["t-topa"], 60)
        during = process.settings()
        process.keys(b"q")
        assert ended(process, screen) == 0
        assert screen().endswith("\x1b[?25h\x1b[?1049l")
        assert not during[3] & termios.ICANON
        assert process.settings() == process.before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_the_terminal_as_it_was(app, number, status):
    app("create", "t-topa")
    with terminal(app, "t-topa") as (process, screen):
        assert wait_for(lambda: order(screen) == ["t-topa"], 60)
        process.send_signal(number)
        assert ended(process, screen) == status
        assert screen().endswith("\x1b[?25h\x1b[?1049l")
        assert process.settings() == process.before


def test_it_needs_a_terminal_and_known_apps(app):
    assert app("top", code=2).startswith("dre-app: top needs a terminal")
    app("top", "t-none", code=3)
    app("top", "--interval", "1ms", code=2)
