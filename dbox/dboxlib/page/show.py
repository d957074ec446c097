# SPDX-License-Identifier: Apache-2.0
"""Octets of strangers as something that can be looked at: bounded, and with nothing in it that acts.

HTML is escaped by the templates; here goes what would act on a terminal, on the order of letters or on the eye:
control characters, ESC, direction marks, invisible characters. Each is named instead.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

TEXT = 32 * 1024  # octets shown as text
HEX = 4 * 1024  # octets shown in hex
_KEEP = "\n\t"


@dataclass(frozen=True)
class Piece:
    """A run of text, or the name of one character that is not shown as itself."""

    text: str
    named: bool = False


@dataclass(frozen=True)
class Shown:
    """The octets of an entry for the eye."""

    length: int
    readable: bool  # they are UTF-8
    pieces: list[Piece]
    hex: list[str]

    @property
    def text_cut(self) -> bool:
        """Whether there is more text than is shown."""
        return self.length > TEXT

    @property
    def hex_cut(self) -> bool:
        """Whether there are more octets than are shown in hex."""
        return self.length > HEX


def octets(value: bytes) -> Shown:
    """*value* as text and in hex."""
    text = text_of(value)
    return Shown(len(value), text is not None, list(pieces(text or "")), list(dump(value[:HEX])))


def text_of(value: bytes, most: int = TEXT) -> str | None:
    """The first *most* octets as text; None when they are not UTF-8."""
    head = value[:most]
    try:
        return head.decode()
    except UnicodeDecodeError as error:
        if len(value) > most and error.end >= len(head) - 3 and error.reason == "unexpected end of data":
            return head[: error.start].decode()  # the cut went through a character
        return None


def pieces(text: str) -> Iterator[Piece]:
    """The text in runs, what must not act named."""
    run: list[str] = []
    for letter in text:
        if harmless(letter):
            run.append(letter)
            continue
        if run:
            yield Piece("".join(run))
            run = []
        yield Piece(name(letter), True)
    if run:
        yield Piece("".join(run))


def harmless(letter: str) -> bool:
    """Whether a character may be shown as itself."""
    return letter in _KEEP or (letter.isprintable() and unicodedata.category(letter) not in ("Cf", "Co"))


def name(letter: str) -> str:
    """How a character that is not shown is written."""
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def plain(text: str, most: int = 200) -> str:
    """One line of a stranger's *text*, for a table cell or a message."""
    short = text[:most] + ("…" if len(text) > most else "")
    return "".join(letter if harmless(letter) and letter not in _KEEP else name(letter) for letter in short)


def dump(value: bytes) -> Iterator[str]:
    """Lines as `hexdump -C` prints them."""
    for start in range(0, len(value), 16):
        row = value[start : start + 16]
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        seen = "".join(chr(octet) if 32 <= octet < 127 else "." for octet in row)
        yield f"{start:08x}  {left:<23}  {right:<23}  |{seen}|"


def size(number: int | float) -> str:
    """A number of octets for people."""
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def span(seconds: float) -> str:
    """A length of time for people."""
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s"
