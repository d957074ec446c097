# SPDX-License-Identifier: Apache-2.0
"""What the settings say of a stream of the D-Box: how much, how fast, how long, how important, how signed.

Only reads and checks the text; `dboxlib.streams` holds to it.
"""

import functools
import re
from dataclasses import dataclass, replace
from typing import Any

from dre import units
from dre.errors import UsageError

OTHERS = "*"  # the line for streams that are not named
SIGNATURES = ("each", "lazy", "none")


@dataclass(frozen=True)
class Policy:
    """The rules of one stream; None is no bound."""

    quota: int | None = None  # octets that are kept
    rate: float | None = None  # entries per second
    keep: float | None = None  # seconds after which octets are erased
    priority: int = 5  # 0 is refused last when the disk fills, 9 first
    signature: str = "lazy"  # the signed digest: made with each entry, when first asked for, or not at all
    erasable: bool = False  # octets are salted, so that nothing can be guessed from the digest once they are gone


DEFAULT = Policy()


@dataclass(frozen=True)
class Policies:
    """The rules of all streams."""

    named: tuple[tuple[str, Policy], ...] = ()

    @functools.cached_property
    def _found(self) -> dict[str, Policy]:
        return dict(self.named)

    def of(self, stream: str) -> Policy:
        """The rules of *stream*."""
        return self._found.get(stream) or self._found.get(OTHERS) or DEFAULT

    def any_keeps(self) -> bool:
        """Whether octets of any stream go after a time."""
        return any(policy.keep is not None for _, policy in self.named)


def parse(text: str) -> Policies:
    """The policies of `NAME:key=value,… NAME:…`, where NAME may be `*` for all others. Raises UsageError."""
    found: dict[str, Policy] = {}
    for word in text.split():
        name, colon, rules = word.partition(":")
        if not colon or not (name == OTHERS or units.is_name(name)) or name in found:
            raise UsageError(f"expected NAME:key=value,… with each NAME once, got {word!r}")
        policy = DEFAULT
        for rule in rules.split(","):
            key, _, value = rule.partition("=")
            policy = replace(policy, **{key: _value(key, value, rule)})
        found[name] = policy
    return Policies(tuple(found.items()))


def _value(key: str, value: str, rule: str) -> Any:
    if key == "quota":
        return units.size(value)
    if key == "keep":
        return units.duration(value)
    if key == "rate" and re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,3})?", value) and float(value) > 0:
        return float(value)
    if key == "priority" and re.fullmatch(r"[0-9]", value):
        return int(value)
    if key == "signature" and value in SIGNATURES:
        return value
    if key == "erasable" and value in ("yes", "no"):
        return value == "yes"
    raise UsageError(
        "expected quota=SIZE, rate=N, keep=DURATION, priority=0-9, signature=each|lazy|none or erasable=yes|no,"
        f" got {rule!r}"
    )
