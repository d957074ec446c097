# SPDX-License-Identifier: Apache-2.0
"""Steps that wait for a person, and those that run a program, as a user sees them; and what kill -9 makes of both."""

import email.policy
import http.server
import json
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import threading
import time

import dscriptkit
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


WATCHED = """
monitors:
  - {id: busy, watch: cpu, of: web1, above: 90%, clear: 70%, for: 3s}
  - {id: idle, watch: host-cpu, below: 5%, clear: 9%}
"""


class World:
    def __init__(self, tmp_path, config, run, steps, monitors=""):
        self.place, self.config, self.call = tmp_path, config, run
        self.env = environment()
        self.spool = tmp_path / "state/spool/ingest/00000000000000000000.jsonl"
        self.spool.parent.mkdir(parents=True)
        self.programs = tmp_path / "etc/actions.d"
        self.programs.mkdir(parents=True)
        (tmp_path / "steps.yaml").write_text(HEAD + steps + CALL + monitors)
        self.process, self.number = None, 0
        self.start()

    def start(self):
        words = [program("dscript"), "--config", self.config, "--quiet", "run", str(self.place / "steps.yaml")]
        before = len(self.records("start"))
        self.process = subprocess.Popen(words, env=self.env)
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
        return dscriptkit.records(self.place, kind)

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

    def make(steps, monitors="", **keys):
        made.append(World(tmp_path, settings(**keys), run, steps, monitors))
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


