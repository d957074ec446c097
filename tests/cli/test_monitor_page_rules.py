# SPDX-License-Identifier: Apache-2.0
"""The page of rules over a real `dre-rules serve`: two people change rules; strangers and hostile texts change none."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
import time

import pagekit
import pytest
from conftest import environment
from dre import event
from pagekit import RULE

pytestmark = pytest.mark.skipif(bool(pagekit.cannot()), reason=pagekit.cannot() or "-")
WRITES = (
    'type=Single\nptype=RegExp\npattern="type":"shop\\.(release|overload)"\ndesc=x\n'
    'action=write %script {"what":"$1"}\n'
)


@pytest.fixture(scope="module")
def site():
    with pagekit.site() as made:
        yield made


@pytest.fixture
def start(site):
    """The site with its first rules in force, and nothing waiting."""
    site.reset({"a.sec": RULE.format("alpha").encode()})
    return site


@pytest.fixture(autouse=True)
def forget_tries(site):
    """Tests log in more often than people do."""
    yield
    with sqlite3.connect(site.place / "state/rules-page/ui.sqlite") as database:
        database.execute("DELETE FROM attempt")


def of(identity):
    return f"/rules/proposals/{identity}"


def test_one_proposes_and_another_approves(start):
    ann, bob = start.browser("ann"), start.browser("bob")
    identity = ann.propose("b.sec", RULE.format("beta"), note="for the shop")
    assert "b.sec" not in start.here()
    assert "Approve" not in ann.words and ann.again(of(identity), do="approve") == 403
    assert bob.get("/rules") == 200 and "for the shop" in bob.words
    assert bob.send(of(identity), of(identity), do="approve") == 303
    assert start.here() == {"a.sec": RULE.format("alpha"), "b.sec": RULE.format("beta")}
    last = json.loads(start.command("history", "--json").splitlines()[-1])
    assert (last["how"], last["by"], last["via"], last["note"]) == ("approve", "bob", "account", "ann: for the shop")
    assert bob.get(of(identity)) == 404


def test_an_approver_does_not_approve_his_own_and_neither_does_his_login_on_the_host(start):
    bob = start.browser("bob")
    identity = bob.propose("b.sec", RULE.format("beta"))
    assert "Approve" not in bob.words
    assert bob.again(of(identity), do="approve") == 403 and "somebody else" in bob.words
    start.command("approve", identity, by="bob", code=4)
    assert "b.sec" not in start.here()
    assert bob.send(of(identity), of(identity), do="reject") == 303


def test_a_draft_is_checked_edited_uploaded_and_removed(start):
    ann = start.browser("ann")
    assert ann.get("/rules/edit?file=a.sec") == 200 and RULE.format("alpha").splitlines()[2] in ann.words
    assert ann.draft("a.sec", RULE.format("other"), "check") == 200 and "Acceptable" in ann.words
    files = {"file": (io.BytesIO(RULE.format("up").encode()), "C:\\rules\\up.sec")}
    assert ann.draft("a.sec", RULE.format("alpha"), "check", **files) == 200
    assert 'value="up.sec"' in ann.answer.get_data(as_text=True)
    assert ann.draft("a.sec", RULE.format("alpha"), "propose") == 400 and "in force already" in ann.words
    identity = ann.propose("a.sec", "", remove="a.sec")
    assert "removed" in ann.words
    bob = start.browser("bob")
    assert bob.send(of(identity), of(identity), do="approve") == 303 and start.here() == {}


def test_rules_are_tried_on_events_beside_those_in_force(start):
    ann = start.browser("ann")
    lines = [
        event.format(
            event.Event(f"2026-11-27T00:00:0{second}.000Z", "/host:h", f"shop.{what}", 6, {}, {"id": f"i{second}"})
        )
        for second, what in ((3, "overload"), (1, "release"))
    ]
    events = io.BytesIO(b"".join(lines) + b"<b>no event</b>\n")
    assert ann.draft("b.sec", WRITES, "test", events=(events, "e")) == 200
    assert "3 events of your file" in ann.words and "would write 2 lines: 2 that" in ann.words
    assert ann.words.index('{"what":"release"}') < ann.words.index('{"what":"overload"}'), "in the order of time"
    spool = start.place / "state/spool/ingest"
    spool.mkdir(parents=True, exist_ok=True)
    (spool / f"{0:020}.jsonl").write_bytes(lines[1])
    identity = ann.propose("b.sec", WRITES)
    assert ann.again(of(identity), do="test") == 200 and "1 event from the intake" in ann.words
    assert "b.sec:1" in ann.words and not (start.place / "run/script").exists(), "nothing is written to a FIFO"


def test_rolled_back_by_one_alone(start):
    ann, bob = start.browser("ann"), start.browser("bob")
    identity = ann.propose("a.sec", RULE.format("beta"))
    assert bob.send(of(identity), of(identity), do="approve") == 303
    before = start.history()[-2].number
    path = f"/rules/history/{before}"
    assert ann.get(path) == 200 and "Put these rules" not in ann.words
    assert bob.send(path, path, note="too many calls") == 303
    assert start.here() == {"a.sec": RULE.format("alpha")}
    last = start.history()[-1]
    assert (last.how, last.by, last.note) == ("rollback", "bob", "too many calls")


def test_what_came_into_force_meanwhile_is_not_undone_unseen(start):
    ann, bob = start.browser("ann"), start.browser("bob")
    assert ann.get("/rules/edit?file=a.sec") == 200
    first = bob.propose("b.sec", RULE.format("beta"))
    start.command("approve", first, by="cid")
    assert ann.again("/rules/edit", name="a.sec", text=RULE.format("x"), do="propose") == 409
    assert "other rules came into force" in ann.words and not start.pending()


@pytest.mark.parametrize("name", ["", "eve", "ann"])
def test_who_may_not_may_not(start, name):
    """Even with a form of one's own, and its token."""
    identity = start.browser("bob").propose("b.sec", RULE.format("beta"))
    asking = start.browser(name)
    known = start.history()
    assert asking.get("/rules") == (200 if name else 303)
    asking.get("/rules" if name else "/login")
    action = "/logout" if name else "/login"
    text = asking.answer.get_data(as_text=True)
    form = text[text.index(f'action="{action}"') :]
    token = form.partition('name="csrf" value="')[2].partition('"')[0]
    tries = [(of(identity), {"do": "approve"}), (of(identity), {"do": "reject"}), ("/rules/history/1", {})]
    if name != "ann":
        base = start.pending()[0].base
        draft = {"name": "c.sec", "text": RULE.format("c"), "base": base}
        tries += [("/rules/edit", {**draft, "do": "propose"}), ("/rules/edit", {**draft, "do": "test"})]
    for path, fields in tries:
        assert asking.ask("POST", path, data={"csrf": token, **fields}) == 403, (path, asking.words)
    assert start.history() == known and len(start.pending()) == 1


