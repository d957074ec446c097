# SPDX-License-Identifier: Apache-2.0
"""Sizes, rates, percents and durations as people write them, and the names we allow.

Every program begins with this module, so regular expressions, slow to load, are where one is used.
"""

from dre.errors import UsageError

_IN_NAMES = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_SIZE = r"(?ai)([0-9]+(?:\.[0-9]+)?)([KMGT]?)i?B?"
_PERCENT = r"([0-9]+(?:\.[0-9]+)?)%?"
_DURATION = r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|)"
_LONGEST = 86400.0 * 36500  # no clock of the kernel goes wrong with it
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def is_name(text: str) -> bool:
    """Whether it may name a container, snapshot or stream: `[a-z0-9][a-z0-9-]{0,30}`."""
    return 0 < len(text) < 32 and text[0] != "-" and _IN_NAMES.issuperset(text)


def name(text: str) -> str:
    """A name as is_name has it. Raises UsageError."""
    if not is_name(text):
        raise UsageError(f"{text!r} is not a name: 1 to 31 of a-z, 0-9 and '-', not beginning with '-'")
    return text


def size(text: str) -> int:
    """Bytes from `512M` and the like; K M G T count 1024. Raises UsageError."""
    import re

    match = re.fullmatch(_SIZE, text)
    if not match:
        raise UsageError(f"{text!r} is not a size: a number of bytes, or with K, M, G or T")
    octets = float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")
    if octets >= 1 << 63:  # what the kernel takes for a size, and more; it would make something else of it
        raise UsageError(f"{text[:40]!r} is not a size: more than any host has")
    return int(octets)


def percent(text: str) -> float:
    """Percent of one core from `50` or `50%`; may exceed 100. Raises UsageError."""
    import re

    match = re.fullmatch(_PERCENT, text)
    if not match or not 0 < float(match[1]) < 1e6:
        raise UsageError(f"{text[:40]!r} is not a percentage above 0 and below 1000000")
    return float(match[1])


def duration(text: str) -> float:
    """Seconds from `200ms`, `3s`, `10m`, `1h`, `2d` or a bare number. Raises UsageError."""
    import re

    match = re.fullmatch(_DURATION, text)
    if not match:
        raise UsageError(f"{text!r} is not a duration: a number with ms, s, m, h or d")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > _LONGEST:
        raise UsageError(f"{text[:40]!r} is not a duration of at most {_LONGEST / 86400:g}d")
    return seconds
