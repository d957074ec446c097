# SPDX-License-Identifier: Apache-2.0
"""The page of the D-Box: who may see and do what, and what it says of entries, asked over HTTPS as a browser asks."""

import base64
import concurrent.futures
import hashlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import ssl
import subprocess
import time
import urllib.parse
import zipfile

import dboxkit
import pytest
from browser import PASSWORD, Browser
from dre import witness

HOSTILE = (
    b"<script>alert(1)</script><img src=x onerror=alert(2)> '); DROP TABLE entry;-- {{7*7}} {%x%}"
    b"\x1b[2J\x1b]0;owned\x07 \xe2\x80\xaereversed\xe2\x80\xac \xc2\x85 &amp; \xf0\x9f\x98\x80\n"
)
ACCOUNTS = {"alice": "admin", "bob": "admin", "carol": "reader", "dave": "writer", "erin": "auditor"}


class Site:
    """A D-Box whose page is served, with accounts and some entries."""

    def __init__(self):
        self.port, self.sessions = dboxkit.free_port(), {}
        self.box = dboxkit.copy(DRE_DBOX_PAGE_LISTEN=f"127.0.0.1:{self.port}", DRE_DBOX_STREAMS="tiny:quota=100")
        self.witness = witness.make_key("witness.example/w1")
        (self.box.path / "witnesses").write_text(f"{self.witness.public.format()}\n")
        with self.box.conf.open("a") as settings:
            settings.write(f'DRE_DBOX_WITNESSES="{self.box.path}/witnesses"\n')
        for name, role in ACCOUNTS.items():
            self.box.good("dbox-user", name, "--role", role, stdin=PASSWORD.encode() + b"\n")
        self.box.start()
        self.hostile = self.put(HOSTILE)
        self.binary = self.put(bytes(range(256)) * 300)

    def put(self, octets, stream="app"):
        receipt = self.box.put(octets, stream=stream).decode()
        return int(re.search(r"^index (\d+)$", receipt, re.M)[1])

    def browser(self, account=None, client=None):
        made = Browser(self.box, self.port, client)
        if account is None:
            return made
        made.cookies = dict(self.sessions.get(account, {}))  # a password costs a tenth of a second
        if not made.cookies or made.get("/d_box_main.html").status != 200:
            made.cookies = {}
            self.sessions[account] = dict(made.login(account).cookies)
        return made

    def ui(self, query, *values):
        with sqlite3.connect(self.box.path / "state/dbox-ui/ui.sqlite") as database:
            return database.execute(query, values).fetchall()

    def anchor(self, note, cosignature):
        dboxkit.anchor(self.box, note, cosignature)

    def entries(self, kind):
        """The data of the D-Box's own entries of one type, as they lie in its database."""
        query = "SELECT octets FROM entry JOIN type ON entry.type = type.number WHERE name = ? ORDER BY entry.number"
        with sqlite3.connect(self.box.database) as database:
            return [json.loads(octets)["data"] for (octets,) in database.execute(query, (kind,))]

    def change(self, query, *values):
        """Change the database behind everybody's back."""
        with sqlite3.connect(self.box.database) as database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
            database.execute(query, values)
        database.close()


@pytest.fixture(scope="module")
def site():
    made = Site()
    yield made
    dboxkit.remove(made.box)


# --- Coming in ---


def test_nobody_sees_anything_without_a_role(site):
    browser = site.browser()
    answer = browser.get("/d_box_main.html")
    assert (answer.status, answer.headers["Location"]) == (303, "/ui/login")
    for path in ("/ui/search", "/ui/entries/0", "/ui/entries/0/octets", "/ui/admin", "/ui/audit", "/ui/chain.pem"):
        assert browser.get(path).status == 303
    assert browser.get("/ui/nothing").status == 404
    assert "root" not in browser.get("/ui/login").words


def test_role_never_comes_from_a_header(site):
    mark = fingerprint(site, "admin")
    for name in (
        "DRE_CLIENT",
        "DRE-Client",
        "Dre-Client",
        "X-DRE-Client",
        "X-Forwarded-User",
        "REMOTE_USER",
        "X-SSL-Cert",
    ):
        answer = site.browser().ask("GET", "/d_box_main.html", headers={name: mark, "X-Role": "admin", "role": "admin"})
        assert answer.status == 303


