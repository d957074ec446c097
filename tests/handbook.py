# SPDX-License-Identifier: Apache-2.0
"""What stands in the handbook and the README: fenced blocks, the commands in those of sh, and a reader who types them.

A block `sh run` is typed by a test, `sh sys` at a host of systems; `sh host1` and `sh host2` are typed as root, at the
host of that name. What is only `sh` no test types as it stands; tests/cli/test_handbook.py says which does the same.

The words are read as sh would read them, as far as the handbook's lines need it: pipes, lists, redirections,
assignments and `$(...)`. What is beyond that is refused, so that no line is left out.
"""

import pathlib
import re
import shlex
import subprocess
from dataclasses import dataclass

from conftest import ROOT, environment, program

HANDBOOK = ROOT / "docs/handbook"
PAGES = sorted(HANDBOOK.rglob("*.md"))
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OPERATORS = {";", "|", "&", "&&", "||"}
_BEFORE = {"sudo"}
TYPED = (
    "dre-app",
    "dre-bridge",
    "dre-event",
    "dre-rules",
    "dre-sys",
    "dscript",
    "dbox-init",
    "dbox-put",
    "dbox-get",
    "dbox-verify",
    "dbox-export",
    "dbox-audit",
    "dbox-user",
    "dbox-erase",
)


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


def commands(line, before=_BEFORE):
    """The commands in a line of sh, each a list of words, without *before*; those within `$(...)`, too."""
    inner = re.findall(r"\$\(([^()]*)\)", line)
    if "`" in line or "<<" in line:
        raise ValueError(f"not read here: {line}")
    for part in inner:
        yield from commands(part, before)
    line = re.sub(r"(?<=\s)[0-9](?=[<>])", "", line)  # of which descriptor
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found, skip = [], False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif word in _OPERATORS:
            found = _bare(found, before)
            if found:
                yield found
            found = []
        elif set(word) <= set("<>&"):
            skip = True
        else:
            found.append(word)


def _bare(words, before):
    """Without assignments and what only says as whom it is run."""
    while words and (words[0] in before or re.match(r"[A-Za-z_]+=", words[0])):
        words = words[1:]
    return words


def marked(page, *kinds):
    """The blocks of *page* that are to be run, in order: those of *kinds*, `sh run` without."""
    return [block for block in blocks(HANDBOOK / page) if block.kind in (kinds or ("sh run",))]


class Reader:
    """Somebody at a shell in the directory *place*, with the settings *config*, who types lines as they stand here.

    Only what a test must not touch is replaced: the settings, by programs of the same names in front of PATH that add
    --config; `sudo`, which root needs not; and `systemctl`, which notes what it was asked to start. *inside* are the
    words that run a program at the host where the shell is, when it is not this one.
    """

    def __init__(self, place, config, inside=()):
        self.place, self.inside = pathlib.Path(place), inside
        self.bin = self.place / "bin"
        self.bin.mkdir(parents=True)
        for name in TYPED:
            self.script(name, f'exec {program(name)} --config {shlex.quote(str(config))} "$@"')
        self.script("sudo", 'exec "$@"')
        self.script("systemctl", f'[ "$1 $2" = "enable --now" ] || exit 9\ntouch {self.place}/"started-$3"')

    def script(self, name, text):
        """Have *name* be a shell script of *text* for whoever types it."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def types(self, block, instead=None):
        """What the lines of *block* printed, each of which must end with 0; paths may stand *instead* of others."""
        text = block.text
        for old, new in (instead or {}).items():
            assert old in text
            text = text.replace(old, str(new))
        env = environment()
        env["PATH"] = f"{self.bin}:{env['PATH']}"
        done = subprocess.run(
            [*self.inside, "bash", "-e", "-o", "pipefail", "-c", f"cd {shlex.quote(str(self.place))}\n{text}"],
            env=env,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{block.where}: {done.stderr.decode()}"
        return done.stdout.decode()
