# SPDX-License-Identifier: Apache-2.0
"""dre-watch --stdout: a slow server and an app that does not run are told once, and cleared."""

import http.server
import json
import signal
import subprocess
import threading
import time

import pytest
from conftest import environment, program
from dre import conf


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    status = 200


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    made = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def watch(settings):
    """watch(MONITOR…) → an iterator over the events of a running dre-watch."""
    config = settings()
    started = []

    def start(*monitors):
        directory = conf.load(config).core_state_dir / "script" / "watch.d"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "s.json").write_text(json.dumps({"script": "s", "monitors": monitors}))
        argv = [program("dre-watch"), "--stdout", "--quiet", "--config", config]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment())
        started.append((process, threading.Timer(20, process.kill)))
        started[-1][1].start()
        return process, (json.loads(line) for line in process.stdout)

    yield start
    for process, timer in started:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_failing_server_is_raised_once_and_cleared(watch, server):
    url = f"http://127.0.0.1:{server.server_port}/"
    server.status = 503
    process, events = watch(
        {"id": "slow", "watch": "http", "url": url, "above": 0.3, "clear": 0.2, "for": 0, "every": 0.05}
    )
    raised = next(events)
    time.sleep(0.3)  # some more bad answers, which must not be told
    server.status = 200
    cleared = next(events)
    assert [raised["type"], cleared["type"]] == ["watch.raised", "watch.cleared"]
    assert raised["data"]["why"] == "status 503" and raised["data"]["url"] == url
    process.send_signal(signal.SIGTERM)
    assert list(events) == [] and process.wait(10) == 0


def test_an_app_that_does_not_run_is_raised_after_missing(watch):
    _, events = watch({"id": "dead", "watch": "liveness", "of": "no-such-app", "missing": 0.5})
    raised = next(events)
    assert raised["source"].endswith("/app:no-such-app")
    assert raised["data"]["limit"] == 0.5 and raised["data"]["value"] >= 0.5
