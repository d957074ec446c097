# SPDX-License-Identifier: Apache-2.0
"""The page of the D-Box: recording, looking at, finding and fetching entries, and the three states of each."""

import hashlib
import io
import json
import re
import time
import zipfile

import sitekit
from browser import PASSWORD
from dre import witness
from sitekit import HOSTILE, states, text_of

site = sitekit.site


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


def test_states_are_separate_and_open_until_proven(site):
    found, red = states(site.browser("carol").get(f"/ui/entries/{site.hostile}"))
    assert found == {"included": "good", "signed": "good", "anchored": "open"} and not red
    browser = (
        site.browser("carol").get(f"/ui/entries/{site.hostile}").text.split('id="browser"')[1].split("</section>")[0]
    )
    assert re.findall(r'<li class="(\w+)" data-check', browser) == ["open"] * 4


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
    (tmp_path / "chain").write_bytes(browser.get("/ui/chain.pem").body)  # the sign key may be another one by now
    certs = ["--certs", tmp_path / "chain", "--witnesses", site.box.path / "witnesses"]
    argv = [*certs, tmp_path / "proof", tmp_path / "octets"]
    assert b"anchored by witness.example/w1" in site.box.good("dbox-verify", *argv)
    assert browser.get(f"/ui/entries/{site.put(b'newer')}/proof?anchored=yes").status == 404
