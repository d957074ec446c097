# SPDX-License-Identifier: Apache-2.0
"""RFC 3161 time stamps of tree heads, by openssl ts(1): asked for by HTTP, and checked under a given CA.

What is stamped is the text of a tree head as it is signed. A token says that this text was there at its time.
"""

import re
import tempfile
import urllib.error
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

from dre import run
from dre.errors import DreError
from dre.evidence import VerifyError

LARGEST = 1 << 17  # octets of an answer
TIMEOUT = 20.0


def ask(url: str, ca: Path, text: str) -> bytes:
    """The authority's answer for *text*, checked. Raises DreError."""
    with tempfile.TemporaryDirectory(prefix="dre-ts-") as directory:
        data, query = Path(directory) / "text", Path(directory) / "query"
        data.write_text(text)
        run.run(
            ["openssl", "ts", "-query", "-data", str(data), "-sha256", "-cert", "-out", str(query)], timeout=TIMEOUT
        )
        headers = {"Content-Type": "application/timestamp-query"}
        asked = urllib.request.Request(url, query.read_bytes(), headers)  # noqa: S310 - http or https by dre.conf
        try:
            with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:  # noqa: S310
                token = answer.read(LARGEST + 1)
        except (OSError, ValueError) as error:
            raise DreError(f"{url}: no time stamp: {error}") from None
    check(ca, text, token)
    return bytes(token)


def check(ca: Path, text: str, token: bytes) -> str:
    """The time of a token for *text*, in event time form. Raises VerifyError."""
    with tempfile.TemporaryDirectory(prefix="dre-ts-") as directory:
        data, reply = Path(directory) / "text", Path(directory) / "reply"
        data.write_text(text)
        reply.write_bytes(token)
        try:
            run.run(
                ["openssl", "ts", "-verify", "-data", str(data), "-in", str(reply), "-CAfile", str(ca)], timeout=TIMEOUT
            )
            shown = run.run(["openssl", "ts", "-reply", "-in", str(reply), "-text"], timeout=TIMEOUT)
        except DreError as error:
            if error.code != DreError.code:
                raise
            raise VerifyError(f"time stamp: does not verify under {ca}") from None
    match = re.search(rb"^Time stamp: (\w+ +\d+ [\d:]+)(?:\.\d+)? (\d{4}) GMT$", shown.stdout, re.MULTILINE)
    if not match:
        raise VerifyError("time stamp: openssl tells no time of it")
    when = datetime.strptime(b" ".join(match.groups()).decode(), "%b %d %H:%M:%S %Y").replace(tzinfo=timezone.utc)
    return when.strftime("%Y-%m-%dT%H:%M:%S.000Z")
