# SPDX-License-Identifier: Apache-2.0
"""The handbook's lines on containers, undo and migration that are marked `sh run` do what it says, in their order."""

import os
import pathlib

import pytest
from app_ground import Ground, kernel
from handbook import Reader, marked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_containers_then_undo_then_migration(run, settings, tmp_path):
    with Ground(run, settings) as app:
        reader = Reader(tmp_path, app.config)
        making, limiting, suspecting, ending = marked("containers.md")
        assert "web1" in reader.types(making)
        pid = app("pid", "web1").split()[0]
        reader.types(limiting)
        assert kernel(pid, "pids", "pids.max") == "64"
        reader.types(suspecting)
        assert app("status", "web1") == "running" and pathlib.Path("/proc", pid).exists()
        assert reader.types(ending).startswith("hello\n")
        assert [line.split()[:2] for line in app("list").splitlines()] == [["web1", "stopped"]]

        before, mistake = marked("undo.md")
        reader.types(before)
        changed = pathlib.Path("/var/lib/lxc/web1/delta/etc/motd")
        assert changed.read_text() == "broken\n"
        reader.types(mistake)
        assert app("status", "web1") == "running" and not changed.exists()

        (moving,) = marked("migration.md")
        assert reader.types(moving).endswith("running\n")
        assert [line.split()[0] for line in app("list").splitlines()] == ["web5"]
