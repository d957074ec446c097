# SPDX-License-Identifier: Apache-2.0
"""Public ssh keys from a file that a user names: lines for authorized_keys, each shown to be one."""

import base64
import binascii
import re
from pathlib import Path

from dre.errors import NotFoundError, UsageError

_KIND = r"(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
_LINE = re.compile(rf"({_KIND}) ([A-Za-z0-9+/]+={{0,2}})(?: ([ -~]*))?")


def read(file: Path) -> list[str]:
    """The keys in *file*, one a line; options before a key are not taken. Raises UsageError and NotFoundError."""
    try:
        text = file.read_bytes()[: 1 << 20].decode()
    except FileNotFoundError:
        raise NotFoundError(f"{file}: no such file") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not a public ssh key") from None
    if "PRIVATE KEY" in text:
        raise UsageError(f"{file}: a private key; give the public one, {file}.pub")
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    for number, line in enumerate(keys, 1):
        if not _is_key(line):
            raise UsageError(f"{file}: not a public ssh key: entry {number}")
    if not keys:
        raise UsageError(f"{file}: no public ssh key in it")
    return keys


def _is_key(line: str) -> bool:
    """Whether the octets in *line* are fields to their end, the first naming the kind of key that the line does."""
    match = _LINE.fullmatch(line)
    if not match:
        return False
    try:
        octets = base64.b64decode(match[2], validate=True)
    except binascii.Error:
        return False
    fields = []
    while octets:
        length = int.from_bytes(octets[:4], "big")
        fields.append(octets[4 : 4 + length])
        if len(fields[-1]) != length or len(octets) < 4:
            return False
        octets = octets[4 + length :]
    return len(fields) > 1 and fields[0] == match[1].encode()
