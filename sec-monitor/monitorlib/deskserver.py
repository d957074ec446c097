# SPDX-License-Identifier: Apache-2.0
"""The socket at which the page asks: one request and one answer for each connection, each in a process of its own.

Only root and the page's user are heard; which it is tells the kernel. A request is one JSON object, ended by the end of
what is sent. A process that takes too long ends, and what it was about is then finished or not begun.
"""

import contextlib
import json
import os
import pwd
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from dre.conf import Conf
from dre.errors import DreError, UsageError

from monitorlib.desk import Desk

USER = "dre-page"
LARGEST = 6 << 20  # octets of a request
PROCESSES = 16
READ = 10.0  # seconds until a request must be there
PATIENCE = 100  # seconds for an answer; two attempts of a correlator to begin anew are in it
MEMORY = 1 << 30
BUSY = {"error": "busy: try again in a moment", "code": 1, "wait": 2}


def path(conf: Conf) -> Path:
    """The socket."""
    return conf.core_run_dir / "rules.sock"


def serve(conf: Conf, ready: Callable[[], None] | None = None) -> None:
    """Answer until SIGTERM or SIGINT; *ready* is called as soon as somebody can ask. Raises DreError."""
    desk, place, allowed = Desk(conf), path(conf), {0, os.geteuid()}
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.closing(_listen(place)) as listening:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(USER)
            allowed.add(user.pw_uid)
            if os.geteuid() == 0:
                os.chown(place, 0, user.pw_gid)
                place.chmod(0o660)
        if ready:
            ready()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _end)
        children: set[int] = set()
        try:
            while True:
                connection, _ = listening.accept()
                with connection:
                    _reap(children)
                    if _uid(connection) not in allowed:
                        sys.stderr.write(f"dre-rules: connection of uid {_uid(connection)} refused\n")
                    elif len(children) >= PROCESSES:
                        with contextlib.suppress(OSError):
                            connection.sendall(json.dumps({**BUSY, "who": None, "csrf": ""}).encode())
                    else:
                        children.add(_fork(desk, connection, listening))
        finally:
            place.unlink(missing_ok=True)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _listen(place: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        if asking.connect_ex(str(place)) == 0:
            raise DreError(f"{place}: somebody answers there already")
    place.unlink(missing_ok=True)
    before = os.umask(0o177)
    try:
        listening.bind(str(place))
    finally:
        os.umask(before)
    listening.listen(64)
    return listening


def _uid(connection: socket.socket) -> int:
    return int(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])


def _reap(children: set[int]) -> None:
    for pid in list(children):
        if os.waitpid(pid, os.WNOHANG)[0]:
            children.discard(pid)


def _fork(desk: Desk, connection: socket.socket, listening: socket.socket) -> int:
    """A process that answers what comes by *connection*."""
    pid = os.fork()
    if pid:
        return pid
    try:
        listening.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE, PATIENCE))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        connection.settimeout(READ)
        if octets := _request(connection):
            connection.sendall(json.dumps(_answer(desk, octets)).encode())
    except OSError as error:
        sys.stderr.write(f"dre-rules: {error}\n")
    finally:
        os._exit(0)


def _request(connection: socket.socket) -> bytes:
    """What is sent, and a little more than is taken where it is too much; nothing from who only looked."""
    octets = bytearray()
    while len(octets) <= LARGEST and (block := connection.recv(1 << 16)):
        octets += block
    return bytes(octets)


def _answer(desk: Desk, octets: bytes) -> dict[str, Any]:
    nobody = {"who": None, "csrf": ""}
    try:
        request = json.loads(octets) if len(octets) <= LARGEST else None
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        return {"error": f"expected one JSON object of at most {LARGEST} octets", "code": UsageError.code, **nobody}
    try:
        return desk.answer(request)
    except Exception as error:  # a bug or a sick disk: the visitor gets one line, the operator the reason
        sys.stderr.write(f"dre-rules: {str(request.get('do'))[:20]!a}: {type(error).__name__}: {error}\n")
        return {"error": "internal error; the reason is in the log of dre-rules", "code": 500, **nobody}
