# SPDX-License-Identifier: Apache-2.0
"""The record that a bridge of ours carries in its link's alias, and by which it is known as ours.

It begins with `d-re`; words `KEY=ITEM,ITEM` say what was done for the bridge elsewhere. It lives exactly as long as the
bridge: one made anew by somebody else has none. What the keys mean is known to dre.nat and dre.uplink.
"""

import os
from pathlib import Path

NET = Path("/sys/class/net")
MARK = "d-re"
Record = dict[str, list[str]]


def read(link: str) -> Record | None:
    """What is recorded at *link*; None when it is not ours, or not there."""
    try:
        first, *words = (NET / link / "ifalias").read_text().strip().split(" ")
    except OSError:
        return None
    pairs = (word.partition("=") for word in words)
    return {key: [item for item in items.split(",") if item] for key, _, items in pairs} if first == MARK else None


def text(record: Record) -> str:
    """The alias that holds *record*."""
    return " ".join([MARK, *(f"{key}={','.join(items)}" for key, items in record.items())])


def write(link: str, record: Record) -> None:
    """Replace what is recorded at *link*. Raises OSError."""
    (NET / link / "ifalias").write_text(text(record))


def of_others(link: str, key: str) -> set[str]:
    """What all bridges of ours but *link* have under *key*."""
    return {item for other in os.listdir(NET) if other != link for item in (read(other) or {}).get(key, ())}
