# SPDX-License-Identifier: Apache-2.0
"""The lock of a tree that containers share: dre-base holds it to change the tree, dre-app while it begins to use it.

So a tree is not deleted or replaced between the look for its users and the moment when an app becomes one.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dre import files, units
from dre.conf import Conf


def lock_file(conf: Conf, tree: Path) -> Path:
    """The lock of *tree*; trees of one name may lie in several stores."""
    import hashlib  # slow to load, and but for `create` nothing needs it

    store = hashlib.sha256(os.fsencode(tree.parent.absolute())).hexdigest()[:8]
    return conf.core_run_dir / "lock" / f"base-{tree.name}-{store}"


@contextlib.contextmanager
def used(conf: Conf, base: str) -> Iterator[None]:
    """Keep *base* as it is; `host`, and what dre-base cannot have made, needs no lock. Raises TimedOutError."""
    if base == "host" or not units.is_name(Path(base).name):
        yield
        return
    with files.lock(lock_file(conf, Path(base)), timeout=10.0):
        yield
