# SPDX-License-Identifier: Apache-2.0
"""Steps that wait for a person, and those that run a program, as a user sees them; and what kill -9 makes of both."""

import contextlib
import json
import os
import pathlib
import pwd
import signal
import subprocess
import time

import pytest
from conftest import ROOT, environment, program
from dre import event

HEAD = """\
dscript: 1
name: steps
agreed: {goal: G7, by: [owner]}
responses:
  - id: do
    when: {event: t.go}
    at-most: {attempts: 99, per: 1d}
    then: call
    steps:
"""
CALL = "  - {id: call, steps: [{action: notify, to: owner}]}\n"
ASK = """\
      - {action: ask, to: operator, text: really, default: refuse, timeout: %s}
      - {action: record, text: yes}
"""
RUN = "      - {action: run, argv: [job, 'a b; id', $HOME], timeout: %s}\n"


class World:
    def __init__(self, tmp_path, config, run, steps):
        self.place, self.config, self.call = tmp_path, config, run
        self.spool = tmp_path / "state/spool/ingest/00000000000000000000.jsonl"
        self.spool.parent.mkdir(parents=True)
        self.programs = tmp_path / "etc/actions.d"
        self.programs.mkdir(parents=True)
        (tmp_path / "steps.yaml").write_text(HEAD + steps + CALL)
        self.process, self.number = None, 0
        self.start()

    def start(self):
        words = [program("dscript"), "--config", self.config, "--quiet", "run", str(self.place / "steps.yaml")]
        before = len(self.records("start"))
        self.process = subprocess.Popen(words, env=environment())
        self.wait(lambda: len(self.records("start")) > before, "the engine")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def job(self, text):
        (self.programs / "job").write_text(text)
        (self.programs / "job").chmod(0o755)

    def wait(self, condition, what, timeout=15):
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            time.sleep(0.01)
        return found

    def go(self, **data):
        self.number += 1
        line = event.format(event.Event(event.stamp(), "/host:h", "t.go", 5, data, {"id": f"go{self.number}"}))
        with open(self.spool, "ab") as stream:
            stream.write(line)
        (self.place / "run/script").write_bytes(line)

    def records(self, kind):
        found = []
        for path in sorted((self.place / "state/script/journal").glob("*.log")):
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # half written
                    found.append(json.loads(line[9:]))
        return [record for record in found if record["kind"] == kind]

    def told(self, type):
        every = [record for kind in ("tell", "answer") for record in self.records(kind)]
        found = [json.loads(record["line"]) for record in every if f'"type":"{type}"' in record["line"]]
        return [item["data"] for item in found]

    def dscript(self, *argv, code=0):
        done = self.call("dscript", "--config", self.config, *argv)
        assert done.returncode == code, done.stderr
        return done.stderr.decode() if code else done.stdout.decode()

    def question(self):
        """The request of the question that has gone out, as the person finds it."""
        log = self.place / "log/notify.log"
        words = self.wait(
            lambda: log.exists() and "dscript approve " in log.read_text() and log.read_text(), "the notice"
        )
        return words.split("dscript approve ")[-1].split(",")[0]


@pytest.fixture
def tmp_path(public_path):
    """A program runs as nobody, who must get to it."""
    return public_path


@pytest.fixture
def world(tmp_path, settings, run):
    made = []

    def make(steps):
        made.append(World(tmp_path, settings(), run, steps))
        return made[-1]

    yield make
    for one in made:
        one.kill()


def test_an_approved_question_goes_on_and_names_who_approved(world):
    one = world(ASK % "1h")
    one.go()
    request = one.question()
    one.dscript("approve", request, "--text", "seen it")
    one.wait(lambda: one.told("script.record"), "the next step")
    (said,) = one.told("script.person.approved")
    assert said == {"request": request, "by": pwd.getpwuid(os.getuid()).pw_name, "text": "seen it"}
    assert [item["by"] for item in one.told("script.ask.approved")] == [said["by"]]
    assert "it is over" in one.dscript("approve", request, code=1)
    assert "no such request" in one.dscript("approve", "0" * 16 + "-0-act", code=3)
    assert list((one.place / "state/script/answers").iterdir()) == []


