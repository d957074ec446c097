# SPDX-License-Identifier: Apache-2.0
"""The plain `dre-app list`, which people and scripts ask for most: done without the parser and all that others need.

With any word that is not expected here it is dre.cmd.app.reading's.
"""

from __future__ import annotations

from dre import conf, ending, glance
from dre.columns import Output

COLUMNS = (("NAME", "name", 12), ("STATE", "state", 8), ("IP", "ip", 14), ("PID", "pid", 6))


def is_plain(words: list[str]) -> bool:
    """Whether *words* are `list` once, and of the options only --config FILE, --quiet and --debug."""
    return _others(words) == ["list"]


def main(words: list[str]) -> int:
    """Print the list; *words* are plain."""

    def work() -> None:
        settings = conf.load(_config(words))
        ending.need_root("dre-app list")
        Output(as_json=False).table(glance.rows(settings), COLUMNS)

    return ending.call("dre-app", work, "--debug" in words)


def _config(words: list[str]) -> str | None:
    """The last file that was given with --config."""
    given = [file for word, file in zip(words, words[1:], strict=False) if word == "--config"]
    return given[-1] if given else None


def _others(words: list[str]) -> list[str]:
    others = []
    left = iter(words)
    for word in left:
        if word == "--config":
            file = next(left, "-")
            if not file or file.startswith("-"):
                return []  # the parser says what is wrong with it
        elif word not in ("--quiet", "--debug"):
            others.append(word)
    return others
