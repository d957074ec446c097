# SPDX-License-Identifier: Apache-2.0
"""`snapshot`: save the disk of a stopped app under a tag; it takes nothing away, hence needs no proof."""

from dre import units

from dscriptlib.steps import Key, Kind

STEP = Kind(
    keys={"of": Key(units.name), "tag": Key(units.name)},
    needs_proof=False,
    argv=lambda values: ["snapshot", "save", values["of"], values["tag"]],
)
