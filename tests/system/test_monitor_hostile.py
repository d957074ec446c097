# SPDX-License-Identifier: Apache-2.0
"""What an attacker may send: floods, long lines, octets that are no text, and events in the name of a service.

Nothing of it stops others, and none of it is more than a claim, on which no step that changes a container rests.
"""

import json
import os
import signal
import subprocess
import threading
import time

import pytest
from dre import event
from test_monitor_recognises_overload import Monitor, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the monitor sets owners and priorities")
# What the shipped rules do not pass on, as they do sysmon.*
RULE = 'type=Single\nptype=RegExp\npattern="type":"(?:lab|app|script|dbox)\\.\ndesc=x\naction=write %script $0\n'
FULL = os.environ.get("DRE_FULL") == "1"
RATE, SECONDS = 10_000, 3 if FULL else 2  # of a flood
full = pytest.mark.skipif(not FULL, reason="as before a release: DRE_FULL=1")


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.fixture(params=["sec", pytest.param("dre", marks=full)])
def monitor(request, settings, tmp_path):
    made = Monitor(settings(DRE_MONITOR_CORRELATOR=request.param), tmp_path)
    (made.conf.core_etc_dir / "rules.d" / "lab.sec").write_text(RULE)
    made.start("--without", "watch")
    yield made
    made.stop()


def line(source, type, data, **optional):
    return event.format(event.Event(event.stamp(), source, type, 6, data, optional))


def fifo(monitor, octets):
    with open(monitor.conf.core_run_dir / "events", "wb") as stream:
        stream.write(octets)


def refused(monitor):
    lines = [path.read_text() for path in (monitor.conf.core_state_dir / "spool" / "ingest").glob("*.jsonl")]
    found = [json.loads(text) for text in "".join(lines).splitlines() if '"type":"monitor.refused"' in text]
    return sum(item["data"]["count"] for item in found)


@pytest.mark.parametrize("monitor", ["sec", "dre"], indirect=True)
def test_a_flood_of_one_source_leaves_room_for_the_others_and_is_counted(monitor):
    sent = 0

    def flood():
        nonlocal sent
        begun = time.monotonic()
        with open(monitor.conf.core_run_dir / "events", "wb", buffering=0) as stream:
            while (now := time.monotonic() - begun) < SECONDS:
                while sent < now * RATE:
                    stream.write(b"".join(line("/host:evil/x", "flood.x", {"n": sent + n}) for n in range(20)))
                    sent += 20
                time.sleep(0.005)

    flooding = threading.Thread(target=flood)
    flooding.start()
    asked = {}
    while flooding.is_alive():
        identity = event.emit(monitor.conf, "lab.asked", event.host() + "/a", {})
        asked[identity] = time.time()
        time.sleep(0.1)
    flooding.join()
    until(lambda: {item["id"] for item in monitor.events("lab.asked")} >= set(asked), 60)
    arrived = {item["id"]: when for when, item in monitor.got if item["type"] == "lab.asked"}
    delays = sorted(arrived[identity] - asked[identity] for identity in asked)
    median, most = delays[len(delays) // 2], delays[-1]
    print(f"{sent} events of a flood; {len(delays)} others took {median:.2f} s, at most {most:.2f} s")
    assert sent > RATE * SECONDS / 4 and delays[-1] < 10

    def counted():
        rows = {row["stage"]: row for row in monitor.status()}
        ingest, reorder = rows["ingest"], rows["reorder"]
        return ingest if ingest["in"] == ingest["out"] == reorder["in"] == reorder["out"] else None

    ingest = until(counted, 60)
    assert ingest["in"] >= sent + len(asked) and ingest["dropped"] == ingest["refused"] == 0


def test_long_lines_and_odd_octets_are_refused_and_what_follows_is_served(monitor):
    long = (
        b'{"time":"' + event.stamp().encode() + b'","source":"/h","type":"lab.asked","data":{"x":"' + b"a" * (1 << 20)
    )
    fifo(monitor, long + b'"}}\n\xff\xfe\x00\x80{\n' + line("/h", "lab.asked", {"n": 1}))
    fifo(monitor, b'{"time":"\xc3\x28"}\n\x1b[2J\n' + line("/h", "lab.asked", {"n": 2}))
    until(lambda: [item["data"]["n"] for item in monitor.events("lab.asked")] == [1, 2])
    until(lambda: refused(monitor) >= 4)


FORGED = ("app.stopped", "script.action.done", "dbox.key.rotated", "sysmon.hidden.process", "lab.asked")


def believed(monitor):
    """Types and whether they are claimed, of what went through."""
    return {(item["type"], item.get("claimed", False)) for _, item in monitor.got}


def test_a_services_events_from_the_fifo_are_claims(monitor):
    for type in FORGED:
        fifo(monitor, line(event.host() + "/app:web1", type, {}, claimed=False))
    until(lambda: len(monitor.got) == len(FORGED))
    assert believed(monitor) == {(type, True) for type in FORGED}


@pytest.mark.parametrize("who", ["other user", "container"])
def test_a_services_events_from_the_socket_are_claims_when_another_user_or_a_container_sends_them(monitor, who):
    monitor.conf.monitor_sink.chmod(0o666)  # as if the user were in dre-event, or it were mounted in the container
    foreign = {
        "other user": ["setpriv", "--reuid=65534", "--clear-groups"],
        "container": ["unshare", "--pid", "--fork", "--mount-proc"],  # its root is uid 0 for the kernel, too
    }[who]
    for type in FORGED:
        argv = [
            *foreign,
            "python3",
            "-c",
            SEND,
            str(monitor.conf.monitor_sink),
            line("/host:h/app:web1", type, {}).decode(),
        ]
        assert subprocess.run(argv, capture_output=True, check=True).stdout == b"ok"
    until(lambda: len(monitor.got) == len(FORGED))
    assert believed(monitor) == {(type, True) for type in FORGED}
    event.emit(monitor.conf, "app.stopped", event.host(), {})
    until(lambda: ("app.stopped", False) in believed(monitor))  # root of this host


def test_who_does_not_wait_is_refused_and_counted(monitor):
    ingest = monitor.pid("ingest")
    os.kill(ingest, signal.SIGSTOP)
    argv = ["python3", "-c", SEND.partition("; sys")[0], str(monitor.conf.monitor_sink)]
    subprocess.run([*argv, line("/host:h", "lab.asked", {}).decode()], check=True)
    os.kill(ingest, signal.SIGCONT)
    until(lambda: refused(monitor) == 1)
    assert not monitor.got


SEND = """
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1]); s.send(sys.argv[2].encode()); sys.stdout.buffer.write(s.recv(1000))
"""
