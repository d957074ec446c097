# SPDX-License-Identifier: Apache-2.0
"""`checkpoint`: save memory and disk of a running container, which is held meanwhile."""

from dre import units

from dscriptlib.steps import Key, verb

STEP = verb("checkpoint", "save", keys={"tag": Key(units.name, required=False)})
