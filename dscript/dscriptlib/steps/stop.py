# SPDX-License-Identifier: Apache-2.0
"""`stop`: stop an app."""

from dre import units

from dscriptlib.steps import Key, Kind

STEP = Kind(
    keys={"of": Key(units.name)},
    needs_proof=True,
    argv=lambda values: ["stop", values["of"]],
)
