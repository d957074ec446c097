# SPDX-License-Identifier: Apache-2.0
"""`snapshot`: save the disk of a stopped container; it takes nothing away, hence needs no proof."""

from dre import units

from dscriptlib.steps import Key, verb

STEP = verb("snapshot", "save", proof=False, keys={"tag": Key(units.name, required=False)})
