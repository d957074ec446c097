# SPDX-License-Identifier: Apache-2.0
"""Parts of the page of the D-Box that need no box: octets for the eye, searching backwards, colours, no Flask."""

import pathlib
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

DBOX = pathlib.Path(__file__).parents[2] / "dbox"
sys.path.insert(0, str(DBOX))
from dboxlib import page  # noqa: E402
from dboxlib.page import find, show  # noqa: E402
from dre.errors import UsageError  # noqa: E402


@given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
def test_nothing_that_acts_is_shown(octets):
    shown = show.octets(octets)
    for piece in shown.pieces:
        for letter in piece.text:
            assert letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), piece
        assert not piece.named or re.fullmatch(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}", piece.text)
    assert bytes.fromhex("".join(line[10:58] for line in shown.hex)) == octets[: show.HEX]
    if shown.readable:  # nothing is lost: the names stand for what they name
        name = r"\\[xuU]([0-9a-f]{2,8})"
        told = "".join(chr(int(re.fullmatch(name, one.text)[1], 16)) if one.named else one.text for one in shown.pieces)
        assert told.encode() == octets


def test_hex_is_that_of_hexdump():
    octets = bytes(range(40))
    assert (
        list(show.dump(octets))[0] == "00000000  00 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f  |................|"
    )
    assert (
        list(show.dump(octets))[-1].rstrip()
        == "00000020  20 21 22 23 24 25 26 27                           | !\"#$%&'|"
    )


def test_text_is_cut_between_characters():
    octets = "é".encode() * show.TEXT
    assert show.text_of(octets[1:]) is None
    assert show.text_of(b"a" + octets) == "a" + "é" * ((show.TEXT - 1) // 2)
    assert show.text_of(b"\xff" * 10) is None and show.text_of(b"") == ""


def test_plain_is_one_line():
    assert show.plain("a\x1b[0m\nb\u202e") == r"a\x1b[0m\x0ab\u202e"
    assert show.plain("x" * 300, 5) == "xxxxx…"


class Rows:
    """What stands for `dboxlib.searching` below the page: the promise of its search, over a list."""

    def __init__(self, matching, cut=10**9):
        self.matching, self.cut = matching, cut

    def find(self, store, wanted, limit):
        found = [one for one in self.matching if wanted["after"] < one < wanted["before"]]
        yield from ({"index": one} for one in found[:limit])
        if wanted["before"] - wanted["after"] > self.cut and len(found) < limit:
            yield {"index": wanted["before"] - 1, "more": True}


@given(st.sets(st.integers(0, 20_000), max_size=200), st.sampled_from([10**9, 5_000]))
def test_search_backwards_finds_all_once(numbers, cut):
    seen, before = [], None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(find, "searching", Rows(sorted(numbers), cut))
        while True:
            found = find.find(None, 20_001, find.Wanted(), before, True)
            assert len(found.rows) <= find.ROWS and not found.cut
            seen += [row["index"] for row in found.rows]
            before = found.before
            if before is None:
                break
    assert seen == sorted(numbers, reverse=True)


def test_search_ends_when_it_takes_too_long(monkeypatch):
    monkeypatch.setattr(find, "PATIENCE", -1)
    found = find.find(None, 10_000, find.Wanted(text="x"), None, True)
    assert (found.cut, found.before, found.rows) == (True, 10_000, [])


@pytest.mark.parametrize(
    "given, wanted",
    [
        ({"since": "2026-01-31"}, "2026-01-31T00:00:00.000Z"),
        ({"since": "2026-01-31T12:30"}, "2026-01-31T12:30:00.000Z"),
        ({"until": "2026-01-31"}, "2026-01-31T23:59:59.999Z"),
        ({"until": "2026-01-31 12:30Z"}, "2026-01-31T12:30:59.999Z"),
        ({"until": "2026-01-31T12:30:01.002Z"}, "2026-01-31T12:30:01.002Z"),
    ],
)
def test_times_are_completed(given, wanted):
    made = find.wanted(given)
    assert wanted in (made.since, made.until)


@pytest.mark.parametrize("given", [{"since": "2026-02-30"}, {"until": "12:30"}, {"digest": "x"}, {"stream": "A b"}])
def test_what_cannot_be_searched_is_refused(given):
    with pytest.raises(UsageError):
        find.wanted(given)


def test_without_flask_there_is_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "flask", None)
    for name in [name for name in sys.modules if name.startswith("dboxlib.page.") and name.endswith(("app", "access"))]:
        monkeypatch.delitem(sys.modules, name)
    answers = []
    body = page.make(None, None, None)({"PATH_INFO": page.FRONT}, lambda status, headers: answers.append(status))
    assert answers == ["503 Service Unavailable"] and b"apt-get install python3-flask" in b"".join(body)


def test_colours_can_be_read():
    """Contrast of at least 4.5 (WCAG 2.1, 1.4.3), light and dark."""
    sheet = (DBOX / "dboxlib/page/static/style.css").read_text()
    themes = re.findall(r":root \{(.*?)\}", sheet, re.S)[:2]
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})", theme))

        def light(name, colours=colours):
            value = colours[name][1:]
            value = "".join(letter * 2 for letter in value) if len(value) == 3 else value
            parts = [int(value[at : at + 2], 16) / 255 for at in (0, 2, 4)]
            parts = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
            return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

        pairs = [(one, ground) for one in ("ink", "soft", "accent") for ground in ("ground", "card")]
        pairs += [(one, f"{one}-ground") for one in ("good", "bad", "wait", "open")]
        pairs += [("on-accent", "accent"), ("ink", "code"), ("ink", "open-ground")]
        for one, ground in pairs:
            high, low = sorted((light(one), light(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (one, ground)


def test_nothing_of_the_page_is_inline_or_from_elsewhere():
    for path in (DBOX / "dboxlib/page/templates").glob("*.html"):
        text = path.read_text()
        assert not re.search(
            r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?![^>]*\ssrc=)|\|safe|autoescape false", text
        ), path
        assert not re.search(r"(src|href|action)=\"(https?:)?//", text), path
    assert not re.search(r"url\(|@import|innerHTML|eval\(|document\.write", sheet_and_script()), (
        "style.css or verify.js"
    )


def sheet_and_script():
    return "".join(
        path.read_text() for path in (DBOX / "dboxlib/page/static").iterdir() if path.suffix in (".css", ".js")
    )
