# SPDX-License-Identifier: Apache-2.0
"""`run`: a program of actions.d with an argv, as a user of its own, with the event in its environment; no shell.

What it does cannot be probed: killed together with the engine it counts as failed and is never started a second time.
"""

from dscriptlib.steps import Key, Kind, Setting, Told, Values, account, nested


def _act(setting: Setting, values: Values) -> list[Told]:
    from dscriptlib import programs

    return programs.run(setting, values["argv"], values.get("user", "nobody"))


STEP = Kind(
    keys={"argv": Key(nested), "user": Key(account, required=False)},
    needs_proof=True,
    act=_act,
    hands_on=True,
)
