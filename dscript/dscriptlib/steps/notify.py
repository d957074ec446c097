# SPDX-License-Identifier: Apache-2.0
"""`notify`: tell a person, by a line in the log directory's notify.log, an event `script.notify`, and what hands it on.

Mail and webhooks are programs of actions.d, which dscriptlib.notice finds.
"""

from dre import units

from dscriptlib.steps import Key, Kind, Setting, Told, Values, text


def _act(setting: Setting, values: Values) -> list[Told]:
    from dscriptlib import notice

    words = values.get("text", "the responses agreed for this did not help; please look")
    said = notice.tell(setting, values["to"], words)
    return [Told("script.notify", {"to": values["to"], "text": words}, sev=1), *said]


STEP = Kind(
    keys={"to": Key(units.name), "text": Key(text(500), required=False)},
    needs_proof=False,
    act=_act,
)