class Hook(http.server.ThreadingHTTPServer):
    """A server that keeps what is posted to it, and answers with `status`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Posted)
        self.got, self.status = [], 200
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Posted(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *args):
        pass


TOLD = "      - {action: notify, to: owner, text: 'it is; $(id) late'}\n      - {action: record, text: after}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes programs run as nobody")
def test_a_notice_is_handed_on_by_programs_of_this_host(world):
    """By the shipped webhook, to a server; and by another one that fails: it counts as told while one has told it."""
    with Hook() as hook:
        one = world(TOLD)
        shutil.copy(ROOT / "dscript/actions/notify-webhook", one.programs)
        (one.programs / "notify-broken").write_text("#!/bin/sh\nid -un; exit 3\n")
        (one.programs / "notify-broken").chmod(0o755)
        (one.programs / "notify-broken.dpkg-old").write_text("#!/bin/sh\nexit 4\n")
        (one.programs / "notify-broken.dpkg-old").chmod(0o755)
        address = f"http://127.0.0.1:{hook.server_port}"
        (one.place / "etc/webhooks").write_text(f"# whom\nboss {address}/boss\n* {address}/all?key=secret\n")
        one.go()
        one.wait(lambda: one.told("script.record"), "the response")
        ((path, kind, body),) = hook.got
        assert (path, kind) == ("/all?key=secret", "application/json")
        (outcome,) = [record for record in one.records("outcome") if record["step"] == 1]
        assert outcome["error"] is None and body == {
            "to": "owner",
            "text": "it is; $(id) late",
            "script": "steps",
            "response": "do",
            "request": outcome["request"],
        }
        ends = {data["argv"][0]: (data["status"], data["output"]) for data in one.told("script.run.output")}
        assert ends == {"notify-webhook": (0, "status 200\n"), "notify-broken": (3, "nobody\n")}
        assert "it is; $(id) late" in (one.place / "log/notify.log").read_text()

        hook.status = 302  # nobody is sent elsewhere with it
        one.go()
        failed = one.wait(lambda: [record for record in one.records("outcome") if record["error"]], "the failure")[0]
        assert "it is in notify.log, but was not handed on" in failed["error"]
        assert "secret" not in str(one.records("tell"))
        # The response after it has no other way either; what it says is in the log all the same.
        one.wait(lambda: (one.place / "log/notify.log").read_text().count("steps/call: ") == 1, "the owner")
        one.wait(lambda: len(hook.got) == 3, "the post")
        assert {path for path, *_ in hook.got} == {"/all?key=secret"}


def test_the_mail_of_a_notice_is_one(tmp_path):
    """What the shipped program hands to sendmail, as another program reads it."""
    fake = tmp_path / "bin/sendmail"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$*" >{tmp_path}/words\nexec cat >{tmp_path}/mail\n')
    fake.chmod(0o755)
    told = {"DRE_NOTIFY_TO": "owner", "DRE_NOTIFY_TEXT": "`id` $(id)\tläuft", "DRE_SCRIPT": "shop"}
    told |= {"DRE_SCRIPT_RESPONSE": "call", "DRE_SCRIPT_REQUEST": "0123-1-act-notify-mail"}
    env = {**environment(), **told, "PATH": f"{fake.parent}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
    subprocess.run([ROOT / "dscript/actions/notify-mail"], env=env, check=True)
    mail = email.message_from_bytes((tmp_path / "mail").read_bytes(), policy=email.policy.default)
    assert (tmp_path / "words").read_text() == "-i owner\n" and not mail.defects
    assert (mail["To"], mail["Subject"], mail["Auto-Submitted"]) == ("owner", "D-RE: shop/call", "auto-generated")
    text = mail.get_content().splitlines()
    assert text[0] == "`id` $(id)\tläuft" and text[-1] == "Why: dscript why 0123-1-act"


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


def escapes(one, seconds=1):
    """A program of *seconds* whose child leaves its process group and session, and the pid of that child."""
    left = one.place / "left"
    left.touch()
    left.chmod(0o666)
    one.job(f"#!/bin/sh\nsetsid sh -c 'echo $$ >{left}; exec sleep 60' >/dev/null 2>&1 &\nsleep {seconds}\n")
    one.go()
    return int(one.wait(left.read_text, "the child"))


def alive(pid):
    """Whether it runs; a process that has just begun another program may have no command line yet."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


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
    pid = escapes(one, 8)  # else it could end, and its supervisor what it left, before that is killed
    (path,) = [path for path in groups() if str(pid) in (path / "cgroup.procs").read_text().split()]
    job = next(int(found) for found in (path / "cgroup.procs").read_text().split() if int(found) != pid)
    supervisor = int(pathlib.Path(f"/proc/{job}/stat").read_text().rsplit(")", 1)[1].split()[1])
    one.kill()
    os.kill(supervisor, signal.SIGKILL)
    assert alive(pid)
    one.start()
    outcome = one.wait(lambda: one.records("outcome"), "the outcome")[0]
    assert "not known" in outcome["error"] and not alive(pid) and not path.exists()


def bounds(one):
    """What dre-watch is told of the monitors."""
    told = json.loads((one.place / "state/script/watch.d/steps.json").read_text())["monitors"]
    return {item["id"]: (item.get("above", item.get("below")), item["clear"]) for item in told}


def test_a_threshold_is_changed_until_it_is_taken_back_or_a_version_is_deployed(world):
    change = "      - {action: threshold, monitor: busy, above: 80%, clear: 60%}\n"
    one = world(change + "      - {action: threshold, monitor: idle, below: 2.5, clear: 6, revert: never}\n", WATCHED)
    agreed, changed = {"busy": (90, 70), "idle": (5, 9)}, {"busy": (80, 60), "idle": (2.5, 6)}
    assert bounds(one) == agreed
    one.go()
    one.wait(lambda: bounds(one) == changed, "the change")
    ends = one.wait(lambda: one.records("outcome")[1:], "the second end")
    assert [(end["before"], end["after"]) for end in ends] == [({"below": 5, "clear": 9}, {"below": 2.5, "clear": 6})]
    one.kill()
    one.start()
    assert bounds(one) == changed
    one.dscript("deploy", one.place / "steps.yaml")
    assert bounds(one) == agreed


