# SPDX-License-Identifier: Apache-2.0
"""Persons answer questions on the page: curl is the browser, openssl makes the certificates, the journal tells."""

import contextlib
import json
import os
import pathlib
import pwd
import re
import socket
import subprocess
import time

import dscriptkit
import pytest
from conftest import environment, program
from dre import event

SCRIPT = """\
dscript: 1
name: steps
responses:
  - id: work
    when: {event: t.go}
    steps:
      - {action: ask, to: operator, text: "really <b>now</b>?", default: refuse, timeout: 1h}
      - {action: record, text: it was approved}
    at-most: {attempts: 9, per: 1d}
    then: call
  - id: short
    when: {event: t.short}
    steps: [{action: ask, to: operator, text: quick, default: refuse, timeout: 5s}]
    at-most: {attempts: 9, per: 1d}
    then: call
  - {id: call, steps: [{action: notify, to: owner}]}
"""


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A CA, and what it issued: a server, persons, and one nobody knows; and who made his certificate himself."""
    place = tmp_path_factory.mktemp("page")

    def openssl(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=place)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("client-ca", "self"):
        openssl(
            "req", "-x509", *key, "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"
        )
    (place / "server.ext").write_text("subjectAltName=DNS:localhost\n")
    for name in ("server", "ann", "bob", "stranger"):
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        ext = ("-extfile", "server.ext") if name == "server" else ()
        sign = ("-CA", "client-ca.pem", "-CAkey", "client-ca.key", "-CAcreateserial", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *sign, *ext, "-out", f"{name}.crt")
    (place / "self.crt").write_bytes((place / "self.pem").read_bytes())
    return place


class World:
    """An engine with a question, and the page, in a place that the page's user gets to."""

    def __init__(self, place, certificates):
        self.place, self.certificates, self.processes = place, certificates, []
        keys = {"STATE": "state", "RUN": "run", "ETC": "etc", "LOG": "log"}
        lines = [f'DRE_CORE_{key}_DIR="{place}/{value}"\n' for key, value in keys.items()]
        lines += [f'DRE_MONITOR_SINK="{place}/run/events.sock"\n', f'DRE_MONITOR_PIPES="{place}/run/script"\n']
        (place / "dre.conf").write_text("".join([*lines, f'DRE_DBOX_CERTS_DIR="{certificates}"\n']))
        (place / "steps.yaml").write_text(SCRIPT)
        (place / "case").write_text("G1: {text: The shop is open}\n")
        (place / "state/spool/ingest").mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.home = f"https://localhost:{self.port}/"

    def dscript(self, *argv, code=0):
        done = subprocess.run(
            [program("dscript"), "--config", self.place / "dre.conf", *argv], env=environment(), capture_output=True
        )
        assert done.returncode == code, done.stderr.decode()

    def start(self, *argv):
        words = [program("dscript"), "--config", self.place / "dre.conf", "--quiet", *argv]
        self.processes.append(subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE))
        return self.processes[-1]

    def serve(self):
        process = self.start("serve", "--listen", f"127.0.0.1:{self.port}", "--case", self.place / "case")
        self.wait((self.place / "run/script-page/url").exists, "the page")
        return process

    def wait(self, condition, what, timeout=20):
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            dead = [process for process in self.processes if process.poll() is not None]
            assert time.monotonic() < deadline and not dead, f"{what}: {[one.stderr.read().decode() for one in dead]}"
            time.sleep(0.02)
        return found

    def ask(self, type="t.go"):
        """Let the engine ask; the link in the notice."""
        line = event.format(event.Event(event.stamp(), "/host:h", type, 5, {}, {"id": event.new_id()}))
        with (self.place / "state/spool/ingest/00000000000000000000.jsonl").open("ab") as stream:
            stream.write(line)
        (self.place / "run/script").write_bytes(line)
        log, before = self.place / "log/notify.log", self.notices()
        self.wait(lambda: log.exists() and self.notices() > before, "the notice")
        link = re.search(r"https://\S+(?=;)", log.read_text().splitlines()[-1])[0]
        self.wait(lambda: self.curl(link)[0] == 200, "the question")
        return link

    def notices(self):
        log = self.place / "log/notify.log"
        return log.read_text().count("\n") if log.exists() else 0

    def curl(self, link, *words, who="bob"):
        """Status and body; without a certificate, or with one that is not taken, status 0."""
        at = self.certificates
        mine = ["--cert", at / f"{who}.crt", "--key", at / f"{who}.key"] if who else []
        base = ["curl", "-s", "--max-time", "15", "--cacert", at / "client-ca.pem", "-w", "\n%{http_code}"]
        done = subprocess.run([*base, *mine, *words, link], capture_output=True, text=True)
        body, _, status = done.stdout.rpartition("\n")
        return int(status), body

    def token(self, link, who="bob"):
        found = re.search(r'name="token" value="([0-9a-f]{64})"', self.curl(link, who=who)[1])
        return found[1] if found else ""

    def post(self, link, token, answer="yes", who="bob", **more):
        words = [f"token={token}", f"answer={answer}", *(f"{key}={value}" for key, value in more.items())]
        return self.curl(link, *(word for one in words for word in ("--data-urlencode", one)), who=who)[0]

    def records(self, kind):
        return dscriptkit.records(self.place, kind)

    def outcomes(self):
        return [(record["response"], record["step"]) for record in self.records("outcome")]


