# SPDX-License-Identifier: Apache-2.0
"""dscript as a user calls it; a fake dre-app notes how it was called (tests/system uses the real one)."""

import json
import os
import select
import signal
import socket
import stat
import subprocess
import time

import dscriptkit
import pytest
from conftest import ROOT, environment, program
from dre import event

SCRIPT = """\
dscript: 1
name: shop
agreed: {case: cdshop, goal: G26, by: [owner]}
monitors:
  - {id: slow, watch: http, url: "http://10.231.77.11/", above: 300ms, clear: 200ms, for: 0s}
  - {id: busy, watch: cpu, of: web1, above: 90%, clear: 70%, for: 3s}
  - {id: dead, watch: liveness, of: web1, missing: 15s}
responses:
  - id: put-back
    when: {event: shop.overload, after: shop.release, within: 10m}
    steps:
      - {action: limit, of: web1, cpu: 50%, timeout: 5s, revert: when-clear}
      - {action: undo, of: web1, tag: good, timeout: 5s, expect: {watch: http, within: 20s}}
    at-most: {attempts: 2, per: 1h}
    then: call-owner
  - {id: call-owner, steps: [{action: notify, to: owner}]}
"""
FAKE = """\
#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
*" limit "*" --json") echo '{"name":"web1","cpu_limit":null,"memory_limit":null,"pids_limit":null}' ;;
*" undo "*) [ ! -e "$CALLS.fail" ] || { echo "dre-app: web1: no such snapshot" >&2; exit 3; } ;;
esac
"""


@pytest.fixture
def run(monkeypatch):
    """As conftest's, in this process, and with no dre-app that would list what this host has."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return lambda name, *argv: dscriptkit.call(*argv)


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text(SCRIPT)
    return path


class Engine:
    """dscript run with its FIFO, the intake's spool and the fake dre-app."""

    def __init__(self, tmp_path, config, *argv):
        self.tmp_path, self.config = tmp_path, config
        fake = tmp_path / "bin" / "dre-app"
        fake.parent.mkdir(exist_ok=True)
        fake.write_text(FAKE)
        fake.chmod(0o755)
        self.calls_file = tmp_path / "calls"
        env = environment()
        env.update(PATH=f"{fake.parent}:{env['PATH']}", CALLS=str(self.calls_file))
        words = [program("dscript"), "--config", config, "run", *map(str, argv)]
        self.process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.fifo = tmp_path / "run" / "script"
        self.wait(lambda: self.records("start"), "the engine")

    def wait(self, condition, what, timeout=10):
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            assert self.process.poll() is None, self.process.stderr.read().decode()
            time.sleep(0.01)
        return found

    def send(self, type, data, spool=True, **optional):
        line = event.format(event.Event(event.stamp(), "/host:h/x", type, 5, data, optional))
        directory = self.tmp_path / "state/spool/ingest"
        directory.mkdir(parents=True, exist_ok=True)
        if spool:
            with open(directory / "00000000000000000000.jsonl", "ab") as stream:
                stream.write(line)
        self.fifo.write_bytes(line)
        return line.decode().rstrip("\n")

    def overload(self):
        """What comes in when a release is too slow: three lines."""
        return [
            self.send("shop.release", {"version": "2"}, id="rel"),
            self.send("watch.raised", {"script": "shop", "id": "slow", "value": 0.4}, id="raised"),
            self.send("shop.overload", {"ids": "rel,raised"}, spool=False, id="overload-raised"),
        ]

    def calls(self):
        if not self.calls_file.exists():
            return []
        return [line.removeprefix(f"--config {self.config} ") for line in self.calls_file.read_text().splitlines()]

    def records(self, kind):
        return dscriptkit.records(self.tmp_path, kind)

    def evidence(self):
        """The octets that wait in the client's spool of the D-Box, without their frames."""
        path = self.tmp_path / "state/spool/dbox/dscript/records-1"
        return [line for line in path.read_text().splitlines() if line.startswith("{")] if path.exists() else []

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=15)


