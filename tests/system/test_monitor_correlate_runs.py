# SPDX-License-Identifier: Apache-2.0
"""dre-monitor with DRE_MONITOR_CORRELATOR=dre: the same detections, in time though nothing comes, and over kills."""

import json
import os
import random
import signal
import threading
import time

import pytest
from dre import event
from test_monitor_recognises_overload import Monitor, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the monitor sets owners and priorities")
STAGES = ("correlate", "reorder", "ingest")
LATE = r"""
type=PairWithWindow
ptype=RegExp
pattern="source":"([^"]+)","type":"lab\.asked"
desc=$1
action=write %script {"time":"%.year-%.mon-%.mdayT%.hmsstr.000Z","source":"$1","type":"lab.silent"}
ptype2=RegExp
pattern2="source":"$1","type":"lab\.answered"
desc2=x
action2=write %script {"time":"%.year-%.mon-%.mdayT%.hmsstr.000Z","source":"%1","type":"lab.told"}
window=1
"""

MANY = r"""
type=SingleWithThreshold
ptype=RegExp
pattern="source":"([^"]+)","type":"lab\.answered"
desc=$1
action=write %script {"time":"%.hmsstr","source":"$1","type":"lab.many"}
window=4
thresh=3
"""


KILLS = int(os.environ.get("DRE_KILLS", "2"))  # of each stage


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.fixture
def monitor(settings, tmp_path):
    made = Monitor(settings(DRE_MONITOR_CORRELATOR="dre"), tmp_path)
    yield made
    made.stop()


def test_a_release_then_slow_is_one_overload_and_is_explained(monitor):
    monitor.start("--without", "watch")
    source = event.host() + "/app:web1"
    release = event.emit(monitor.conf, "shop.release", source, {"version": "7"})
    until(lambda: monitor.events("shop.release"))
    raised = {"script": "s", "id": "slow", "watch": "http", "value": 0.31, "limit": 0.3, "url": "http://h/"}
    slow = event.emit(monitor.conf, "watch.raised", source, raised, 4)
    (overload,) = until(lambda: monitor.events("shop.overload"))
    assert overload["data"] == {"release": "7", "ids": f"{release},{slow}", "value": 0.31}
    explained = monitor.conf.core_state_dir / "correlate" / "explained.jsonl"
    rows = until(lambda: [json.loads(line) for line in explained.read_text().splitlines() if "overload" in line])
    assert rows[0]["events"] == [release, slow] and rows[0]["rule"].startswith(
        f"{monitor.conf.core_run_dir}/rules/shop"
    )


def test_what_is_due_happens_though_nothing_comes(monitor):
    (monitor.conf.core_etc_dir / "rules.d" / "late.sec").write_text(LATE)
    monitor.start("--without", "watch")
    for name in ("a", "b"):
        event.emit(monitor.conf, "lab.asked", event.host() + f"/{name}", {})
    event.emit(monitor.conf, "lab.answered", event.host() + "/b", {})
    begun = time.monotonic()
    (silent,) = until(lambda: monitor.events("lab.silent"), 10)
    assert silent["source"].endswith("/a") and len(silent["id"]) == 16
    assert [item["source"][-2:] for item in monitor.events("lab.told")] == ["/b"]
    assert time.monotonic() - begun < 5


