# SPDX-License-Identifier: Apache-2.0
"""dre-event's conversions beside programs that write and read those forms: logger, the journal, net-snmp."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import pytest
from conftest import ROOT, environment, program

REMOTE = "/lib/systemd/systemd-journal-remote"
UNPACKED = ROOT / "build/checkers/snmp"
PACKAGES = ("snmp", "snmptrapd", "libsnmp40", "libsnmp-base", "libnetsnmptrapd40", "libpci3")
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


@pytest.fixture(scope="module")
def snmp():
    """net-snmp's programs by name: the host's, or from their packages, not installed since they start services."""
    if shutil.which("snmptrap") and os.access("/usr/sbin/snmptrapd", os.X_OK):
        return {"snmptrap": ["snmptrap"], "snmptrapd": ["/usr/sbin/snmptrapd"]}
    if not (UNPACKED / "usr/sbin/snmptrapd").exists() or not list(UNPACKED.glob("usr/lib/*/libnetsnmptrapd.so*")):
        UNPACKED.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["apt-get", "-q", "download", *PACKAGES],
            cwd=UNPACKED, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"snmptrapd is not installed, and apt does not give it: {done.stderr.strip()[-200:]}")
        for package in UNPACKED.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, UNPACKED], check=True)
    (library,) = UNPACKED.glob("usr/lib/*/libnetsnmptrapd.so.40")
    path = f"LD_LIBRARY_PATH={library.parent}"
    return {
        "snmptrap": ["env", path, UNPACKED / "usr/bin/snmptrap"],
        "snmptrapd": ["env", path, UNPACKED / "usr/sbin/snmptrapd"],
    }


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def traps(snmp, tmp_path):
    """traps(ARGUMENT…): send by snmptrap; traps.events(): what snmptrapd's handler, dre-event, made of all."""
    address = f"127.0.0.1:{free_port()}"
    handler = tmp_path / "handler"
    lines = "".join(f"export {key}='{value}'\n" for key, value in environment().items() if key.startswith("PY"))
    handler.write_text(
        f"#!/bin/sh\n{lines}{program('dre-event')} --from snmptrap >{tmp_path}/part.$$ 2>>{tmp_path}/said && "
        f"mv {tmp_path}/part.$$ {tmp_path}/event.$$\n"
    )
    handler.chmod(0o755)
    (tmp_path / "d.conf").write_text(f"disableAuthorization yes\ntraphandle default {handler}\n")
    env = {**environment(), "MIBS": "", "SNMP_PERSISTENT_DIR": str(tmp_path / "p"), "SNMPCONFPATH": str(tmp_path)}
    argv = ["-f", "-C", "-c", tmp_path / "d.conf", "-On", "-Lf", tmp_path / "log", f"udp:{address}"]
    daemon = subprocess.Popen([*snmp["snmptrapd"], *argv], env=env, stderr=subprocess.DEVNULL)

    class Traps:
        def send(self, version, *argv, community="secret"):
            """Send one; a flag may stand with the version."""
            command = [*snmp["snmptrap"], *version.split(), "-c", community, address, *argv]
            subprocess.run(command, env=env, check=True, timeout=60, capture_output=True)

        def events(self, count):
            """The *count* events that came of it, by their trap's OID."""
            deadline = time.monotonic() + 60
            while len(found := list(tmp_path.glob("event.*"))) < count:
                assert time.monotonic() < deadline, (tmp_path / "said").read_text()
                time.sleep(0.05)
            assert (tmp_path / "said").read_text() == ""
            made = [json.loads(path.read_text()) for path in found]
            return {one["data"]["trap"]: one for one in made}

    deadline = time.monotonic() + 30
    listening = f":{int(address.rpartition(':')[2]):04X} "
    while listening not in pathlib.Path("/proc/net/udp").read_text():
        assert time.monotonic() < deadline and daemon.poll() is None
        time.sleep(0.05)
    yield Traps()
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(30)


def test_traps_and_informs_of_every_version(traps):
    own = ".1.3.6.1.4.1.32473"
    forged = 'say "hi" \\ there\n.1.3.6.1.6.3.1.1.4.1.0 .1.3.9.9'
    link = (".1.3.6.1.2.1.2.2.1.1.2", "i", "2", f"{own}.1", "s", forged)
    traps.send("-v2c", "", ".1.3.6.1.6.3.1.1.5.3", *link, f"{own}.2", "a", "10.0.0.1", f"{own}.3", "s", "")
    traps.send("-v2c -Ci", "12345", f"{own}.0.7", f"{own}.1", "s", "an inform", f"{own}.2", "x", "00ff" * 20)
    traps.send("-v1", own, "10.9.8.7", "6", "17", "555", f"{own}.1", "s", "v1")
    made = traps.events(3)
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
