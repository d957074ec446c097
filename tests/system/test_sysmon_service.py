# SPDX-License-Identifier: Apache-2.0
"""dre-sysmon run: on guests that run, as a user of its own, killed, and with a D-Box that has all that it told."""

import contextlib
import json
import os
import pathlib
import pwd
import signal
import subprocess
import time

import dboxkit
import guest_ground
import pytest
from programs import environment, program
from system_ground import NETWORK, Apart
from test_foxykbd_guest import CLOCK, LOGGER

box, running = dboxkit.box, dboxkit.running
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the service does")
full = pytest.mark.skipif(os.environ.get("DRE_FULL") != "1", reason="boots guests, and types for a minute: DRE_FULL=1")
USER = "nobody"
PLAN = """sysmon: 1
looks:
  - {look: lms, system: ser-linux, every: 200ms}
  - {look: lms, system: ser-gone, every: 200ms}
  - {look: libra, system: ser-keys, mount: /x, every: 1h}
"""


def wait(condition, seconds=120):
    """What *condition()* gives as soon as that is true. Patient: on a busy host a look may be refused first."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


class Service:
    """dre-sysmon run, and what status tells of it."""

    def __init__(self, inside, conf):
        self._words = [*inside, program("dre-sysmon"), "--config", str(conf)]
        self.process = None

    def begin(self, *argv):
        words = list(map(str, [*self._words, "run", *argv]))
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, env=environment(), text=True)

    def end(self, number=signal.SIGTERM):
        """What it said."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=30)[1]

    def rows(self):
        """Of each look, by its name and system; nothing where none runs."""
        done = subprocess.run(
            list(map(str, [*self._words, "status", "--json"])), capture_output=True, env=environment(), timeout=60
        )
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        return {(row["look"], row["system"]): row for row in rows}


def events(place):
    """What went to the monitor, which is away: its spool."""
    path = place / "state/spool/event/emitted.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def host():
    with Apart() as made:
        words = ("--memory", "128M", "--ip", f"{NETWORK}.5/24")
        made.dre("create", "ser-linux", "--base", guest_ground.image(made), *words)
        for name, code in (("ser-keys", LOGGER), ("ser-idle", CLOCK)):
            made.dre("create", name, "--base", made.small(name, code), "--ip", "none", "--memory", "64M")
        made.dre("start", "ser-linux", "ser-keys")
        with guest_ground.Talk(f"{NETWORK}.5", f"/proc/{made.first_pid()}/ns/net", 180):
            pass  # it is up
        (made.place / "etc").mkdir(exist_ok=True)
        (made.place / "etc/sysmon.yaml").write_text(PLAN)
        yield made


@pytest.fixture
def service(host):
    made = Service(host.inside, host.conf)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


def alive(pid):
    return pathlib.Path(f"/proc/{pid}").exists()