@pytest.fixture
def engine(tmp_path, settings):
    started = []

    def start(*argv):
        started.append(Engine(tmp_path, settings(), *argv))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def emitted_events(place):
    """What went to the monitor: the spool, of which each user has one of its own."""
    (path,) = (place / "state/spool/event").glob("emitted*.jsonl")
    return path.read_text()


def test_check_is_silent_and_0_when_clean_1_with_findings(run, tmp_path, settings, shop):
    used = "when: [busy, dead, {event: shop.overload, after: shop.release, within: 10m}]"
    text = SCRIPT.replace("when: {event: shop.overload, after: shop.release, within: 10m}", used)
    shop.write_text(text)
    done = run("dscript", "--config", settings(), "check", shop)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace("clear: 200ms", "clear: 400ms"))
    done = run("dscript", "--config", settings(), "check", shop, bad)
    assert done.returncode == 1
    assert done.stdout.decode() == (
        f"{bad}:5:79: error: monitor 'slow': clear must be below above, or it would never be clear\n"
    )
    done = run("dscript", "--config", settings(), "check", "--json", bad)
    row = json.loads(done.stdout)
    assert (row["file"], row["line"], row["column"], row["severity"]) == (str(bad), 5, 79, "error")


def test_check_knows_the_goals_of_a_case(run, tmp_path, settings):
    text = (ROOT / "dscript/scripts/shop-memory.yaml").read_text()
    (tmp_path / "s.yaml").write_text(text)
    (tmp_path / "yaml").write_text("G1: {text: the shop is open, supported-by: [G28, S1]}\n")
    (tmp_path / "xml").write_text('<node id="G28" type="goal"/><node id="G2"/>')
    check = ("dscript", "--config", settings(), "check", "--case")
    assert run(*check, tmp_path / "yaml", tmp_path / "s.yaml").returncode == 0
    assert run(*check, tmp_path / "xml", tmp_path / "s.yaml").returncode == 0
    (tmp_path / "s.yaml").write_text(text.replace("G28", "G2"))
    done = run(*check, tmp_path / "yaml", tmp_path / "s.yaml")
    assert done.returncode == 1 and b"s.yaml:10:5: error: unknown goal 'G2': " in done.stdout
    (tmp_path / "s.yaml").write_text(text.replace("goal: G28, ", ""))
    done = run(*check, tmp_path / "yaml", tmp_path / "s.yaml")
    assert done.returncode == 1 and b"warning: response 'restart-shop' answers no goal of the D-Case" in done.stdout
    assert run(*check, tmp_path / "none", tmp_path / "s.yaml").returncode == 3
    (tmp_path / "xml").write_text("x" * 300_000)
    assert run(*check, tmp_path / "xml", tmp_path / "s.yaml").returncode == 2


def test_check_looks_at_all_files_together(run, tmp_path, settings):
    head = "dscript: 1\nname: {0}\nresponses:\n  - id: r\n    when: {{event: {1}}}\n    steps:\n"
    rest = "      - {{action: emit, type: {2}}}\n      - {{action: notify, to: o}}\n"
    rest += "    at-most: {{attempts: 1, per: 1m}}\n"
    for name, heard, emitted in (("one", "a.b", "c.d"), ("two", "c.d", "a.b")):
        (tmp_path / name).write_text((head + rest).format(name, heard, emitted))
    assert run("dscript", "--config", settings(), "check", tmp_path / "one").returncode == 0
    done = run("dscript", "--config", settings(), "check", tmp_path / "one", tmp_path / "two")
    assert done.returncode == 1 and b"one:7:9: error: responses that trigger each other" in done.stdout
    assert run("dscript", "--config", settings(), "deploy", tmp_path / "one").returncode == 0
    done = run("dscript", "--config", settings(), "deploy", tmp_path / "two")  # and with what is in force
    assert done.returncode == 1 and b"two:7:9: error: responses that trigger each other" in done.stderr