@pytest.mark.parametrize("name", ["reader", "auditor", "writer", "admin"])
def test_certificate_is_enough(site, name):
    browser = site.browser(client=name)
    answer = browser.get("/d_box_main.html")
    assert answer.status == 200 and f"{name} {name}" in answer.words
    assert "Log out" not in answer.words


RIGHTS = {
    "/ui/search": {"reader", "auditor", "admin"},
    "/ui/entries/0": {"reader", "auditor", "admin"},
    "/ui/entries/0/octets": {"reader"},
    "/ui/entries/0/zip": {"reader"},
    "/ui/entries/0/proof": {"reader", "auditor", "admin"},
    "/ui/record": {"writer", "admin"},
    "/ui/audit": {"auditor", "admin"},
    "/ui/admin": {"admin"},
    "/ui/head": set(dboxkit.CLIENTS.values()),
}


def test_rights_are_those_of_the_role(site):
    for role in ("reader", "auditor", "writer", "admin"):
        browser = site.browser(client=role)
        found = {path for path in RIGHTS if browser.get(path).status == 200}
        assert found == {path for path, roles in RIGHTS.items() if role in roles}, role


def test_login_logout_and_no_fixation(site):
    browser = site.browser()
    browser.get("/ui/login")
    planted = "A" * 43
    browser.cookies["__Host-dbox"] = planted
    browser.login("carol")
    first = browser.cookies["__Host-dbox"]
    assert first != planted and browser.get("/d_box_main.html").status == 200
    # A session that somebody else prepared is nobody's.
    other = site.browser()
    other.cookies["__Host-dbox"] = planted
    assert other.get("/d_box_main.html").status == 303
    browser.login("carol")
    assert browser.cookies["__Host-dbox"] != first, "a login did not make a new session"
    second = browser.cookies["__Host-dbox"]
    assert browser.send("/d_box_main.html", "/ui/logout").status == 303
    for old in (first, second):
        other.cookies["__Host-dbox"] = old
        assert other.get("/d_box_main.html").status == 303, "a session outlived its end"
    kept = site.ui("SELECT id FROM session")
    assert all(first not in row and second not in row for row in kept), "tokens lie in the database"


def test_sessions_end(site):
    browser = site.browser("carol")
    site.ui("UPDATE session SET seen = ?, begin = ?", time.time() - 16 * 60, time.time() - 3600)
    assert browser.get("/d_box_main.html").status == 303
    browser = site.browser("carol")
    site.ui("UPDATE session SET seen = ?, begin = ?", time.time(), time.time() - 9 * 3600)
    assert browser.get("/d_box_main.html").status == 303
    browser = site.browser("carol")
    site.box.good("dbox-user", "carol", "--role", "reader")  # registered anew
    assert browser.get("/d_box_main.html").status == 303
    browser = site.browser("carol")
    assert browser.get("/d_box_main.html").status == 200


def test_password_changes_and_is_on_record(site):
    site.box.good("dbox-user", "frank", "--role", "reader", stdin=PASSWORD.encode() + b"\n")
    browser = site.browser("frank")
    fields = {"old": PASSWORD, "new": "another long one", "again": "another long one"}
    assert browser.send("/d_box_main.html", "/ui/password", **{**fields, "again": "x"}).status == 400
    assert browser.send("/d_box_main.html", "/ui/password", **{**fields, "old": "wrong"}).status == 403
    assert browser.send("/d_box_main.html", "/ui/password", **fields).status == 303
    assert browser.get("/d_box_main.html").status == 303
    site.browser().login("frank", "another long one")
    assert {"account": "frank"} in site.entries("dbox.account.password")
    site.box.good("dbox-user", "frank", "--revoke")


