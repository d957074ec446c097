# SPDX-License-Identifier: Apache-2.0
"""dre-sysmon: what it refuses, and its service where libvirt has nothing but the systems of its test driver."""

import json
import signal
import subprocess
import time

import pytest
from conftest import environment, program


@pytest.fixture
def sysmon(run, settings, tmp_path):
    """dre-sysmon with settings by which no libvirt answers."""
    conf = settings(DRE_SYS_URI=f"qemu+unix:///system?socket={tmp_path}/none")
    return lambda *argv: run("dre-sysmon", *argv, "--config", conf)


@pytest.mark.parametrize(
    "argv, named",
    [
        ((), "a verb is missing"),
        (("io",), "SYSTEM"),
        (("io", "Not-A-Name"), "Not-A-Name"),
        (("io", "pay1", "--head", "1401"), "--head 1401"),
        (("io", "pay1", "--head", "-1"), "--head -1"),
        (("io", "pay1", "--count", "0"), "--count 0"),
        (("io", "pay1", "--interval", "soon"), "'soon'"),
        (("io", "pay1", "--interval", "1ms"), "--interval 1ms"),
        (("io", "pay1", "--send-keys", "a b shift+nokey"), "'nokey'"),
        (("io", "pay1", "--send-frame", "0102"), "'0102'"),
        (("io", "pay1", "--send-frame", "01x2" * 8), "01x2"),
        (("io", "pay1", "--link", "vnet0"), "--link"),
        (("run", "--no-such"), "--no-such"),
    ],
)
def test_wrong_usage_is_named(sysmon, argv, named):
    done = sysmon(*argv)
    assert (done.returncode, done.stdout) == (2, b"")
    assert named in done.stderr.decode().splitlines()[0]


@pytest.mark.parametrize("argv", [(), ("--net",), ("--send-keys", "a"), ("--send-frame", "ff" * 14)])
def test_without_libvirt_nothing_is_said_of_the_system(sysmon, argv):
    done = sysmon("io", "pay1", *argv)
    assert (done.returncode, done.stdout) == (6, b"")
    assert b"libvirt" in done.stderr


# --- the service ---

GOOD = "sysmon: 1\nlooks:\n  - {look: lms, system: nosuch}\n  - {look: libra, system: test, mount: /x}\n"


@pytest.fixture
def place(settings, tmp_path):
    """Settings with libvirt's test driver, where one system, test, runs; and a plan."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/sysmon.yaml").write_text(GOOD)
    return settings(DRE_SYS_URI="test:///default"), tmp_path


@pytest.fixture
def service(place):
    """Begins the service; all are ended after."""
    made = []

    def begin(*argv):
        words = [program("dre-sysmon"), "run", "--config", place[0], *argv]
        made.append(subprocess.Popen(words, stderr=subprocess.PIPE, env=environment(), text=True))
        return made[-1]

    yield begin
    for one in made:
        one.kill()
        one.communicate()


def rows(run, config, wanted):
    """What status tells once `wanted` of all of it is true."""
    deadline = time.monotonic() + 30
    while True:
        done = run("dre-sysmon", "status", "--json", "--config", config)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode == 0 and wanted(told):
            return told
        assert time.monotonic() < deadline, (done, told)
        time.sleep(0.1)


def test_check_prints_what_is_wrong(run, place):
    config, path = place
    done = run("dre-sysmon", "check", "--config", config)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    bad = path / "bad.yaml"
    bad.write_text(GOOD + "  - {look: lms, system: A}\nmore: 1\n")
    done = run("dre-sysmon", "check", bad, "--config", config)
    assert (done.returncode, done.stderr) == (1, b"")
    assert [line.split(": ")[0] for line in done.stdout.decode().splitlines()] == [f"{bad}:5:25", f"{bad}:6:1"]
    rows = run("dre-sysmon", "check", bad, "--json", "--config", config).stdout.splitlines()
    assert "unknown key 'more'" in json.loads(rows[1])["text"]
    for other, code in ((path / "none.yaml", 3), (path, 2)):
        done = run("dre-sysmon", "check", other, "--config", config)
        assert done.returncode == code and str(other) in done.stderr.decode()


def test_a_bad_plan_is_not_run(run, place):
    config, path = place
    plan = path / "etc/sysmon.yaml"
    plan.write_text(GOOD + "more: 1\n")
    done = run("dre-sysmon", "run", "--config", config)
    assert done.returncode == 2 and f"{plan}:5:1: error: unknown key 'more'" in done.stderr.decode()
    plan.write_text(GOOD)
    plan.chmod(0o666)
    done = run("dre-sysmon", "run", "--config", config)
    assert done.returncode == 2 and "writable by others" in done.stderr.decode()
    plan.unlink()
    assert run("dre-sysmon", "run", "--config", config).returncode == 3
    assert run("dre-sysmon", "status", "--config", config).returncode == 1


def test_a_system_that_is_not_there_is_told_and_looked_for_again(run, place, service):
    config, path = place
    one = service()
    lms, libra = rows(run, config, lambda told: [row["state"] for row in told] == ["blind", "blind"])
    assert (lms["system"], lms["reason"]) == ("nosuch", "nosuch: no such system")
    assert (libra["system"], libra["verdict"]) == ("test", None) and "test" in libra["reason"]
    again = rows(run, config, lambda told: told[0]["due"] != lms["due"])
    assert again[0]["reason"] == lms["reason"]
    told = [json.loads(line) for spool in (path / "state/spool/event").glob("*.jsonl") for line in spool.open()]
    assert [(event["type"], event["data"]["system"], event["data"]["code"]) for event in told] == [
        ("sysmon.blind", "test", 6)  # the other one may be there in a minute
    ]
    one.send_signal(signal.SIGTERM)
    assert one.wait(20) == 0
    assert "libra test: cannot look: " in one.stderr.read()
    assert run("dre-sysmon", "status", "--config", config).returncode == 1


def test_one_service_at_a_time_and_another_after_it_was_killed(run, place, service):
    config, _ = place
    first = service()
    rows(run, config, lambda told: len(told) == 2)
    second = service()
    assert second.wait(20) == 1 and "another" in second.stderr.read()
    first.kill()
    first.wait()
    done = run("dre-sysmon", "status", "--config", config)
    assert (done.returncode, done.stdout) == (1, b"") and b"not running" in done.stderr
    third = service()
    rows(run, config, lambda told: [row["state"] for row in told] == ["blind", "waiting"])
    third.send_signal(signal.SIGINT)
    assert third.wait(20) == 0


def test_a_user_who_is_none_is_refused(run, place):
    done = run("dre-sysmon", "run", "--user", "no-such-user", "--config", place[0])
    assert done.returncode in (4, 6) and (b"no-such-user" in done.stderr or b"root" in done.stderr)


@pytest.mark.parametrize(
    ("name", "argv", "named"),
    [
        ("dre-lms", ("pay1", "--user", "nobody"), "--stdout"),
        ("dre-lms", ("pay1", "--ps", "--stdout"), "--ps"),
    ],
)
def test_options_of_the_looks_that_exclude_each_other(run, place, name, argv, named):
    done = run(name, *argv, "--config", place[0])
    assert done.returncode == 2 and named in done.stderr.decode()
