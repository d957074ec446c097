# SPDX-License-Identifier: Apache-2.0
"""A whole D-Box of its own for a test: keys made once per run, by dbox-init, then copied; dboxd on a free port."""

import base64
import http.client
import json
import os
import pathlib
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time

import once
import pytest
from programs import environment, program

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "dbox"))

CLIENTS = {"writer": "writer", "second": "writer", "reader": "reader", "auditor": "auditor", "admin": "admin"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def place():
    """A directory that the D-Box's own user may enter, which pytest's tmp_path is not."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="dbox-test-"))
    path.chmod(0o755)
    return path


class Box:
    """The settings, programs and server of one D-Box below *path*."""

    def __init__(self, path, **keys):
        self.path = path
        self.port = free_port()
        self.state = path / "state/dbox"
        self.certs = path / "etc/certs/dbox"
        self.database = self.state / "dbox.sqlite"
        self.conf = path / "dre.conf"
        self.server = None
        values = {
            "DRE_CORE_STATE_DIR": path / "state",
            "DRE_CORE_RUN_DIR": path / "run",
            "DRE_CORE_ETC_DIR": path / "etc",
            "DRE_CORE_LOG_DIR": path / "log",
            "DRE_MONITOR_SINK": path / "run/events.sock",
            "DRE_MONITOR_PIPES": path / "run/script",
            "DRE_DBOX_DATABASE": f"sqlite:{self.database}",
            "DRE_DBOX_CERTS_DIR": self.certs,
            "DRE_DBOX_LISTEN": f"127.0.0.1:{self.port}",
            "DRE_DBOX_PAGE_LISTEN": "no",
            "DRE_DBOX_REDIRECT_LISTEN": "no",
            "DRE_DBOX_URL": f"https://localhost:{self.port}",
            "DRE_DBOX_KEY_BITS": "2048",  # a larger key takes seconds to make
            **keys,
        }
        self.conf.write_text("".join(f'{key}="{value}"\n' for key, value in values.items()))
        self.conf.chmod(0o644)

    def run(self, name, *argv, stdin=b"", timeout=180, before=()):
        return subprocess.run(
            [*before, program(name), "--config", str(self.conf), *map(str, argv)],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=environment(),
            check=False,
        )

    def good(self, name, *argv, **kwargs):
        """What a program printed, which must succeed."""
        done = self.run(name, *argv, **kwargs)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def start(self, before=()):
        """Start dboxd, by the program *before* if there is one, and wait until it says that it listens."""
        log = open(self.path / "dboxd.log", "ab")  # noqa: SIM115
        end = log.tell()
        argv = [*before, program("dboxd"), "--config", str(self.conf)]
        self.server = subprocess.Popen(argv, stderr=log, stdin=subprocess.DEVNULL, env=environment())
        log.close()
        deadline = time.monotonic() + 30
        while b"listening on" not in self.said()[end:]:
            assert self.server.poll() is None, self.said().decode()
            assert time.monotonic() < deadline, self.said().decode()
            time.sleep(0.01)
        return self

    def sequencer(self):
        """The process id of the sequencer."""
        from dboxlib import remote

        asked = remote.Remote(self.path / "run/dbox/sequencer.sock")
        try:
            return asked.hello()["pid"]
        finally:
            asked.close()

    def said(self):
        return (self.path / "dboxd.log").read_bytes()

    def stop(self, number=15):
        """End dboxd and return its exit status."""
        if self.server is None:
            return None
        self.server.send_signal(number)
        status = self.server.wait(30)
        self.server = None
        return status

    def put(self, octets, client="writer", stream="app"):
        """Append octets and return their receipt."""
        return self.good("dbox-put", "--client", client, "--stream", stream, stdin=octets)

    def settings(self):
        from dre import conf

        return conf.load(str(self.conf))

    def tls(self, client="writer", directory=None):
        """A TLS context of a client, for requests that our own client would never send."""
        context = ssl.create_default_context(cafile=self.certs / "root.pem")
        if client:
            pair = [(directory or self.certs / "clients") / f"{client}.{ending}" for ending in ("crt", "key")]
            context.load_cert_chain(*pair)
        return context


def template():
    """A D-Box as dbox-init leaves it, with one client of each role; never started."""
    return once.directory("dbox", _make_template)


def _make_template(path):
    made = Box(path)
    made.good("dbox-init", timeout=600)  # four keys of 3072 bits
    for name, role in CLIENTS.items():
        made.good("dbox-init", "--client", name, "--role", role)


def owner():
    """Options with which dbox-init takes the template's owner: a chain of its own takes four keys of 3072 bits."""
    certs = template() / "etc/certs/dbox"
    return ["--import-owner", certs / "owner.p12", "--passphrase-file", certs / "owner.pass"]


def copy(**keys):
    """A fresh D-Box with the template's keys."""
    path = place()
    for part in ("etc", "state"):
        subprocess.run(["cp", "-a", template() / part, path / part], check=True)
    return Box(path, **keys)


def remove(made):
    if made.server is not None:
        made.stop(9)
    shutil.rmtree(made.path, ignore_errors=True)


@pytest.fixture
def box():
    """A D-Box that is not running yet."""
    made = copy()
    yield made
    remove(made)


@pytest.fixture
def running(box):
    """A D-Box whose dboxd listens."""
    return box.start()


def anchor(box, note, cosignature):
    """Hand in what a witness said of the tree head *note*, by the API."""
    fields = {"kind": "witness", "name": cosignature.name, "size": int(note.split("\n")[1])}
    body = json.dumps({**fields, "octets": base64.b64encode(cosignature.line().encode()).decode()})
    connection = http.client.HTTPSConnection("localhost", box.port, timeout=20, context=box.tls("auditor"))
    connection.request("POST", "/v1/anchors", body)
    assert connection.getresponse().status == 200
    connection.close()


def is_root():
    return os.geteuid() == 0


def children(pid):
    """All processes below *pid*, as the kernel tells them."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children(child)]
    return found


def found(store, **wanted):
    """The entries that a search of an open database gives, at most 1000."""
    from dboxlib import searching

    return list(searching.find(store, wanted, 1000))


def told(store, **wanted):
    """The data of the events among them."""
    return [json.loads(store.payload(row["index"])[1])["data"] for row in found(store, **wanted)]