def test_looking_changes_nothing(start):
    bob = start.browser("bob")
    identity = bob.propose("b.sec", RULE.format("beta"))
    state = start.place / "state/rules"

    def seen():
        return {path: path.stat().st_mtime_ns for path in [*state.rglob("*"), *start.rules.iterdir()]}

    before = seen()
    (start.rules / "by-hand.sec").write_text(RULE.format("hand"))
    before[start.rules / "by-hand.sec"] = (start.rules / "by-hand.sec").stat().st_mtime_ns
    for path in ("/rules", of(identity), "/rules/history", "/rules/history/1", "/rules/edit", "/rules/files/a.sec"):
        assert bob.get(f"{path}?do=approve") == 200
    for path in (of(identity), "/logout"):
        assert bob.ask("HEAD", f"{path}?do=approve") in (200, 405)
    assert bob.get("/logout") == 405 and bob.get("/rules") == 200
    assert seen() == before


def test_a_form_without_our_token_or_from_another_site_is_refused(start):
    bob = start.browser("bob")
    identity = bob.propose("b.sec", RULE.format("beta"))
    other = start.browser("eve")
    assert other.get("/account") == 200
    token = other.answer.get_data(as_text=True).partition('name="csrf" value="')[2].partition('"')[0]
    for fields in ({"do": "reject"}, {"do": "reject", "csrf": "0" * 64}, {"do": "reject", "csrf": token}):
        assert bob.ask("POST", of(identity), data=fields) == 403
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        assert bob.send(of(identity), of(identity), headers, do="reject") == 403
    assert len(start.pending()) == 1


