# SPDX-License-Identifier: Apache-2.0
"""The page of the D-Box: its audit, and proofs and tree heads that somebody holds."""

import os
import random
import re
import time
import urllib.parse

import sitekit
from sitekit import HOSTILE

site = sitekit.site


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
