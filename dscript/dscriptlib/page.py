# SPDX-License-Identifier: Apache-2.0
"""The page where persons answer the questions of `ask` steps: HTTPS, and nobody comes in without a client certificate.

What a person may is the register's word. To look at a question answers nothing: that takes a form of this page, sent
by the person it was made for, and only once. A process of its own; what it writes are the files of `answers`.
"""

import contextlib
import hashlib
import hmac
import html
import http.server
import os
import re
import socket
import socketserver
import ssl
import sys
import threading
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from dre import event
from dre.conf import Conf
from dre.errors import DreError

from dscriptlib import answers, explain, persons, questions
from dscriptlib.persons import Person
from dscriptlib.questions import Question

CONNECTIONS = 64  # at a time
OF_ONE = 16  # of one address
PATIENCE = 10.0  # seconds for all of a connection, the handshake included
BODY = 4096  # octets of a form
_ASK = re.compile(r"/ask/([0-9a-f]{16}-[0-9]{1,4}-act)")
_WORDS = {"yes": "approved", "no": "refused"}
_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_FORM = """<form method="post" action="/ask/{request}">
<input type="hidden" name="token" value="{token}">
<p><label>Why, for the evidence: <input name="text" maxlength="300" size="60"></label></p>
<p><button name="answer" value="yes">Approve</button> <button name="answer" value="no">Refuse</button></p>
</form>"""


class RefusedError(Exception):
    """What was asked for is not given; the status, and a sentence for the person."""

    def __init__(self, status: HTTPStatus, said: str) -> None:
        super().__init__(said)
        self.status = status


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Listens at once; serves in `serve_forever`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, conf: Conf, listen: tuple[str, int], tls: ssl.SSLContext, case: Callable[[], str] | None = None
    ) -> None:
        """*case* makes the page of the D-Case."""
        self.conf, self.tls, self.case = conf, tls, case
        self.secret = os.urandom(32)  # of the forms; those of a page before this one are too old
        self.lock = threading.Lock()
        self.there: dict[Any, str] = {}  # connection → address
        self.address_family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        super().__init__(listen, Handler)

    def server_bind(self) -> None:
        """Bind, without the look-up of our own name that http.server would do."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, if there are not too many."""
        with self.lock:
            addresses = list(self.there.values())
            if len(addresses) >= CONNECTIONS or addresses.count(client_address[0]) >= OF_ONE:
                return self.shutdown_request(request)
            self.there[request] = client_address[0]
        return super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Shake hands in this thread, then serve; whoever is slow is cut off."""
        try:
            with self.tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as connection:
                timer = threading.Timer(PATIENCE, _cut, (connection,))
                timer.start()
                try:
                    connection.settimeout(PATIENCE)
                    connection.do_handshake()
                    Handler(connection, client_address, self)
                finally:
                    timer.cancel()
        finally:
            with self.lock:
                self.there.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No certificate, a foreign one, not TLS, or gone: nobody is there to tell. Else a bug."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            sys.stderr.write(f"dscript: page: {type(error).__name__}: {error}\n")


def _cut(connection: ssl.SSLSocket) -> None:
    """End it from another thread: who waits for it wakes up."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not TLS's, which is the other thread's


