# SPDX-License-Identifier: Apache-2.0
"""`notify`: tell a person, by a line in the log directory's notify.log and an event `script.notify`.

Sending it on (mail, pager) is the work of a rule on that event.
"""

from dre import units

from dscriptlib.steps import Key, Kind, Setting, Told, Values, text


def _act(setting: Setting, values: Values) -> list[Told]:
    from dscriptlib import notice

    words = values.get("text", "the responses agreed for this did not help; please look")
    notice.write(setting, values["to"], words)
    return [Told("script.notify", {"to": values["to"], "text": words}, sev=1)]


STEP = Kind(
    keys={"to": Key(units.name), "text": Key(text(500), required=False)},
    needs_proof=False,
    act=_act,
)
