# SPDX-License-Identifier: Apache-2.0
"""`freeze`: stop the processes of an app where they are; its compensation thaws them."""

from dre import units

from dscriptlib.steps import Key, Kind

STEP = Kind(
    keys={"of": Key(units.name)},
    needs_proof=True,
    argv=lambda values: ["freeze", values["of"]],
    compensate=lambda values, former: ["thaw", values["of"]],
)