def test_logins_are_limited_by_account_and_by_address(site):
    try:
        browser = site.browser()
        for _ in range(5):
            answer = browser.send("/ui/login", "/ui/login", name="erin", password="guess")
            assert answer.status == 403 and "Not let in" in answer.words
        answer = browser.send("/ui/login", "/ui/login", name="erin", password=PASSWORD)
        assert answer.status == 429 and int(answer.headers["Retry-After"]) > 0
        forged = {"X-Forwarded-For": "192.0.2.9"}
        hidden = browser.get("/ui/login").fields("/ui/login")
        assert browser.post("/ui/login", headers=forged, **hidden, name="erin", password=PASSWORD).status == 429
        site.browser("carol")  # others are not in its way
        site.ui("DELETE FROM attempt")
        form = site.browser().get("/ui/login")
        others = [site.browser() for _ in range(12)]
        for one in others:
            one.cookies["__Host-dbox-login"] = re.search("__Host-dbox-login=([^;]*)", form.headers["Set-Cookie"])[1]
        fields = {**form.fields("/ui/login"), "name": "dave", "password": "guess"}
        with concurrent.futures.ThreadPoolExecutor(12) as many:
            said = list(many.map(lambda one: one.post("/ui/login", **fields).status, others))
        assert sorted(said) == [403] * 5 + [429] * 7, "many at once get more guesses"
        site.ui("INSERT INTO attempt SELECT 'from 127.0.0.1', ? FROM password a, password b", time.time())
        assert browser.send("/ui/login", "/ui/login", name="carol", password=PASSWORD).status == 429
        assert {"account": "erin", "address": "127.0.0.1", "failures": 5} in site.entries("dbox.login.blocked")
    finally:
        site.ui("DELETE FROM attempt")


def test_unknown_and_revoked_accounts_hear_the_same(site):
    site.box.good("dbox-user", "gone", "--role", "admin", stdin=PASSWORD.encode() + b"\n")
    site.box.good("dbox-user", "gone", "--revoke")
    try:
        for name in ("nobody", "gone", "Not A Name", "carol"):
            answer = site.browser().send("/ui/login", "/ui/login", name=name, password="not the password")
            assert answer.status == 403 and "name or password is wrong" in answer.words
    finally:
        site.ui("DELETE FROM attempt")


# --- Forms ---


def test_forms_need_their_token(site):
    browser = site.browser("alice")
    hidden = browser.get("/ui/record").fields("/ui/record")
    good = {**hidden, "stream": "forms", "text": "mine"}
    foreign = site.browser("bob").get("/ui/record").fields("/ui/record")["csrf"]
    for token in (None, "", "x" * 64, foreign):
        fields = {key: value for key, value in good.items() if key != "csrf"}
        fields.update({} if token is None else {"csrf": token})
        for path in ("/ui/record", "/ui/admin/role", "/ui/admin/rotate", "/ui/audit/run", "/ui/logout", "/ui/password"):
            assert browser.post(path, **fields).status == 403, (token, path)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert browser.post("/ui/record", headers=headers, **good).status == 403
    assert site.browser().post("/ui/login", name="alice", password=PASSWORD).status == 403
    assert site.browser().post("/ui/login", name="alice", password="x" * 20_000).status == 413
    assert site.browser().post("/ui/login", name="alice", password="x" * 3_000_000).status == 413
    assert browser.post("/ui/record", {"file": bytes(18_000_000)}, **hidden).status == 413
    assert "Nothing found" in site.browser("carol").get("/ui/search?stream=forms").words
    assert browser.post("/ui/record", headers={"Origin": "null", "Sec-Fetch-Site": "same-origin"}, **good).status == 200


def test_recording_once_however_often_it_is_sent(site):
    browser = site.browser(client="writer")
    hidden = browser.get("/ui/record").fields("/ui/record")
    fields = {**hidden, "stream": "notes", "text": "one\r\ntwo <b>"}
    said = [browser.post("/ui/record", files={}, **fields).words for _ in range(2)]
    assert said[0] == said[1]
    number = re.search(r"are entry (\d+) of", said[0])[1]
    assert site.box.good("dbox-get", number, "--octets") == b"one\ntwo <b>"
    answer = browser.send("/ui/record", "/ui/record", files={"file": bytes(range(256))}, stream="notes")
    number = re.search(r"are entry (\d+) of", answer.words)[1]
    assert site.box.good("dbox-get", number, "--octets") == bytes(range(256))
    header = site.box.good("dbox-get", number).decode()
    assert "stream notes\n" in header and "seq 2\n" in header


