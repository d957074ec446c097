# SPDX-License-Identifier: Apache-2.0
"""The page of the D-Box for administrators: roles, erasures that two must want, and the sign key."""

import re

import sitekit
from sitekit import fingerprint, states

site = sitekit.site


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
