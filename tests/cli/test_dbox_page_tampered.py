# SPDX-License-Identifier: Apache-2.0
"""The page of the D-Box when the log below it was changed: it says so and says where."""

import base64
import hashlib
import re
import shutil
import subprocess
import time

import dboxkit
import pytest
from browser import Browser
from sitekit import Site, states, text_of


@pytest.fixture(scope="module")
def site():
    """One of its own: these tests ruin the log."""
    made = Site()
    yield made
    dboxkit.remove(made.box)


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
