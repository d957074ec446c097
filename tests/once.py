# SPDX-License-Identifier: Apache-2.0
"""Directories that are made once in a run of pytest, for all of its processes, by the first test that asks."""

import atexit
import fcntl
import functools
import os
import pathlib
import shutil
import tempfile


def directory(name, make):
    """The directory *name*, filled by make(path) when there was none; to be copied from, never changed."""
    place = _place()
    path, ready = place / name, place / f"{name}.ready"
    with open(place / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            shutil.rmtree(path, ignore_errors=True)  # of one that failed
            path.mkdir()
            make(path)
            ready.touch()
    return path


@functools.lru_cache(maxsize=1)
def _place():
    """What conftest has made for this run; where there is no pytest, one for this process."""
    if run := os.environ.get("DRE_TEST_RUN"):
        return pathlib.Path(run)
    path = tempfile.mkdtemp(prefix="dre-test-run-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return pathlib.Path(path)