def test_a_session_is_new_at_login_and_ends_at_logout_and_with_the_role(start):
    eve = start.browser()
    cookies = lambda: {one.name: one.value for one in eve.client.cookie_jar}  # noqa: E731
    assert eve.get("/login") == 200
    eve.client.set_cookie("localhost", "__Host-dre-rules", "A" * 43, secure=True)
    eve.login("eve")
    first = cookies()["__Host-dre-rules"]
    assert first != "A" * 43 and "__Host-dre-rules-login" not in cookies()
    eve.login("eve")
    assert cookies()["__Host-dre-rules"] != first
    stale = start.browser()
    stale.client.set_cookie("localhost", "__Host-dre-rules", first, secure=True)
    assert stale.get("/rules") == 303, "the session before ended"
    start.command("person", "eve", "--role", "author", "--quiet")
    assert eve.get("/rules") == 303
    start.command("person", "eve", "--role", "reader", "--quiet")
    eve.login("eve")
    assert eve.send("/rules", "/logout") == 303 and eve.get("/rules") == 303


def test_passwords_are_not_guessed(start):
    asking = start.browser()
    for _ in range(5):
        assert asking.send("/login", "/login", name="eve", password="wrong password 1") == 403
    assert asking.send("/login", "/login", name="eve", password=pagekit.PASSWORD) == 429
    assert int(asking.answer.headers["Retry-After"]) > 100


def test_forms_have_a_rate(start):
    ann = start.browser("ann")
    codes = [ann.draft("b.sec", RULE.format("b"), "check")]
    codes += [ann.again("/rules/edit", name="b.sec", text=RULE.format("b"), do="check") for _ in range(60)]
    assert codes == [200] * 60 + [429] and "Retry-After" in ann.answer.headers


def test_a_certificate_is_a_person_and_a_header_is_nobody(start):
    key, pem = start.place / "kim.key", start.place / "kim.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*argv, "-subj", "/CN=kim", "-keyout", key, "-out", pem], check=True, capture_output=True)
    start.command("person", "kim", "--role", "approver", "--certificate", pem, "--quiet")
    name = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.read_text())).hexdigest()
    kim = start.browser(certificate=name)
    assert kim.get("/rules") == 200 and "kim approver" in kim.words
    identity = start.browser("ann").propose("b.sec", RULE.format("beta"))
    assert kim.send(of(identity), of(identity), do="approve") == 303
    assert start.history()[-1].via == f"certificate {name}"
    stranger = start.browser(certificate="0" * 64)
    assert stranger.get("/rules") == 303
    for header in ("Dre-Certificate", "SSL-Client-Verify", "X-Remote-User"):
        assert start.browser().ask("GET", "/rules", headers={header: name}) == 303
    start.command("person", "kim", "--revoke", "--quiet")
    assert kim.get("/rules") == 303


