# SPDX-License-Identifier: Apache-2.0
"""The two servers that can stand in front of a log, for tests that hold for both: dboxd, and a private Apache."""

import contextlib
import http.client
import os
import pathlib
import shutil
import socket
import subprocess
import time

import dboxkit
from conftest import ROOT, environment, program

MODULES = pathlib.Path("/usr/lib/apache2/modules")
NEEDED = (
    "mpm_event",
    "authz_core",
    "env",
    "setenvif",
    "socache_shmcb",
    "ssl",
    "wsgi",
    "headers",
    "rewrite",
    "reqtimeout",
)


def missing():
    """Why Apache cannot be tested here, or nothing."""
    if os.geteuid() != 0:
        return "needs root: Apache's daemon process becomes dbox-web"
    if not shutil.which("apache2", path="/usr/sbin"):
        return "apache2 is not installed"
    gone = [name for name in NEEDED if not (MODULES / f"mod_{name}.so").exists()]
    return f"Apache lacks mod_{gone[0]} (libapache2-mod-wsgi-py3)" if gone else ""


def wait_for(port, process, said):
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, said()
        assert time.monotonic() < deadline, said()
        time.sleep(0.02)


class Dboxd:
    """dboxd, with its page and redirect."""

    def __init__(self, **keys):
        page, redirect = dboxkit.free_port(), dboxkit.free_port()
        listens = {
            "DRE_DBOX_PAGE_LISTEN": f"127.0.0.1:{page}",
            "DRE_DBOX_REDIRECT_LISTEN": f"127.0.0.1:{redirect}",
        }
        self.box = dboxkit.copy(**listens, **keys)
        self.page, self.redirect = page, redirect
        self.box.start()

    def end(self):
        dboxkit.remove(self.box)


class Apache:
    """Apache as dbox-apache configures it, on ports of its own, over a sequencer that is a service of its own."""

    def __init__(self, **keys):
        self.box = dboxkit.copy(**keys)
        self.page, self.redirect = dboxkit.free_port(), dboxkit.free_port()
        self.place = self.box.path / "apache"
        self.place.mkdir()
        self.running = []
        try:
            self._start()
        except BaseException:
            self.end()
            raise

    def _start(self):
        log = (self.box.path / "sequencer.log").open("wb")
        argv = [program("dbox-sequencer"), "--config", self.box.conf]
        self.sequencer = subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL, env=environment())
        self.running.append(self.sequencer)
        deadline = time.monotonic() + 30
        while b"listening on" not in (self.box.path / "sequencer.log").read_bytes():
            assert self.sequencer.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        conf = self.place / "apache2.conf"
        conf.write_text(self._conf())
        argv = ["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", str(conf)]
        httpd = subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL, env=environment())
        self.running.append(httpd)
        wait_for(self.box.port, httpd, self.said)

    def _conf(self):
        for part in ("dbox/apache", "dbox/dboxlib", "dre-core/dre"):  # copied: it may not enter every checkout
            shutil.copytree(ROOT / part, self.place / part, ignore=shutil.ignore_patterns("__pycache__"))
        site, wsgi = self.place / "dbox/apache/dbox.conf", self.place / "dbox/apache"
        path = f"{self.place}/dbox:{self.place}/dre-core"
        if os.environ.get("DRE_TEST_INSTALLED") == "1":
            path = "/usr/share/dbox"
        defined = {
            "APACHE_RUN_DIR": self.place,
            "APACHE_LOG_DIR": self.place,
            "DBOX_API_PORT": self.box.port,
            "DBOX_PAGE_PORT": self.page,
            "DBOX_REDIRECT_PORT": self.redirect,
            "DBOX_CERTS": self.box.certs,
            "DBOX_CONFIG": self.box.conf,
            "DBOX_WSGI": wsgi,
            "DBOX_PATH": path,
        }
        lines = [f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in NEEDED]
        lines += [f"Define {name} {value}" for name, value in defined.items()]
        lines += [f'ServerRoot "{self.place}"', "ServerName localhost", "User www-data", "Group www-data"]
        lines += [f'PidFile "{self.place}/pid"', f'DefaultRuntimeDir "{self.place}"', "ErrorLog error.log"]
        # What Debian's ports.conf has: Apache listens for the page already.
        lines += ["LogLevel warn", f"Listen {self.page}", f'Include "{site}"', ""]
        return "\n".join(lines)

    def said(self):
        logs = [self.box.path / "sequencer.log", *self.place.glob("*.log")]
        return "\n".join(f"{log}:\n{log.read_text(errors='replace')[-4000:]}" for log in logs if log.exists())

    def end(self):
        for process in reversed(self.running):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        dboxkit.remove(self.box)


def ask(front, client, method, path, body=None, headers=None, context=None, port=None):
    """(status, body, headers) of one request, made without our own client."""
    context = context or front.box.tls(client)
    connection = http.client.HTTPSConnection("localhost", port or front.box.port, timeout=30, context=context)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()
