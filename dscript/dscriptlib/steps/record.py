# SPDX-License-Identifier: Apache-2.0
"""`record`: put a sentence into the evidence, as an event `script.record`."""

from dscriptlib.steps import Key, Kind, Setting, Told, Values, text


def _act(setting: Setting, values: Values) -> list[Told]:
    return [Told("script.record", {"text": values["text"]})]


STEP = Kind(keys={"text": Key(text(500))}, needs_proof=False, act=_act)
