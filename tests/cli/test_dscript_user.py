# SPDX-License-Identifier: Apache-2.0
"""The engine as a user of its own: a process that stays root does what was agreed, by the real dre-app, and no more."""

import contextlib
import json
import os
import pathlib
import pwd
import re
import signal
import subprocess

import pytest
from conftest import nobody, program
from test_dscript_steps import HEAD, World, slow

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who gives it up")
USER = pwd.getpwnam("daemon")  # every Debian has it; the packages make one of their own
LIMIT = "      - {action: limit, of: web1, pids: 50, timeout: 20s}\n"
RUN = "      - {action: run, argv: [job], timeout: 20s}\n"
CALL = "  - {id: call, steps: [{action: notify, to: owner}]}\n"


class Engine(World):
    """`dscript run --user`, with the deployed script."""

    def __init__(self, place, config, run, steps):
        for directory in ("lxc", "tree/bin"):
            (place / directory).mkdir(parents=True, exist_ok=True)
        (place / "tree/bin/sh").touch()
        self.run = run
        self.options = ["--config", config]
        for name in ("web1", "other"):
            done = self.app("create", name, "--ip", "none", "--base", str(place / "tree"))
            assert done.returncode == 0, done.stderr
        (place / "first.yaml").write_text(HEAD + steps + CALL)
        assert run("dscript", *self.options, "deploy", place / "first.yaml").returncode == 0
        super().__init__(place, config, run, steps)

    def app(self, *words):
        return self.run("dre-app", *self.options, *words)

    def start(self):
        self.env["PATH"] = f"{pathlib.Path(program('dre-app')).parent}:{self.env['PATH']}"
        words = [program("dscript"), *self.options, "--quiet", "run", "--user", USER.pw_name]
        before = len(self.records("start"))
        self.process = subprocess.Popen(words, env=self.env, stderr=subprocess.PIPE, text=True)
        self.wait(lambda: len(self.records("start")) > before or self.process.poll() is not None, "the engine")
        assert self.process.poll() is None, self.process.stderr.read()

    def children(self, pid=None):
        found = []
        for listed in pathlib.Path(f"/proc/{pid or self.process.pid}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended since
                found += map(int, listed.read_text().split())
        return found

    def limit(self):
        return json.loads(self.app("limit", "web1", "--json").stdout)["pids_limit"]


@pytest.fixture
def tmp_path(public_path):
    return public_path


@pytest.fixture
def engine(tmp_path, settings, run):
    made = []

    def make(steps):
        keys = {"DRE_APP_LXC_PATH": tmp_path / "lxc", "DRE_BRIDGE_ADDRESS": "10.231.102.1/24"}
        made.append(Engine(tmp_path, settings(**keys), run, steps))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def status(pid, key):
    return re.search(rf"^{key}:\t(.*)$", pathlib.Path(f"/proc/{pid}/status").read_text(), re.M)[1]


def test_it_decides_without_privilege_and_what_was_agreed_is_done(engine):
    one = engine(LIMIT + RUN)
    one.job("#!/bin/sh\nid -un\n")
    pid = one.process.pid
    assert status(pid, "Uid").split() == [str(USER.pw_uid)] * 4
    assert set(status(pid, "Groups").split()) <= set(map(str, os.getgrouplist(USER.pw_name, USER.pw_gid)))
    assert [status(pid, f"Cap{which}").strip("0") for which in ("Prm", "Eff", "Inh")] == ["", "", ""]
    one.go()
    (data,) = one.wait(lambda: one.told("script.run.output"), "the program")
    assert data["output"] == "nobody\n" and one.limit() == 50
    done = json.loads(one.records("outcome")[0]["line"])["data"]
    idle = {"state": "stopped", "isolated": False, "snapshots": []}
    assert (done["before"], done["after"]) == (idle, {**idle, "pids_limit": 50})
    spool = one.place / "state/spool/dbox/dscript/records-1"
    one.wait(lambda: spool.read_text().count("script.step.done") == 2, "the evidence")
    assert spool.stat().st_uid == 0 and (one.place / "state/script/journal").stat().st_uid == USER.pw_uid
    # It is held to the verbs and names of what is in force.
    (hands,) = one.children()
    (asked,) = one.children(hands)
    words = pathlib.Path(f"/proc/{asked}/cmdline").read_bytes().decode().split("\0")
    assert words[words.index("--allow") + 1] == "limit" and words[words.index("--names") + 1] == "web1"


def test_a_person_is_asked_and_answers(engine):
    one = engine("      - {action: ask, to: operator, text: really, default: refuse, timeout: 1h}\n" + LIMIT)
    one.go()
    one.dscript("approve", one.question())
    one.wait(lambda: one.records("outcome")[1:], "the step")
    assert one.limit() == 50 and list((one.place / "state/script/answers").iterdir()) == []


def test_killed_with_or_without_what_acts_for_it_each_step_happens_once(engine):
    one = engine(RUN)
    log = slow(one)
    one.kill()  # what acts goes on to the end of the step
    one.start()
    one.wait(lambda: one.records("outcome"), "the outcome")
    log.write_text("")
    one.go()
    one.wait(log.read_text, "the program")
    (hands,) = one.children()
    os.kill(hands, signal.SIGKILL)
    assert one.process.wait(15) == 1 and "is gone" in one.process.stderr.read()
    assert len(one.records("outcome")) == 1
    one.start()
    one.wait(lambda: len(one.records("outcome")) == 2, "the outcome")
    assert [outcome["error"] for outcome in one.records("outcome")] == [None, None]
    assert len(log.read_text().splitlines()) == 2


def test_what_acts_ends_when_the_engine_is_gone(engine):
    one = engine(LIMIT)
    one.go()
    one.wait(lambda: one.records("outcome"), "the step")
    (hands,) = one.children()
    (asked,) = one.children(hands)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(15) == 0
    one.wait(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in (hands, asked)), "their end")


