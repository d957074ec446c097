# SPDX-License-Identifier: Apache-2.0
"""dre-correlate killed by SIGKILL at random moments, 6 of them and before a release 100: by ids, nothing that it
recognises is lost, and what comes twice is the very line that was written last."""

import os
import random
import signal
import subprocess
import threading
import time

import correlatekit as kit
from conftest import environment, program

KILLS = int(os.environ.get("DRE_KILLS", "6"))
RULES = r"""
type=SingleWithThreshold
continue=TakeNext
ptype=RegExp
pattern="source":"/host:(\w+)","type":"a\.up","sev":\d,"data":\{"n":(\d+)
desc=many on $1
action=create MANY_$1 3 (write %script {"time":"%.hmsstr","type":"x.end","data":{"host":"$1"}}); \
  write %script {"time":"%.hmsstr","type":"x.many","data":{"host":"$1","first":$2}}
action2=write %script {"time":"%.hmsstr","type":"x.over","data":{"host":"$1"}}
window=5
thresh=4

type=Pair
ptype=RegExp
pattern="source":"/host:(\w+)","type":"a\.up","sev":\d,"data":\{"n":(\d+)
desc=$1
action=none
ptype2=RegExp
pattern2="source":"/host:$1","type":"a\.down","sev":\d,"data":\{"n":(\d+)
desc2=x
action2=write %script {"time":"%.hmsstr","type":"x.pair","data":{"host":"%1","from":%2,"to":$1}}
window=20
"""


def stream(count):
    some = random.Random(7)
    return [
        kit.line(
            n / 20,
            f"/host:h{some.randrange(5)}",
            some.choice(["a.up", "a.down", "b.x"]),
            data=f'"n":{n}',
            id=f"e{n}",
        ).encode()
        for n in range(count)
    ]


class Reader(threading.Thread):
    """Reads a FIFO to its end."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.fd = os.open(path, os.O_RDONLY)
        self.octets = b""

    def run(self):
        while block := os.read(self.fd, 65536):
            self.octets += block


def test_killed_at_random_moments(tmp_path, settings):
    rules = tmp_path / "r.sec"
    rules.write_text(RULES)
    lines = stream(20_000)
    argv = [program("dre-correlate"), rules, "--config", settings(), "--quiet"]
    whole = subprocess.run(argv, input=b"\n".join(lines) + b"\n", capture_output=True, env=environment(), check=True)
    wanted = whole.stdout.splitlines()
    assert len(wanted) > 2000 and len(set(wanted)) == len(wanted)

    for name in ("in", "out"):
        os.mkfifo(tmp_path / name)
    held = [os.open(tmp_path / name, os.O_RDWR) for name in ("in", "out")]  # as dre-monitor holds them
    reader = Reader(tmp_path / "out")
    reader.start()
    argv += ["--state", tmp_path / "state"]
    some = random.Random(1)
    killed, state = 0, tmp_path / "state" / "state"

    def start():
        return subprocess.Popen(argv, stdin=held[0], stdout=held[1], env=environment())

    def feed():
        for begin in range(0, len(lines), 20):
            os.write(held[0], b"\n".join(lines[begin : begin + 20]) + b"\n")
            time.sleep(some.uniform(0, 0.0025 * KILLS))

    sender = threading.Thread(target=feed, daemon=True)
    process = start()
    sender.start()
    while killed < KILLS:
        time.sleep(some.uniform(0.15, 0.9))
        assert process.poll() is None
        process.kill()
        assert process.wait() == -signal.SIGKILL
        killed += 1
        last = state.stat().st_ino if state.exists() else 0
        process = start()
    sender.join(120)
    assert not sender.is_alive()
    deadline = time.monotonic() + 60
    # A new process writes the state anew when it has taken it up.
    while (wanted[-1] not in reader.octets or state.stat().st_ino == last) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 0
    for fd in held:
        os.close(fd)
    reader.join(10)
    found = reader.octets.split(b"\n")[:-1]
    once = list(dict.fromkeys(found))
    assert once == wanted
    repeated = [text for n, text in enumerate(found) if text in found[:n]]
    print(f"{KILLS} kills: {len(found)} lines, {len(repeated)} of them a second time")
    assert len(repeated) <= KILLS * 20  # 4096 octets at most for each kill
