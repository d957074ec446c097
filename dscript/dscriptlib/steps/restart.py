# SPDX-License-Identifier: Apache-2.0
"""`restart`: stop an app and start it again."""

from dre import units

from dscriptlib.steps import Key, Kind

STEP = Kind(
    keys={"of": Key(units.name)},
    needs_proof=True,
    argv=lambda values: ["restart", values["of"]],
)
