# SPDX-License-Identifier: Apache-2.0
"""dre-watch looks at systems by libvirt: one that runs, halts, is frozen by virsh and is stopped."""

import json
import subprocess

import pytest
from conftest import environment, program
from rsyslogkit import wait
from system_ground import Host


@pytest.fixture(scope="module")
def host():
    with Host() as made:
        yield made


def test_a_system_that_is_stopped_or_held_is_raised(host, tmp_path):
    host.dre("create", "w1", "--base", host.small(), "--memory", "64M", "--ip", "none")
    host.dre("start", "w1")
    place = host.place / "state/script/watch.d"
    place.mkdir(parents=True)
    monitor = {"id": "dead", "watch": "liveness", "system": "w1", "missing": 1, "every": 0.3}
    (place / "s.json").write_text(json.dumps({"script": "s", "monitors": [monitor]}))
    with (tmp_path / "out").open("wb") as out:
        argv = [*host.inside, program("dre-watch"), "--stdout", "--config", host.conf]
        watching = subprocess.Popen(argv, stdout=out, env=environment())

    def told():
        return [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]

    try:
        for harm, mend in (("suspend", "resume"), ("destroy", "start")):
            before = len(told())
            host.virsh(harm, "w1")
            wait(lambda: len(told()) == before + 1)  # noqa: B023
            raised = told()[-1]
            assert raised["type"] == "watch.raised" and raised["source"].endswith("/system:w1")
            assert (raised["data"]["system"], raised["data"]["why"]) == ("w1", "not running")
            host.virsh(mend, "w1")
            wait(lambda: len(told()) == before + 2)  # noqa: B023
            assert told()[-1]["type"] == "watch.cleared"
    finally:
        watching.terminate()
        watching.wait(20)
        host.dre("destroy", "--force", "w1")
