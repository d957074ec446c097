# SPDX-License-Identifier: Apache-2.0
"""Events of other hosts: which certificates may send them, and the packets in which the web server hands them over.

A packet is `#from NAME` and then lines, all separated by newlines. The answer is a JSON object: *kept* and *refused*,
how many lines were spooled (or had been, under the same id) and were not; *reasons*, pairs of a line's number in the
packet, from 0, and why it was refused; *full*, why none could be spooled, or null. Only the user of the web server,
and root, are believed to know the NAME of a certificate's holder.
"""

import json
import pwd
import re
from collections.abc import Sequence
from pathlib import Path

WEB = "dre-web"  # the user of the web server's process
FROM = b"#from "
PACKET = 128 * 1024  # octets of a packet; a socket's send buffer holds more (socket(7), wmem_default)
LINES = 500  # in a packet
TOLD = 20  # refusals that an answer gives reasons for
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def web_users() -> frozenset[int]:
    """The users who may hand over events of other hosts."""
    try:
        return frozenset({0, pwd.getpwnam(WEB).pw_uid})
    except KeyError:
        return frozenset({0})


def allowed(path: Path) -> frozenset[str]:
    """The names in the file *path*, one a line, `#` begins a comment; none when it is not there."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return frozenset()
    names = (line.partition("#")[0].strip() for line in lines)
    return frozenset(name for name in names if NAME.fullmatch(name))


def pack(name: str, lines: Sequence[bytes]) -> bytes:
    """The packet of *lines*, none of which has a newline, from the holder of a certificate."""
    return FROM + b"\n".join([name.encode(), *lines])


def unpack(packet: bytes) -> tuple[str, list[bytes]]:
    """The name and the lines of a packet."""
    first, *lines = packet.removeprefix(FROM).split(b"\n")
    return first.decode(errors="replace"), lines


def answer(reasons: Sequence[str | None], full: str | None) -> bytes:
    """The answer for lines that were kept (None) or refused (why)."""
    refused = [(number, reason) for number, reason in enumerate(reasons) if reason is not None]
    told = {"kept": len(reasons) - len(refused), "refused": len(refused), "reasons": refused[:TOLD], "full": full}
    return json.dumps(told).encode()
