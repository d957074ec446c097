# SPDX-License-Identifier: Apache-2.0
"""The page of the D-Box: who may see and do what, sessions, passwords and forms, asked over HTTPS as a browser asks."""

import concurrent.futures
import re
import time

import dboxkit
import pytest
import sitekit
from browser import PASSWORD
from sitekit import fingerprint

site = sitekit.site


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
