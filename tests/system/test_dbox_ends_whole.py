# SPDX-License-Identifier: Apache-2.0
"""dboxd does not go on without a process of its own that was killed: it ends and says why, and the next one serves."""

import os
import pathlib
import signal

import dboxkit
import pytest

box = dboxkit.box


def direct(pid):
    """The processes that dboxd has forked itself, by the name that ps shows."""
    found = [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return {pathlib.Path(f"/proc/{one}/comm").read_text().strip(): one for one in found}


@pytest.mark.parametrize(("victim", "told"), [("dbox-sequencer", "the keeper of"), ("dboxd", "the doorkeeper of")])
def test_dboxd_ends_with_a_process_of_its_own(box, victim, told):
    box.start()
    kept = box.put(b"before")
    os.kill(direct(box.server.pid)[victim], signal.SIGKILL)
    assert box.server.wait(20) == 1
    assert f"dboxd: {told}" in box.said().decode()
    box.server = None
    box.start()
    assert box.put(b"after") and kept
    assert len([line for line in box.good("dbox-get", "--list").splitlines() if line.split()[2] == b"app"]) == 2
