# SPDX-License-Identifier: Apache-2.0
"""By the local socket come those that the kernel says are registered: this user, running this executable."""

import hashlib
import json
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import sys
import time

import dboxkit
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "dbox"))
from dboxlib import intake  # noqa: E402

box = dboxkit.box
PYTHON = os.path.realpath("/usr/bin/python3")
pytestmark = pytest.mark.skipif(not dboxkit.is_root(), reason="needs root: users, mount namespaces")


@pytest.fixture
def local(box):
    """The D-Box whose clients use the local socket; nobody is registered yet."""
    box.near = box.path / "near.conf"
    text = box.conf.read_text().replace(f"https://localhost:{box.port}", f"unix:{box.path}/run/dbox/intake.sock")
    box.near.write_text(text)
    box.near.chmod(0o644)
    return box


def put(box, *argv, before=(), user=None, octets=b"near"):
    return subprocess.run(
        [*before, dboxkit.program("dbox-put"), "--config", str(box.near), "--client", "here", *argv],
        input=octets,
        capture_output=True,
        timeout=60,
        env=dboxkit.environment(),
        check=False,
        **({"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}),
    )


def identity(user, executable):
    return hashlib.sha256(f"dre-local/v1\nuser {user}\nexe {executable}\n".encode()).hexdigest()


def test_registered_user_and_executable_are_in_the_log(local):
    local.good("dbox-init", "--client", "here", "--role", "writer", "--stream", "app", "--local", f"root:{PYTHON}")
    local.start()
    done = put(local)
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in local.good("dbox-get", "--json", "--search", "stream=app").splitlines()]
    assert row["writer"] == identity("root", PYTHON)
    told = [
        json.loads(local.good("dbox-get", json.loads(line)["index"], "--octets"))["data"]
        for line in local.good("dbox-get", "--json", "--search", "stream=client").splitlines()
    ]
    (mine,) = [data for data in told if data["fingerprint"] == row["writer"]]
    assert (mine["user"], mine["executable"], mine["role"]) == ("root", PYTHON, "writer")
    # A receipt from there verifies as any other.
    receipt = local.path / "receipt"
    receipt.write_bytes(done.stdout)
    local.good("dbox-verify", "--root", local.certs / "root.pem", "--certs", local.certs / "chain.pem", receipt, "-",
               stdin=b"near")  # fmt: skip
    # Bound to a stream, it writes to no other.
    done = put(local, "--stream", "shop")
    assert done.returncode == 4 and b"may not write to stream shop" in done.stderr
    local.good("dbox-init", "--client", "here", "--revoke")
    done = put(local)
    assert done.returncode == 4 and b"revoked" in done.stderr


@pytest.mark.parametrize("who", [None, "root:/usr/bin/true", "nobody"])
def test_unregistered_is_refused_with_4(local, who):
    if who:
        local.good("dbox-init", "--client", "here", "--role", "writer", "--local", who)
    local.start()
    done = put(local)
    assert done.returncode == 4, done.stderr
    assert f"user root running {PYTHON} has no role".encode() in done.stderr
    assert local.good("dbox-get", "--search", "stream=app") == b""


def test_another_user_with_the_same_executable_is_refused(local):
    local.good("dbox-init", "--client", "here", "--role", "writer", "--local", f"root:{PYTHON}")
    local.start()
    ask = (
        "import http.client, socket, sys\n"
        "c = http.client.HTTPConnection('localhost'); c.sock = socket.socket(socket.AF_UNIX)\n"
        f"c.sock.connect('{local.path}/run/dbox/intake.sock')\n"
        "c.request('POST', '/v1/entries', b'x', {'X-DRE-Stream': 'app', 'X-DRE-Seq': '1', 'DRE_CLIENT': sys.argv[1],\n"
        "    'DRE-LOCAL-USER': 'root', 'DRE_LOCAL_USER': 'root'})\n"
        "a = c.getresponse(); print(a.status, a.read().decode())\n"
    )
    argv = [PYTHON, "-c", ask, identity("root", PYTHON)]
    said = {
        user: subprocess.run(argv, capture_output=True, check=True, user=user, timeout=30).stdout
        for user in ("root", "nobody")
    }
    assert said["root"].startswith(b"200 c2sp.org/tlog-proof")
    assert said["nobody"].startswith(f"403 user nobody running {PYTHON} has no role".encode())


def test_another_file_under_the_same_path_is_refused(local):
    """In a mount namespace of its own anything can be mounted over the registered executable."""
    local.good("dbox-init", "--client", "here", "--role", "writer", "--local", f"root:{PYTHON}")
    local.start()
    other = local.path / "python"
    shutil.copy2(PYTHON, other)
    done = put(local, before=["unshare", "--mount", "sh", "-c", f'mount --bind {other} {PYTHON} && exec "$@"', "sh"])
    assert done.returncode == 4 and b"user root running ? has no role" in done.stderr


def test_any_executable_of_a_user(local):
    local.good("dbox-init", "--client", "here", "--role", "writer", "--local", "root")
    local.start()
    assert put(local).returncode == 0


def test_without_https_the_local_socket_is_all(local):
    """DRE_DBOX_LISTEN="no": another server answers by HTTPS."""
    for path in (local.conf, local.near):
        path.write_text(path.read_text().replace(f'LISTEN="127.0.0.1:{local.port}"', 'LISTEN="no"'))
    local.good("dbox-init", "--client", "here", "--role", "writer", "--local", "root")
    local.start()
    assert b"listening on the local socket" in local.said()
    for _ in range(3):
        assert put(local).returncode == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", local.port), 5)
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, check=True, timeout=20).stdout
    assert f"pid={local.server.pid},".encode() not in listening
    assert local.stop() == 0


