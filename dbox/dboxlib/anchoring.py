# SPDX-License-Identifier: Apache-2.0
"""Anchors of a log: witnesses and a time stamping authority are asked, and what they say is kept with the log.

What a witness says against the log - it saw a larger one, or another one of this size - is the finding that anchors are
for: TamperedError, and an event.
"""

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from dre import timestamp, witness
from dre.conf import Conf
from dre.errors import DreError, UsageError
from dre.evidence import FormatError, Head, Note, Receipt, VerifyError, parse_note
from dre.witness import Known

from dboxlib.log import Log

TIMEOUT = 20.0


class ForkError(VerifyError):
    """A third party saw another history of this log."""


def witnesses(conf: Conf) -> list[Known]:
    """The witnesses of the settings. Raises UsageError."""
    if conf.dbox_witnesses is None:
        return []
    try:
        text = conf.dbox_witnesses.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{conf.dbox_witnesses}: {getattr(error, 'strerror', None) or error}") from None
    found = witness.parse_keys(text, str(conf.dbox_witnesses))
    for one in found:
        if one.key.kind != witness.COSIGNATURE:
            raise UsageError(f"{conf.dbox_witnesses}: {one.key.name}: the key of a log, not of a witness")
    return found


def ask_witness(log: Log, one: Known, old: int) -> int:
    """Have *one* cosign the newest tree head, after one of *old* entries; returns the size. Raises DreError."""
    head, note = log.newest()
    status, body = _post(f"{one.url}/add-checkpoint", _request(log, old, head, note), "text/plain")
    if status == 409 and (seen := _size(body)) is not None and seen != old:
        old = seen
        if old <= head.size:
            status, body = _post(f"{one.url}/add-checkpoint", _request(log, old, head, note), "text/plain")
        else:
            raise ForkError(
                f"witness {one.key.name} saw {old} entries of this log, which has {head.size} now: cut back"
            )
    if status in (409, 422):
        raise ForkError(f"witness {one.key.name} saw another history of this log, up to {old} entries")
    if status != 200:
        raise DreError(f"witness {one.key.name}: {status} {body.decode(errors='replace').strip()[:200]}")
    try:
        lines = witness.signature_lines(body.decode())
    except (UnicodeDecodeError, FormatError) as error:
        raise DreError(f"witness {one.key.name}: {error}") from None
    if not witness.cosignatures(Note(note.text, lines), [one.key]):
        raise DreError(f"witness {one.key.name}: answered without its cosignature")
    line = next(line for line in lines if (line.name, line.key) == (one.key.name, one.key.id))
    log.anchor("witness", line.line().encode(), one.key.name, head.size)
    return head.size


def _request(log: Log, old: int, head: Head, note: Note) -> bytes:
    proof = log.consistency(old, head.size) if 0 < old < head.size else []
    return witness.request(old, proof, note)


def _size(body: bytes) -> int | None:
    text = body.decode(errors="replace").strip()
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _post(url: str, body: bytes, kind: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": kind})  # noqa: S310 - http or https, see witness
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return answer.status, answer.read(witness.LARGEST)
    except urllib.error.HTTPError as error:
        return error.code, error.read(witness.LARGEST)
    except (OSError, ValueError) as error:
        raise DreError(f"{url}: no answer: {error}") from None


def ask_authority(conf: Conf, log: Log) -> int:
    """Have the newest tree head stamped by the authority of the settings; returns its size. Raises DreError."""
    if conf.dbox_tsa_ca is None:
        raise UsageError("DRE_DBOX_TSA_URL without DRE_DBOX_TSA_CA: its tokens could not be checked")
    head, note = log.newest()
    token = timestamp.ask(conf.dbox_tsa_url, conf.dbox_tsa_ca, note.text)
    log.anchor("rfc3161", token, urlsplit(conf.dbox_tsa_url).hostname or "", head.size)
    return head.size


def cosigned(note: Note, anchors: Sequence[tuple[str, bytes]]) -> Note:
    """*note* with the cosignature lines of its anchors (kind, octets)."""
    lines = list(note.signatures)
    for kind, octets in anchors:
        if kind == "witness":
            lines += [line for line in witness.signature_lines(octets.decode()) if line not in lines]
    return Note(note.text, tuple(lines[:64]))


def receipt(store: Any, log: Log, number: int) -> Receipt | None:
    """The receipt of an entry under the newest tree head that witnesses cosigned, with their lines, if there is one."""
    said = [(kind, size, value) for kind, _, size, _, value in store.anchors(number) if kind == "witness"]
    size = max((size for _, size, _ in said), default=0)
    found = next((note for at, note in store.heads(size - 1, 1) if at == size), None) if said else None
    if found is None:
        return None
    note = cosigned(parse_note(found), [(kind, value) for kind, at, value in said if at == size])
    newest = log.receipt(number)
    return Receipt(newest.header, number, tuple(log.inclusion(number, size)), note, newest.salt)