def test_explain_and_graph_print_and_a_bad_script_is_named(run, tmp_path, settings, shop):
    config = settings()
    assert run("dscript", "--config", config, "explain", shop).stdout.startswith(b"This is the script shop.\n")
    japanese = run("dscript", "--config", config, "explain", "--lang", "ja", shop).stdout.decode()
    assert japanese.startswith("これはスクリプト「shop」です。\n")
    assert run("dscript", "--config", config, "graph", "--format", "dot", shop).stdout.startswith(b'digraph "shop" {')
    drawn = run("dscript", "--config", config, "graph", shop)
    if drawn.returncode == 6:
        assert b"apt-get install graphviz" in drawn.stderr
    else:
        assert (drawn.returncode, drawn.stdout[:5]) == (0, b"<?xml")
    shop.write_text("dscript: 1\n")
    for verb in ("explain", "graph"):
        done = run("dscript", "--config", config, verb, shop)
        assert (done.returncode, done.stdout) == (1, b"") and b"error: a script lacks" in done.stderr


@pytest.mark.parametrize(("argv", "code"), [((), 2), (("check",), 2), (("check", "/none"), 3), (("check", "/"), 2)])
def test_mistakes_of_the_caller(run, settings, argv, code):
    done = run("dscript", "--config", settings(), *argv)
    assert done.returncode == code
    assert done.stderr.startswith(b"dscript: ") and b"Traceback" not in done.stderr


def test_deploy_puts_script_and_monitors_in_force(run, tmp_path, settings, shop):
    done = run("dscript", "--config", settings(), "deploy", shop)
    digest = subprocess.run(["sha256sum", shop], capture_output=True, text=True).stdout.split()[0]
    assert (done.returncode, done.stdout.decode().split()) == (0, ["shop", digest])
    base = tmp_path / "state/script"
    assert (base / "deployed/shop.yaml").read_text() == SCRIPT
    assert (base / f"versions/{digest}.yaml").read_text() == SCRIPT
    slow = {"id": "slow", "watch": "http", "url": "http://10.231.77.11/", "above": 0.3, "clear": 0.2, "for": 0.0}
    assert json.loads((base / "watch.d/shop.json").read_text()) == {
        "script": "shop",
        "monitors": [
            {**slow, "every": 0.2},
            {"id": "busy", "watch": "cpu", "of": "web1", "above": 90.0, "clear": 70.0, "for": 3.0},
            {"id": "dead", "watch": "liveness", "of": "web1", "missing": 15.0},
        ],
    }
    emitted = emitted_events(tmp_path)
    assert event.parse(emitted).type == "script.deployed" and digest in emitted


def test_a_script_with_an_error_is_not_deployed(run, tmp_path, settings, shop):
    shop.write_text(SCRIPT.replace("then: call-owner", "then: nobody"))
    done = run("dscript", "--config", settings(), "deploy", shop)
    assert done.returncode == 1 and b"unknown response 'nobody'" in done.stderr
    assert not (tmp_path / "state/script").exists()


