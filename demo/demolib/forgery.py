# SPDX-License-Identifier: Apache-2.0
"""Falsified copies of one piece of evidence, each wrong in one thing. Pure functions over octets.

A change keeps the form: base64 is decoded, one octet is changed, and it is encoded again, so that what refuses the
copy is the mathematics and not a spelling mistake.
"""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Case:
    """What dbox-verify gets, and what is wrong with it."""

    name: str
    root: bytes
    chain: bytes
    receipt: bytes
    octets: bytes


def cases(true: Case, foreign_root: bytes, foreign_chain: bytes) -> Iterator[Case]:
    """The falsified copies of *true*, which itself verifies."""

    def receipt(name: str, pattern: str, change: Callable[[bytes], bytes]) -> Case:
        return replace(true, name=name, receipt=_within(true.receipt, pattern, change))

    yield replace(true, name="one octet of the record", octets=_flip(true.octets))
    yield receipt("one digit of the header", r"(?m)^extra (\S+)$", _next_digit)
    for number in range(len(path(true.receipt))):
        before = rf"(?m)^index \d+\n(?:\S+\n){{{number}}}"
        yield receipt(f"one octet of the path, hash {number + 1}", before + r"(\S+)$", _flip)
    yield receipt("one octet of the tree head's root", r"\n\n\S+\n\d+\n(\S+)\n", _flip)
    yield replace(true, name="one more leaf in the tree head", receipt=_grown(true.receipt))
    for number in range(true.receipt.count("\n— ".encode())):
        before = rf"(?:[^—]*—){{{number}}}[^—]*— \S+ "
        yield receipt(f"one octet of signature {number + 1}", r"\A" + before + r"(\S+)\n", _flip)
    for number, certificate in enumerate(certificates(true.chain)):
        forged = true.chain.replace(certificate, _within(certificate, r"-\n([^-]+)\n-", _flip_last, wrap=64))
        yield replace(true, name=f"one octet of certificate {number + 1}", chain=forged)
    yield replace(
        true, name="one octet of the root certificate", root=_within(true.root, r"-\n([^-]+)\n-", _flip_last, wrap=64)
    )
    yield replace(true, name="a chain from another root", chain=foreign_chain)
    yield replace(true, name="another root", root=foreign_root)
    yield replace(true, name="another root and its chain", root=foreign_root, chain=foreign_chain)
    for name in ("receipt", "octets", "chain", "root"):
        yield replace(true, name=f"an empty file as {name}", **{name: b""})


def path(receipt: bytes) -> list[str]:
    """The hashes of the path in a receipt."""
    top = receipt.decode().partition("\n\n")[0].split("\n")
    return top[next(number for number, line in enumerate(top) if line.startswith("index ")) + 1 :]


def certificates(pem: bytes) -> list[bytes]:
    """The certificates of a PEM file."""
    return re.findall(rb"-----BEGIN CERTIFICATE-----\n.*?-----END CERTIFICATE-----\n", pem, re.DOTALL)


def _within(octets: bytes, pattern: str, change: Callable[[bytes], bytes], wrap: int = 0) -> bytes:
    """*octets* with the base64 that *pattern* catches changed."""
    text = octets.decode()
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"nothing to falsify: {pattern} is not in it")
    changed = base64.b64encode(change(base64.b64decode(match[1]))).decode()
    if wrap:
        changed = "\n".join(changed[start : start + wrap] for start in range(0, len(changed), wrap))
    return (text[: match.start(1)] + changed + text[match.end(1) :]).encode()


def _flip(octets: bytes) -> bytes:
    """One bit changed in the octet in the middle."""
    middle = len(octets) // 2
    return octets[:middle] + bytes([octets[middle] ^ 1]) + octets[middle + 1 :]


def _flip_last(octets: bytes) -> bytes:
    """One bit changed in the last octet: in a certificate that is its signature."""
    return octets[:-1] + bytes([octets[-1] ^ 1])


def _next_digit(octets: bytes) -> bytes:
    """The last digit of the header's time changed: the same form, another content."""
    return re.sub(rb"(?m)(^time .*)(\d)Z$", lambda match: match[1] + b"%dZ" % ((int(match[2]) + 1) % 10), octets)


def _grown(receipt: bytes) -> bytes:
    """The number of leaves in the tree head raised by one."""
    return re.sub(rb"(\n\n\S+\n)(\d+)\n", lambda match: match[1] + b"%d\n" % (int(match[2]) + 1), receipt, count=1)
