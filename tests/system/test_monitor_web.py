# SPDX-License-Identifier: Apache-2.0
"""Events of other hosts through a real Apache with mod_wsgi to a real dre-ingest; its spool is the witness."""

import concurrent.futures
import http.client
import json
import os
import pathlib
import pwd
import shutil
import socket
import ssl
import subprocess
import time

import dboxfront
import dboxkit
import pytest
from conftest import ROOT, environment, program
from dre import event

NEEDED = ("mpm_event", "authz_core", "env", "setenvif", "socache_shmcb", "ssl", "wsgi", "headers", "reqtimeout")


def line(number, type="shop.release", source="/host:writer/app:web", **optional):
    made = event.Event(event.stamp(), source, type, 6, {"n": number}, {"id": f"id-{number}", **optional})
    return event.format(made)


class Web:
    """An intake and an Apache as the package configures it, on ports of its own, with the certificates of a D-Box."""

    def __init__(self):
        self.box = dboxkit.copy()  # its PKI; it is never started
        self.path, self.conf = self.box.path, self.box.conf
        self.port = dboxkit.free_port()
        self.remotes = self.path / "etc/remotes"
        self.remotes.write_text("# who may send\nwriter\n")
        self.spool = self.path / "state/spool/ingest"
        self.running = []
        self.out = self.path / "out.jsonl"
        (self.path / "run").mkdir(mode=0o755, exist_ok=True)
        self.start_intake()
        self.start_apache()

    def start_intake(self):
        with self.out.open("ab") as out:
            argv = [program("dre-ingest"), "--config", self.conf]
            self.intake = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, env=environment())
        self.running.append(self.intake)
        deadline = time.monotonic() + 20
        while not self.answers():
            assert self.intake.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)

    def answers(self):
        """Whether an intake is there, for the group too: a killed one leaves its socket."""
        sink = self.path / "run/events.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            return asking.connect_ex(str(sink)) == 0 and bool(sink.stat().st_mode & 0o060)

    def start_apache(self):
        place = self.path / "web"
        for part in ("sec-monitor/apache", "sec-monitor/monitorlib", "dre-core/dre"):
            shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
        path = f"{place}/sec-monitor:{place}/dre-core"
        if os.environ.get("DRE_TEST_INSTALLED") == "1":
            path = "/usr/share/sec-monitor"
        defined = {
            "APACHE_RUN_DIR": place,
            "APACHE_LOG_DIR": place,
            "DRE_EVENTS_PORT": self.port,
            "DRE_EVENTS_CERTS": self.box.certs,
            "DRE_EVENTS_CONFIG": self.conf,
            "DRE_EVENTS_WSGI": place / "sec-monitor/apache",
            "DRE_EVENTS_PATH": path,
        }
        lines = [f"LoadModule {name}_module {dboxfront.MODULES}/mod_{name}.so" for name in NEEDED]
        lines += [f"Define {name} {value}" for name, value in defined.items()]
        lines += [f'ServerRoot "{place}"', "ServerName localhost", "User www-data", "Group www-data"]
        lines += [f'PidFile "{place}/pid"', f'DefaultRuntimeDir "{place}"', "ErrorLog error.log", "LogLevel warn"]
        lines += [f'Include "{place}/sec-monitor/apache/dre-events.conf"', ""]
        conf = place / "apache2.conf"
        conf.write_text("\n".join(lines))
        argv = ["/usr/sbin/apache2", "-D", "FOREGROUND", "-f", conf]
        httpd = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment())
        self.running.append(httpd)
        dboxfront.wait_for(self.port, httpd, self.said)

    def said(self):
        return "\n".join(log.read_text(errors="replace")[-4000:] for log in (self.path / "web").glob("*.log"))

    def end(self):
        for process in reversed(self.running):
            process.terminate()
            process.wait(20)
        dboxkit.remove(self.box)

    def post(self, body, client="writer", method="POST", path="/events", **headers):
        """Status, JSON and headers of the answer."""
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=30, context=self.box.tls(client))
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        try:
            connection.request(method, path, body, {"Content-Type": "application/x-ndjson", **named})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read()), answer.headers
        finally:
            connection.close()

    def kept(self):
        """The events of others in the spool, in order."""
        octets = b"".join(path.read_bytes() for path in sorted(self.spool.glob("*.jsonl")))
        found = [json.loads(one) for one in octets.splitlines()]
        return [one for one in found if one["source"] != event.host() + "/monitor"]