def test_status_names_the_questions_that_wait(world):
    one = world(ASK % "1h")
    one.dscript("deploy", one.place / "steps.yaml")
    one.go()
    request = one.question()
    one.wait(lambda: json.loads(one.dscript("status", "--json"))["asked"] == [request], "the question")


def test_a_refused_question_reaches_the_owner(world):
    one = world(ASK % "1h")
    one.go()
    one.dscript("approve", "--refuse", one.question())
    one.wait(lambda: "to=owner" in (one.place / "log/notify.log").read_text(), "the owner")
    assert one.told("script.record") == []


def test_an_unanswered_question_takes_its_default(world):
    one = world(ASK % "1s")
    one.go()
    one.question()
    one.wait(lambda: "to=owner" in (one.place / "log/notify.log").read_text(), "the owner")
    assert [item["by"] for item in one.told("script.ask.refused")] == [None]


def test_a_question_outlives_the_engine_and_is_asked_once(world):
    one = world(ASK % "1h")
    one.go()
    request = one.question()
    one.kill()
    one.wait(lambda: one.dscript("approve", request) == "", "the answer")  # nobody is there: it waits
    one.start()
    one.wait(lambda: one.told("script.record"), "the next step")
    assert (one.place / "log/notify.log").read_text().count("dscript approve") == 1


def test_an_answer_comes_too_late_though_the_engine_is_away(world):
    one = world(ASK % "3s")
    one.go()
    request = one.question()
    one.wait(lambda: one.records("outcome"), "the question")
    one.kill()
    time.sleep(3)
    assert "it is over" in one.dscript("approve", request, code=1)
    assert not (one.place / "state/script/answers").exists()


def test_notice_is_taken_and_recorded(world):
    one = world("      - {action: notify, to: operator, text: look}\n")
    one.go()
    intent = one.wait(lambda: one.records("intent"), "the notice")[0]
    one.dscript("ack", intent["request"], "--text", "on my way")
    (said,) = one.wait(lambda: one.told("script.person.acknowledged"), "the record")
    assert said["text"] == "on my way"


def test_a_program_gets_its_words_and_the_event_without_a_shell(world):
    one = world(RUN % "9s")
    one.job('#!/bin/sh\nprintf "%s\\n" "$@" "$DRE_EVENT_TYPE" "$DRE_EVENT_DATA_USER" "$DRE_SCRIPT" "$(id -un)"\n')
    one.go(user="$(touch /tmp/owned); `id`")
    (data,) = one.wait(lambda: one.told("script.run.output"), "the output")
    who = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    assert data["output"].splitlines() == ["a b; id", "$HOME", "t.go", "$(touch /tmp/owned); `id`", "steps", who]
    assert data["status"] == 0


@pytest.mark.parametrize(
    ("text", "timeout", "reason"),
    [
        ("#!/bin/sh\nexit 3\n", "9s", "exit status 3"),
        ("#!/bin/sh\nexec sleep 60\n", "200ms", "did not end in time"),
        ("#!/bin/sh\nexec yes\n", "9s", "said more than 65536 octets"),
        (None, "9s", "no such program"),
    ],
)
def test_a_program_that_fails_hangs_or_floods_reaches_the_owner(world, text, timeout, reason):
    one = world(RUN % timeout)
    if text:
        one.job(text)
    one.go()
    outcome = one.wait(lambda: one.records("outcome"), "the outcome")[0]
    assert reason in outcome["error"]
    one.wait(lambda: (one.place / "log/notify.log").exists(), "the owner")


def test_a_program_that_others_may_write_is_not_run(world):
    one = world(RUN % "9s")
    one.job("#!/bin/sh\n")
    (one.programs / "job").chmod(0o777)
    one.go()
    assert "somebody else than root may write it" in one.wait(lambda: one.records("outcome"), "the end")[0]["error"]


def slow(one):
    """A program that counts its starts and ends and takes a second."""
    log = one.place / "count"
    log.touch()
    log.chmod(0o666)
    one.job(f"#!/bin/sh\necho $$ >>{log}; sleep 1; echo end >>{log}\n")
    one.go()
    one.wait(log.read_text, "the program")
    return log


