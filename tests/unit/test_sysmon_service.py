# SPDX-License-Identifier: Apache-2.0
"""dre-sysmon run with programs of the test's in place of those that look: what is passed on, what is not believed."""

import asyncio
import json
import os
import signal
import sys
import time

import pytest
from conftest import ROOT
from dre import conf, dbox, event

sys.path.insert(0, str(ROOT / "sysmon"))
from sysmonlib import plan, service  # noqa: E402

SOURCE = f"{event.host()}/sys:pay1"


def line(type="sysmon.hidden.process", source=SOURCE, identity="a1", **data):
    made = event.Event(event.stamp(), source, type, 1, {"system": "pay1", **data}, {"id": identity} if identity else {})
    return event.new_line(made).decode().strip()


def looked(verdict="clean", identity="b1"):
    return line("sysmon.looked", identity=identity, verdict=verdict)


class World:
    """A service, its programs, and what it does."""

    def __init__(self, path, monkeypatch, config):
        self.path, self.conf, self.said = path, conf.load(config), []
        self.programs = path / "programs"
        self.programs.mkdir()
        monkeypatch.setattr(service, "GRACE", 0.0)
        monkeypatch.setattr(service, "PROGRAMS", self.programs)

    def program(self, name, *lines):
        made = self.programs / name
        made.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
        made.chmod(0o755)

    def run(self, until, *items, renewed=None, patience=15.0):
        """Have it look at what *items* say until `until()`."""
        looks, wrong = plan.parse(("sysmon: 1\nlooks:\n" + "".join(f" - {{{one}}}\n" for one in items)).encode(), "f")
        assert wrong == []
        made = service.Service(self.conf, [], looks, self.said.append)

        async def work():
            task = asyncio.ensure_future(made.run(renewed or (lambda: looks)))
            deadline = time.monotonic() + patience
            while not until() and not task.done():
                assert time.monotonic() < deadline, (self.said, self.rows(), self.events())
                await asyncio.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)
            await task

        asyncio.run(work())
        return made

    def events(self):
        """What went to the monitor, whose spool it is without one."""
        path = self.path / "state/spool/event/emitted.jsonl"
        own = path if path.exists() else path.with_name(f"emitted-{os.geteuid()}.jsonl")
        return own.read_text().splitlines() if own.exists() else []

    def types(self):
        return [json.loads(one)["type"] for one in self.events()]

    def recorded(self):
        """What waits for the D-Box."""
        return [(one.stream, one.octets.decode()) for one in dbox.Recorder(self.conf, "sysmon").spool.pending()]

    def rows(self):
        return service.status(self.conf)


@pytest.fixture
def world(tmp_path, monkeypatch, settings):
    return World(tmp_path, monkeypatch, settings())


LMS, LIBRA = "look: lms, system: pay1", "look: libra, system: pay1, mount: /x, every: 5s"


def test_what_is_found_goes_to_the_monitor_and_to_the_d_box_as_it_is(world):
    found = line(pid=7, comm="x")
    world.program("dre-lms", f"echo '{looked()}'", f"echo '{found}'", "exec sleep 100")
    seen = []
    world.run(lambda: len(world.recorded()) == 2 and not seen.append(world.rows()), LMS)
    assert world.events()[1] == found
    assert world.recorded() == [("sysmon", one) for one in world.events()]
    (row,) = seen[0]
    assert (row["state"], row["verdict"], row["found"], row["reason"]) == ("looking", "clean", 1, None)
    assert world.rows() is None  # it has ended
    assert not os.path.exists(f"/proc/{row['pid']}")


def test_that_all_is_as_it_was_is_told_once_and_a_change_again(world):
    beats = [looked(identity=f"b{number}") for number in range(20)] + [looked("found", "c1"), looked("found", "c2")]
    world.program("dre-lms", *(f"echo '{one}'" for one in beats), "exec sleep 100")
    world.run(lambda: len(world.events()) >= 2, LMS)
    assert [json.loads(one)["id"] for one in world.events()] == ["b0", "c1"]


@pytest.mark.parametrize(
    "said",
    [
        line(source=f"{event.host()}/sys:other"),
        line(type="app.started"),
        line(type="sysmon.blind"),
        line(identity=None),
        "no event",
        "x" * 10000,
    ],
    ids=["of another system", "of another part", "of the service", "without an id", "no event", "too long"],
)
def test_what_a_program_may_not_say_is_not_passed_on_and_it_is_ended(world, said):
    world.program("dre-lms", f"echo '{said}'", f"echo '{line()}'", "exec sleep 100")
    world.run(lambda: world.events(), LMS)
    assert world.types() == ["sysmon.blind"]
    assert "event" in json.loads(world.events()[0])["data"]["reason"]