def test_a_threshold_changed_by_a_response_that_failed_is_the_former_one_again(world):
    first = "      - {action: threshold, monitor: busy, above: 80%, clear: 60%, revert: never}\n"
    second = "      - {action: threshold, monitor: busy, above: 95%, clear: 85%, revert: on-failure}\n"
    one = world(first + second + "      - {action: run, argv: [none]}\n", WATCHED)
    one.go()
    one.wait(lambda: (one.place / "log/notify.log").exists(), "the owner")
    assert bounds(one) == {"busy": (80, 60), "idle": (5, 9)}
    back = [record["argv"] for record in one.records("intent") if record["phase"] == "revert"]
    assert back == [["threshold", "monitor=busy", "above=80%", "clear=60%"]]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as rules do")
def test_rules_that_were_in_force_once_are_so_again_and_taken_back(world):
    one = world(
        "      - {action: rules, version: 2, revert: on-failure}\n      - {action: run, argv: [none]}\n",
        DRE_MONITOR_CORRELATOR="dre",
    )
    one.kill()
    one.env["PATH"] = f"{pathlib.Path(program('dre-rules')).parent}:{one.env['PATH']}"
    place = one.place / "etc/rules.d"
    place.mkdir()
    for word in ("calm", "strict"):
        (one.place / "a.sec").write_text(f"type=Single\nptype=SubStr\npattern={word}\ndesc=x\naction=none\n")
        assert one.call("dre-rules", "--config", one.config, "install", one.place / "a.sec").returncode == 0
    one.start()
    one.go()
    one.wait(lambda: (one.place / "log/notify.log").exists(), "the owner")
    done = one.call("dre-rules", "--config", one.config, "history", "--json").stdout.splitlines()
    assert [json.loads(line)["note"] for line in done][-2:] == ["to 2", "to 3"]
    assert "pattern=strict" in (place / "a.sec").read_text()
    done = [record for record in one.records("outcome") if (record["response"], record["step"]) == ("do", 1)]
    assert [(record["phase"], record["error"]) for record in done] == [("read", None), ("act", None), ("revert", None)]


@pytest.mark.parametrize(
    ("status", "error"), [(0, None), (1, None), (2, "could not look, exit status 2: no such system")]
)
def test_a_scan_that_finds_something_is_done_and_one_that_cannot_look_has_failed(world, status, error):
    """The monitor is a fake that ends as dre-lms(8) would: what it looks at is its own business."""
    one = world("      - {action: scan, system: pay1, finding: hidden.process}\n")
    one.kill()
    fake = one.place / "bin/dre-lms"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$*" >{one.place}/asked\necho no such system >&2\nexit {status}\n')
    fake.chmod(0o755)
    one.env["PATH"] = f"{fake.parent}:{one.env['PATH']}"
    one.start()
    one.go()
    outcome = one.wait(lambda: one.records("outcome"), "the outcome")[0]
    assert (outcome["error"] or "").endswith(error or "") and (outcome["error"] is None) == (error is None)
    assert (one.place / "asked").read_text() == f"--config {one.config} pay1\n"
    result = [item["result"] for item in one.told("script.scan")]
    assert result == ([] if error else [["clean", "finding"][status]])


def test_a_scan_for_hidden_files_says_where_to_look(world):
    one = world("      - {action: scan, system: pay1, finding: hidden.file, mount: /srv/data}\n")
    one.kill()
    fake = one.place / "bin/dre-libra"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$*" >{one.place}/asked\n')
    fake.chmod(0o755)
    one.env["PATH"] = f"{fake.parent}:{one.env['PATH']}"
    one.start()
    one.go()
    assert one.wait(lambda: one.records("outcome"), "the outcome")[0]["error"] is None
    assert (one.place / "asked").read_text() == f"--config {one.config} --mount /srv/data pay1\n"


def test_a_scan_without_the_monitor_has_failed_and_names_the_program(world):
    one = world("      - {action: scan, system: pay1, finding: keylogger}\n")
    one.go()
    assert "dre-foxykbd" in one.wait(lambda: one.records("outcome"), "the outcome")[0]["error"]


