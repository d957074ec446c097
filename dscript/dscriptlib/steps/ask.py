# SPDX-License-Identifier: Apache-2.0
"""`ask`: put a question to a person and wait, for the timeout, for `dscript approve`; then the stated default counts.

That the question has gone out is all that is done here; the waiting is the core's.
"""

from dre import units

from dscriptlib.steps import Key, Kind, Setting, Told, Values, text, word


def _act(setting: Setting, values: Values) -> list[Told]:
    from dscriptlib import notice, questions

    how = f"dscript approve {setting.request}, or with --refuse"
    if link := questions.link(setting.conf, setting.request):
        how = f"{how}, or {link}"
    otherwise = f"without an answer in {setting.timeout:g} s: {values['default']}"
    said = notice.tell(setting, values["to"], f"{values['text']} ({how}; {otherwise})")
    asked = {"to": values["to"], "text": values["text"], "default": values["default"]}
    return [Told("script.ask", asked, sev=1), *said]


STEP = Kind(
    keys={"to": Key(units.name), "text": Key(text(500)), "default": Key(word("approve", "refuse"))},
    needs_proof=False,
    act=_act,
    asks=True,
)
