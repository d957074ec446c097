# SPDX-License-Identifier: Apache-2.0
"""What a kernel or a file system cannot do is told apart from what went wrong."""

import os
import signal

import pytest
from dre import idmap


def test_a_kernel_without_the_call(monkeypatch):
    monkeypatch.setattr(idmap, "_OPEN_TREE", 9999)
    with pytest.raises(idmap.Refused, match=r"the kernel has no open_tree; Linux 5\.19"):
        idmap._bound("/", True, False, 0)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(OSError, match="open_tree"):
        idmap._bound(str(tmp_path / "none"), True, False, 0)


def test_how_the_child_ended_is_known():
    def refuse():
        raise idmap.Refused("it cannot")

    def fail():
        raise OSError("it failed")

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    idmap._in_child(lambda: None)
    with pytest.raises(idmap.Refused, match="it cannot"):
        idmap._in_child(refuse)
    with pytest.raises(OSError, match="it failed"):
        idmap._in_child(fail)
    with pytest.raises(OSError, match="ended with -9"):
        idmap._in_child(die)