def test_nothing_is_left_of_a_dboxd_that_was_killed(local):
    local.start()
    below = dboxkit.children(local.server.pid)
    assert len(below) >= 3  # the doorkeeper, the sequencer and its keeper
    local.stop(9)
    deadline = time.monotonic() + 30
    while any(pathlib.Path(f"/proc/{pid}/exe").exists() for pid in below):
        assert time.monotonic() < deadline, below
        time.sleep(0.05)


def test_one_user_with_many_connections_is_told_to_wait(local):
    local.good("dbox-init", "--client", "here", "--role", "writer", "--local", "root")
    local.start()
    place = f"{local.path}/run/dbox/intake.sock"
    many = [socket.socket(socket.AF_UNIX) for _ in range(70)]
    for one in many:
        one.settimeout(20)
        one.connect(place)
    try:
        many[-1].sendall(b"GET /v1/checkpoint HTTP/1.1\r\nHost: x\r\n\r\n")
        said = many[-1].recv(4096)
        assert said.startswith(b"HTTP/1.1 503") and b"Retry-After" in said
        many[0].sendall(b"GET /v1/checkpoint HTTP/1.1\r\nHost: x\r\n\r\n")
        assert many[0].recv(4096).startswith(b"HTTP/1.1 200")
        assert local.good("dbox-get", "--head")  # others are served
    finally:
        for one in many:
            one.close()
    deadline = time.monotonic() + 30
    while put(local).returncode:  # and so is this user, once they are gone
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_socket_survives_a_kill_and_a_second_start(local):
    local.good("dbox-init", "--client", "here", "--role", "writer", "--local", "root")
    local.start()
    assert put(local).returncode == 0
    local.stop(9)
    done = put(local, "--timeout", "1")
    assert done.returncode in (5, 6) and b"waits as app 2" in done.stderr
    local.start()
    assert put(local).returncode == 0
    rows = local.good("dbox-get", "--json", "--search", "stream=app").splitlines()
    assert [json.loads(row)["seq"] for row in rows] == [1, 2, 3]


def test_who_has_ended_is_not_taken_for_another(tmp_path):
    """The process that connected is gone before it is looked at: its number tells nothing any more."""
    listener = intake.listen(tmp_path / "sock")
    ours, theirs = socket.socketpair()
    if not os.fork():
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "sock"))
        socket.send_fds(theirs, [b"x"], [client.fileno()])
        os._exit(0)
    os.wait()
    _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    connection, _ = listener.accept()
    assert intake.peer(connection) == intake.Peer("root", "")
    os.close(fds[0])
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "sock"))
    assert intake.peer(listener.accept()[0]) == intake.Peer("root", os.readlink("/proc/self/exe"))