def test_a_journal_of_root_is_taken_over(engine):
    one = engine(LIMIT)
    one.process.terminate()
    one.process.wait(15)
    for path in (one.place / "state/script/journal").iterdir():
        os.chown(path, 0, 0)
    os.chown(one.place / "state/script/journal", 0, 0)
    one.start()
    one.go()
    one.wait(lambda: one.records("outcome"), "the step")
    assert {path.stat().st_uid for path in (one.place / "state/script/journal").iterdir()} == {USER.pw_uid}


def test_a_version_that_was_deployed_meanwhile_is_obeyed_and_its_monitors_watched(engine):
    one = engine(LIMIT)
    one.go()
    one.wait(lambda: one.records("outcome"), "the step")
    monitors = "monitors: [{id: m, watch: cpu, of: other}]\n"
    one.place.joinpath("second.yaml").write_text(HEAD + LIMIT.replace("web1", "other") + CALL + monitors)
    one.dscript("deploy", one.place / "second.yaml")
    one.wait(lambda: len(one.records("script")) == 2, "the version")
    one.kill()
    watched = one.place / "state/script/watch.d/steps.json"
    watched.unlink()  # as if `deploy` had been killed before that
    one.start()
    assert json.loads(watched.read_text())["monitors"][0]["of"] == "other"
    one.go()
    one.wait(lambda: len(one.records("outcome")) == 2, "the step")
    assert json.loads(one.app("limit", "other", "--json").stdout)["pids_limit"] == 50


def test_only_root_can_become_another_and_only_one_that_is_there(run, settings):
    done = run("dscript", "--config", settings(), "run", "--user", "nobody-of-that-name")
    assert done.returncode == 6 and b"no user nobody-of-that-name" in done.stderr
    done = run("dscript", "--config", settings(), "run", "--user", "daemon", prefix=nobody())
    assert done.returncode == 4 and b"only root can become another user" in done.stderr
