# SPDX-License-Identifier: Apache-2.0
"""What stands in the handbook and the README: fenced blocks, and the commands in those of sh.

The words are read as sh would read them, as far as the handbook's lines need it: pipes, lists, redirections,
assignments and `$(...)`. What is beyond that is refused, so that no line is left out.
"""

import re
import shlex
from dataclasses import dataclass

from conftest import ROOT

HANDBOOK = ROOT / "docs/handbook"
PAGES = sorted(HANDBOOK.rglob("*.md"))
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPERATORS = {";", "|", "&", "&&", "||"}
_BEFORE = {"sudo"}


@dataclass(frozen=True)
class Block:
    """A fenced block: what it is of (`sh run`, `yaml`, or nothing), its text, where it begins."""

    kind: str
    text: str
    where: str


def blocks(page):
    """The fenced blocks of *page*."""
    text = page.read_text()
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Block(match[1].strip(), match[2], f"{page.relative_to(ROOT)}:{line}")


def lines(block):
    """The lines of sh, each whole, without comments of their own."""
    joined = block.text.replace("\\\n", " ").splitlines()
    return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]


def commands(line):
    """The commands in a line of sh, each a list of words; those within `$(...)`, too."""
    inner = re.findall(r"\$\(([^()]*)\)", line)
    if "`" in line or "<<" in line:
        raise ValueError(f"not read here: {line}")
    for part in inner:
        yield from commands(part)
    line = re.sub(r"(?<=\s)[0-9](?=[<>])", "", line)  # of which descriptor
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found, skip = [], False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif word in _OPERATORS:
            found = _bare(found)
            if found:
                yield found
            found = []
        elif set(word) <= set("<>&"):
            skip = True
        else:
            found.append(word)


def _bare(words):
    """Without assignments and what only says as whom it is run."""
    while words and (words[0] in _BEFORE or re.match(r"[A-Za-z_]+=", words[0])):
        words = words[1:]
    return words