def test_why_it_cannot_look_is_told_once_and_that_it_can_again(world, monkeypatch):
    monkeypatch.setattr(service, "BACK_OFF", (0.05, 0.05))
    flag = world.path / "up"
    world.program(
        "dre-lms",
        f"[ ! -e {flag} ] || {{ echo '{looked()}'; exec sleep 100; }}",
        "echo warning >&2; printf 'dre-lms: pay1: it does not run\\033[2J\\n' >&2; exit 6",
    )

    def done():
        if len(world.said) and not flag.exists() and (again := len(world.types())) == 1:
            time.sleep(0.5)  # it tries ten times meanwhile
            assert len(world.types()) == again
            flag.touch()
        return "sysmon.looked" in world.types()

    world.run(done, LMS)
    assert world.types() == ["sysmon.blind", "sysmon.looked"]
    data = json.loads(world.events()[0])["data"]
    assert data == {"system": "pay1", "look": "lms", "code": 6, "reason": "pay1: it does not run\\x1b[2J"}


def test_one_that_is_blind_for_a_moment_is_not_told_of(world, monkeypatch):
    monkeypatch.setattr(service, "BACK_OFF", (0.05, 0.05))
    monkeypatch.setattr(service, "GRACE", 1.0)
    world.program("dre-lms", f"[ ! -e {world.path}/up ] || {{ echo '{looked()}'; exec sleep 0.3; }}", "exit 6")
    begun = time.monotonic()

    def done():
        if time.monotonic() > begun + 0.5 and not world.types():
            (world.path / "up").touch()
        elif "sysmon.looked" in world.types():
            (world.path / "up").unlink(missing_ok=True)
        return "sysmon.blind" in world.types()

    world.run(done, LMS)
    assert world.types() == ["sysmon.looked", "sysmon.blind"]
    assert time.monotonic() > begun + 1.5


def test_a_program_that_says_nothing_is_ended(world, monkeypatch):
    monkeypatch.setitem(service.PATIENCE, "libra", 0.2)
    world.program("dre-libra", "trap '' TERM", "sleep 1.5 & exec sleep 100")
    end = time.monotonic() + 2  # then the one that it has started has ended, too, of itself
    world.run(lambda: world.events() and time.monotonic() > end, LIBRA)
    assert "said nothing for 0.2 seconds" in json.loads(world.events()[0])["data"]["reason"]


def test_looks_into_one_system_that_disturb_each_other_come_one_after_another(world):
    log = world.path / "log"
    words = f"echo begin >>{log}; sleep 0.3; echo end >>{log}; echo '{looked()}'"
    for name in ("dre-libra", "dre-foxykbd"):
        world.program(name, words)
    world.run(lambda: world.types().count("sysmon.looked") == 2, LIBRA, "look: foxykbd, system: pay1, every: 1h")
    assert log.read_text().split() == ["begin", "end", "begin", "end"]


def test_those_into_others_do_not_wait(world):
    log = world.path / "log"
    world.program("dre-libra", f"echo begin >>{log}; sleep 1; echo end >>{log}")
    world.run(lambda: log.exists() and "end" in log.read_text(), LIBRA, LIBRA.replace("pay1", "pay2"))
    assert log.read_text().split()[:2] == ["begin", "begin"]


def test_a_look_that_was_begun_is_not_begun_again_after_a_restart(world):
    world.program("dre-foxykbd", f"echo '{looked('not excluded')}'")
    item = "look: foxykbd, system: pay1, every: 1h"
    world.run(lambda: world.events(), item)
    started = time.monotonic()
    made = world.run(lambda: time.monotonic() > started + 1, item)
    assert len(world.events()) == 1
    assert 3500 < made.rows[0].due - time.time() < 3600


def test_a_new_plan_is_taken_and_a_wrong_one_is_not(world):
    world.program("dre-lms", f"echo '{looked()}'", "exec sleep 100")
    good, _ = plan.parse(b"sysmon: 1\nlooks: [{look: lms, system: pay2}]", "f")
    asked = []

    def renewed():
        asked.append(1)
        if len(asked) == 1:
            raise event.EventError("it is wrong")
        return good

    def done():
        rows = world.rows() or [{}]
        if rows[0].get("last") and len(asked) < 2:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
        return [row.get("system") for row in rows] == ["pay2"]

    world.run(done, LMS, renewed=renewed)
    assert "goes on with the plan as it was: it is wrong" in world.said


def test_what_cannot_be_recorded_is_told_to_the_monitor_all_the_same(world):
    directory = world.path / "state/spool/dbox/sysmon"
    directory.mkdir(parents=True)
    (directory / "state").write_text("damaged")
    world.program("dre-lms", f"echo '{line()}'", "exec sleep 100")
    world.run(lambda: world.events(), LMS)
    assert world.types() == ["sysmon.hidden.process"]
    assert any("not recorded as evidence" in text for text in world.said)
