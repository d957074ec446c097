# SPDX-License-Identifier: Apache-2.0
"""Changes of the sign key, as an offline verifier may know them: which key may sign tree heads up to which size.

A certificate bounds a key in time only, and its holder says what the time is. The entry of the change bounds its size:
its receipt is under the last tree head that the old key signed, so it is the old key itself that says where it ended.
Who has these receipts refuses a larger tree head by the old key, and a smaller one by the new. Who has them not cannot
know; and what the old key signed below that size before it was destroyed, no receipt of the log itself can tell apart.
"""

import base64
import binascii
import json
from collections.abc import Iterable

from dre import evidence
from dre.evidence import FormatError, Receipt, VerifyError
from dre.trust import Trust

VERSION = "dre-handovers/v1"
TYPE = "dbox.key.rotated"
STREAM = "dbox"


def format(proofs: Iterable[tuple[Receipt, bytes]]) -> bytes:
    """Receipts and octets of changes as one text: two lines of base64 each."""
    lines = [VERSION]
    for receipt, octets in proofs:
        lines += [base64.b64encode(receipt.format().encode()).decode(), base64.b64encode(octets).decode()]
    return ("\n".join(lines) + "\n").encode()


def parse(octets: bytes) -> list[tuple[Receipt, bytes]]:
    """The receipts and octets in this text. Raises FormatError."""
    lines = octets.decode(errors="replace").split("\n")
    if lines[0] != VERSION or lines[-1] or len(lines) % 2:
        raise FormatError(f"not changes of a sign key: expected {VERSION!r} and two lines for each")
    try:
        values = [base64.b64decode(line, validate=True) for line in lines[1:-1]]
    except (binascii.Error, ValueError):
        raise FormatError("not changes of a sign key: not base64") from None
    return [(evidence.parse_receipt(one), two) for one, two in zip(values[::2], values[1::2], strict=True)]


def learn(keys: Trust, proofs: Iterable[tuple[Receipt, bytes]]) -> None:
    """Have *keys* bound by what is proven. Raises VerifyError for what is not, or contradicts another one."""
    for receipt, octets in proofs:
        header, head = keys.check(receipt, octets)
        old, new = _named(octets)
        wrong = VerifyError(f"change of the sign key, entry {receipt.index}")
        key = keys.certified(old)
        if header.stream != STREAM or key is None or header.writer != key.issuer:
            raise VerifyError(f"{wrong}: it is not the owner of the log who says so")
        if old not in keys.signers(receipt.note) or head.size != receipt.index + 1:
            raise VerifyError(f"{wrong}: it is not under the last tree head of the old key")
        for known, name in ((keys.last, old), (keys.first, new)):
            if known.setdefault(name, head.size) != head.size:
                raise VerifyError(f"{wrong}: there is another one for the same key, at {known[name]} entries")


def _named(octets: bytes) -> tuple[str, str]:
    """Fingerprints of the old and the new key."""
    try:
        event = json.loads(octets)
        if event["type"] != TYPE:
            raise ValueError(event["type"])
        return str(event["data"]["old"]), str(event["data"]["new"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise VerifyError("an entry that does not tell of a change of the sign key") from None
