# SPDX-License-Identifier: Apache-2.0
"""Started by root, dboxd serves as user dbox-web, who reads the log and neither writes it nor signs; dbox does that."""

import os
import pathlib
import pwd
import stat
import subprocess

import dboxkit
import pytest

box, running = dboxkit.box, dboxkit.running


def status(process):
    return dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())


def test_who_serves_who_signs_and_who_looks_at_peers(running):
    try:
        web, user = pwd.getpwnam("dbox-web"), pwd.getpwnam("dbox")
    except KeyError:
        pytest.skip("no users dbox and dbox-web: they come with the installed package")
    running.put(b"octets")
    for task in pathlib.Path(f"/proc/{running.server.pid}/task").iterdir():
        found = status(task)
        assert found["Uid"].split() == [str(web.pw_uid)] * 4
        assert found["Gid"].split() == [str(web.pw_gid)] * 4
        assert int(found["CapEff"], 16) == 0
    below = [(pid, status(pathlib.Path(f"/proc/{pid}"))["Uid"].split()) for pid in dboxkit.children(running.server.pid)]
    assert [str(user.pw_uid)] * 4 in [uids for _, uids in below]
    for path in [running.state, *running.state.iterdir()]:
        assert os.stat(path).st_uid == user.pw_uid, path
        assert not stat.S_IMODE(path.stat().st_mode) & 0o027, path
    # dbox-init by root, beside the running server, must not take the database away from it.
    running.good("dbox-init", "--client", "later", "--role", "reader")
    assert running.put(b"still writing") and running.good("dbox-get", "--client", "later", "--head")


def test_the_web_user_reads_and_can_do_nothing_else(running):
    try:
        web = pwd.getpwnam("dbox-web")
    except KeyError:
        pytest.skip("no user dbox-web: it comes with the installed package")
    running.put(b"octets")

    def by_web(*argv):
        return subprocess.run(
            argv, capture_output=True, check=False, user=web.pw_uid, group=web.pw_gid, extra_groups=[], timeout=30
        )

    keys = [*running.certs.rglob("*.key"), *running.certs.glob("owner.*"), *running.state.glob("*.key*")]
    assert len(keys) > 8
    for key in keys:
        assert by_web("cat", key).returncode != 0, key
    ask = (
        "d = sqlite3.connect(f'file:{sys.argv[1]}?mode=ro', uri=1)\nprint(*d.execute('SELECT max(number) FROM entry'))"
    )
    read = by_web("/usr/bin/python3", "-c", f"import sqlite3, sys\n{ask}", running.database)
    assert int(read.stdout.strip(b"(,)\n")) > 4, read.stderr
    write = by_web("/usr/bin/python3", "-c", "import sqlite3, sys; d = sqlite3.connect(sys.argv[1])\n"
                   "d.execute('INSERT INTO type VALUES (99, 1)'); d.commit()", running.database)  # fmt: skip
    assert write.returncode != 0 and b"readonly" in write.stderr
    assert by_web("touch", running.state / "x").returncode != 0
