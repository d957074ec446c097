# SPDX-License-Identifier: Apache-2.0
"""dre-foxykbd on guests that are no more than a boot sector: one logs keys to its disk, one writes by the clock."""

import json
import os
import subprocess

import pytest
from programs import environment, program
from system_ground import Apart

pytestmark = pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="takes half a minute: DRE_FULL=1")

# Real mode: again: read a key (int 16h); count it at 0x8000; write that to the disk's second sector (int 13h); again.
LOGGER = bytes.fromhex("31c08ed88ec0b400cd16ff060080b80103b90200ba8000bb0080cd13ebe8")

# Real mode: again: hlt; as long as the BIOS's count of ticks at 0x46c has the same upper bits, again; write; again.
CLOCK = bytes.fromhex("31c08ed88ec0fbf4a16c04c1e80439e874f589c5b80103b90200ba8000bb0080cd13ebe3")


@pytest.fixture(scope="module")
def host():
    with Apart() as made:
        made.dre("create", "fox-logs", "--base", made.small("logger", LOGGER), "--ip", "none", "--memory", "64M")
        made.dre("create", "fox-clock", "--base", made.small("clock", CLOCK), "--ip", "none", "--memory", "64M")
        made.dre("start", "fox-logs", "fox-clock")
        yield made


def begin(host, name, *argv):
    """dre-foxykbd at work."""
    words = [*host.inside, program("dre-foxykbd"), "--config", host.conf, "--json", name, *argv]
    return subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
    )


def test_a_guest_that_logs_keys_is_found_and_one_that_writes_by_itself_is_not(host):
    began = [begin(host, name, "--windows", "14") for name in ("fox-logs", "fox-clock")]
    (logs, logs_said), (clock, clock_said) = [one.communicate(timeout=120) for one in began]
    assert [one.returncode for one in began] == [1, 0], (logs, logs_said, clock, clock_said)
    (found,) = [json.loads(line) for line in logs.splitlines()]
    assert (found["type"], found["verdict"], found["system"]) == ("sysmon.keylogger", "keylogger", "fox-logs")
    assert found["device"] == "vda" and found["false_alarm"] <= 0.001
    assert found["with_keys"] > 10 * found["without"]
    (none,) = [json.loads(line) for line in clock.splitlines()]
    assert none["verdict"] == "not excluded" and none["keys"] == 7 * 60
    spooled = (host.place / "state/spool/event/emitted.jsonl").read_text()
    assert [json.loads(line)["data"]["device"] for line in spooled.splitlines() if "sysmon.keylogger" in line] == [
        "vda"
    ]


def test_who_types_there_is_not_disturbed(host):
    """Before a key of its own."""
    one = begin(host, "fox-clock")
    while one.poll() is None:
        host.virsh("send-key", "fox-clock", "KEY_A")
    assert one.returncode == 6
    assert "typing" in one.stderr.read()


def test_a_guest_that_rests_or_does_not_run_is_not_looked_at(host):
    host.dre("freeze", "fox-clock")
    for name, code in (("fox-clock", 6), ("nosuch", 3)):
        one = begin(host, name)
        out, said = one.communicate(timeout=60)
        assert (one.returncode, out) == (code, ""), said
        assert name in said