@pytest.fixture(scope="module")
def server():
    if dboxfront.missing():
        pytest.skip(dboxfront.missing())
    try:
        pwd.getpwnam("dre-web")
    except KeyError:
        pytest.skip("no user dre-web: it comes with the installed package")
    made = Web()
    yield made
    made.end()


@pytest.fixture
def web(server):
    """The server with nothing kept yet."""
    server.before = len(server.kept())
    return server


def new(web):
    return web.kept()[web.before :]


def test_a_batch_is_accepted_counted_and_proven(web):
    status, told, _ = web.post(b"".join(line(n) for n in range(1200)))
    assert (status, told) == (202, {"accepted": 1200, "refused": 0})
    kept = new(web)
    assert [one["data"]["n"] for one in kept] == list(range(1200))
    assert not any("claimed" in one for one in kept) and all("seen" in one for one in kept)
    assert web.post(b"".join(line(n) for n in range(1190, 1210)))[1]["accepted"] == 20
    assert len(new(web)) == 1210, "what was sent again under the same id is kept once"


@pytest.mark.parametrize(
    ("type", "source"),
    [
        ("shop.release", "/host:other/app:web"),
        ("shop.release", "/host:writers"),
        ("app.cpu", "/host:writer/app:web"),
        ("watch.raised", "/host:writer/app:web"),
        ("monitor.dropped", "/host:writer/monitor"),
        ("script.action.done", "/host:writer"),
    ],
)
def test_what_a_host_says_of_others_or_of_our_parts_is_a_claim(web, type, source):
    assert web.post(line(time.time_ns(), type, source))[0] == 202
    (kept,) = new(web)
    assert kept["claimed"] is True


def test_bad_lines_are_named_and_the_good_ones_kept(web):
    start = time.time_ns()
    bad = [
        b"hello\n",
        b'{"time":"2026-01-01T00:00:00.000Z"}\n',
        line(start + 9)[:-3] + b"\n",
        b"x" * 9000 + b"\n",
        b"\xff\xfe\n",
    ]
    status, told, _ = web.post(line(start) + b"".join(bad) + b"\n" + line(start + 1))
    assert (status, told["accepted"], told["refused"]) == (202, 2, 5)
    assert [one["line"] for one in told["reasons"]] == [2, 3, 4, 5, 6]
    assert [one["data"]["n"] for one in new(web)] == [start, start + 1]
    assert web.post(b"".join(bad))[0] == 400


def cloud(number, **attributes):
    made = {"specversion": "1.0", "id": f"ce-{number}", "source": "/host:writer/app:web", "type": "shop.release"}
    return {**made, "data": {"n": number}, **attributes}


