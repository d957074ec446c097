# SPDX-License-Identifier: Apache-2.0
"""What a browser without JavaScript does with the page of a D-Box: cookies, forms, and files to send."""

import html
import http.client
import re
import urllib.parse
import uuid

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'"
PASSWORD = "correct horse battery"  # noqa: S105


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def text(self):
        return self.body.decode()

    @property
    def words(self):
        """What is to be read on the page, without the marks of HTML."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.text)).split())

    def fields(self, action=None):
        """The hidden fields of the form that is sent to *action*."""
        forms = re.findall(r'<form method="post" action="([^"]*)".*?</form>', self.text, re.S)
        assert action is None or action in forms, (action, forms)
        form = next(
            one for one in re.findall(r"<form .*?</form>", self.text, re.S) if not action or f'"{action}"' in one
        )
        return {
            name: html.unescape(value)
            for name, value in re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form)
        }


class Browser:
    """One browser; *client* is the name of a client certificate it has."""

    def __init__(self, box, port, client=None):
        self.context, self.port, self.cookies = box.tls(client), port, {}

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=20, context=self.context)
        headers = dict(headers or {})
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        try:
            connection.request(method, path, body, headers)
            answer = Answer(connection.getresponse())
        finally:
            connection.close()
        for line in answer.headers.get_all("Set-Cookie") or []:
            name, value = line.split(";")[0].split("=", 1)
            assert all(word in line for word in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/")), line
            if "Max-Age=0" in line:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        if answer.headers["Content-Type"].startswith("text/html"):
            assert answer.headers["Content-Security-Policy"].startswith(POLICY)
            assert "unsafe" not in answer.headers["Content-Security-Policy"]
            assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=\"|javascript:", answer.text)
            assert not re.search(r"(?:src|href|action)=\"(?!/|#)", answer.text), "something from elsewhere"
        return answer

    def get(self, path):
        return self.ask("GET", path)

    def post(self, path, files=None, headers=None, **fields):
        if files is None:
            kind, body = "application/x-www-form-urlencoded", urllib.parse.urlencode(fields).encode()
        else:
            edge = uuid.uuid4().hex
            parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
            parts += [f'name="{name}"; filename="f"\r\n\r\n'.encode() + octets for name, octets in files.items()]
            lead = f"--{edge}\r\nContent-Disposition: form-data; ".encode()
            body = b"".join(lead + part + b"\r\n" for part in parts) + f"--{edge}--\r\n".encode()
            kind = f"multipart/form-data; boundary={edge}"
        return self.ask("POST", path, body, {"Content-Type": kind, **(headers or {})})

    def send(self, page, action, files=None, **fields):
        """Fill in the form *action* of *page* and send it."""
        hidden = self.get(page).fields(action)
        return self.post(action, files, **{**hidden, **fields})

    def login(self, name, password=PASSWORD):
        answer = self.send("/ui/login", "/ui/login", name=name, password=password)
        assert answer.status == 303, answer.words
        return self