def context(directory: Path) -> ssl.SSLContext:
    """TLS with the server's key and certificate and the clients' CA of a D-Box in *directory*. Raises OSError."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(directory / "server.crt", directory / "server.key")
    made.load_verify_locations(directory / "client-ca.pem")
    made.verify_mode = ssl.CERT_REQUIRED
    return made


class Handler(http.server.BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "dscript", ""

    def do_GET(self) -> None:
        """Show; whatever else the address says, nothing is answered."""
        self._tell(self._show)

    def do_POST(self) -> None:
        """Answer."""
        self._tell(self._take)

    def log_message(self, format: str, *args: Any) -> None:
        """The journal tells of answers, and nothing else is worth a line."""

    def _tell(self, work: Any) -> None:
        try:
            status, body = HTTPStatus.OK, work()
        except RefusedError as refusal:
            status, body = refusal.status, f"<p>{html.escape(str(refusal))}</p>"
        except (DreError, OSError) as error:
            sys.stderr.write(f"dscript: page: {error}\n")
            status, body = HTTPStatus.INTERNAL_SERVER_ERROR, "<p>It failed; the log of the page tells why.</p>"
        if not body.startswith("<!DOCTYPE"):
            head = f'<!DOCTYPE html><html lang="{self._language()}"><title>Questions of D-Script</title>'
            body = f"{head}\n{body}\n</html>\n"
        octets = body.encode()
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Length": str(len(octets))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(octets)

    def _person(self) -> Person:
        """Who has the certificate of this connection. Raises RefusedError."""
        assert isinstance(self.connection, ssl.SSLSocket)
        presented = hashlib.sha256(self.connection.getpeercert(True) or b"").hexdigest()
        for person in persons.all(self.server.conf):
            if person.fingerprint == presented and person.role in persons.ROLES:
                return person
        raise RefusedError(HTTPStatus.FORBIDDEN, "Your certificate is of no person that is registered here.")

    def _show(self) -> str:
        person, path = self._person(), urllib.parse.urlsplit(self.path).path
        if path == "/":
            return self._list()
        if path == "/case" and self.server.case is not None:
            return self.server.case()
        question = self._question(path)
        until, say = event.stamp(question.ends), html.escape
        said = "".join(f"<br>{say(line)}" for line in explain.explain(question.script, self._language()))
        form = _FORM.format(request=question.request, token=self._token(person, question.request))
        if person.role != "approver":
            form = f"<p>{say(person.name)} is no approver and cannot answer.</p>"
        return (
            f"<h1>{say(question.text)}</h1>\n<p>Asked of {say(question.to)} by the script {say(question.script.name)}, "
            f"response {say(question.response)}. Without an answer until {until} it is: {say(question.default)}.</p>\n"
            f"{form}\n<h2>What was agreed</h2>\n<p>{said}</p>"
        )

    def _list(self) -> str:
        rows = [
            f'<li><a href="/ask/{one.request}">{html.escape(one.text)}</a> (until {event.stamp(one.ends)})</li>'
            for one in questions.waiting(self.server.conf)
            if not answers.given(self.server.conf, one.request)
        ]
        found = f"<h1>Questions that wait</h1>\n<ul>{''.join(rows)}</ul>" if rows else "<h1>No question waits</h1>"
        return found if self.server.case is None else f'{found}\n<p><a href="/case">The D-Case</a></p>'

    def _question(self, path: str) -> Question:
        """The question at *path*, if it still waits. Raises RefusedError."""
        match = _ASK.fullmatch(path)
        if match is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "Nothing is here.")
        question = questions.find(self.server.conf, match[1])
        if question is None or answers.given(self.server.conf, match[1]):
            raise RefusedError(HTTPStatus.GONE, "This question was answered, or its time is over, or it never was.")
        return question

    def _take(self) -> str:
        person, question = self._person(), self._question(self.path)
        form = self._form()
        if not hmac.compare_digest(form.get("token", "").encode(), self._token(person, question.request).encode()):
            raise RefusedError(HTTPStatus.FORBIDDEN, "This form is too old or not ours: load the page again.")
        if person.role != "approver":
            raise RefusedError(HTTPStatus.FORBIDDEN, f"{person.name} is no approver.")
        word, text = _WORDS.get(form.get("answer", "")), form.get("text", "")
        if word is None or len(text) > 300 or not text.isprintable():
            raise RefusedError(HTTPStatus.BAD_REQUEST, "Say yes or no, and why in at most 300 printable characters.")
        via = f"certificate {person.fingerprint}"
        try:
            answers.give(self.server.conf, question.request, word, text, person.name, via)
        except DreError:
            raise RefusedError(HTTPStatus.GONE, "Somebody else has just answered.") from None
        return f"<h1>{word.capitalize()}</h1>\n<p>Your answer is kept as evidence.</p>"

    def _form(self) -> dict[str, str]:
        """The fields of a form. Raises RefusedError."""
        with contextlib.suppress(ValueError):
            length = int(self.headers.get("Content-Length", ""))
            if 0 <= length <= BODY:
                pairs = urllib.parse.parse_qsl(self.rfile.read(length).decode(), strict_parsing=True, max_num_fields=8)
                return dict(pairs)
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"Expected a form of at most {BODY} octets.")

    def _token(self, person: Person, request: str) -> str:
        """Of the form for one question and one person: no other site can know it, so none can send that form."""
        said = f"{request} {person.fingerprint}".encode()
        return hmac.new(self.server.secret, said, hashlib.sha256).hexdigest()

    def _language(self) -> str:
        wanted = self.headers.get("Accept-Language", "")[:2] if self.headers else ""
        return wanted if wanted in explain.LANGUAGES else "en"
