# SPDX-License-Identifier: Apache-2.0
"""What a tree or an image is to be made from, in words that apt takes for what they are. Makes nothing."""

import re
from dataclasses import dataclass

from dre.errors import UsageError

_SUITE = re.compile(r"[a-z][a-z0-9-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?(=[A-Za-z0-9.+~:-]+)?")
_MIRROR = re.compile(r"https?://[A-Za-z0-9._~:/@%+-]+")


@dataclass(frozen=True)
class Wish:
    """A suite, where it comes from (None: the host's archives), and packages. Raises UsageError for other words."""

    suite: str
    mirror: str | None = None
    packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for kind, words, form in (
            ("suite", [self.suite], _SUITE),
            ("mirror", [self.mirror] if self.mirror is not None else [], _MIRROR),
            ("package", self.packages, _PACKAGE),
        ):
            for word in words:
                if not form.fullmatch(word):
                    raise UsageError(f"{word!r} is not a {kind}")

    @property
    def wanted(self) -> list[str]:
        """The packages, each once, sorted."""
        return sorted(set(self.packages))
