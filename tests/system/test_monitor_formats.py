# SPDX-License-Identifier: Apache-2.0
"""dre-event's conversions beside programs that write and read those forms: logger, the journal, net-snmp."""

import json
import os
import socket
import subprocess
import time

import pytest
import snmpkit
from conftest import program

REMOTE = "/lib/systemd/systemd-journal-remote"
EVENT = (
    '{"time":"2026-11-23T08:00:00.123Z","source":"/host:h7/app:web1/httpd","type":"app.cpu","sev":4,'
    '"data":{"message":"é ] \\" \\\\ \\n end","cpu":91.5},"id":"i1"}\n'
).encode()


def events(run, form, octets):
    """The events of *octets*, none of which is refused."""
    done = run("dre-event", "--from", form, stdin=octets)
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


def logged(tmp_path, *argv):
    """What logger sends to its socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "log"))
        receiver.settimeout(10)
        subprocess.run(["logger", "--socket", tmp_path / "log", *argv], check=True)
        (tmp_path / "log").unlink()
        return receiver.recv(65536)


def test_what_logger_writes(run, tmp_path):
    text = 'say "hi" ] \\ é: [1]'
    name = ("--tag", "tagged", "--priority", "daemon.err", "--id=77")
    (new,) = events(run, "syslog", logged(tmp_path, "--rfc5424", "--msgid", "M1", *name, text))
    (old,) = events(run, "syslog", logged(tmp_path, "--rfc3164", *name, text).replace(b"\0", b""))
    host = os.uname().nodename
    for made in (new, old):
        assert made["source"] == f"/host:{host}/tagged" and made["sev"] == 3
        assert made["data"].items() >= {"message": text, "facility": "daemon", "pid": 77}.items()
    assert new["data"]["msgid"] == "M1" and "timeQuality" in new["data"]["sd"]
    quality = logged(tmp_path, "--rfc5424", "--sd-id", "x@1", "--sd-param", 'p="a\\"\\]b"', text)
    assert events(run, "syslog", quality)[0]["data"]["sd"]["x@1"] == {"p": 'a"]b'}


def test_the_journal_keeps_an_event_of_ours(run, tmp_path):
    if not os.access(REMOTE, os.X_OK):
        pytest.skip("systemd-journal-remote is not installed")
    exported = run("dre-event", "--to", "journal", stdin=EVENT * 3).stdout
    file = tmp_path / "got.journal"
    subprocess.run([REMOTE, "-o", file, "-"], input=exported, check=True, capture_output=True)
    for form in ("json", "export"):
        shown = subprocess.run(
            ["journalctl", "--file", file, "--output", form, "--all", "DRE_TYPE=app.cpu"],
            check=True,
            capture_output=True,
        ).stdout
        assert run("dre-event", "--from", "journal", stdin=shown).stdout == EVENT * 3


def test_what_the_journal_has_of_others(run, tmp_path):
    if not os.access(REMOTE, os.X_OK):
        pytest.skip("systemd-journal-remote is not installed")
    binary = b"two\nlines \xff"
    entry = b"__REALTIME_TIMESTAMP=1795721559077123\n_HOSTNAME=h1\nSYSLOG_IDENTIFIER=app\nPRIORITY=2\n_PID=12\n"
    entry += b"OWN=a\nOWN=b\n"
    entry += (
        b"_BOOT_ID=9f2c1b2d3e4f4a5b8c7d6e5f4a3b2c1d\nMESSAGE\n" + len(binary).to_bytes(8, "little") + binary + b"\n\n"
    )
    file = tmp_path / "got.journal"
    subprocess.run([REMOTE, "-o", file, "-"], input=entry, check=True, capture_output=True)
    found = []
    for form in ("json", "export"):
        shown = subprocess.run(["journalctl", "--file", file, "-o", form], check=True, capture_output=True).stdout
        (made,) = events(run, "journal", shown)
        assert made.pop("id")
        made["data"]["OWN"].sort()
        found.append(made)
    assert found[0] == found[1] == {
        "time": "2026-11-26T19:32:39.077Z",
        "source": "/host:h1/app",
        "type": "journal.message",
        "sev": 2,
        "data": {"message": "two\nlines \\xff", "pid": 12, "OWN": ["a", "b"]},
    }  # fmt: skip


@pytest.fixture
def traps(tmp_path):
    """Where to send to; each trap becomes an event in a file of its own."""
    handler = f"{program('dre-event')} --from snmptrap >{tmp_path}/part.$$ && mv {tmp_path}/part.$$ {tmp_path}/event.$$"
    with snmpkit.Traps(snmpkit.net_snmp(), tmp_path, handler) as made:
        yield made


def made_of(traps, count):
    """The *count* events that came of it, by their trap's OID."""
    deadline = time.monotonic() + 60
    while len(found := list(traps.directory.glob("event.*"))) < count:
        assert time.monotonic() < deadline, traps.said()
        time.sleep(0.05)
    assert traps.said() == ""
    made = [json.loads(path.read_text()) for path in found]
    return {one["data"]["trap"]: one for one in made}


def test_traps_and_informs_of_every_version(traps):
    own = ".1.3.6.1.4.1.32473"
    forged = 'say "hi" \\ there\n.1.3.6.1.6.3.1.1.4.1.0 .1.3.9.9'
    link = (".1.3.6.1.2.1.2.2.1.1.2", "i", "2", f"{own}.1", "s", forged)
    traps.send("-v2c", "", ".1.3.6.1.6.3.1.1.5.3", *link, f"{own}.2", "a", "10.0.0.1", f"{own}.3", "s", "")
    traps.send("-v2c -Ci", "12345", f"{own}.0.7", f"{own}.1", "s", "an inform", f"{own}.2", "x", "00ff" * 20)
    traps.send("-v1", own, "10.9.8.7", "6", "17", "555", f"{own}.1", "s", "v1")
    made = made_of(traps, 3)
    assert {(one["source"], one["type"]) for one in made.values()} <= {
        ("/host:localhost", "snmp.trap"),
        ("/host:127.0.0.1", "snmp.trap"),
    }
    down = made["1.3.6.1.6.3.1.1.5.3"]["data"]
    assert down["1.3.6.1.4.1.32473.1"] == forged and down["1.3.6.1.2.1.2.2.1.1.2"] == 2
    assert (down["1.3.6.1.4.1.32473.2"], down["1.3.6.1.4.1.32473.3"]) == ("10.0.0.1", "")
    informed = made["1.3.6.1.4.1.32473.0.7"]["data"]
    assert informed["1.3.6.1.4.1.32473.1"] == "an inform"
    assert informed["1.3.6.1.4.1.32473.2"].split() == ["00", "FF"] * 20
    first = made["1.3.6.1.4.1.32473.0.17"]["data"]
    assert first["1.3.6.1.4.1.32473.1"] == "v1" and "10.9.8.7" in first.values()
    assert "secret" not in json.dumps(made)