def test_recording_is_refused_where_the_api_refuses(site):
    browser = site.browser("alice")
    for stream, text, status in (
        ("client", "forged registration", 403),
        ("dbox", "forged own entry", 403),
        ("../x", "x", 400),
        ("a\nseq 7", "x", 400),
        ("notes", "", 400),
        ("tiny", "x" * 200, 507),
    ):
        assert browser.send("/ui/record", "/ui/record", files={}, stream=stream, text=text).status == status, stream
    assert site.browser("carol").post("/ui/record", stream="notes", text="x").status == 403
    site.box.good("dbox-user", "bound", "--role", "writer", "--stream", "only", stdin=PASSWORD.encode() + b"\n")
    bound = site.browser("bound")
    assert bound.send("/ui/record", "/ui/record", files={}, stream="notes", text="x").status == 403
    assert bound.send("/ui/record", "/ui/record", files={}, stream="only", text="x").status == 200


# --- Entries ---


def test_hostile_octets_are_only_looked_at(site):
    answer = site.browser("carol").get(f"/ui/entries/{site.hostile}")
    assert answer.status == 200
    assert "<script>alert" not in answer.text and "<img src=x" not in answer.text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text and "{{7*7}}" in answer.words
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]", answer.text)
    assert r"\x1b [2J" in answer.words and r"\u202e" in answer.words and r"\x85" in answer.words
    assert "&amp;amp;" in answer.text and "😀" in answer.text
    found = site.browser("carol").get("/ui/search?text=%3Cscript%3E&type=%3Cb%3E").text
    assert "<b>" not in found and "<script>" not in found.replace("<script src", "")


def test_binary_and_long_octets_are_bounded(site):
    answer = site.browser("carol").get(f"/ui/entries/{site.binary}")
    assert "Not text" in answer.words and "00000010 10 11 12 13" in answer.words
    assert "The first 4 KiB of 75.0 KiB" in answer.words and len(answer.body) < 60_000
    number = site.put("é".encode() * 40_000)
    answer = site.browser("carol").get(f"/ui/entries/{number}")
    assert "The first 32 KiB" in answer.words and len(answer.body) < 100_000


def test_downloads_are_files_and_prove_the_entry(site, tmp_path):
    browser = site.browser("carol")
    answer = browser.get(f"/ui/entries/{site.hostile}/octets")
    assert answer.body == HOSTILE and answer.headers["Content-Type"] == "application/octet-stream"
    assert (
        answer.headers["Content-Disposition"].startswith("attachment")
        and "sandbox" in answer.headers["Content-Security-Policy"]
    )
    packed = browser.get(f"/ui/entries/{site.hostile}/zip").body
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path)
    root = site.box.certs / "root.pem"
    argv = ["--root", root, "--certs", tmp_path / "chain.pem", tmp_path / "entry.tlog-proof", tmp_path / "entry.octets"]
    assert b"verified" in site.box.good("dbox-verify", *argv)
    (tmp_path / "entry.octets").write_bytes(HOSTILE + b"x")
    assert site.box.run("dbox-verify", *argv).returncode == 1
    key = re.search(r"Certificate ([0-9a-f]{64})", browser.get(f"/ui/entries/{site.hostile}/signature").words)[1]
    assert key in browser.get("/d_box_main.html").words


