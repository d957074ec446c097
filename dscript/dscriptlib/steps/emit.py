# SPDX-License-Identifier: Apache-2.0
"""`emit`: send an event for other rules and scripts.

It needs proof: an event of ours counts as proven, and a claimed one must not become proven by passing through here.
"""

import re

from dre.errors import UsageError

from dscriptlib.steps import Key, Kind, Setting, Told, Values, text


def _type(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+", value) or len(value) > 64:
        raise UsageError(f"{value!r} is not an event type such as shop.closed")
    if value.split(".")[0] in ("watch", "script", "monitor"):
        raise UsageError(f"{value!r}: only D-RE's own programs emit events of this part")
    return value


def _act(setting: Setting, values: Values) -> list[Told]:
    return [Told(values["type"], {"text": values["text"]} if "text" in values else {})]


STEP = Kind(keys={"type": Key(_type), "text": Key(text(500), required=False)}, needs_proof=True, act=_act)
