# SPDX-License-Identifier: Apache-2.0
"""The whole monitor with the real sec: a release, then a slow server, is one shop.overload at the script's FIFO,
and nothing is lost while its stages are killed one after the other."""

import contextlib
import http.server
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import threading
import time

import pytest
from conftest import ROOT, environment, program
from dre import conf, event

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the monitor sets owners and priorities")
RULES = ROOT / "sec-monitor" / "rules"
KILLS = int(os.environ.get("DRE_KILLS", "1"))  # of each stage


def until(what, timeout=60):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if got := what():
            return got
        time.sleep(0.02)
    raise AssertionError("timed out")


class Shop(http.server.ThreadingHTTPServer):
    """A web server on loopback whose answers take as long as it is told."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.delay = 0.0
        self.slow_at = None
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.server.delay and self.server.slow_at is None:
            self.server.slow_at = time.time()
        time.sleep(self.server.delay)
        with contextlib.suppress(OSError):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

    def log_message(self, *args):
        pass


class Monitor:
    """dre-monitor in a directory of its own, and a reader of the script's FIFO with times of arrival."""

    def __init__(self, config, tmp_path):
        self.config = config
        self.conf = conf.load(config)
        self.got = []
        self.log = tmp_path / "monitor.log"
        self.fd = None
        self._stop = False
        rules = self.conf.core_etc_dir / "rules.d"
        rules.mkdir(parents=True)
        for path in RULES.glob("*.sec"):
            (rules / path.name).write_bytes(path.read_bytes())
        self.process = None

    def start(self, *argv):
        self.process = subprocess.Popen(
            [program("dre-monitor"), "run", "--config", self.config, *argv],
            stderr=os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
            env=environment(),
        )
        until(lambda: all(row["state"] in ("running", "left-out") for row in self.status()) and self.status())
        until(self.conf.monitor_sink.exists)
        if self.fd is None:
            self.fd = os.open(self.conf.monitor_pipes[0], os.O_RDWR | os.O_NONBLOCK)
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        half = b""
        while not self._stop:
            if select.select([self.fd], [], [], 0.1)[0]:
                *lines, half = (half + os.read(self.fd, 65536)).split(b"\n")
                self.got += [(time.time(), json.loads(line)) for line in lines]

    def status(self):
        done = subprocess.run(
            [program("dre-monitor"), "status", "--json", "--config", self.config],
            capture_output=True,
            env=environment(),
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    def pid(self, stage):
        return next(row["pid"] for row in self.status() if row["stage"] == stage)

    def events(self, type):
        return [item for _, item in self.got if item["type"] == type]

    def watch(self, *monitors):
        directory = self.conf.core_state_dir / "script" / "watch.d"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "web-overload.json").write_text(json.dumps({"script": "web-overload", "monitors": monitors}))

    def stop(self):
        self._stop = True
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise


@pytest.fixture
def tmp_path(public_path):
    return public_path  # sec runs as its own user, and must reach its FIFO


@pytest.fixture
def monitor(settings, tmp_path):
    made = Monitor(settings(), tmp_path)
    yield made
    made.stop()


@pytest.fixture
def shop():
    made = Shop()
    yield made
    made.shutdown()
    made.server_close()


def slow(shop, **changes):
    url = f"http://127.0.0.1:{shop.server_port}/"
    return {"id": "slow", "watch": "http", "url": url, "above": 0.3, "clear": 0.2, "for": 0.0, "every": 0.2, **changes}


def test_release_then_slow_is_one_overload_that_names_its_events(monitor, shop, record_property):
    monitor.watch(slow(shop, of="web1"))
    monitor.start()
    event.emit(monitor.conf, "shop.release", event.host() + "/app:web1", {"version": "2.0-bad"})
    until(lambda: monitor.events("shop.release"))
    shop.delay = 2.0
    until(lambda: monitor.events("shop.overload"))
    arrived = next(when for when, item in monitor.got if item["type"] == "shop.overload")
    record_property("recognised_after_s", round(arrived - shop.slow_at, 3))
    print(f"recognised {arrived - shop.slow_at:.3f} s after the first slow request began")
    (overload,) = monitor.events("shop.overload")
    assert overload["data"]["release"] == "2.0-bad" and overload["sev"] == 3
    assert overload["source"] == event.host() + "/app:web1"
    release, raised = (event.find(monitor.conf, identity) for identity in overload["data"]["ids"].split(","))
    assert (release.type, raised.type) == ("shop.release", "watch.raised")
    assert "claimed" not in release.optional and "claimed" not in raised.optional
    assert overload["time"] == raised.optional["seen"]
    shop.delay = 0.0
    until(lambda: monitor.events("watch.cleared"))


