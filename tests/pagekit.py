# SPDX-License-Identifier: Apache-2.0
"""The page of the monitor for tests: dre-rules serve on scratch directories, and Flask's own client as the browser."""

import contextlib
import functools
import html
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

from conftest import ROOT, environment, program

sys.path.insert(0, str(ROOT / "sec-monitor"))
PASSWORD = "correct horse battery"  # noqa: S105
RULE = "type=Single\nptype=SubStr\npattern={}\ndesc=x\naction=write %script x\n"
POLICY = "default-src 'none'; style-src 'self'; img-src 'self'"


class Site:
    """Rules in *place*, a served desk, and people: ann (author), bob (approver), eve (reader), kim (certificate)."""

    def __init__(self, place, config):
        self.place, self.config, self.known = place, config, {}
        self.rules = place / "etc/rules.d"
        self.rules.mkdir(parents=True)
        (self.rules / "a.sec").write_text(RULE.format("alpha"))
        for name, role in (("ann", "author"), ("bob", "approver"), ("eve", "reader")):
            self.command("person", name, "--role", role, "--password", stdin=PASSWORD + "\n")
        self.log = place / "serve.log"
        self.start()

    def start(self):
        """Have the desk served."""
        argv = [program("dre-rules"), "serve", "--config", self.config]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log, env=environment())
        deadline = time.monotonic() + 20
        with socket.socket(socket.AF_UNIX) as asking:
            while asking.connect_ex(str(self.place / "run/rules.sock")):
                assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.02)

    def command(self, *argv, stdin="", code=0, by="root"):
        argv = ["env", f"SUDO_USER={by}", program("dre-rules"), *argv, "--config", self.config]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, env=environment(), timeout=60)
        assert done.returncode == code, done.stderr
        return done.stdout

    def end(self):
        self.process.terminate()
        self.process.wait(20)

    def history(self):
        """All switches, as `dre-rules history` finds them; what was changed by hand until now becomes one."""
        from monitorlib import versions

        return versions.history(_settings(self.config))

    def pending(self):
        """What waits for a second person, as `dre-rules pending` finds it."""
        from monitorlib import versions

        return versions.proposals(_settings(self.config))

    def reset(self, texts):
        """Have *texts* in force, whatever was, and nothing wait."""
        from monitorlib import versions

        for one in self.pending():
            versions.drop(_settings(self.config), one.id)
        versions.switch(_settings(self.config), texts, "install")

    def here(self):
        """The rules in force, read by nobody of ours."""
        return {path.name: path.read_text() for path in self.rules.glob("*.sec")}

    def browser(self, name="", certificate=""):
        """One who has logged in as *name*, before if that still holds, or comes with a certificate."""
        if not name:
            return Browser(self.config, certificate)
        made = self.known.setdefault(name, Browser(self.config))
        return made if made.get("/rules") == 200 else made.login(name)


@contextlib.contextmanager
def site():
    """A site in a directory of its own, until the end."""
    with tempfile.TemporaryDirectory(prefix="dre-page-", dir="/var/tmp") as name:
        place = pathlib.Path(name)
        values = {
            "DRE_CORE_STATE_DIR": place / "state",
            "DRE_CORE_RUN_DIR": place / "run",
            "DRE_CORE_ETC_DIR": place / "etc",
            "DRE_CORE_LOG_DIR": place / "log",
            "DRE_MONITOR_SINK": place / "run/events.sock",
            "DRE_MONITOR_PIPES": place / "run/script",
            "DRE_DBOX_CERTS_DIR": place / "etc/certs/dbox",
            "DRE_MONITOR_CORRELATOR": "dre",  # sec is asked in the system ring
        }
        config = place / "dre.conf"
        config.write_text("".join(f'{key}="{value}"\n' for key, value in values.items()))
        made = Site(place, str(config))
        try:
            yield made
        finally:
            made.end()


@functools.lru_cache
def _settings(config):
    from dre import conf

    return conf.load(config)


@functools.lru_cache
def _page(config):
    """One for all browsers: its templates are compiled once."""
    from monitorlib.page.app import build

    return build(_settings(config))


class Browser:
    """Sends what a browser without JavaScript sends, and looks at the headers of every answer."""

    def __init__(self, config, certificate=""):
        self.client = _page(config).test_client()
        self.extra = {"DRE_CERTIFICATE": certificate} if certificate else {}
        self.answer = None

    def ask(self, method, path, **more):
        more.setdefault("headers", {})
        self.answer = self.client.open(
            path, method=method, base_url="https://localhost", environ_overrides=self.extra, **more
        )
        headers = self.answer.headers
        assert (
            headers["Content-Security-Policy"].startswith(POLICY) and "unsafe" not in headers["Content-Security-Policy"]
        )
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
        for line in headers.getlist("Set-Cookie"):
            assert all(word in line for word in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/")), line
        if headers["Content-Type"].startswith("text/html") and self.answer.status_code != 303:
            text = self.answer.get_data(as_text=True)
            assert not re.search(r"<script|<style| style=| on[a-z]+=\"|javascript:", text, re.I), "something that acts"
            assert not re.search(r"(?:src|href|action)=\"(?!/|#)", text), "something from elsewhere"
        return self.answer.status_code

    def get(self, path):
        return self.ask("GET", path)

    @property
    def words(self):
        """What is to be read, without the marks of HTML."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.answer.get_data(as_text=True))).split())

    def send(self, page, action, headers=None, **fields):
        """Load *page*, fill in its form *action*, and send it."""
        assert self.get(page) == 200, self.words
        return self.again(action, headers, **fields)

    def again(self, action, headers=None, **fields):
        """Send the form *action* of the page that is shown."""
        text = self.answer.get_data(as_text=True)
        form = next(one for one in re.findall(r"<form .*?</form>", text, re.S) if f'action="{action}"' in one)
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', form))
        return self.ask("POST", action, data={**hidden, **fields}, headers=headers or {})

    def login(self, name, password=PASSWORD):
        assert self.send("/login", "/login", name=name, password=password) == 303, self.words
        return self

    def draft(self, name, text, do, **more):
        return self.send("/rules/edit", "/rules/edit", name=name, text=text.replace("\n", "\r\n"), do=do, **more)

    def propose(self, name, text, **more):
        """Propose one file, and see the proposal; its id."""
        assert self.draft(name, text, "propose", **more) == 303, self.words
        assert self.get(self.answer.headers["Location"]) == 200
        return self.answer.request.path.rpartition("/")[2]


def cannot():
    """Why the page cannot be tested here, or nothing."""
    if os.geteuid() != 0:
        return "needs root, as rules do"
    try:
        import flask  # noqa: F401
    except ImportError:
        return "python3-flask is not installed"
    return ""
