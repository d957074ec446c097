# SPDX-License-Identifier: Apache-2.0
"""dre-foxykbd on a real guest: a key logger there is found however it puts keys out, and who only heeds keys is not.

The logger is tests/vm/key_logger.py, which reads the keyboard by evdev; what it wrote or sent shows that it logged.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import threading
import time

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from guest_ground import inside
from guests import NETWORK
from programs import program
from test_sysmon_service import Service, events, wait

FULL = os.environ.get("DRE_FULL") == "1"
pytestmark = pytest.mark.skipif(not FULL, reason="types for minutes, as before a release: DRE_FULL=1")
MINUTES = 10  # for each kind of guest that is not to be accused: together half an hour
HOST, PORT = f"{NETWORK}.254", 514
ADDRESS = f"ip address replace {NETWORK}.1/24 dev eth0; ip link set eth0 up"
LOGGER = pathlib.Path(__file__).with_name("key_logger.py")
LOG = "/root/keys"
KEY = bytes(range(32))
DISK, SENT = ["--disk", LOG], ["--network", f"{HOST}:{PORT}"]
ENCRYPTED = ["--key", KEY.hex()]
WAYS = {
    "disk": DISK,
    "network": SENT,
    "disk-buffered": [*DISK, "--keep", "16"],
    "network-buffered": [*SENT, "--keep", "16"],
    "disk-encrypted": [*DISK, *ENCRYPTED],
    "network-encrypted": [*SENT, *ENCRYPTED, "--keep", "4"],
}


@contextlib.contextmanager
def received(host):
    """The datagrams that come to HOST at PORT."""
    found = []
    with inside(f"/proc/{host.first_pid()}/ns/net"):
        peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        peer.bind(("0.0.0.0", PORT))
    peer.settimeout(0.2)
    ended = threading.Event()

    def listen():
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                found.append(peer.recv(65536))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        peer.close()


def begin(guest, *words):
    """Let a logger begin; it reads when this returns."""
    guest.push(LOGGER, "/root/key_logger.py")
    guest.ok(f"{ADDRESS}; rm -f {LOG}")
    guest.ok(["python3", "/root/key_logger.py", *words])


def look(host, *argv, timeout=180):
    """dre-foxykbd on the host of the guests, again where that was too busy to tell: CompletedProcess, and its lines."""
    for _ in range(5):
        words = (program("dre-foxykbd"), "--config", host.conf, "--json", "guest1", *argv)
        done = host.call(*words, check=False, timeout=timeout)
        if done.returncode != 6:
            break
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def logged(guest, words, sent):
    """The letters that the logger put out."""
    pieces = sent
    if "--disk" in words:
        octets = bytes.fromhex(guest.ok(f"od -An -v -tx1 {LOG}"))
        piece = 12 + 1 + 16  # nonce, letter, tag
        pieces = [octets]
        if "--key" in words:
            pieces = [octets[start : start + piece] for start in range(0, len(octets), piece)]
    if "--key" in words:
        assert not any(piece.isalpha() for piece in pieces)
        pieces = [AESGCM(KEY).decrypt(piece[:12], piece[12:], None) for piece in pieces]
    return b"".join(pieces)


@pytest.fixture
def tap(ground):
    """The host's end of the guest's link."""
    return lambda: ground.virsh("domiflist", "guest1").split()[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_logger_is_found_by_the_device_that_it_uses(shared_guest, ground, tap, way):
    words = WAYS[way]
    with received(ground) as sent:
        begin(shared_guest, *words)
        try:
            done, rows = look(ground)
            letters = logged(shared_guest, words, sent)
        finally:
            shared_guest.ok("pkill -f '[k]ey_logger.py'")
    assert letters.isalpha() and len(letters) >= 240, letters  # it did what it is there for
    assert done.returncode == 1, done.stdout + done.stderr
    device = "vda" if words[0] == "--disk" else tap()
    found = {row["device"]: row for row in rows}[device]
    assert (found["type"], found["verdict"], found["system"]) == ("sysmon.keylogger", "keylogger", "guest1")
    assert found["false_alarm"] <= 0.001 and found["with_keys"] > found["without"]


def test_the_service_finds_one(guest, ground):
    begin(guest, *DISK)
    before, plan = len(events(ground.place)), ground.place / "keys.yaml"
    plan.write_text("sysmon: 1\nlooks: [{look: foxykbd, system: guest1, every: 1m}]\n")
    service = Service(ground.inside, ground.conf)
    service.begin(plan)
    try:
        wait(lambda: (rows := service.rows()) and rows["foxykbd", "guest1"]["verdict"], 400)
    finally:
        waits = service.process.pid  # nsenter, which passes no signal on
        os.kill(int(pathlib.Path(f"/proc/{waits}/task/{waits}/children").read_text()), signal.SIGTERM)
        said = service.process.communicate(timeout=60)[1]
    told = [json.loads(line) for line in events(ground.place)[before:] if '"sysmon.' in line]
    alarms = [one["data"] for one in told if one["type"] == "sysmon.keylogger"]
    assert [(one["system"], one["device"]) for one in alarms] == [("guest1", "vda")], said
    assert [one["data"]["verdict"] for one in told if one["type"] == "sysmon.looked"] == ["found"]


def test_what_keeps_keys_is_found_slowly(guest, ground, tap):
    """4096 letters, which the kernel writes when it likes; and those of a minute, encrypted. Each is missed at once."""
    with received(ground) as sent:
        begin(guest, *DISK, "--keep", "4096", "--lazy")
        guest.ok(["python3", "/root/key_logger.py", *SENT, *ENCRYPTED, "--keep", "100000", "--wait", "60"])
        done, rows = look(ground, "--slow", timeout=3000)  # it takes 32 minutes
        assert len(logged(guest, DISK, [])) > 4 * 4096 and len(sent) >= 4
    assert done.returncode == 1, done.stdout + done.stderr
    assert {row["device"] for row in rows} == {"vda", tap()}


# Whom keys are for, or what is at work meanwhile; what is seen of it on tty1.
GETTY = "systemctl unmask getty@tty1 && systemctl start getty@tty1 && sleep 3 && systemctl is-active getty@tty1"
EDITOR = """systemctl stop getty@tty1
: >/root/text
setsid --ctty busybox vi /root/text </dev/tty1 >/dev/tty1 2>/dev/null &
sleep 2
"""
DAEMON = """mkdir -p /var/log/journal
systemctl restart systemd-journald
journalctl --flush
setsid python3 -c '
import random, syslog, time
while True:
    syslog.syslog(random.choice((syslog.LOG_INFO, syslog.LOG_CRIT)), "x" * random.randrange(400))
    time.sleep(random.expovariate(1))
