# SPDX-License-Identifier: Apache-2.0
"""What third parties said of a log convicts one that was cut back, forked or shown in two ways; also offline."""

import contextlib
import http.client
import http.server
import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
import urllib.error
import urllib.request

import dboxkit
import pytest
from conftest import environment, program

box = dboxkit.box
KILLS = int(os.environ.get("DRE_KILLS", "2"))


class WitnessProcess:
    """dbox-witness on another host, as far as it can tell: its own directory, and the key of the log."""

    def __init__(self, box):
        self.path = dboxkit.place()
        self.port = dboxkit.free_port()
        (self.path / "logs").write_bytes(box.good("dbox-witness", "--log-key", box.certs / "chain.pem"))
        made = box.good("dbox-witness", "--make-key", "w.example/1", "--key", self.path / "key")
        assert (self.path / "key").stat().st_mode & 0o777 == 0o400
        self.vkey = made.decode().strip()
        (box.path / "witnesses").write_text(f"{self.vkey} http://127.0.0.1:{self.port}\n")
        self.process = None

    def start(self):
        argv = [program("dbox-witness"), "--key", self.path / "key", "--serve", self.path / "logs"]
        argv += ["--state", self.path / "state", "--listen", f"127.0.0.1:{self.port}"]
        self.process = subprocess.Popen([*map(str, argv)], stderr=subprocess.PIPE, env=environment())
        assert b"listening on" in self.process.stderr.readline()
        return self

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def note(self):
        """The cosigned tree head that the witness keeps: an anchor in one file."""
        (path,) = (self.path / "state").glob("*.note")
        return path


@pytest.fixture
def pair():
    made = dboxkit.copy()
    with made.conf.open("a") as settings:
        settings.write(f'DRE_DBOX_WITNESSES="{made.path}/witnesses"\n')
    witness = WitnessProcess(made).start()
    yield made, witness
    witness.kill()
    shutil.rmtree(witness.path)
    dboxkit.remove(made)


def copy_state(box, name):
    """A backup of the log's directory, taken while nothing runs."""
    subprocess.run(["cp", "-a", box.state, box.path / name], check=True)


def restore(box, name):
    box.stop()
    shutil.rmtree(box.state)
    subprocess.run(["cp", "-a", box.path / name, box.state], check=True)


def audit(box, *seen):
    return box.run("dbox-audit", "--database", box.database, "--seen", *seen)


def anchors(box):
    with contextlib.closing(sqlite3.connect(box.database)) as database:
        return database.execute("SELECT kind, name, size FROM anchor ORDER BY number").fetchall()


def test_cosigned_and_found_when_cut_back(pair):
    box, witness = pair
    box.start()
    receipts = [box.put(b"%d" % number) for number in range(3)]
    box.stop()
    copy_state(box, "old")
    box.start()
    box.good("dbox-witness", "--ask")
    receipts.append(box.put(b"newer than the backup"))
    box.good("dbox-witness", "--ask")
    size = json.loads(box.good("dbox-audit", "--json").splitlines()[-1])["anchored"]
    assert [(kind, name) for kind, name, _ in anchors(box)] == [("witness", "w.example/1")] * 2
    assert anchors(box)[-1][2] == size
    (box.path / "newer").write_bytes(receipts[-1])
    box.stop()
    assert audit(box, witness.note(), box.path / "newer").returncode == 0  # the control: nothing is wrong
    # Rollback: the restored log verifies by itself, as every backup does.
    restore(box, "old")
    subprocess.run(["rm", "-rf", box.path / "state/audit"], check=True)
    assert box.run("dbox-audit", "--database", box.database).returncode == 0
    # Offline, from the one cosigned head, or from the one receipt.
    for seen in (witness.note(), box.path / "newer"):
        done = audit(box, seen)
        assert done.returncode == 1 and b"is a tree head of" in done.stdout, done.stdout
    # And by the witness when it is asked.
    box.start()
    done = box.run("dbox-witness", "--ask")
    assert done.returncode == 1 and b"cut back" in done.stderr, done.stderr
    # Going on as if nothing had been does not help either: that is a fork.
    while len(receipts) < 8:
        receipts.append(box.put(b"other %d" % len(receipts), "second"))  # writers remember, too
    done = box.run("dbox-witness", "--ask")
    assert done.returncode == 1 and b"saw another history of this log" in done.stderr
    box.stop()
    done = audit(box, witness.note())
    assert done.returncode == 1 and done.stdout.startswith(b"seen ")