def test_kills_of_all_stages_lose_and_double_nothing(monitor):
    monitor.start("--without", "watch")
    some, sent, stop = random.Random(3), [], threading.Event()

    def send():
        while not stop.is_set():
            sent.append(event.emit(monitor.conf, "shop.order", event.host() + "/app:web1", {"n": len(sent)}))
            time.sleep(0.002)

    sender = threading.Thread(target=send)
    sender.start()
    kills = dict.fromkeys(STAGES, 0)
    try:
        for n in range(len(STAGES) * KILLS):
            stage = STAGES[n % 3]
            pid = until(lambda stage=stage: monitor.pid(stage))
            time.sleep(some.uniform(0, 0.5))
            os.kill(pid, signal.SIGKILL)
            kills[stage] += 1
            until(lambda stage=stage, pid=pid: monitor.pid(stage) not in (None, pid))
    finally:
        stop.set()
        sender.join()
    until(lambda: set(sent) <= {item["id"] for item in monitor.events("shop.order")}, 60)
    got = [item["id"] for item in monitor.events("shop.order")]
    doubles = len(got) - len(set(got))
    print(f"kills {kills}: {len(sent)} sent, {len(set(got))} came, {doubles} lines a second time")
    assert set(got) == set(sent)
    assert doubles <= kills["correlate"] * 20  # its last write, of 4096 octets at most, with the same ids


def test_the_monitor_killed_and_started_again_goes_on(monitor):
    monitor.start("--without", "watch")
    sent = [event.emit(monitor.conf, "shop.order", event.host(), {"n": n}) for n in range(300)]
    monitor.process.kill()
    monitor.process.wait()
    sent += [event.emit(monitor.conf, "shop.order", event.host(), {"n": n}) for n in range(300, 310)]
    monitor.start("--without", "watch")
    until(lambda: set(sent) <= {item["id"] for item in monitor.events("shop.order")}, 30)
    assert {row["stage"] for row in monitor.status()} == {"act", "correlate", "reorder", "ingest", "watch"}


def test_the_record_gives_what_was_recognised_live(monitor, run, tmp_path):
    """Live with kills, and then at once from the intake's spool: the same lines with the same ids in the same order."""
    (monitor.conf.core_etc_dir / "rules.d" / "late.sec").write_text(LATE + MANY)
    monitor.start("--without", "watch")
    some = random.Random(5)
    for n in range(150):
        kind = some.choice(["lab.asked", "lab.answered", "lab.asked", "shop.order"])
        event.emit(monitor.conf, kind, event.host() + f"/m{some.randrange(6)}", {"n": n})
        time.sleep(some.uniform(0, 0.08))
        if n % 50 == 49:
            os.kill(monitor.pid("correlate"), signal.SIGKILL)
    end = event.emit(monitor.conf, "shop.end", event.host(), {})
    until(lambda: [item for item in monitor.events("shop.end") if item["id"] == end])
    monitor.process.terminate()
    assert monitor.process.wait(20) == 0
    until(lambda: time.time() - monitor.got[-1][0] > 1)
    live = list(dict.fromkeys(json.dumps(item) for _, item in monitor.got))
    assert {"lab.silent", "lab.told", "lab.many"} <= {json.loads(item)["type"] for item in live}
    spool = sorted((monitor.conf.core_state_dir / "spool" / "ingest").glob("*.jsonl"))
    record = b"".join(path.read_bytes() for path in spool)
    ordered = run("dre-reorder", "--replay", "--window", "1m", "--config", monitor.config, stdin=record).stdout
    rules = sorted((monitor.conf.core_etc_dir / "rules.d").glob("*.sec"))
    replayed = run("dre-correlate", *rules, "--config", monitor.config, stdin=ordered).stdout.splitlines()
    assert [json.dumps(json.loads(item)) for item in replayed] == live


def test_what_only_sec_can_run_is_refused_at_the_start_and_no_rules_at_all_are_none(monitor, run):
    rules = monitor.conf.core_etc_dir / "rules.d"
    (rules / "two.sec").write_text("type=Single\nptype=RegExp2\npattern=a\\nb\ndesc=x\naction=none\n")
    done = run("dre-monitor", "run", "--config", monitor.config)
    assert done.returncode == 1 and f"{rules}/two.sec:2: ptype".encode() in done.stderr
    for path in rules.glob("*.sec"):
        path.unlink()
    monitor.start("--without", "watch")
    event.emit(monitor.conf, "shop.order", event.host(), {})
    time.sleep(1)
    assert next(row for row in monitor.status() if row["stage"] == "correlate")["restarts"] == 0
