# SPDX-License-Identifier: Apache-2.0
"""What must do no harm: a clock that jumps, a field of a megabyte, a D-Box or a libvirt that is away."""

import json
import os
import pathlib
import socket
import time

import pytest
from conftest import program
from dre import event
from test_dscript_steps import World

# The host's clock as the engine sees it, moved by as many seconds as a file says.
CLOCK = """\
import time
real = time.time
def moved():
    with open({path!r}) as file:
        return real() + float(file.read())
time.time = moved
"""
HOUR = 3600.0


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.fixture
def world(tmp_path, settings, run):
    made = []

    def make(steps, **keys):
        made.append(World(tmp_path, settings(**keys), run, steps))
        return made[-1]

    yield make
    for one in made:
        one.kill()


class Moved:
    """A world whose engine's clock can be moved."""

    def __init__(self, one):
        self.one, self.file = one, one.place / "moved"
        self.set(0.0)
        (one.place / "lib").mkdir()
        (one.place / "lib/sitecustomize.py").write_text(CLOCK.format(path=str(self.file)))
        one.kill()
        one.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(one.place / "lib"), one.env.get("PYTHONPATH", "")]))
        one.start()

    def set(self, seconds):
        other = self.file.with_name("moved.new")
        other.write_text(str(seconds))
        other.replace(self.file)
        self.by = seconds

    def go(self):
        """An event, stamped as the clock has it."""
        self.one.number += 1
        stamp = event.stamp(time.time() + self.by)
        line = event.format(event.Event(stamp, "/host:h", "t.go", 5, {}, {"id": f"go{self.one.number}"}))
        with open(self.one.spool, "ab") as stream:
            stream.write(line)
        (self.one.place / "run/script").write_bytes(line)

    def done(self):
        return [item["outcome"] for item in self.one.told("script.response.done") if item["response"] == "do"]


@pytest.mark.parametrize("by", [3 * 24 * HOUR, -3 * 24 * HOUR])
def test_a_clock_that_jumps_gives_no_attempt_back_and_takes_none(world, by):
    one = world("      - {action: record, text: x}\n")
    text = (one.place / "steps.yaml").read_text().replace("{attempts: 99, per: 1d}", "{attempts: 2, per: 1d}")
    (one.place / "steps.yaml").write_text(text)
    clock = Moved(one)
    clock.go()
    one.wait(lambda: len(clock.done()) == 1, "the first")
    clock.set(by)
    clock.go()
    one.wait(lambda: len(clock.done()) == 2, "the second, which is left")
    clock.go()
    (refused,) = one.wait(lambda: one.told("script.response.refused"), "the refusal")
    assert refused["reason"] == "2 attempts within 86400 s are used up"
    clock.set(0.0)
    clock.go()
    one.wait(lambda: len(one.records("event")) == 4, "the fourth")
    assert len(clock.done()) == 2


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_a_question_has_its_time_though_the_clock_jumps(world, by):
    one = world("      - {action: ask, to: operator, text: really, default: refuse, timeout: 3s}\n")
    clock = Moved(one)
    clock.go()
    one.wait(lambda: one.records("outcome"), "the question")
    asked = time.monotonic()
    clock.set(by)
    time.sleep(1)
    assert clock.done() == []  # not at once
    one.wait(lambda: clock.done() == ["failed"], "the default")  # and not in an hour
    assert time.monotonic() - asked > 2


def test_a_line_with_a_field_of_a_megabyte_is_counted_and_the_next_event_is_answered(world):
    one = world("      - {action: record, text: x}\n")
    before = memory(one.process.pid)
    head = f'{{"time":"{event.stamp()}","source":"/host:h","type":"t.go","id":"big","data":{{"x":"'
    with open(one.place / "run/script", "wb", buffering=0) as fifo:
        fifo.write(head.encode() + b"$(id)" * (1 << 18) + b'"}}\n')
    one.go()
    one.wait(lambda: one.told("script.record"), "the answer")
    (bad,) = one.wait(lambda: one.records("bad"), "the count")
    assert bad["count"] == 1 and '"script.input.bad"' in bad["line"] and len(one.records("event")) == 1
    assert memory(one.process.pid) - before < 8 << 20
    assert sum(path.stat().st_size for path in (one.place / "state/script/journal").glob("*.log")) < 100_000


def memory(pid):
    """Octets that are resident."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_recovery_does_not_wait_for_a_d_box_that_takes_connections_and_says_nothing(world):
    with socket.create_server(("127.0.0.1", 0), backlog=8) as silent:
        one = world("      - {action: record, text: x}\n", DRE_DBOX_URL=f"https://127.0.0.1:{silent.getsockname()[1]}")
        for number in range(1, 4):
            begin = time.monotonic()
            one.go()
            one.wait(lambda number=number: len(one.told("script.record")) == number, "the answer")
            assert time.monotonic() - begin < 5
        spool = one.place / "state/spool/dbox/dscript/records-1"
        one.wait(lambda: spool.read_text().count('"script.record"') == 3, "what waits")


@pytest.fixture
def away(tmp_path):
    """What may be where libvirt should: nothing, or something that takes connections and says nothing."""
    silent = socket.socket(socket.AF_UNIX)
    silent.bind(str(tmp_path / "silent.sock"))
    silent.listen(8)
    yield {"nothing": tmp_path / "none.sock", "silence": tmp_path / "silent.sock"}
    silent.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="dre-sys needs root")
@pytest.mark.parametrize("what", ["nothing", "silence"])
def test_a_system_whose_libvirt_is_away_reaches_the_owner_in_time(world, away, what):
    uri = f"qemu+unix:///system?socket={away[what]}"
    one = world("      - {action: restart, system: pay1, timeout: 4s}\n", DRE_SYS_URI=uri)
    one.kill()
    one.env["PATH"] = f"{pathlib.Path(program('dre-sys')).parent}:{one.env['PATH']}"
    one.start()
    one.go()
    outcome = one.wait(lambda: one.records("outcome"), "the outcome", 40)[0]
    assert ("libvirt" if what == "nothing" else "no answer within 4 s") in outcome["error"]
    assert outcome["before"]["state"] is None and outcome["before"]["why"]
    one.wait((one.place / "log/notify.log").exists, "the owner")
    assert json.loads(outcome["line"])["data"]["after"]["state"] is None