' </dev/null >/dev/null 2>&1 &
"""


@pytest.mark.parametrize("what", ["getty", "editor", "daemon"])
def test_who_logs_no_keys_is_not_accused(guest, ground, what):
    """By none of some twenty looks, which all end before a logger begins: that is found.

    Where output comes and goes, each look may be fooled with a probability of 0.001.
    """
    guest.ok({"getty": GETTY, "editor": EDITOR, "daemon": DAEMON}[what])
    if what == "editor":
        ground.virsh("send-key", "guest1", "KEY_I")  # vi(1): what comes is text
    looks, end = 0, time.monotonic() + MINUTES * 60
    while time.monotonic() < end:
        done, rows = look(ground)
        if done.returncode == 6:
            continue
        assert (done.returncode, [row["verdict"] for row in rows]) == (0, ["not excluded"]), done.stdout + done.stderr
        looks += 1
    assert looks >= MINUTES / 2, done.stderr
    if what == "editor":
        for key in ("KEY_X", "KEY_ESC", "KEY_LEFTSHIFT KEY_SEMICOLON", "KEY_W", "KEY_ENTER"):
            ground.virsh("send-key", "guest1", *key.split())
        assert wait(lambda: guest.ok("cat /root/text"), 30) == "x\n"  # it took all the letters, and all were erased
    if what == "daemon":
        assert int(guest.ok("journalctl -q _COMM=python3 | wc -l")) > MINUTES * 30
    begin(guest, *DISK)
    done, rows = look(ground)
    assert done.returncode == 1 and [row["device"] for row in rows] == ["vda"], done.stdout + done.stderr
