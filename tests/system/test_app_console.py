# SPDX-License-Identifier: Apache-2.0
"""console: a shell on a real terminal; its size, Ctrl-C and the status of the shell pass through."""

import errno
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pytest
from app_ground import Ground, wait_for
from conftest import environment, program

NAME = "t-console"


class Terminal:
    """dre-app console on a pty of its own, and what came out of it."""

    def __init__(self, *argv):
        self.seen = ""
        master, slave = pty.openpty()
        self.master = master
        self.resize(40, 100)
        self.child = subprocess.Popen(
            [program("dre-app"), *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment(), "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text):
        os.write(self.master, text.encode())

    def read(self, timeout=0.5):
        if select.select([self.master], [], [], timeout)[0]:
            try:
                self.seen += os.read(self.master, 65536).decode(errors="replace")
            except OSError as error:
                if error.errno != errno.EIO:  # the last one on the other side is gone
                    raise

    def expect(self, text, timeout=30):
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < deadline and self.child.poll() is None, f"no {text!r} in {self.seen!r}"
            self.read()
        self.seen = self.seen.partition(text)[2]

    def end(self):
        while self.child.poll() is None:
            self.read()
        return self.child.returncode

    def close(self):
        self.child.kill()
        self.child.wait()
        os.close(self.master)


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        ground("create", NAME, "--ip", "none")
        yield ground


def sleepers(app):
    return app("exec", NAME, "--", "sh", "-c", "pgrep -fc '^sleep 1000' || :")


def test_console_on_a_terminal(app):
    app("start", NAME)
    terminal = Terminal("--config", app.config, "console", NAME)
    try:
        terminal.expect("# ")  # what is typed before the shell reads is lost, as on any terminal
        terminal.type("echo in-$(hostname)-$TERM-$PWD\n")
        terminal.expect(f"in-{NAME}-xterm-256color-/root")
        terminal.type("echo size-$(stty size)\n")
        terminal.expect("size-40 100")
        terminal.resize(50, 120)
        terminal.type("echo size-$(stty size)\n")
        terminal.expect("size-50 120")
        terminal.type("echo ready$((1+1)); sleep 1000\n")
        terminal.expect("ready2")
        # A shell that has forked but not yet executed the program loses what it is sent.
        assert wait_for(lambda: sleepers(app) == "1")
        terminal.type("\x03")
        terminal.type("echo status-$?\n")
        terminal.expect("status-130")
        assert sleepers(app) == "0"
        terminal.type("exit 7\n")
        assert terminal.end() == 7
    finally:
        terminal.close()


def test_console_is_refused(app, run):
    assert "needs a terminal" in app("console", NAME, code=2)
    app("console", "t-nobody", code=3)
    terminal = Terminal("--config", app.config, "console", NAME)
    try:
        assert terminal.end() == 1
        terminal.read()
        assert "has no console: it is stopped" in terminal.seen
    finally:
        terminal.close()