@pytest.fixture(scope="session")
def register(certificates, tmp_path_factory):
    """Ann, an author, and Bob, an approver, as `dscript person` registers them."""
    place = tmp_path_factory.mktemp("register")
    (place / "dre.conf").write_text(f'DRE_CORE_STATE_DIR="{place}"\nDRE_CORE_RUN_DIR="{place}/run"\n')
    for name, role in (("ann", "author"), ("bob", "approver")):
        words = ["person", name, "--role", role, "--certificate", certificates / f"{name}.crt"]
        command = [program("dscript"), "--config", place / "dre.conf", *words]
        subprocess.run(command, env=environment(), check=True, capture_output=True)
    return (place / "script/persons.json").read_bytes()


@pytest.fixture
def world(public_path, certificates, register):
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("dscript")
        except KeyError:
            pytest.skip("no user dscript: the package makes it")
    made = World(public_path, certificates)
    user = ["--user", "dscript"] if os.geteuid() == 0 else []  # as its service has it
    made.engine = made.start("run", *user, made.place / "steps.yaml")
    made.wait(lambda: made.records("start"), "the engine")
    (made.place / "state/script/persons.json").write_bytes(register)  # now, for nobody has signed that script
    made.page = made.serve()
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_only_a_form_of_a_person_who_may_answers_a_question_and_only_once(world):
    link = world.ask()
    assert link.startswith(f"https://localhost:{world.port}/ask/")
    if os.geteuid() == 0:
        status = pathlib.Path(f"/proc/{world.page.pid}/status").read_text()
        users = {entry.pw_name: str(entry.pw_uid) for entry in pwd.getpwall()}
        own = users.get("dscript-page", users["dscript"])
        assert re.search(r"^Uid:\s+(\d+)\s+\1\s+\1\s+\1$", status, re.M)[1] == own
    body = world.curl(link)[1]
    assert "really &lt;b&gt;now&lt;/b&gt;?" in body and "<b>now" not in body
    assert "What was agreed" in body and "it was approved" in body
    assert "これはスクリプト" in world.curl(link, "-H", "Accept-Language: ja")[1]

    # To look answers nothing, whatever is in the address; nor does who may not, or a form of somebody else.
    token = world.token(link)
    for more in (f"?answer=yes&token={token}", "?answer=yes"):
        assert world.curl(link + more)[0] == 200
    assert world.curl(link, "--head")[0] == 501
    assert world.curl(link, who=None)[0] == 0 and world.curl(link, who="self")[0] == 0
    assert world.curl(link, who="stranger")[0] == 403
    assert world.token(link, who="ann") == "" and world.post(link, token, who="ann") == 403
    assert world.post(link, "") == 403 and world.post(link, "0" * 64) == 403
    assert world.post(link, token, answer="perhaps") == 400 and world.post(link, token, text="a\nb") == 400
    status, shown = world.curl(world.home + "case")
    assert status == 200 and '<p class="open"' in shown and "The shop is open" in shown
    assert world.curl(world.home + "case", who="stranger")[0] == 403
    assert world.curl(link, "--data-binary", "x" * 5000)[0] == 400
    assert world.curl(link.replace("/ask/", "/other/"))[0] == 404
    assert world.curl(re.sub(r"/ask/.*", f"/ask/{'0' * 16}-0-act", link))[0] == 410
    assert world.records("answer") == [] and world.outcomes() == [("work", 1)]

    assert world.post(link, token, text="seen it") == 200
    assert world.post(link, token, answer="no") == 410 and world.curl(link)[0] == 410
    world.wait(lambda: world.outcomes() == [("work", 1), ("work", 2)], "the next step")
    (answer,) = world.records("answer")
    words = ["openssl", "x509", "-in", world.certificates / "bob.crt", "-noout", "-fingerprint", "-sha256"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("=")[1]
    said = json.loads(answer["line"])
    assert (said["type"], said["data"]["by"], said["data"]["text"]) == ("script.person.approved", "bob", "seen it")
    assert said["data"]["via"] == f"certificate {printed.strip().replace(':', '').lower()}"
    world.page.terminate()
    world.page.wait(10)
    assert not (world.place / "run/script-page/url").exists()


def test_one_of_two_answers_counts_and_who_was_revoked_has_none(world):
    link = world.ask()
    token = world.token(link)
    base = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", world.certificates / "client-ca.pem"]
    base += ["--cert", world.certificates / "bob.crt", "--key", world.certificates / "bob.key", link, "-d"]
    both = [subprocess.Popen([*base, f"token={token}&answer={word}"], stdout=subprocess.PIPE) for word in ("yes", "no")]
    assert sorted(process.communicate(timeout=20)[0] for process in both) == [b"200", b"410"]
    world.wait(lambda: len(world.records("answer")) == 1, "the answer")
    world.dscript("person", "bob", "--revoke")
    assert world.curl(world.home)[0] == 403


def test_a_link_expires_though_the_engine_is_away(world):
    link = world.ask("t.short")
    token = world.token(link)
    world.engine.kill()
    world.processes.remove(world.engine)
    world.wait(lambda: world.curl(link)[0] == 410, "the end of its time")
    assert world.post(link, token) == 410
    assert list((world.place / "state/script/answers").iterdir()) == []


def test_silent_connections_stop_nobody_and_are_cut_off(world):
    silent = [socket.create_connection(("127.0.0.1", world.port)) for _ in range(8)]
    silent[0].sendall(b"GET / HTTP/1.0\r\n\r\n")  # not TLS
    assert world.curl(world.home)[0] == 200
    for one in silent:
        one.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            while one.recv(100):  # an alert of TLS, at most
                pass
        one.close()
