# SPDX-License-Identifier: Apache-2.0
"""What answers http://d-box:8080/: the way to the page by HTTPS, and nothing else. No octet of the log goes by it."""

import re
from collections.abc import Callable, Iterable
from typing import Any

FRONT = "/d_box_main.html"
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")


def make(port: int) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """A WSGI application that sends readers of the page to *port* of the same host."""

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
        if method not in ("GET", "HEAD"):
            status, said = "403 Forbidden", b"only by HTTPS\n"
            headers.append(("Connection", "close"))
        elif path not in ("/", FRONT):
            status, said = "404 Not Found", b"nothing here but the way to the page\n"
        else:
            host = re.sub(r":[0-9]*$", "", environ.get("HTTP_HOST", ""))
            host = host if _HOST.fullmatch(host) else "d-box"
            status, said = "308 Permanent Redirect", b"by HTTPS\n"
            headers.append(("Location", f"https://{host}{'' if port == 443 else f':{port}'}{FRONT}"))
        start(status, [*headers, ("Content-Length", str(len(said)))])
        return [b"" if method == "HEAD" else said]

    return application
