# SPDX-License-Identifier: Apache-2.0
"""`rules`: put rules of the event correlator in force that were so once; its compensation puts those before back.

They are named by the number of their switch, which stands for one set of files for ever: so a script can only bring
what persons have agreed to, and dre-rules(8) wants nobody else for it.
"""

from collections.abc import Mapping
from typing import Any

from dre.errors import UsageError

from dscriptlib import words
from dscriptlib.steps import Key, Kind, Values


def _former(values: Values, row: Mapping[str, Any]) -> dict[str, str]:
    number = row.get("number", 0)
    if isinstance(number, bool) or not isinstance(number, int):
        raise UsageError(f"rules: the number of the version in force is {number!r}")
    return {"version": str(number)}


STEP = Kind(
    keys={"version": Key(words.count)},
    needs_proof=True,
    program="dre-rules",
    argv=lambda values: ["rollback", str(values["version"])],
    ask_former=lambda values: ["history", "--json"],
    former=_former,
    compensate=lambda values, former: ["rollback", former["version"]],
)
