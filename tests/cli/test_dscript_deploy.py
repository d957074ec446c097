# SPDX-License-Identifier: Apache-2.0
"""Scripts come in force by two persons, are taken back by one, and are exchanged while events come; openssl checks."""

import base64
import json
import shutil
import subprocess
import time

import dscriptkit
import pytest
from conftest import environment, program
from dre import event

SCRIPT = """\
dscript: 1
name: {name}
responses:
  - id: work
    when: {{event: t.go}}
    steps: [{{action: record, text: {text}}}]
    at-most: {{attempts: {attempts}, per: 1d{more}}}
    then: call
  - {{id: call, steps: [{{action: notify, to: owner}}]}}
"""


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """Keys and certificates of four persons: three EC, one RSA."""
    place = tmp_path_factory.mktemp("keys")
    for name in ("ann", "bob", "carl", "dora"):
        kind = ["rsa:2048"] if name == "bob" else ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        words = ["openssl", "req", "-x509", "-nodes", "-newkey", *kind, "-days", "2", "-subj", f"/CN={name}"]
        out = ["-keyout", place / f"{name}.key", "-out", place / f"{name}.crt"]
        subprocess.run([*words, *out], check=True, capture_output=True)
    return place


@pytest.fixture
def people(tmp_path, keys):
    """A directory with them."""
    return shutil.copytree(keys, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def dscript(settings, monkeypatch):
    """dscript on these settings: what it printed, or said when it failed."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # without a dre-app that would list what this host has
    config = settings()

    def call(*argv, code=0):
        done = dscriptkit.call("--config", config, *argv)
        said = done.stderr.decode()
        assert done.returncode == code and "Traceback" not in said, f"{argv}: {done.returncode}: {said}"
        return said if code else done.stdout.decode()

    call.config = config
    return call


def write(place, name="shop", text="one", attempts=9, more=""):
    path = place / f"{name}.yaml"
    path.write_text(SCRIPT.format(name=name, text=text, attempts=attempts, more=more))
    return path


def sha256(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout[:64]


def enrol(dscript, people, **roles):
    for name, role in roles.items():
        dscript("person", name, "--role", role, "--certificate", people / f"{name}.crt")


def propose(dscript, people, script, who="ann"):
    return dscript("deploy", script, "--key", people / f"{who}.key", "--text", "so agreed").split()[0]


def verified(people, file, word, name):
    """What openssl says of a signature in an agreement, as the manual page has it."""
    text, signatures = file.read_text().split("\n\n")
    value = next(line.split()[2] for line in signatures.splitlines() if line.startswith(f"{word} {name} "))
    (people / "sig").write_bytes(base64.b64decode(value))
    public = subprocess.run(
        ["openssl", "x509", "-in", people / f"{name}.crt", "-pubkey", "-noout"], capture_output=True, check=True
    )
    (people / "pub").write_bytes(public.stdout)
    words = ["openssl", "dgst", "-sha256", "-verify", people / "pub", "-signature", people / "sig"]
    return subprocess.run(words, input=f"{text}\n{word} {name}\n".encode(), capture_output=True).returncode == 0


def recorded(tmp_path):
    lines = (tmp_path / "state/spool/dbox/dscript/records-1").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_nothing_was_ever_deployed(dscript):
    assert (dscript("versions"), dscript("history"), dscript("person")) == ("", "", "")
    assert "the engine does not run" in dscript("status", code=1)
    assert "was ever deployed" in dscript("rollback", "shop", code=3)


def test_a_script_needs_two_persons_once_there_are_any(dscript, people, tmp_path):
    script = write(people)
    enrol(dscript, people, ann="approver", bob="approver", carl="author")
    in_force = tmp_path / "state/script/deployed/shop.yaml"
    assert "one of them must sign it" in dscript("deploy", script, code=4)
    assert "no person that is registered" in dscript("deploy", script, "--key", people / "dora.key", code=4)
    identity = propose(dscript, people, script)
    assert "another person has to approve" in dscript("approve", identity, "--key", people / "ann.key", code=4)
    assert "carl is no approver" in dscript("approve", identity, "--key", people / "carl.key", code=4)
    assert "no person" in dscript("approve", identity, "--key", people / "dora.key", code=4)
    assert "sign it: --key" in dscript("approve", identity, code=4)
    assert not in_force.exists() and json.loads(dscript("versions", "--json"))["how"] == "proposed"
    dscript("approve", identity, "--key", people / "bob.key")
    assert in_force.read_bytes() == script.read_bytes()
    assert "no such proposal" in dscript("approve", identity, "--key", people / "bob.key", code=3)
    row = json.loads(dscript("versions", "shop", "--json"))
    assert (row["number"], row["how"], row["signed"], row["note"]) == (1, "approve", ["ann", "bob"], "so agreed")
    assert row["sha256"] == sha256(script) and row["before"] is None

    agreed = tmp_path / "state/script/agreed" / sha256(script)
    assert f"\nsha256 {sha256(script)}\nbefore none\n" in agreed.read_text()
    assert verified(people, agreed, "propose", "ann") and verified(people, agreed, "approve", "bob")
    kept = [item for item in recorded(tmp_path) if item["type"] == "script.deployed"]
    assert [item["data"]["agreement"] for item in kept] == [agreed.read_text()]
    agreed.write_text(agreed.read_text().replace("so agreed", "so argued"))  # openssl would tell, too
    assert not verified(people, agreed, "propose", "ann")


def test_a_proposal_ends_when_it_is_refused_overtaken_or_its_person_is_revoked(dscript, people, tmp_path):
    enrol(dscript, people, ann="author", bob="approver", carl="approver")
    first, second, third = (propose(dscript, people, write(people, text=word)) for word in ("one", "two", "three"))
    dscript("approve", first, "--refuse", "--text", "not so")
    assert "no such proposal" in dscript("approve", first, "--key", people / "bob.key", code=3)
    refused = [item for item in recorded(tmp_path) if item["type"] == "script.refused"]
    assert [(item["data"]["id"], item["data"]["note"]) for item in refused] == [(first, "not so")]
    dscript("person", "bob", "--revoke")
    assert "bob has no role any more" in dscript("approve", second, "--key", people / "bob.key", code=4)
    dscript("approve", second, "--key", people / "carl.key")
    assert "propose it anew" in dscript("approve", third, "--key", people / "carl.key", code=1)
    changed = [item["data"] for item in recorded(tmp_path) if item["type"] == "script.person.changed"]
    assert [(one["person"], one["role"]) for one in changed][-1] == ("bob", "revoked")
    assert "carl has this key already" in dscript(
        "person", "dora", "--role", "author", "--certificate", people / "carl.crt", code=2
    )


def test_one_person_takes_back_what_two_agreed_to(dscript, people, tmp_path):
    dscript("deploy", write(people, text="nobody signed"))
    enrol(dscript, people, ann="author", bob="approver")
    scripts = []
    for word in ("one", "two"):
        scripts.append(write(people, text=word).read_bytes())
        dscript("approve", propose(dscript, people, people / "shop.yaml"), "--key", people / "bob.key")
    dscript("rollback", "shop", "--text", "two is worse")
    assert (tmp_path / "state/script/deployed/shop.yaml").read_bytes() == scripts[0]
    assert "not signed by two persons" in dscript("rollback", "shop", "--to", "1", code=4)
    assert "no version 7" in dscript("rollback", "shop", "--to", "7", code=3)
    last = [line.split() for line in dscript("versions").splitlines()][-1]
    assert last[:2] + last[3:4] == ["shop", "4", "rollback"] and last[-3:] == ["two", "is", "worse"]


class Engine:
    """dscript run, with a way to send proven events."""

    def __init__(self, tmp_path, config):
        self.tmp_path = tmp_path
        self.spool = tmp_path / "state/spool/ingest/00000000000000000000.jsonl"
        self.spool.parent.mkdir(parents=True, exist_ok=True)
        self.process = subprocess.Popen(
            [program("dscript"), "--config", config, "run"], env=environment(), stderr=subprocess.PIPE
        )
        self.wait(lambda: self.records("start"), "the engine")

    def wait(self, condition, what, timeout=15):
        deadline = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
            time.sleep(0.01)
        return found

    def records(self, kind):
        return dscriptkit.records(self.tmp_path, kind)

    def send(self, name):
        line = event.format(event.Event(event.stamp(), "/host:h/x", "t.go", 5, {}, {"id": name}))
        with self.spool.open("ab") as stream:
            stream.write(line)
        (self.tmp_path / "run/script").write_bytes(line)

    def told(self, type):
        return [json.loads(one["line"])["data"] for one in self.records("tell") if f'"type":"{type}"' in one["line"]]


@pytest.fixture
def engine(tmp_path, dscript):
    started = []

    def start():
        started.append(Engine(tmp_path, dscript.config))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def test_the_engine_obeys_only_what_two_have_signed(dscript, people, tmp_path, engine):
    base = tmp_path / "state/script"
    dscript("deploy", write(people, "early"))
    enrol(dscript, people, ann="author", bob="approver")
    for name in ("good", "altered", "forged"):
        dscript("approve", propose(dscript, people, write(people, name)), "--key", people / "bob.key")
    # Who may write the files, but has no second person's key, gets nothing in force.
    other = write(people, "altered", text="other")
    for path in (base / "deployed/altered.yaml", base / f"versions/{sha256(other)}.yaml"):
        path.write_bytes(other.read_bytes())
    agreed = base / "agreed" / sha256(people / "forged.yaml")
    agreed.write_text(agreed.read_text().replace("approve bob", "approve ann"))
    one = engine()
    assert set(one.records("start")[0]["scripts"]) == {"good"}
    one.process.terminate()
    said = one.process.communicate(timeout=10)[1].decode()
    assert said.count("is not signed by two persons") == 3  # early, altered, forged
    assert "not signed by two persons" in dscript("run", other, code=4)


def test_no_event_and_no_attempt_is_lost_while_versions_change(dscript, people, engine):
    dscript("deploy", write(people, attempts=5))
    one, sent = engine(), 0
    for number in range(3):
        # Another version each second, while events come every few milliseconds.
        dscript("deploy", write(people, text=f"version {number}", attempts=5))
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            one.send(f"e{sent:04}")
            sent += 1
            time.sleep(0.004)
    one.wait(lambda: len(one.records("event")) == sent, "the events")
    seen = [json.loads(record["line"])["id"] for record in one.records("event")]
    assert seen == [f"e{number:04}" for number in range(sent)]
    assert len({record["sha256"] for record in one.records("script")}) >= 3
    # The attempts are of all versions together, and who is to know that they are used up is told once.
    done = [record for record in one.records("intent") if record["response"] == "work"]
    assert len(done) == 5 < sent
    assert len([record for record in one.records("intent") if record["response"] == "call"]) == 1


def test_a_cooldown_goes_on_over_a_new_version(dscript, people, engine):
    more = ", cooldown: 3s"
    dscript("deploy", write(people, more=more))
    one = engine()
    one.send("first")
    one.wait(lambda: one.records("outcome"), "the response")
    begun = time.monotonic()
    dscript("deploy", write(people, text="two", more=more))
    one.wait(lambda: len(one.records("script")) == 2, "the new version")
    one.send("early")
    one.wait(lambda: len(one.records("event")) == 2, "the event")
    time.sleep(max(0.0, begun + 3.1 - time.monotonic()))
    one.send("late")
    one.wait(lambda: len(one.records("outcome")) == 2, "the response")
    assert [record["script"] for record in one.records("intent")] == ["shop", "shop"]
    assert len({record["sha256"] for record in one.records("script")}) == 2