def test_the_shipped_program_stops_the_batch_jobs_that_the_record_names_and_nothing_else(tmp_path):
    """The D-Box and dre-app are fakes: what they print and are told is all that the program has to do with them."""
    fakes, told = tmp_path / "bin", tmp_path / "told"
    fakes.mkdir()
    sources = ["/host:h/app:batch-1", "/host:h/app:web1", "/host:h/app:batch-2; id", "/host:h/app:batch-1"]
    claim = json.dumps({"source": "/host:h/app:batch-3", "type": "app.started", "claimed": True}, separators=(",", ":"))
    for number, source in enumerate(sources):
        line = json.dumps({"source": source, "type": "app.started"}, separators=(",", ":"))
        (tmp_path / f"{number}").write_text(line)
    (tmp_path / "4").write_text(claim)
    answer = f'echo "$*" >{told}.asked; seq 0 4 | sed "s/$/ time script/"'
    search = f'case "$1" in --search) {answer} ;; *) cat {tmp_path}/$1 ;; esac'
    for name, text in (("dbox-get", search), ("dre-app", f'echo "$*" >>{told}')):
        (fakes / name).write_text(f"#!/bin/sh\n{text}\n")
        (fakes / name).chmod(0o755)
    env = {**environment(), "PATH": f"{fakes}:/usr/bin:/bin", "DRE_EVENT_TIME": "2026-11-28T02:29:52.123Z"}

    def stop(*argv):
        return subprocess.run([ROOT / "dscript/actions/stop-batch", *argv], env=env, capture_output=True, text=True)

    asked = pathlib.Path(f"{told}.asked")
    done = stop("30 seconds", "/x/dre.conf")
    assert (done.returncode, done.stdout) == (0, "stopped batch-1\n"), done.stderr
    assert told.read_text() == "stop batch-1 --config /x/dre.conf\n"
    assert asked.read_text() == "--search type=app.started since=2026-11-28T02:29:22.123Z --config /x/dre.conf\n"
    (tmp_path / "0").write_text("{}")
    (tmp_path / "3").write_text("{}")
    done = stop()
    assert done.returncode == 1 and "no batch job was started since 2026-11-28T01:29:52.123Z" in done.stdout
    assert asked.read_text().endswith(" --config /etc/dre.conf\n")


def test_the_shipped_diagnosis_names_the_largest_process_first_and_never_fails(tmp_path):
    """dre-app is a fake that names two processes of this test and one that has ended."""
    large = subprocess.Popen(["/usr/bin/python3", "-c", "b = b'x' * (64 << 20); print(flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    small = subprocess.Popen(["/usr/bin/cat"], stdin=subprocess.PIPE)
    large.stdout.readline()
    pids = f"{small.pid} 2 cat\n{large.pid} 1 python3\n999999999 3 gone"
    (tmp_path / "dre-app").write_text(f'#!/bin/sh\ncase $1 in pid) echo "{pids}" ;; *) echo "$*"; exit 1 ;; esac\n')
    (tmp_path / "dre-app").chmod(0o755)
    env = {**environment(), "PATH": f"{tmp_path}:/usr/bin:/bin"}
    try:
        argv = [ROOT / "dscript/actions/diagnose", "web1", "/x/dre.conf"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True)
    finally:
        for process in (large, small):
            process.communicate(b"\n")
    asked, failed, *rows = done.stdout.splitlines()
    assert done.returncode == 0 and not done.stderr and asked == "stat web1 --config /x/dre.conf" and "1" in failed
    assert [row.split()[:4] for row in rows] == [
        ["Name:", "python3", "Pid:", str(large.pid)],
        ["Name:", "cat", "Pid:", str(small.pid)],
    ]
    assert int(rows[0].partition("VmRSS: ")[2].split()[0]) > 64 << 10  # KiB