def test_a_program_outlives_the_engine_and_is_started_once(world):
    one = world(RUN % "9s")
    log = slow(one)
    one.kill()
    one.start()
    (outcome,) = one.wait(lambda: one.records("outcome"), "the outcome")
    assert outcome["error"] is None and len(log.read_text().splitlines()) == 2


def test_a_program_killed_with_its_supervisor_is_not_started_again_and_the_owner_is_told(world):
    one = world(RUN % "9s")
    log = slow(one)
    pid = int(log.read_text())
    supervisor = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    one.kill()
    os.kill(supervisor, signal.SIGKILL)
    one.start()
    outcome = one.wait(lambda: one.records("outcome"), "the outcome")[0]
    assert "not known, so it is not started again" in outcome["error"]
    one.wait(lambda: (one.place / "log/notify.log").exists(), "the owner")
    assert len(log.read_text().splitlines()) == 1


def escapes(one):
    """A program whose child leaves its process group and session, and the pid of that child."""
    left = one.place / "left"
    left.touch()
    left.chmod(0o666)
    one.job(f"#!/bin/sh\nsetsid sh -c 'echo $$ >{left}; exec sleep 60' >/dev/null 2>&1 &\nsleep 1\n")
    one.go()
    return int(one.wait(left.read_text, "the child"))


def alive(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").exists() and pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() != b""


def groups():
    return [path for path in pathlib.Path("/sys/fs/cgroup").glob("**/dscript-*") if path.is_dir()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes control groups")
def test_what_a_program_leaves_ends_with_it_wherever_it_has_gone(world):
    one = world(RUN % "9s")
    pid = escapes(one)
    assert [path for path in groups() if str(pid) in (path / "cgroup.procs").read_text().split()]
    (outcome,) = one.wait(lambda: one.records("outcome"), "the outcome")
    assert outcome["error"] is None and not alive(pid)
    assert not [path for path in groups() if outcome["run"] in path.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes control groups")
def test_what_a_program_leaves_ends_though_its_supervisor_was_killed(world):
    one = world(RUN % "9s")
    pid = escapes(one)
    (path,) = [path for path in groups() if str(pid) in (path / "cgroup.procs").read_text().split()]
    job = next(int(found) for found in (path / "cgroup.procs").read_text().split() if int(found) != pid)
    supervisor = int(pathlib.Path(f"/proc/{job}/stat").read_text().rsplit(")", 1)[1].split()[1])
    one.kill()
    os.kill(supervisor, signal.SIGKILL)
    assert alive(pid)
    one.start()
    outcome = one.wait(lambda: one.records("outcome"), "the outcome")[0]
    assert "not known" in outcome["error"] and not alive(pid) and not path.exists()


def test_the_shipped_program_stops_the_batch_jobs_that_the_record_names_and_nothing_else(tmp_path):
    """The D-Box and dre-app are fakes: what they print and are told is all that the program has to do with them."""
    fakes, told = tmp_path / "bin", tmp_path / "told"
    fakes.mkdir()
    sources = ["/host:h/app:batch-1", "/host:h/app:web1", "/host:h/app:batch-2; id", "/host:h/app:batch-1"]
    for number, source in enumerate(sources):
        line = json.dumps({"source": source, "type": "app.started"}, separators=(",", ":"))
        (tmp_path / f"{number}").write_text(line)
    answer = f'echo "$*" >{told}.asked; seq 0 3 | sed "s/$/ time app/"'
    search = f'case "$1" in --search) {answer} ;; *) cat {tmp_path}/$1 ;; esac'
    for name, text in (("dbox-get", search), ("dre-app", f'echo "$*" >>{told}')):
        (fakes / name).write_text(f"#!/bin/sh\n{text}\n")
        (fakes / name).chmod(0o755)
    env = {**environment(), "PATH": f"{fakes}:/usr/bin:/bin"}
    done = subprocess.run([ROOT / "dscript/actions/stop-batch"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "stopped batch-1\n"), done.stderr
    assert told.read_text() == "stop batch-1\n"
    assert "stream=app type=app.started since=20" in pathlib.Path(f"{told}.asked").read_text()
    (tmp_path / "0").write_text("{}")
    (tmp_path / "3").write_text("{}")
    done = subprocess.run([ROOT / "dscript/actions/stop-batch"], env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "no batch job was started" in done.stdout