def test_an_overload_is_limited_undone_and_recorded(run, engine, settings, shop):
    run("dscript", "--config", settings(), "deploy", shop)
    one = engine()
    assert stat.S_ISFIFO(one.fifo.stat().st_mode) and stat.S_IMODE(one.fifo.stat().st_mode) == 0o620
    came = one.overload()
    one.wait(lambda: len(one.records("outcome")) == 3, "the undo")
    came.append(one.send("watch.cleared", {"script": "shop", "id": "slow", "value": 0.1}, id="cleared"))
    one.wait(lambda: len(one.records("outcome")) == 4, "the end of the limit")
    status = run("dscript", "--config", settings(), "status", "--json")
    assert status.returncode == 0 and json.loads(status.stdout)["runs"] == []
    one.wait(lambda: len(one.evidence()) == 12, "the evidence")
    one.stop()
    assert one.process.returncode == 0

    request = one.records("intent")[0]["run"]
    assert one.calls() == [
        "limit web1 --json",
        f"limit web1 --cpu 50 --request-id {request}-0-act",
        f"undo web1 good --request-id {request}-1-act",
        f"limit web1 --cpu none --request-id {request}-0-revert",
    ]
    evidence = one.evidence()
    deployed, *kept = [event.parse(line) for line in evidence]
    assert (deployed.type, deployed.data["how"], deployed.data["number"]) == ("script.deployed", "deploy", 1)
    assert [item.type for item in kept] == [
        *("shop.release", "watch.raised", "shop.overload"),
        *("script.step.begun", "script.step.done", "script.step.begun", "script.step.done"),
        *("watch.cleared", "script.response.done", "script.step.begun", "script.step.done"),
    ]
    assert [line for line in evidence if line in came] == came
    begun, done = kept[5], kept[8]
    assert begun.data["argv"][-4:] == ["web1", "good", "--request-id", f"{request}-1-act"]
    assert begun.data["events"] == ["rel", "raised"] and begun.optional["goal"] == "G26"
    assert begun.data["sha256"] == subprocess.run(["sha256sum", shop], capture_output=True, text=True).stdout[:64]
    assert done.data["outcome"] == "done" and done.data["restored"] is True

    rows = [
        json.loads(line) for line in run("dscript", "--config", settings(), "history", "--json").stdout.splitlines()
    ]
    assert [(row["step"], row["phase"], row["outcome"]) for row in rows] == [
        (1, "act", "done"),
        (2, "act", "done"),
        (1, "revert", "done"),
    ]
    plain = run("dscript", "--config", settings(), "history").stdout.decode().splitlines()
    assert len(plain) == 3 and "undo web1 good" in plain[1]
    assert run("dscript", "--config", settings(), "status").returncode == 1


def test_a_failed_undo_reaches_the_owner(engine, tmp_path, shop):
    one = engine(shop)
    (tmp_path / "calls.fail").touch()
    one.overload()
    one.wait(lambda: (tmp_path / "log/notify.log").exists(), "the notice")
    one.wait(lambda: len(one.records("outcome")) == 4, "its outcome")
    (line,) = (tmp_path / "log/notify.log").read_text().splitlines()
    assert " to=owner " in line and "shop/call-owner: " in line
    one.stop()
    emitted = [event.parse(line) for line in emitted_events(tmp_path).splitlines()]
    failed = [item for item in emitted if item.type == "script.action.failed"]
    assert len(failed) == 1 and "no such snapshot" in failed[0].data["reason"]
    assert "script.notify" in {item.type for item in emitted}


def test_claimed_events_move_no_container(engine, tmp_path, shop):
    one = engine(shop)
    one.send("shop.release", {}, id="rel", claimed=True)
    one.send("watch.raised", {"script": "shop", "id": "slow"}, id="raised")
    one.send("shop.overload", {"ids": "rel,raised"}, spool=False)
    one.send("shop.overload", {"ids": "raised,invented"}, spool=False)
    one.wait(lambda: (tmp_path / "log/notify.log").exists(), "the notice")
    assert one.calls() == []
    one.stop()
    assert any('"script.step.refused"' in line for line in one.evidence())


def test_hostile_lines_are_counted_and_do_no_harm(engine, shop):
    one = engine(shop)
    one.fifo.write_bytes(b"\xff\xfe\n{}\n" + b"[" * 5000 + b"\n")
    one.fifo.write_bytes(b'{"time":1,"source":"/a","type":"x.y"}\n')
    one.wait(lambda: one.records("bad"), "the report")
    one.overload()
    one.wait(lambda: len(one.records("outcome")) == 3, "the undo")
    one.stop()


def test_an_event_that_comes_again_is_not_answered_again_even_after_a_restart(engine, shop):
    one = engine(shop)
    lines = one.overload()
    one.wait(lambda: len(one.records("outcome")) == 3, "the undo")
    one.send("watch.cleared", {"script": "shop", "id": "slow", "value": 0.1}, id="cleared")
    one.wait(lambda: len(one.records("outcome")) == 4, "the end")
    one.fifo.write_text("".join(f"{line}\n" for line in lines))
    one.stop()
    two = engine(shop)
    two.fifo.write_text("".join(f"{line}\n" for line in lines))
    two.send("watch.cleared", {"script": "shop", "id": "slow"}, id="another")
    two.wait(lambda: len(two.records("event")) == 5, "the one new event")
    assert len(two.calls()) == 4
    two.stop()


