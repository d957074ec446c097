# SPDX-License-Identifier: Apache-2.0
"""The page of the D-Box for people, /d_box_main.html: a WSGI callable that is mounted beside the API.

Flask is imported with the first request for the page and not before: the API shall not pay for it, and a box without
python3-flask has everything but the page.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from dre.conf import Conf

from dboxlib.log import Log

FRONT = "/d_box_main.html"  # as the specification has it
BELOW = "/ui/"
ABSENT = b"the page needs python3-flask: apt-get install python3-flask\n"
UNREADY = b"the page cannot begin; the reason is in the server's log\n"
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def wanted(path: str) -> bool:
    """Whether a request for *path* is the page's."""
    return path == FRONT or path.startswith(BELOW)


def make(conf: Conf, store: Any, log: Log) -> Wsgi:
    """The page as a WSGI callable; *store* is only read."""
    lock = threading.Lock()
    made: list[Wsgi] = []

    def call(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with lock:
            if not made:
                try:
                    from dboxlib.page.app import build
                except ModuleNotFoundError as error:
                    if error.name not in ("flask", "jinja2", "werkzeug", "markupsafe"):
                        raise
                    start("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
                    return [ABSENT]
                try:
                    made.append(build(conf, store, log))
                except OSError as error:
                    sys.stderr.write(f"dboxd: the page cannot begin: {error}\n")
                    start("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
                    return [UNREADY]
        return made[0](environ, start)

    return call
