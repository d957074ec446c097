# SPDX-License-Identifier: Apache-2.0
"""`thaw`: let the processes of a frozen app go on."""

from dre import units

from dscriptlib.steps import Key, Kind

STEP = Kind(
    keys={"of": Key(units.name)},
    needs_proof=True,
    argv=lambda values: ["thaw", values["of"]],
)