def test_search_finds_and_pages(site):
    browser = site.browser("carol")
    line = b'{"time":"2026-01-01T00:00:00.000Z","source":"/x","type":"page.%d"}\n'
    lines = b"".join(line % at for at in range(30))
    site.box.good("dbox-put", "--batch", "--stream", "many", stdin=lines)
    rows = site.box.good("dbox-get", "--search", "stream=many", "--json").splitlines()
    numbers = [json.loads(row)["index"] for row in rows]
    first = browser.get("/ui/search?stream=many")
    assert re.findall(r'href="/ui/entries/(\d+)"', first.text) == [str(one) for one in numbers[:4:-1]]
    older = re.search(r'href="(/ui/search\?[^"]*before=[^"]*)" rel="next"', first.text)[1].replace("&amp;", "&")
    rest = browser.get(older)
    assert re.findall(r'href="/ui/entries/(\d+)"', rest.text) == [str(one) for one in numbers[4::-1]]
    assert 'rel="next"' not in rest.text
    fields = json.loads(site.box.good("dbox-get", "--search", "type=page.7", "--json"))
    digest = hashlib.sha256(site.box.good("dbox-get", str(numbers[7]), "--octets")).hexdigest()
    for query in (
        "type=page.7",
        f"digest={digest}",
        "text=page.7",
        f"stream=many&since={fields['time']}&until={fields['time']}",
    ):
        assert str(numbers[7]) in re.findall(r'href="/ui/entries/(\d+)"', browser.get(f"/ui/search?{query}").text), (
            query
        )
    assert browser.get("/ui/search?stream=none").words.count("Nothing found") == 1
    assert browser.get("/ui/search?since=2199-01-01").words.count("Nothing found") == 1
    assert browser.get(f"/ui/search?index={numbers[3]}").headers["Location"] == f"/ui/entries/{numbers[3]}"
    for query in (
        "digest=zz",
        "since=yesterday",
        "since=2026-99-99T10:00",
        "before=-1",
        "index=1e9",
        "stream=%27%20OR%201=1",
    ):
        assert browser.get(f"/ui/search?{query}").status == 400, query
    assert site.browser("erin").get("/ui/search?text=x").status == 400  # an auditor reads no octets


def states(answer):
    """The three states as the page shows them, and whether the whole page is red."""
    card = answer.text.split('id="states"')[1].split("</section>")[0]
    found = dict(re.findall(r'<li class="(\w+)"><span class="what">(\w+)</span>', card))
    pairs = re.findall(r'<li class="(\w+)"><span class="what">(\w+)</span>', card)
    assert len(found) <= len(pairs) == 3
    return {what: state for state, what in pairs}, "This entry does not verify" in answer.words


def test_states_are_separate_and_open_until_proven(site):
    found, red = states(site.browser("carol").get(f"/ui/entries/{site.hostile}"))
    assert found == {"included": "good", "signed": "good", "anchored": "open"} and not red
    browser = (
        site.browser("carol").get(f"/ui/entries/{site.hostile}").text.split('id="browser"')[1].split("</section>")[0]
    )
    assert re.findall(r'<li class="(\w+)" data-check', browser) == ["open"] * 4


def text_of(note):
    """What is signed of a tree head."""
    return note[: note.rindex("\n\n") + 1]


def test_anchors_are_believed_when_a_known_witness_signed(site, tmp_path):
    browser, now = site.browser("carol"), int(time.time())

    def anchored(number):
        answer = browser.get(f"/ui/entries/{number}")
        return states(answer)[0]["anchored"], answer.words

    def policy():
        return re.search(
            r"Anchors outside the box (. [a-zA-Z ]+?) (?:none|no|the|witness)", browser.get("/d_box_main.html").words
        )[1]

    assert policy() == "! too old"
    number = site.put(b"to be anchored")
    note = browser.get("/ui/head").text
    stranger = witness.make_key("witness.example/w2").cosign(text_of(note), now)
    site.anchor(note, stranger)
    assert anchored(number)[0] == "open" and "no key of this witness" in anchored(number)[1]
    of_another = site.witness.cosign(text_of(note).replace("time 2", "time 3"), now)
    site.anchor(note, of_another)
    assert anchored(number)[0] == "open" and "is wrong" in anchored(number)[1]
    assert policy() == "! too old"
    site.anchor(note, site.witness.cosign(text_of(note), now - 2 * 86400))
    assert anchored(number)[0] == "good" and anchored(site.hostile)[0] == "good"
    assert policy() == "! too old"
    late = site.put(b"after the anchor")
    assert anchored(late)[0] == "open"
    note = browser.get("/ui/head").text
    site.anchor(note, site.witness.cosign(text_of(note), now))
    assert anchored(late)[0] == "good" and policy() == "✓ verified"
    (tmp_path / "proof").write_bytes(browser.get(f"/ui/entries/{late}/proof?anchored=yes").body)
    (tmp_path / "octets").write_bytes(b"after the anchor")
    argv = ["--witnesses", site.box.path / "witnesses", tmp_path / "proof", tmp_path / "octets"]
    assert b"anchored by witness.example/w1" in site.box.good("dbox-verify", *argv)
    assert browser.get(f"/ui/entries/{site.put(b'newer')}/proof?anchored=yes").status == 404


