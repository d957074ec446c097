# SPDX-License-Identifier: Apache-2.0
"""`undo`: put a container back to a snapshot or checkpoint, the newest snapshot without a tag, and start it."""

from dre import units

from dscriptlib.steps import Key, verb

STEP = verb("undo", keys={"tag": Key(units.name, required=False)})
