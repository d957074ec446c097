# SPDX-License-Identifier: Apache-2.0
"""The application behind Apache and mod_wsgi: who asks is what mod_ssl has verified, and nothing that a request says.

mod_wsgi passes headers as HTTP_… and drops those with an underscore; SSL_… and DRE_… come from Apache alone. The
settings are those of DRE_CONFIG (SetEnv), read once. While no sequencer answers, requests hear 503 and the next one
tries again.
"""

import contextlib
import functools
import hashlib
import ssl
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from dre import conf
from dre.errors import DreError

from dboxlib import front

AWAY = b"the D-Box is not ready: no sequencer, or no database\n"
_OURS = ("DRE_CLIENT", "DRE_LOCAL_USER", "DRE_LOCAL_EXE", "DRE_CROWDED")
_lock = threading.Lock()
_undo = contextlib.ExitStack()  # until the process ends
_made: list[Any] = []


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI."""
    for name in _OURS:
        environ.pop(name, None)
    if environ.get("SSL_CLIENT_VERIFY") == "SUCCESS":
        environ["DRE_CLIENT"] = _fingerprint(environ.get("SSL_CLIENT_CERT", ""))
    try:
        answer = _application(environ.get("DRE_CONFIG") or None)
    except (DreError, OSError) as error:
        sys.stderr.write(f"dbox: {error}\n")
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(AWAY)))]
        start("503 Service Unavailable", [*headers, ("Retry-After", "5")])
        return [AWAY]
    return answer(environ, start)  # type: ignore[no-any-return]


def _application(settings: str | None) -> Any:
    with _lock:
        if not _made:
            _made.append(_undo.enter_context(front.application(conf.load(settings))))
        return _made[0]


@functools.lru_cache(maxsize=1024)
def _fingerprint(pem: str) -> str:
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    except ValueError:
        return ""  # SSLOptions +ExportCertData is missing: nobody is known