@full
def test_the_service_looks_is_killed_and_goes_on(host, service):
    service.begin("--user", USER)
    lms = ("lms", "ser-linux")
    row = wait(lambda: (row := service.rows().get(lms)) and row["verdict"] and row)
    assert (row["verdict"], row["state"], row["found"]) == ("clean", "looking", 0)

    # What reads the memory of the guest is nobody, may become no one else, and has no way to libvirt.
    lines = pathlib.Path(f"/proc/{row['pid']}/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert status["Uid"].split() == [str(pwd.getpwnam(USER).pw_uid)] * 4
    assert status["Gid"].split() == [str(pwd.getpwnam(USER).pw_gid)] * 4
    assert (status["Groups"].split(), status["CapEff"], status["CapPrm"], status["NoNewPrivs"]) == (
        *([], "0" * 16, "0" * 16),
        "1",
    )
    opened = [os.readlink(path) for path in pathlib.Path(f"/proc/{row['pid']}/fd").iterdir()]
    assert [name for name in opened if name.startswith("socket:")] == []
    assert any("memfd:" in name for name in opened)

    # What cannot be looked at is told, one that may yet come only by status.
    wait(lambda: service.rows()["libra", "ser-keys"]["state"] == "blind")
    assert service.rows()["lms", "ser-gone"]["reason"] == "ser-gone: no such system"
    told = [json.loads(line)["data"] for line in events(host.place) if "sysmon.blind" in line]
    assert [(one["system"], one["look"], one["code"]) for one in told] == [("ser-keys", "libra", 6)]

    # Killed, nothing of it goes on, and the next one begins.
    pid = service.rows()[lms]["pid"]
    assert alive(pid)
    service.end(signal.SIGKILL)
    wait(lambda: not alive(pid), 5)
    assert service.rows() == {}
    service.begin("--user", USER)
    again = wait(lambda: (row := service.rows().get(lms)) and row["verdict"] and row)
    assert again["pid"] != pid

    # Another QEMU is another memory; a restart is nothing to be told.
    told = len([line for line in events(host.place) if "sysmon.blind" in line and "ser-linux" in line])
    host.dre("restart", "ser-linux", "--timeout", "1")
    after = wait(lambda: (row := service.rows()[lms]) and row["pid"] not in (None, again["pid"]) and row["state"] ==
                 "looking" and row["last"] > again["last"] and row, 240)  # fmt: skip
    assert after["verdict"] == "clean"
    assert told == len([line for line in events(host.place) if "sysmon.blind" in line and "ser-linux" in line])

    # Asked to end, it ends all; what it told is what waits for the D-Box.
    said = service.end()
    assert service.process.returncode == 0, said
    assert not alive(after["pid"])
    pending = host.call(program("dbox-put"), "--config", host.conf, "--client", "sysmon", "--pending", "--json").stdout
    assert len(pending.splitlines()) == len([line for line in events(host.place) if '"type":"sysmon.' in line])


@full
@pytest.mark.parametrize(("name", "verdict"), [("ser-keys", "found"), ("ser-idle", "not excluded")])
def test_one_that_logs_keys_is_found_and_one_that_does_not_is_not_called_clean(host, service, name, verdict):
    """Again each minute, for a busy host is no place to look from."""
    host.dre("start", name)
    plan = host.place / "etc/keys.yaml"
    plan.write_text(f"sysmon: 1\nlooks: [{{look: foxykbd, system: {name}, every: 1m}}]\n")
    service.begin(plan)
    wait(lambda: (rows := service.rows()) and rows["foxykbd", name]["verdict"], 400)
    service.end()
    told = [json.loads(line) for line in events(host.place) if f'"system":"{name}"' in line and "sysmon." in line]
    (data,) = [one["data"] for one in told if one["type"] == "sysmon.looked"]
    assert (data["verdict"], data["keys"], data["windows"]) == (verdict, 600, 20)
    alarms = [one["data"]["device"] for one in told if one["type"] == "sysmon.keylogger"]
    assert alarms == (["vda"] if verdict == "found" else [])


def test_what_it_tells_is_in_the_d_box_as_it_was_told(running):
    """Of libvirt there is the test driver, whose one system has nothing that could be looked at."""
    running.good("dbox-init", "--client", "sysmon", "--role", "writer")
    with running.conf.open("a") as conf:
        conf.write('DRE_SYS_URI="test:///default"\n')
    plan = running.path / "etc/sysmon.yaml"
    plan.write_text("sysmon: 1\nlooks: [{look: libra, system: test, mount: /x}]\n")
    service = Service((), running.conf)
    service.begin()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: service.process.poll() is None and service.end())
        (line,) = wait(lambda: events(running.path))
        rows = wait(lambda: running.good("dbox-get", "--json", "--search", "stream=sysmon").splitlines())
    (entry,) = [json.loads(row) for row in rows]
    assert running.good("dbox-get", entry["index"], "--octets") == line.encode()
    assert json.loads(line)["type"] == "sysmon.blind"
    receipts = running.path / "state/spool/dbox/sysmon/receipts"
    (running.path / "octets").write_text(line)
    running.good("dbox-verify", receipts / "sysmon-1.tlog-proof", running.path / "octets")
