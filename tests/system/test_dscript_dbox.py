# SPDX-License-Identifier: Apache-2.0
"""A D-Box that is away, silent or killed delays no response, and has all records afterwards: in order, each once."""

import json
import os
import socket
import subprocess
import time

import dboxkit
import dscriptkit
import pytest
from conftest import environment, program
from dre import event

box = dboxkit.box
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the services do")
SCRIPT = """\
dscript: 1
name: away
monitors: [{id: busy, watch: host-cpu}]
responses:
  - id: work
    when: {event: t.go}
    steps: [{action: threshold, monitor: busy, above: 80%, clear: 60%}, {action: record, text: done}]
    at-most: {attempts: 99, per: 1d}
    then: call
  - {id: call, steps: [{action: notify, to: owner}]}
"""


class World:
    def __init__(self, box):
        self.box, self.number = box, 0
        box.good("dbox-init", "--client", "dscript", "--role", "writer")
        (box.path / "away.yaml").write_text(SCRIPT)
        self.spool = box.path / "state/spool/ingest/00000000000000000000.jsonl"
        self.spool.parent.mkdir(parents=True)
        words = ["--config", str(box.conf), "--quiet", "run", "--user", "daemon", str(box.path / "away.yaml")]
        self.process = subprocess.Popen([program("dscript"), *words], env=environment())
        self.wait(lambda: any(record["kind"] == "start" for record in self.records()), "the engine")

    def wait(self, condition, what, timeout=30):
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            time.sleep(0.02)

    def records(self):
        return dscriptkit.records(self.box.path)

    def lines(self):
        return [record["line"].encode() for record in self.records() if "line" in record]

    def go(self):
        """An event; how long until its response has ended."""
        self.number += 1
        line = event.format(event.Event(event.stamp(), "/host:h", "t.go", 5, {}, {"id": f"go{self.number}"}))
        with open(self.spool, "ab") as stream:
            stream.write(line)
        begin = time.monotonic()
        (self.box.path / "run/script").write_bytes(line)
        self.wait(lambda: sum(b'"script.response.done"' in one for one in self.lines()) == self.number, "the response")
        return time.monotonic() - begin

    def entries(self):
        """The numbers of the entries in the stream `script`, in the order of the log."""
        rows = self.box.good("dbox-get", "--json", "--search", "stream=script").splitlines()
        return [json.loads(row)["index"] for row in rows]

    def delivered(self):
        """Their octets."""
        return [self.box.good("dbox-get", index, "--octets") for index in self.entries()]


def test_nothing_waits_for_the_d_box_and_it_gets_everything(box):
    world = World(box)
    try:
        assert world.go() < 10
        with socket.create_server(("127.0.0.1", box.port), backlog=8):  # takes connections and says nothing
            assert max(world.go(), world.go()) < 10
        box.start()
        world.wait(lambda: len(world.entries()) == len(world.lines()), "the records")
        box.stop(9)
        assert world.go() < 10
        box.start()
        world.wait(lambda: len(world.entries()) == len(world.lines()), "the rest")
        assert world.delivered() == world.lines() and len(world.lines()) == 4 * 7
        done = [json.loads(line)["data"] for line in world.lines() if b'"action":"threshold"' in line]
        assert done[1]["before"] == {"above": 90, "clear": 80} and done[1]["after"] == {"above": 80, "clear": 60}
    finally:
        world.process.kill()
        world.process.wait()