# --- Audit ---


def test_audit_of_a_good_log(site):
    browser = site.browser("erin")
    assert browser.send("/ui/audit", "/ui/audit/run").status == 303
    deadline = time.monotonic() + 20
    while "running" in (said := browser.get("/ui/audit").words) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "nothing wrong" in said, said
    assert site.entries("dbox.audit.done")[-1]["bad"] is None


def test_proofs_and_heads_that_somebody_holds(site):
    browser, auditor = site.browser("carol"), site.browser("erin")
    proof = browser.get(f"/ui/entries/{site.hostile}/proof").body
    head = browser.get("/ui/head").body
    site.put(b"one more")

    def check(proof, octets=b""):
        return auditor.send("/ui/audit", "/ui/audit/check", files={"proof": proof, "octets": octets})

    said = check(proof, HOSTILE).words
    assert said.count("✓ verified") == 4 and "✗" not in said
    assert "they do not match the digest" in check(proof, HOSTILE + b"x").words
    assert "none were given" in check(proof).words
    said = check(head).words
    assert said.count("✓ verified") == 2
    other = re.sub(rb"\n\d+\n", b"\n1\n", head, count=1)
    assert "FAILED" in check(other).words
    for rubbish in (b"", b"\0\xff", b"<script>", proof[:-9], b"c2sp.org/tlog-proof@v1\n" + b"x" * 5000):
        assert check(rubbish).status == 400, rubbish[:20]
    newest = browser.get("/ui/head").text
    answer = auditor.send(
        "/ui/audit", "/ui/audit/compare", files={}, one=head.decode().replace("\n", "\r\n"), other=newest
    )
    assert answer.words.count("✓ verified") == 3, answer.words
    answer = auditor.send("/ui/audit", "/ui/audit/compare", files={}, one=other.decode(), other=newest)
    assert "FAILED" in answer.words


def test_fuzzed_proofs_and_questions_never_pass_and_never_fail(site):
    """DRE_CASES of them: one octet changed, put in or left out. No internal error, and none is wholly good."""
    auditor, chance = site.browser("erin"), random.Random(5)  # noqa: S311
    good = site.browser("carol").get(f"/ui/entries/{site.hostile}/proof").body
    hidden = auditor.get("/ui/audit").fields("/ui/audit/check")
    for case in range(int(os.environ.get("DRE_CASES", "40"))):
        octets = bytearray(good)
        at = chance.randrange(len(octets))
        octets[at : at + chance.choice((0, 1))] = bytes([chance.randrange(256)] * chance.choice((0, 1, 1)))
        if bytes(octets) == good:
            continue
        answer = auditor.post("/ui/audit/check", {"proof": bytes(octets), "octets": HOSTILE}, **hidden)
        assert answer.status in (200, 400), (case, bytes(octets))
        assert answer.status == 400 or "✗ FAILED" in answer.words, (case, at, bytes(octets))
        junk = "".join(chance.choice("0123456789abz%&=<>'\"+-:TZ.\x00é") for _ in range(chance.randrange(30)))
        key = chance.choice(("stream", "since", "until", "digest", "writer", "type", "index", "before", "x"))
        found = auditor.get(f"/ui/search?{key}={urllib.parse.quote(junk)}")
        assert found.status in (200, 303, 400), (key, junk)
        assert auditor.get(f"/ui/entries/{urllib.parse.quote(junk, safe='')}").status in (200, 303, 404, 308), junk


# --- Administration ---