def test_split_view_of_one_size(pair):
    """Two boxes with the same keys show two histories of the same size: whoever has the owner's key can do that."""
    box, witness = pair
    copy_state(box, "copy")
    box.start()
    kept = box.put(b"what one is shown")
    box.good("dbox-witness", "--ask")
    (box.path / "kept").write_bytes(kept)
    restore(box, "copy")
    box.start()
    other = box.put(b"what another is shown", "second")
    (box.path / "other").write_bytes(other)
    check = ["dbox-verify", box.path / "other", "-"]
    assert box.run(*check, stdin=b"what another is shown").returncode == 0  # by itself it is fine
    done = box.run("dbox-witness", "--ask")
    assert done.returncode == 1 and b"saw another history" in done.stderr
    box.stop()
    for seen in (witness.note(), box.path / "kept"):
        done = audit(box, seen)
        assert done.returncode == 1 and done.stdout.startswith(b"seen ")


def test_a_receipt_under_a_cosigned_head_proves_more(pair):
    box, witness = pair
    box.start()
    box.put(b"octets")
    index = json.loads(box.good("dbox-get", "--json", "--search", "stream=app"))["index"]
    plain = box.good("dbox-get", index, "--proof")
    done = box.run("dbox-get", index, "--proof", "--anchored")
    assert done.returncode == 3 and b"no tree head over entry" in done.stderr
    box.good("dbox-witness", "--ask")
    (box.path / "plain").write_bytes(plain)
    (box.path / "anchored").write_bytes(box.good("dbox-get", index, "--proof", "--anchored"))
    known = ["--witnesses", box.path / "witnesses"]
    done = box.run("dbox-verify", *known, box.path / "anchored", "-", stdin=b"octets")
    assert done.returncode == 0 and b"anchored by w.example/1 at 20" in done.stdout
    done = box.run("dbox-verify", *known, box.path / "plain", "-", stdin=b"octets")
    assert done.returncode == 1 and b"no cosignature by a witness" in done.stderr
    other = box.good("dbox-witness", "--make-key", "w.example/1", "--key", box.path / "otherkey")
    (box.path / "others").write_bytes(other)
    done = box.run("dbox-verify", "--witnesses", box.path / "others", box.path / "anchored", "-", stdin=b"octets")
    assert done.returncode == 1


def post(witness, body, path="/add-checkpoint"):
    request = urllib.request.Request(f"http://127.0.0.1:{witness.port}{path}", body)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers["Content-Type"]


def test_a_killed_witness_forgets_nothing_it_said(pair):
    """Killed at any moment, it never cosigns less or other than what it had answered."""
    from dre import evidence, witness

    box, made = pair
    box.start()
    said = 0
    for number in range(KILLS):
        box.put(b"%d" % number)
        note = evidence.parse_note(box.good("dbox-get", "--head").decode())
        head = evidence.parse_head(note.text)
        timer = threading.Timer(0.001 * (number % 8), made.process.kill)
        timer.start()
        with contextlib.suppress(OSError, http.client.HTTPException):  # killed in the middle of its answer
            status, body, kind = post(made, witness.request(0, [], note))
            if status == 200:
                said = head.size
            elif status == 409:
                assert kind == "text/x.tlog.size" and int(body) >= said
        timer.join()
        made.kill()
        made.start()
        status, body, _ = post(made, witness.request(0, [], note))
        assert status == 200 or int(body) >= said
        said = head.size if status == 200 else int(body)
        if said != head.size:
            box.good("dbox-witness", "--ask")
            said = head.size
    assert post(made, b"x", "/other")[0] == 404
    assert post(made, b"x")[0] == 400
    assert post(made, b"x" * 200_000)[0] == 413


