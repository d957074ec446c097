# SPDX-License-Identifier: Apache-2.0
"""The page of the monitor, for people: rules, and what is watched. WSGI, behind Apache and mod_wsgi.

It may do nothing: what is asked of rules goes to `dre-rules serve`, which decides. Who asks is what mod_ssl has
verified, or who logged in, never what a header says. The settings are those of DRE_CONFIG.
"""

import functools
import hashlib
import ssl
from collections.abc import Callable, Iterable
from typing import Any

from dre import conf

ABSENT = b"the page needs python3-flask: apt-get install python3-flask\n"
CERTIFICATE = "DRE_CERTIFICATE"  # SHA-256 in hex of a verified client certificate


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI (PEP 3333)."""
    environ.pop(CERTIFICATE, None)
    if environ.get("SSL_CLIENT_VERIFY") == "SUCCESS":
        environ[CERTIFICATE] = _fingerprint(environ.get("SSL_CLIENT_CERT", ""))
    try:
        made = _page(environ.get("DRE_CONFIG") or None)
    except ModuleNotFoundError as error:
        if error.name not in ("flask", "jinja2", "werkzeug", "markupsafe"):
            raise
        start("503 Service Unavailable", [("Content-Type", "text/plain; charset=utf-8")])
        return [ABSENT]
    answer: Iterable[bytes] = made(environ, start)
    return answer


@functools.lru_cache(maxsize=1)
def _page(path: str | None) -> Any:
    from monitorlib.page.app import build

    return build(conf.load(path))


@functools.lru_cache(maxsize=1024)
def _fingerprint(pem: str) -> str:
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    except ValueError:
        return ""  # SSLOptions +ExportCertData is missing: nobody is known