def test_attempts_and_windows_survive_a_restart(engine, shop):
    shop.write_text(SCRIPT.replace("attempts: 2", "attempts: 1"))
    one = engine(shop)
    one.overload()
    one.wait(lambda: len(one.records("outcome")) == 3, "the undo")
    one.send("watch.cleared", {"script": "shop", "id": "slow"}, id="c1")
    one.wait(lambda: len(one.records("outcome")) == 4, "the end")
    one.stop()
    two = engine(shop)
    two.send("watch.raised", {"script": "shop", "id": "slow"}, id="raised2")
    two.send("shop.overload", {"ids": "raised2"}, spool=False)  # the release was seen by the engine before
    told = two.wait(lambda: [r for r in two.records("tell") if "script.response.refused" in r["line"]], "the refusal")
    assert "1 attempts within 3600 s are used up" in told[0]["line"]
    assert len(two.calls()) == 4
    two.stop()


def test_a_running_engine_takes_a_new_version(run, engine, settings, shop):
    config = settings()
    one = engine()
    run("dscript", "--config", config, "deploy", shop)
    one.wait(lambda: one.records("script"), "the script")
    shop.write_text(SCRIPT.replace("cpu: 50%", "cpu: 25%"))
    run("dscript", "--config", config, "deploy", shop)
    one.wait(lambda: len(one.records("script")) == 2, "the new version")
    one.overload()
    one.wait(lambda: any("--cpu 25 " in call for call in one.calls()), "the limit")
    one.stop()


def test_a_deployed_file_that_was_edited_is_not_obeyed(run, engine, tmp_path, settings, shop):
    run("dscript", "--config", settings(), "deploy", shop)
    (tmp_path / "state/script/deployed/shop.yaml").write_text(SCRIPT.replace("cpu: 50%", "cpu: 1%"))
    one = engine()
    assert one.records("start")[0]["scripts"] == {}
    _, stderr = one.stop()
    assert b"changed since it was deployed" in stderr


def test_one_engine_at_a_time(run, engine, settings, shop):
    engine(shop)
    done = run("dscript", "--config", settings(), "run", shop)
    assert done.returncode == 1 and b"another dscript run is at work" in done.stderr


def test_systemd_learns_that_the_engine_is_ready_and_works_until_it_hangs(tmp_path, engine, shop, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as init:
        init.bind(str(tmp_path / "notify"))
        init.settimeout(10)
        given = {**environment(), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        monkeypatch.setitem(globals(), "environment", lambda: given)
        one = engine(shop)
        assert [init.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        one.process.send_signal(signal.SIGSTOP)
        init.settimeout(2.5)
        with pytest.raises(TimeoutError):
            for _ in range(3):
                init.recv(100)
        one.process.send_signal(signal.SIGCONT)
        init.settimeout(10)
        assert init.recv(100) == b"WATCHDOG=1"


def test_a_dry_run_says_what_it_would_do(tmp_path, engine, settings, shop):
    config = settings()
    env = environment()
    process = subprocess.Popen(
        [program("dscript"), "--config", config, "run", "--dry-run", shop], env=env, stdout=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 10
        while not (tmp_path / "run/script").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        one = Engine.__new__(Engine)
        one.tmp_path, one.fifo = tmp_path, tmp_path / "run/script"
        one.overload()
        said = b""
        while b"undo web1 good" not in said:
            assert select.select([process.stdout], [], [], 10)[0], said
            said += (octets := os.read(process.stdout.fileno(), 65536))
            assert octets, said
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert b"limit web1 --cpu 50" in said
    assert not (tmp_path / "state/script").exists() and not os.path.exists(tmp_path / "calls")