def fingerprint(site, name):
    """How a client is named: a certificate by its own SHA-256, an account by that of its name."""
    crt = site.box.certs / "clients" / f"{name}.crt"
    if crt.exists():
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(crt.read_text())).hexdigest()
    return hashlib.sha256(f"dre-ui/v1\nuser {name}\n".encode()).hexdigest()


def test_roles_change_and_sessions_with_them(site):
    admin = site.browser("alice")
    answer = admin.send("/ui/admin", "/ui/admin/account", name="heidi", role="reader")
    password = re.search(r'class="secret">([^<]+)<', answer.text)[1]
    heidi = site.browser().login("heidi", password)
    mark = fingerprint(site, "heidi")
    assert admin.send("/ui/admin", "/ui/admin/role", fingerprint=mark, role="auditor").status == 303
    assert heidi.get("/d_box_main.html").status == 303
    heidi.login("heidi", password)
    assert heidi.get("/ui/audit").status == 200
    assert admin.send("/ui/admin", "/ui/admin/role", fingerprint=mark, role="revoked").status == 303
    assert heidi.get("/ui/audit").status == 303
    told = [(one["client"], one["role"]) for one in site.entries("dbox.client.registered") if one["client"] == "heidi"]
    assert told == [("heidi", "reader"), ("heidi", "auditor"), ("heidi", "revoked")]
    assert admin.send("/ui/admin", "/ui/admin/role", fingerprint=mark, role="root").status == 400
    assert admin.send("/ui/admin", "/ui/admin/role", fingerprint="0" * 64, role="admin").status == 404
    assert site.browser("carol").post("/ui/admin/role", fingerprint=mark, role="admin").status == 403


def test_last_admin_stays(site):
    admin = site.browser("alice")
    for name in ("bob", "admin"):
        answer = admin.send("/ui/admin", "/ui/admin/role", fingerprint=fingerprint(site, name), role="reader")
        assert answer.status == 303
    try:
        for role in ("reader", "revoked"):
            answer = admin.send("/ui/admin", "/ui/admin/role", fingerprint=fingerprint(site, "alice"), role=role)
            assert answer.status == 409 and "last admin" in answer.words
        assert admin.send("/ui/admin", "/ui/admin/account", name="alice", role="reader").status == 409
        assert admin.get("/ui/admin").status == 200
    finally:
        for name in ("bob", "admin"):
            admin.send("/ui/admin", "/ui/admin/role", fingerprint=fingerprint(site, name), role="admin")


def test_erasing_takes_two(site):
    number = site.put(b"a name that must go")
    alice, bob = site.browser("alice"), site.browser("bob")
    path = f"/ui/admin/erase/{number}"
    assert alice.send("/ui/admin", "/ui/admin/erase", entry=number, reason="no").status == 400
    assert alice.send("/ui/admin", "/ui/admin/erase", entry=number, reason="wish of the person").status == 303
    mine = alice.get("/ui/admin")
    assert "waits for another administrator" in mine.words
    token = mine.fields("/ui/admin/erase")["csrf"]
    assert alice.post(path, csrf=token, by=fingerprint(site, "alice")).status == 403
    assert bob.post(path, csrf=bob.get("/ui/admin").fields("/ui/admin/erase")["csrf"], by="0" * 64).status == 404
    assert site.box.good("dbox-get", str(number), "--octets") == b"a name that must go"
    assert bob.send("/ui/admin", path).status == 303
    answer = site.browser("carol").get(f"/ui/entries/{number}")
    assert "octets were erased" in answer.words and b"a name that must go" not in answer.body
    assert states(answer)[0]["included"] == states(answer)[0]["signed"] == "good"
    assert site.browser("carol").get(f"/ui/entries/{number}/zip").status == 404
    asked = [one for one in site.entries("dbox.erase.asked") if one["index"] == number]
    assert [(one["reason"], one["by"]) for one in asked] == [("wish of the person", fingerprint(site, "alice"))]
    assert any(one["entry"] == number for one in site.entries("dbox.erased"))


