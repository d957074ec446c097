# SPDX-License-Identifier: Apache-2.0
"""dbox-user: accounts of the page, made, changed and refused."""

import hashlib
import json
import os
import pty
import sqlite3
import subprocess

import dboxkit
import pytest
from conftest import environment, program

box = dboxkit.box
PASSWORD = b"correct horse battery\n"


def registrations(box, name):
    mark = hashlib.sha256(f"dre-ui/v1\nuser {name}\n".encode()).hexdigest()
    with sqlite3.connect(box.database) as database:
        query = "SELECT role, streams FROM client WHERE fingerprint = ? ORDER BY number"
        return database.execute(query, (mark,)).fetchall()


def kept(box, name):
    with sqlite3.connect(box.state.parent / "dbox-ui/ui.sqlite") as database:
        row = database.execute("SELECT hash FROM password WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def test_an_account_from_its_beginning_to_its_end(box):
    assert box.good("dbox-user", "erika", "--role", "auditor", stdin=PASSWORD) == b""
    first = kept(box, "erika")
    assert first.startswith("scrypt-32768-8-1$") and b"horse" not in first.encode()
    place = box.state.parent / "dbox-ui"
    assert [path.stat().st_mode & 0o7777 for path in (place, place / "secret", place / "ui.sqlite")] == [
        0o700,
        0o400,
        0o600,
    ]
    secret = (place / "secret").read_bytes()
    box.good("dbox-user", "erika", "--role", "writer", "--stream", "b", "--stream", "a")
    assert kept(box, "erika") == first, "another role is no other password"
    made = json.loads(box.good("dbox-user", "erika", "--generate", "--json"))["password"]
    assert len(made) >= 20 and kept(box, "erika") != first
    rows = [json.loads(row) for row in box.good("dbox-user", "--list", "--json").splitlines()]
    assert [(row["name"], row["role"]) for row in rows] == [("erika", "writer")]
    box.good("dbox-user", "erika", "--revoke")
    assert box.good("dbox-user", "--list") == b"" and kept(box, "erika") is None
    assert registrations(box, "erika") == [("auditor", ""), ("writer", "a b"), ("writer", "a b"), ("revoked", "")]
    assert box.run("dbox-user", "erika", "--password", stdin=PASSWORD).returncode == 3
    box.good("dbox-user", "erika", "--role", "reader", stdin=PASSWORD)
    assert (place / "secret").read_bytes() == secret


@pytest.mark.parametrize(
    "argv, status, said",
    [
        ((), 2, "NAME"),
        (("x",), 2, "what is to be done"),
        (("x", "--list"), 2, "--list"),
        (("--list", "--role", "reader"), 2, "--role"),
        (("X y", "--role", "reader"), 2, "X y"),
        (("x", "--role", "root"), 2, "root"),
        (("x", "--role", "reader", "--stream", "a"), 2, "--stream"),
        (("x", "--role", "writer", "--stream", "client"), 2, "client"),
        (("x", "--revoke"), 3, "no account"),
        (("x", "--generate"), 3, "--role makes one"),
        (("x", "--role", "reader"), 2, "12 to 256"),
    ],
)
def test_refusals_change_nothing(box, argv, status, said):
    done = box.run("dbox-user", *argv, stdin=b"short\n")
    assert (done.returncode, said in done.stderr.decode()) == (status, True), done.stderr
    assert not registrations(box, "x")


def at_a_terminal(box, answers, *argv):
    """What a person sees who types these answers, each at its question, and the exit status."""
    ours, theirs = pty.openpty()
    command = ["setsid", "--ctty", "--wait", program("dbox-user"), "--config", str(box.conf), *argv]
    with (
        subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment()) as process,
        open(ours, "r+b", buffering=0) as terminal,
    ):
        os.close(theirs)
        seen = b""
        while octets := _read(terminal):
            seen += octets
            if answers and seen.endswith(b": "):
                terminal.write(answers.pop(0))
    return seen.decode(), process.returncode


def _read(terminal):
    try:
        return terminal.read(1024)
    except OSError:  # nobody has its other end any more
        return b""


def test_at_a_terminal_it_is_asked_for_twice_and_not_shown(box):
    new = ("erika", "--role", "auditor")
    seen, status = at_a_terminal(box, [PASSWORD, b"correct horse cattery\n"], *new)
    assert (status, kept(box, "erika")) == (1, None) and "typed in two ways" in seen
    seen, status = at_a_terminal(box, [PASSWORD, PASSWORD], *new)
    assert status == 0 and kept(box, "erika")
    assert seen.startswith("Password of erika: ") and "horse" not in seen


def test_last_admin_stays(box):
    box.good("dbox-user", "only", "--role", "admin", stdin=PASSWORD)
    box.good("dbox-init", "--client", "admin", "--revoke")
    for argv in (["--revoke"], ["--role", "reader"]):
        done = box.run("dbox-user", "only", *argv)
        assert done.returncode == 1 and b"last admin" in done.stderr
    assert registrations(box, "only") == [("admin", "")] and kept(box, "only")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user who may not")
def test_others_may_not(box):
    done = box.run(
        "dbox-user", "x", "--role", "admin", stdin=PASSWORD, before=["setpriv", "--reuid", "65534", "--clear-groups"]
    )
    assert done.returncode == 4, done.stderr
