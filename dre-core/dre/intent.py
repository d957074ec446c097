# SPDX-License-Identifier: Apache-2.0
"""What a verb has begun and not ended: one file, intent.json, in the directory that D-RE keeps of a container.

It is written durably before several things are changed and removed when they are, so that the next verb can end or
undo what a killed one left. What each intent holds, and how it is ended, is its verb's.
"""

import json
from pathlib import Path
from typing import Any

from dre import files, glance
from dre.errors import DreError


def read(home: Path) -> dict[str, Any] | None:
    """The intent in *home*, or None. Raises DreError where it cannot be read."""
    path = f"{home}/intent.json"
    try:
        found: dict[str, Any] = json.loads(glance.octets(path))
        str(found["verb"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DreError(f"{path}: damaged: {error}; without it nothing is known to be unfinished") from None
    return found


def begin(home: Path, **intent: Any) -> None:
    """Write durably what is about to be done."""
    files.write_atomic(home / "intent.json", json.dumps(intent) + "\n", 0o600)


def done(home: Path) -> None:
    """Forget the intent: the verb has ended."""
    (home / "intent.json").unlink(missing_ok=True)
    files.fsync_dir(home)