def test_slow_without_a_release_is_no_overload(monitor, shop):
    monitor.watch(slow(shop, of="web1"))
    monitor.start()
    shop.delay = 2.0
    until(lambda: monitor.events("watch.raised"))
    event.emit(monitor.conf, "shop.done", event.host(), {})
    until(lambda: monitor.events("shop.done"))
    assert monitor.events("shop.overload") == []


HOSTILE = [
    'a"},"sev":0,"data":{"release":"x',
    "%s%{.nl}%script$0$1",
    "$(id > /tmp/x)`id`",
    "\\\n\u2028\x00",
    "); shellcmd id",
    "x" * 1500,
    '","id":"fake","seen":"2026-01-01T00:00:00.000Z"}',
]


def test_hostile_words_stay_inside_the_line(monitor):
    """Whatever a release is called, each line that leaves is an event, and the overload names a plain word."""
    monitor.start("--without", "watch")
    for number, text in enumerate(HOSTILE):
        source = event.host() + f"/app:web{number}"
        release = event.emit(monitor.conf, "shop.release", source, {"version": text, text[:200]: {"version": text}})
        until(lambda release=release: [item for item in monitor.events("shop.release") if item["id"] == release])
        data = {"script": "s", "id": "slow", "watch": "http", "value": 0.31, "limit": 0.3, "url": f"http://h/{text}"}
        raised = event.emit(monitor.conf, "watch.raised", source, data, 4)
        found = until(lambda raised=raised: [e for e in monitor.events("shop.overload") if raised in e["data"]["ids"]])
        assert len(found) == 1
        assert found[0]["data"] == {"release": release, "ids": f"{release},{raised}", "value": 0.31}
        event.parse(json.dumps(found[0], separators=(",", ":")))
    got = monitor.events("shop.release")
    assert [item["data"]["version"] for item in got] == HOSTILE


def test_a_claimed_release_cannot_take_the_place_of_a_proven_one(monitor):
    monitor.start("--without", "watch")
    source = event.host() + "/app:web1"
    proven = event.emit(monitor.conf, "shop.release", source, {"version": "2"})
    until(lambda: monitor.events("shop.release"))
    fake = event.format(event.Event(event.stamp(), source, "shop.release", 6, {"version": "evil"}))
    raised = {"script": "s", "id": "slow", "watch": "http", "value": 1, "limit": 0.3, "url": "x"}
    fake += event.format(event.Event(event.stamp(), source, "watch.raised", 4, raised))
    (monitor.conf.core_run_dir / "events").open("wb", buffering=0).write(fake)
    until(lambda: monitor.events("watch.raised"))
    event.emit(monitor.conf, "watch.raised", source, {**raised, "value": 2}, 4)
    (overload,) = until(lambda: monitor.events("shop.overload"))
    assert overload["data"]["ids"].startswith(proven) and overload["data"]["value"] == 2


@pytest.mark.parametrize("stage", ["ingest", "reorder", "sec", "watch"])
def test_a_killed_stage_comes_back_and_no_event_is_lost(monitor, stage):
    monitor.watch()
    monitor.start()
    sent = []
    stop = threading.Event()

    def send():
        while not stop.is_set():
            sent.append(event.emit(monitor.conf, "shop.order", event.host() + "/app:web1", {"n": len(sent)}))
            time.sleep(0.002)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(KILLS):
            before = monitor.pid(stage)
            others = {row["stage"]: row["pid"] for row in monitor.status() if row["stage"] != stage}
            until(lambda: len(monitor.events("shop.order")) > 50)
            os.kill(before, signal.SIGKILL)
            until(lambda before=before: monitor.pid(stage) not in (None, before))
            now = {row["stage"]: row["pid"] for row in monitor.status() if row["stage"] != stage}
            assert now == others, "a neighbour died with it"
            time.sleep(0.3)
    finally:
        stop.set()
        sender.join()
    missing = until(lambda: set(sent) <= {item["id"] for item in monitor.events("shop.order")}, 30)
    assert missing is True
    doubles = len(monitor.events("shop.order")) - len(sent)
    print(f"{stage}: {len(sent)} sent, {doubles} came twice")
    assert doubles == 0 or stage == "sec"


