# SPDX-License-Identifier: Apache-2.0
"""Started by root, dboxd serves as user dbox, in all its threads, and only that user can read what it stores."""

import os
import pathlib
import pwd
import stat

import dboxkit
import pytest

box, running = dboxkit.box, dboxkit.running


def test_dboxd_gives_root_up(running):
    try:
        user = pwd.getpwnam("dbox")
    except KeyError:
        assert b"no user dbox on this host: going on as root" in running.said()
        pytest.skip("no user dbox: it comes with the installed package")
    running.put(b"octets")
    for task in pathlib.Path(f"/proc/{running.server.pid}/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        assert status["Uid"].split() == [str(user.pw_uid)] * 4
        assert status["Gid"].split() == [str(user.pw_gid)] * 4
        assert int(status["CapEff"], 16) == 0
    assert stat.S_IMODE(running.state.stat().st_mode) == 0o700
    for path in [running.state, *running.state.iterdir()]:
        assert os.stat(path).st_uid == user.pw_uid, path
    # dbox-init by root, beside the running server, must not take the database away from it.
    running.good("dbox-init", "--client", "later", "--role", "reader")
    assert running.put(b"still writing") and running.good("dbox-get", "--client", "later", "--head")