# --- RFC 3161 ---

TSA = """
[tsa]
default_tsa = one
[one]
dir = {path}
serial = {path}/serial
crypto_device = builtin
signer_cert = {path}/tsa.crt
certs = {path}/ca.crt
signer_key = {path}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
[ext]
basicConstraints = CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
"""


@pytest.fixture
def authority():
    """A time stamping authority: openssl ts behind an HTTP server."""
    path = dboxkit.place()
    (path / "tsa.conf").write_text(TSA.format(path=path))
    (path / "serial").write_text("01\n")

    def openssl(*argv, **kwargs):
        return subprocess.run(
            ["openssl", *map(str, argv)], check=True, capture_output=True, timeout=30, **kwargs
        ).stdout

    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    openssl(*new, "-x509", "-keyout", path / "ca.key", "-subj", "/CN=TSA root", "-out", path / "ca.crt")
    openssl(*new, "-keyout", path / "tsa.key", "-subj", "/CN=TSA", "-out", path / "tsa.csr")
    by = ["-CA", path / "ca.crt", "-CAkey", path / "ca.key", "-CAcreateserial", "-extfile", path / "tsa.conf"]
    openssl("x509", "-req", "-in", path / "tsa.csr", *by, "-extensions", "ext", "-out", path / "tsa.crt")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            (path / "query").write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            argv = ["ts", "-reply", "-config", path / "tsa.conf", "-queryfile", path / "query"]
            body = openssl(*argv) if self.path == "/tsr" else b"nonsense"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", path
    server.shutdown()
    server.server_close()
    shutil.rmtree(path)


def settings(box, **keys):
    text = "".join(line for line in box.conf.read_text().splitlines(True) if line.split("=")[0] not in keys)
    box.conf.write_text(text + "".join(f'{key}="{value}"\n' for key, value in keys.items()))


def test_stamped_by_an_authority(box, authority):
    url, path = authority
    settings(box, DRE_DBOX_TSA_URL=f"{url}/tsr", DRE_DBOX_TSA_CA=path / "ca.crt")
    box.start()
    box.put(b"octets")
    done = box.run("dbox-witness", "--ask")
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(box.database)) as database:
        ((kind, name, size, token),) = database.execute("SELECT kind, name, size, octets FROM anchor").fetchall()
        (note,) = database.execute("SELECT note FROM head WHERE size = ?", (size,)).fetchone()
    assert (kind, name) == ("rfc3161", "127.0.0.1")
    # openssl itself: the token is for the text of the tree head, and for no other.
    text, reply = box.path / "text", box.path / "reply"
    reply.write_bytes(token)
    argv = ["openssl", "ts", "-verify", "-data", text, "-in", reply, "-CAfile", path / "ca.crt"]
    text.write_text(note.partition("\n\n")[0] + "\n")
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    text.write_text(text.read_text() + "x")
    assert subprocess.run(argv, capture_output=True, check=False).returncode != 0
    # Refusals: another CA, nonsense, nobody there.
    settings(box, DRE_DBOX_TSA_CA=box.certs / "root.pem")
    done = box.run("dbox-witness", "--ask")
    assert done.returncode == 1 and b"does not verify under" in done.stderr
    settings(box, DRE_DBOX_TSA_URL=f"{url}/nonsense", DRE_DBOX_TSA_CA=path / "ca.crt")
    assert box.run("dbox-witness", "--ask").returncode == 1
    settings(box, DRE_DBOX_TSA_URL=f"http://127.0.0.1:{dboxkit.free_port()}/tsr")
    done = box.run("dbox-witness", "--ask")
    assert done.returncode == 1 and b"no time stamp" in done.stderr
    assert len(anchors(box)) == 1