def test_a_release_is_remembered_over_the_death_of_sec(monitor):
    monitor.start("--without", "watch")
    source = event.host() + "/app:web1"
    event.emit(monitor.conf, "shop.release", source, {"version": "7"})
    until(lambda: monitor.events("shop.release"))
    before = monitor.pid("sec")
    os.kill(before, signal.SIGKILL)
    until(lambda: monitor.pid("sec") not in (None, before))
    data = {"script": "s", "id": "slow", "watch": "http", "value": 0.31, "limit": 0.3, "url": "http://h/"}
    event.emit(monitor.conf, "watch.raised", source, data, 4)
    (overload,) = until(lambda: monitor.events("shop.overload"))
    assert overload["data"]["release"] == "7"


def test_status_tells_what_runs_and_what_was_left_out(monitor, run):
    assert run("dre-monitor", "status", "--config", monitor.config).returncode == 3
    monitor.start("--without", "sec", "--without", "watch")
    done = run("dre-monitor", "status", "--config", monitor.config)
    assert done.returncode == 1
    words = {line.split()[0]: line.split()[1] for line in done.stdout.decode().splitlines()}
    assert words == {
        "act": "running",
        "sec": "left-out",
        "reorder": "running",
        "ingest": "running",
        "watch": "left-out",
    }
    for row in monitor.status():
        if row["pid"]:
            assert row["stage"] in pathlib.Path(f"/proc/{row['pid']}/cmdline").read_text()
    monitor.process.kill()
    monitor.process.wait()
    assert run("dre-monitor", "status", "--config", monitor.config).returncode == 3


def test_the_end_of_the_supervisor_ends_the_stages_and_the_next_goes_on(monitor, run):
    monitor.start("--without", "watch")
    assert run("dre-monitor", "status", "--config", monitor.config).returncode == 1
    pids = [row["pid"] for row in monitor.status() if row["pid"]]
    monitor.process.kill()
    monitor.process.wait()
    until(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in pids))
    identity = event.emit(monitor.conf, "shop.order", event.host(), {})
    monitor.start("--without", "watch")
    until(lambda: [item for item in monitor.events("shop.order") if item["id"] == identity])


def test_rules_that_could_run_something_are_refused(monitor, run):
    bad = monitor.conf.core_etc_dir / "rules.d" / "bad.sec"
    bad.write_text("type=Single\nptype=SubStr\npattern=a\ndesc=x\naction=shellcmd id\n")
    done = run("dre-monitor", "run", "--config", monitor.config)
    assert done.returncode == 1
    assert re.search(rb"bad\.sec:5: action: 'shellcmd'", done.stderr)


def test_what_sec_had_counted_is_counted_again_after_its_death_and_nothing_is_done_twice(monitor):
    rule = (
        'type=Single\ncontinue=TakeNext\nptype=RegExp\npattern="type":"lab.failed"\ndesc=x\naction=write %script $0\n\n'
        'type=SingleWithThreshold\nptype=SubStr\npattern="type":"lab.failed"\ndesc=three\nwindow=300\nthresh=3\n'
        'action=write %script {"time":"2026-01-01T00:00:00.000Z","source":"/x","type":"lab.three"}\n'
    )
    (monitor.conf.core_etc_dir / "rules.d" / "lab.sec").write_text(rule)
    monitor.start("--without", "watch")
    for number in (1, 2):  # too old for what is told once more because it may have had no answer
        made = event.Event(
            event.stamp(time.time() - 60), event.host() + "/a", "lab.failed", 6, {}, {"id": f"f{number}"}
        )
        assert event.send(monitor.conf.monitor_sink, event.format(made), 10)
    until(lambda: len(monitor.events("lab.failed")) == 2)
    before = monitor.pid("sec")
    os.kill(before, signal.SIGKILL)
    until(lambda: monitor.pid("sec") not in (None, before))
    event.emit(monitor.conf, "lab.failed", event.host() + "/a", {})
    until(lambda: monitor.events("lab.three"))
    assert len(monitor.events("lab.failed")) == 3 and len(monitor.events("lab.three")) == 1
