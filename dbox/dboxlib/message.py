# SPDX-License-Identifier: Apache-2.0
"""The messages between the sequencer's process and everybody else's, over a Unix socket.

A message is its length in 4 octets and then parts, each after its own length: the first one is JSON, the others are
octets. A connection carries one question at a time.
"""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dre import dbox
from dre.conf import Conf

LARGEST = dbox.LARGEST + 4 * 1024 * 1024  # octets of a message
LENGTH = struct.Struct(">I")
_encode = json.JSONEncoder(separators=(",", ":")).encode


def place(conf: Conf) -> Path:
    """Where the sequencer's socket is."""
    return conf.core_run_dir / "dbox" / "sequencer.sock"


def build(fields: Mapping[str, Any], parts: Iterable[bytes] = ()) -> bytes:
    """A message of *fields* and *parts*, with its length."""
    body = dbox.frame([_encode(fields).encode(), *parts])
    return LENGTH.pack(len(body)) + body


def read(body: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """JSON and parts of a message. Raises DreError, ValueError."""
    parts = dbox.unframe(body)
    fields = json.loads(parts[0].decode()) if parts else None
    if not isinstance(fields, dict):
        raise ValueError("not a message")
    return fields, parts[1:]
