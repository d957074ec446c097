# SPDX-License-Identifier: Apache-2.0
"""dre-watch beside a real Apache, a real MariaDB and a program of actions.d: each is raised, cleared, and shown."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import urllib.request

import dboxfront
import dboxkit
import mariadbkit
import pytest
from conftest import environment, program
from rsyslogkit import wait

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the programs run as nobody")
MODULES = ("mpm_event", "authz_core", "status")


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.fixture
def watching(settings, tmp_path):
    """watching(MONITOR…): dre-watch on these; its events by type and id as they come."""
    running = []

    def start(*monitors):
        place = tmp_path / "state/script/watch.d"
        place.mkdir(parents=True)
        (place / "s.json").write_text(json.dumps({"script": "s", "monitors": monitors}))
        out = (tmp_path / "out").open("wb")
        argv = [program("dre-watch"), "--stdout", "--config", settings()]
        running.append(subprocess.Popen(argv, stdout=out, stderr=subprocess.DEVNULL, env=environment()))

        def told():
            lines = (tmp_path / "out").read_bytes().splitlines()
            return {(one["type"], one["data"]["id"]): one for one in map(json.loads, lines)}

        return told

    yield start
    for process in running:
        process.terminate()
        process.wait(20)


@pytest.fixture
def apache(tmp_path):
    """The port of an Apache with a status page."""
    if not shutil.which("apache2", path="/usr/sbin"):
        pytest.skip("apache2 is not installed")
    port, place = dboxkit.free_port(), tmp_path / "web"
    place.mkdir()
    lines = [f"LoadModule {name}_module {dboxfront.MODULES}/mod_{name}.so" for name in MODULES]
    lines += [f'ServerRoot "{place}"', "ServerName localhost", f"Listen 127.0.0.1:{port}", "User www-data"]
    lines += ["Group www-data", f'PidFile "{place}/pid"', f'DefaultRuntimeDir "{place}"', "ErrorLog error.log"]
    lines += ["ExtendedStatus On", '<Location "/status">', "SetHandler server-status", "</Location>", ""]
    (place / "conf").write_text("\n".join(lines))
    argv = ["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", place / "conf"]
    httpd = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment())
    dboxfront.wait_for(port, httpd, lambda: (place / "error.log").read_text())
    yield port
    httpd.terminate()
    httpd.wait(20)


def test_accesses_of_an_apache(watching, apache):
    url = f"http://127.0.0.1:{apache}"
    told = watching(
        {"id": "busy", "watch": "apache", "url": f"{url}/status?auto", "above": 2500, "clear": 2000, "every": 0.3},
        {"id": "gone", "watch": "apache", "url": f"{url}/none", "above": 1, "clear": 1, "every": 0.3, "missing": 1},
    )
    wait(lambda: ("watch.raised", "gone") in told())
    assert "Not Found" in told()["watch.raised", "gone"]["data"]["why"]
    assert ("watch.raised", "busy") not in told()  # the status page alone: some hundred a minute

    def ask():
        with urllib.request.urlopen(f"{url}/status?auto") as answer:
            answer.read()

    wait(lambda: [ask() for _ in range(20)] and ("watch.raised", "busy") in told())
    assert told()["watch.raised", "busy"]["data"]["value"] > 2500


def test_how_long_a_mariadb_takes(watching, tmp_path):
    if mariadbkit.needed():
        pytest.skip(mariadbkit.needed())
    place = pathlib.Path(tempfile.mkdtemp(prefix="dre-mariadb-", dir="/var/tmp"))
    server = mariadbkit.Server(place)
    try:
        options = tmp_path / "client.cnf"
        options.write_text(f"[client]\nsocket={server.socket}\nuser=root\n")
        told = watching(
            {"id": "db", "watch": "mysql", "file": str(options), "above": 1, "clear": 0.8, "every": 0.3, "of": "shop"},
            {
                "id": "none",
                "watch": "mysql",
                "file": "/nonexistent",
                "above": 1,
                "clear": 0.8,
                "every": 0.3,
                "missing": 1,
            },
        )
        wait(lambda: ("watch.raised", "none") in told())
        assert "cannot be read" in told()["watch.raised", "none"]["data"]["why"]
        assert ("watch.raised", "db") not in told()
        shown = tmp_path / "run/watch.prom"
        wait(lambda: shown.exists() and 'dre_watch_raised{script="s",id="none",watch="mysql"} 1' in shown.read_text())
        assert 'dre_watch_raised{script="s",id="db",watch="mysql"} 0' in shown.read_text()
        server.stop()
        wait(lambda: ("watch.raised", "db") in told())
        event = told()["watch.raised", "db"]
        assert event["source"].endswith("/app:shop") and event["data"]["of"] == "shop" and event["data"]["why"]
        server.start()
        wait(lambda: ("watch.cleared", "db") in told())
    finally:
        server.stop()
        shutil.rmtree(place)


def test_a_program_of_ours(watching, tmp_path):
    plugins = tmp_path / "etc/actions.d"
    plugins.mkdir(parents=True)
    (plugins / "queue").write_text(f'#!/bin/sh\ncat {tmp_path}/length; id -un >&2; exit "$(cat {tmp_path}/status)"\n')
    (plugins / "queue").chmod(0o755)
    (tmp_path / "length").write_text("5 in the queue\n")
    (tmp_path / "status").write_text("0\n")
    told = watching({"id": "long", "watch": "command", "argv": ["queue"], "above": 10, "clear": 6, "every": 0.2})
    (tmp_path / "length").write_text("11 in the queue\n")
    wait(lambda: ("watch.raised", "long") in told())
    assert told()["watch.raised", "long"]["data"] == {
        **{"script": "s", "id": "long", "watch": "command", "value": 11.0, "limit": 10.0},
        "command": "queue",
    }
    (tmp_path / "length").write_text("1\n")
    wait(lambda: ("watch.cleared", "long") in told())