def test_sign_key_is_replaced_on_demand(site):
    admin, carol = site.browser("alice"), site.browser("carol")
    before = re.search(r"SHA-256 ([0-9a-f]{64})", admin.get("/ui/admin").words.split("Sign key")[1])[1]
    assert admin.send("/ui/admin", "/ui/admin/rotate").status == 303
    after = re.search(r"SHA-256 ([0-9a-f]{64})", admin.get("/ui/admin").words.split("Sign key")[1])[1]
    assert before != after
    assert states(carol.get(f"/ui/entries/{site.hostile}"))[0]["signed"] == "good"


# --- Tampering; these come last, for they ruin the log ---


def test_changed_octets_turn_the_page_red(site):
    number = site.put(b"amount 100")
    browser = site.browser("carol")
    assert not states(browser.get(f"/ui/entries/{number}"))[1]
    site.change("UPDATE entry SET octets = ? WHERE number = ?", b"amount 999", number)
    answer = browser.get(f"/ui/entries/{number}")
    found, red = states(answer)
    assert red and found == {"included": "bad", "signed": "good", "anchored": "open"}
    assert "octets do not match the digest" in answer.words and "amount 999" not in answer.words
    assert "The log was tampered with" in browser.get("/d_box_main.html").words
    # Digest and leaf changed as well: the entry agrees with itself, and the tree does not agree with it.
    header = site.box.run("dbox-get", str(site.binary)).stdout
    other = re.sub(rb"digest sha256 .*", b"digest sha256 " + hashlib.sha256(b"y").hexdigest().encode(), header)
    other = re.sub(rb"length \d+", b"length 1", other)
    leaf = hashlib.sha256(b"\0" + other).digest()[:8]
    digest = hashlib.sha256(b"y").digest()
    site.change("UPDATE entry SET octets=x'79', digest=?, leaf=? WHERE number=?", digest, leaf, site.binary)
    answer = browser.get(f"/ui/entries/{site.binary}")
    assert states(answer)[1] and "path does not lead to the root" in answer.words
    auditor = site.browser("erin")
    site.change("UPDATE entry SET octets = ? WHERE number = ?", b"amount 100", number)  # put the first one back
    assert auditor.send("/ui/audit", "/ui/audit/run").status == 303
    deadline = time.monotonic() + 20
    while "running" in (said := auditor.get("/ui/audit").words) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert f"first bad entry: {site.binary}" in said, said


def test_a_confirmed_tree_head_convicts_a_log_that_was_rewritten(site):
    """What a witness saw is not the log that is here: as after a fork, or a key that was stolen."""
    number = site.put(b"what the witness saw was another one")
    note = site.browser("carol").get("/ui/head").text
    lines = text_of(note).split("\n")
    seen = "\n".join([*lines[:2], base64.b64encode(bytes(32)).decode(), *lines[3:]])
    site.change("UPDATE head SET note = ? WHERE size = ?", seen + note[len(text_of(note)) :], int(lines[1]))
    site.anchor(note, site.witness.cosign(seen, int(time.time())))
    answer = site.browser("carol").get(f"/ui/entries/{number}")
    assert states(answer) == ({"included": "good", "signed": "good", "anchored": "bad"}, True)
    assert "has another entry here" in answer.words
    site.put(b"one more")  # the newest tree head is a good one again
    said = site.browser("carol").get("/d_box_main.html").words
    assert "Anchors outside the box ✗ FAILED" in said and "forked or changed" in said


def test_missing_entry_and_forged_head_are_seen(site):
    number = site.put(b"to be deleted")
    site.put(b"after it")
    site.change("DELETE FROM entry WHERE number = ?", number)
    answer = site.browser("carol").get(f"/ui/entries/{number}")
    assert states(answer)[1] and "missing from the database" in answer.words
    shutil.copy(site.box.certs / "root.pem", site.box.path / "root.kept")
    root = site.box.certs / "root.pem"
    argv = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=D-RE root"]
    other = subprocess.run(["openssl", *argv], capture_output=True, check=True).stdout
    root.chmod(0o644)
    root.write_bytes(other)
    browser = Browser(site.box, site.port)
    browser.context.load_verify_locations(site.box.path / "root.kept")
    found, red = states(browser.login("carol").get(f"/ui/entries/{site.hostile}"))
    assert red and found["included"] == "good" and found["signed"] == "bad"