def anchored(box):
    """What GET /v1/status says of the age of the anchors."""
    connection = http.client.HTTPSConnection("localhost", box.port, timeout=20, context=box.tls("reader"))
    connection.request("GET", "/v1/status")
    told = json.loads(connection.getresponse().read())["anchored"]
    connection.close()
    return told["state"], told["reason"]


def audited(box):
    """The last line of an audit: clean, state of the anchors, reason."""
    told = json.loads(box.good("dbox-audit", "--json").splitlines()[-1])
    return told["clean"], told["anchor_state"], told["anchor_reason"]


def test_an_old_anchor_is_a_finding(pair):
    """And amber wherever the state is told; only what verifies counts, by the time that the witness said."""
    box, witness = pair
    settings(box, DRE_DBOX_ANCHOR_AGE="1s")
    box.start()
    box.put(b"octets")
    none_yet = "no third party is known to have confirmed a tree head yet; the settings want one every 0.0 h"
    assert anchored(box) == ("amber", none_yet) and audited(box) == (True, "amber", none_yet)
    asked = box.run("dbox-witness", "--ask")  # on a busy host the second is over by then: then, and only then, it is 1
    old = b"the newest anchor is 0.0 h old" in asked.stderr
    assert b"cosigned" in asked.stderr and asked.returncode == old, asked.stderr
    witness.kill()
    time.sleep(1.1)
    done = box.run("dbox-witness", "--ask")
    assert done.returncode == 1
    assert b"no answer" in done.stderr and b"the newest anchor is 0.0 h old and covers" in done.stderr
    for state, reason in (anchored(box), audited(box)[1:]):
        assert state == "amber" and reason.startswith("the newest anchor is 0.0 h old and covers"), (state, reason)
    assert b"; amber: the newest anchor is 0.0 h old" in box.good("dbox-audit")
    box.stop()
    settings(box, DRE_DBOX_ANCHOR_AGE="1h")
    box.start()
    assert anchored(box)[0] == "green" and audited(box)[1] == "green"
    # Not the time at which the D-Box got it: a row of today for a cosignature of long ago changes nothing.
    with contextlib.closing(sqlite3.connect(box.database)) as database, database:
        database.execute("DROP TRIGGER anchor_kept")
        database.execute("UPDATE anchor SET time = '2020-01-01T00:00:00.000Z'")
    assert anchored(box)[0] == "green" and audited(box)[1] == "green"
    witness.start()


def test_what_does_not_verify_is_no_anchor_of_the_state(pair):
    """An auditor may hand in anything; and without a third party in the settings there is nothing to be old."""
    from dre import evidence, witness

    box, _ = pair
    box.start()
    box.put(b"octets")
    note = box.good("dbox-get", "--client", "reader", "--head").decode()
    text = evidence.parse_note(note).text
    dboxkit.anchor(box, note, witness.make_key("w.example/1").cosign(text, int(time.time())))
    assert anchored(box)[0] == "amber"
    box.stop()
    settings(box, DRE_DBOX_WITNESSES="")
    box.start()
    assert anchored(box)[0] == "none" and audited(box)[:2] == (True, "none")


def test_wrong_usage(box):
    assert box.run("dbox-witness", "--ask").returncode == 2
    assert box.run("dbox-witness").returncode == 2
    assert box.run("dbox-witness", "--serve", box.path / "none", "--key", box.path / "none").returncode == 3
    assert box.run("dbox-witness", "--make-key", "a b", "--key", box.path / "key").returncode == 2
    (box.path / "witnesses").write_text("x\n")
    settings(box, DRE_DBOX_WITNESSES=box.path / "witnesses")
    done = box.run("dbox-witness", "--ask")
    assert done.returncode == 2 and b"witnesses:1: not an Ed25519 key" in done.stderr