TOUCH = "system('touch FILE')"
RULES = "type=Single\nptype={}\npattern={}\ndesc=x\naction={}\n"
HOSTILE = {
    "perl in a pattern": RULES.format("PerlFunc", f"sub {{ {TOUCH} }}", "none"),
    "perl when it is read": RULES.format("PerlFunc", f"BEGIN {{ {TOUCH} }}", "none"),
    "lcall": RULES.format("SubStr", "x", f"lcall %o -> ( sub {{ {TOUCH} }} )"),
    "a shell": RULES.format("RegExp", "(.*)", "shellcmd touch FILE $1"),
    "perl in a regular expression": RULES.format("RegExp", f"(?{{ {TOUCH} }})", "none"),
    "a context of perl": RULES.format("SubStr", "x", "none") + f"context==({TOUCH})\n",
    "exploding": RULES.format("RegExp", "^(a+)+$", "none"),
    "a file": RULES.format("SubStr", "x", "write FILE x"),
    "a long line": RULES.format("SubStr", "x" * 1_000_000, "none"),
    "deep": RULES.format("RegExp", "(" * 5000 + "a" + ")" * 5000, "none"),
    "a line of many": "type=Single\nptype=SubStr\npattern=x" + "\\\nx" * 17_000 + "\ndesc=x\naction=none\n",
    "no ASCII": RULES.format("SubStr", "\u202eolleh", "none"),
    "HTML": "type=<script>alert(1)</script>\n\"'><img src=x onerror=alert(1)>\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_rules_are_refused_with_a_reason_and_do_nothing(start, what):
    ann, file = start.browser("ann"), start.place / "touched"
    text = HOSTILE[what].replace("FILE", str(file))
    begun = time.monotonic()
    for do in ("check", "test", "propose"):
        assert ann.draft("b.sec", text, do) == 422, ann.words[:500]
        assert "Refused" in ann.words and "b.sec:" in ann.words
    assert not file.exists() and not start.pending() and "b.sec" not in start.here()
    assert time.monotonic() - begun < 30


def test_odd_names_and_large_forms_are_refused(start):
    ann = start.browser("ann")
    for name in ("../../etc/passwd", "<img src=x>.sec", "a b.sec", ".sec", "x" * 200 + ".sec", "b.txt", "a/b.sec"):
        assert ann.draft(name, RULE.format("b"), "propose") == 400, name
    assert ann.draft("b.sec", "x" * (5 << 20), "check") == 413 and "4 MiB" in ann.words
    assert (
        ann.draft("b.sec", "x" * (1 << 20), "check", file=(io.BytesIO(b"x"), "c.sec")) == 400 and "1 MiB" in ann.words
    )
    assert ann.get("/rules/files/..%2f..%2fetc%2fpasswd") == 404 and ann.get("/rules/proposals/..%2f..") == 404
    assert ann.get("/rules/history/99999999999999999999") == 400 and ann.get("/rules/history/99") == 400
    assert not start.pending()


def test_only_root_and_the_user_of_the_page_are_heard(start):
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"do":"hello"}\'); s.shutdown(1); print(s.recv(9))'
    )
    path = start.place / "run/rules.sock"
    assert path.stat().st_mode & 0o007 == 0
    path.chmod(0o666)
    os.chmod(start.place, 0o755)
    try:
        argv = ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", script, path]
        done = subprocess.run(argv, capture_output=True, text=True, env=environment(), check=False)
    finally:
        path.chmod(0o660)
    assert done.stdout.strip() in ("b''", "") and "uid 65534 refused" in start.log.read_text()


@pytest.mark.parametrize(
    "octets",
    [b"{", b"[]", b'{"do":1}', b'{"do":"none"}', b'{"do":"login"}', pytest.param(b"[" * 100_000, id="deep")],
)
def test_the_desk_answers_nonsense_with_a_reason(start, octets):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(start.place / "run/rules.sock"))
        connection.sendall(octets)
        connection.shutdown(socket.SHUT_WR)
        told = json.loads(b"".join(iter(lambda: connection.recv(65536), b"")))
    assert told["error"] and told["who"] is None


def test_the_page_says_when_nobody_answers(tmp_path, settings):
    asking = pagekit.Browser(settings())
    assert asking.get("/rules") == 503 and "dre-rules serve" in asking.words


def test_killed_in_the_middle_it_begins_anew_and_nothing_is_half_done(start):
    ann, bob = start.browser("ann"), start.browser("bob")
    for n in range(4):
        identity = ann.propose("b.sec", RULE.format(f"beta{n}"))
        assert bob.get(of(identity)) == 200
        approving = threading.Thread(target=bob.again, args=(of(identity),), kwargs={"do": "approve"}, daemon=True)
        before = start.here()
        approving.start()
        time.sleep(0.02 * n)
        children = subprocess.run(
            ["pgrep", "-P", str(start.process.pid)], capture_output=True, text=True, check=False
        ).stdout.split()
        for pid in [start.process.pid, *map(int, children)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        start.process.wait()
        approving.join(20)
        after = start.here()
        assert after in (before, {**before, "b.sec": RULE.format(f"beta{n}")})
        start.start()
        assert bob.get("/rules") == 200
        versions = [switch.version for switch in start.history()]
        assert versions and all(one != other for one, other in itertools.pairwise(versions))
        start.reset({name: text.encode() for name, text in after.items()})
