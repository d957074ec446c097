# SPDX-License-Identifier: Apache-2.0
"""`undo`: put an app back to a snapshot, the newest one without a tag, and start it."""

from dre import units

from dscriptlib.steps import Key, Kind

STEP = Kind(
    keys={"of": Key(units.name), "tag": Key(units.name, required=False)},
    needs_proof=True,
    argv=lambda values: ["undo", values["of"], *([values["tag"]] if "tag" in values else [])],
)