def test_cloudevents_come_alone_in_a_batch_and_in_headers(web):
    start = time.time_ns()
    one = json.dumps(cloud(start, time="2026-11-26T08:00:00.5+01:00")).encode()
    assert web.post(one, Content_Type="application/cloudevents+json; charset=utf-8")[:2] == (
        202,
        {"accepted": 1, "refused": 0},
    )
    many = json.dumps([cloud(start + 1), {"specversion": "0.3"}, cloud(start + 2)]).encode()
    status, told, _ = web.post(many, Content_Type="application/cloudevents-batch+json")
    assert (status, told["accepted"], told["refused"], told["reasons"][0]["line"]) == (202, 2, 1, 2)
    named = {f"ce_{key}": str(value) for key, value in cloud(start + 3, sev=3).items() if key != "data"}
    body = json.dumps({"n": start + 3}).encode()
    assert web.post(body, **named, Content_Type="application/json")[0] == 202
    kept = new(web)
    assert [one["data"]["n"] for one in kept] == [start, start + 1, start + 2, start + 3]
    assert (kept[0]["time"], kept[3]["sev"], kept[3]["id"]) == ("2026-11-26T07:00:00.500Z", 3, f"ce-{start + 3}")
    assert not any("claimed" in one for one in kept)
    assert web.post(b"[{]", Content_Type="application/cloudevents+json")[0] == 400
    assert web.post(b"{", **named, Content_Type="application/json")[0] == 400


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (403, {"client": "reader"}),  # its certificate is good, and it is not in the file
        (404, {"path": "/"}),
        (404, {"path": "/events/x"}),
        (405, {"method": "GET"}),
        (400, {"body": b"\n\n"}),
        (415, {"Content_Type": "application/xml"}),
        (400, {"body": b"#from admin\n"}),
    ],
)
def test_what_is_refused_is_refused_with_a_reason_and_not_kept(web, status, change):
    got, told, headers = web.post(**{"body": line(time.time_ns()), **change})
    assert got == status and (told.get("error") or told["reasons"])
    assert new(web) == [] and headers["Content-Type"] == "application/json"


def test_who_has_no_certificate_does_not_come_in(web):
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.BadStatusLine)):
        web.post(line(time.time_ns()), client="")
    assert new(web) == []


def test_a_name_in_a_header_is_nobodys(web):
    number = time.time_ns()
    web.remotes.write_text("writer\nadmin\n")
    try:
        web.post(line(number, source="/host:admin"), SSL_CLIENT_S_DN_CN="admin", X_Remote_User="admin")
    finally:
        web.remotes.write_text("writer\n")
    assert [one["claimed"] for one in new(web)] == [True]


def test_only_the_web_servers_user_speaks_for_others(web):
    script = (
        "import os, socket, sys; os.setgroups([int(sys.argv[2])]); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]);"
        "s.send(b'#from writer\\n' + sys.stdin.buffer.read()); print(s.recv(1000).decode())"
    )
    sink = web.path / "run/events.sock"
    argv = ["/usr/bin/python3", "-c", script, sink, str(sink.stat().st_gid)]
    done = subprocess.run(argv, input=line(time.time_ns()), capture_output=True, check=True)
    assert done.stdout == b"no: uid 65534 may not speak for other hosts\n"
    assert new(web) == []


def test_without_an_intake_the_client_hears_503_and_sends_the_rest_later(web):
    web.intake.kill()
    web.intake.wait()
    number = time.time_ns()
    status, told, headers = web.post(line(number))
    assert (status, told["accepted"], headers["Retry-After"]) == (503, 0, "1") and "intake" in told["error"]
    web.start_intake()
    assert web.post(line(number))[1]["accepted"] == 1
    assert [one["data"]["n"] for one in new(web)] == [number]


def test_many_clients_at_once_while_the_intake_is_killed(web):
    """What was acknowledged is there once, whoever died; what was not is sent again by its id."""
    start = time.time_ns()

    def client(who):
        for part in range(10):
            body = b"".join(line(start + who * 10_000 + part * 100 + n) for n in range(100))
            while (got := web.post(body))[0] != 202:
                assert got[0] == 503
                time.sleep(0.05)
            assert got[1]["accepted"] == 100

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        working = [pool.submit(client, who) for who in range(4)]
        for _ in range(3):
            time.sleep(0.3)
            web.intake.kill()
            web.intake.wait()
            web.start_intake()
        for one in working:
            one.result()
    numbers = [one["data"]["n"] for one in new(web)]
    assert sorted(numbers) == sorted({start + who * 10_000 + n for who in range(4) for n in range(1000)})


def test_no_process_of_apache_is_roots_beside_the_first(web):
    listing = subprocess.run(["ps", "-eo", "user:20,args"], capture_output=True, text=True, check=True).stdout
    ours = [row.split()[0] for row in listing.splitlines() if "(wsgi:dre-events)" in row]
    assert ours and set(ours) == {"dre-web"}
    assert pathlib.Path(web.box.certs / "server.key").stat().st_mode & 0o077 == 0
