# SPDX-License-Identifier: Apache-2.0
"""The lines on apps, of the handbook and the README, that are marked `sh run` do what they say, in their order."""

import os
import pathlib
import subprocess

import pytest
from app_ground import Ground, kernel
from conftest import ROOT
from handbook import Reader, marked

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_containers_then_undo_then_migration(run, settings, tmp_path):
    with Ground(run, settings) as app:
        reader = Reader(tmp_path, app.config)
        reader.script("ssh", 'shift\nexec sh -c "$*"')  # of what is typed here only a backup goes there
        making, limiting, watching, grouping, suspecting, settling, ending = marked("containers.md")
        assert "web1" in reader.types(making)
        pid = app("pid", "web1").split()[0]
        reader.types(limiting)
        assert kernel(pid, "pids", "pids.max") == "64"
        assert reader.types(watching).count("web1 ") == 5
        with subprocess.Popen(["sleep", "1000"]) as sleeper:
            reader.types(grouping, instead={"4711": sleeper.pid})
            assert sleeper.wait(10) == -9  # by --force
        reader.types(suspecting)
        assert app("status", "web1") == "running" and pathlib.Path("/proc", pid).exists()
        app("create", "shop1", "--", "/usr/bin/sleep", "1000")
        reader.types(settling)
        app("set", "web1", "autostart=no", "after=")
        app("destroy", "shop1")
        assert reader.types(ending).startswith("hello\n")
        assert [line.split()[:2] for line in app("list").splitlines()] == [["web1", "stopped"]]

        before, mistake, scheduling, keeping = marked("undo.md")
        reader.types(before)
        changed = pathlib.Path("/var/lib/lxc/web1/delta/etc/motd")
        assert changed.read_text() == "broken\n"
        reader.types(mistake)
        assert app("status", "web1") == "running" and not changed.exists()
        reader.types(scheduling)
        reader.types(keeping)
        assert (tmp_path / "web1.dre").stat().st_size > 1000

        (moving,) = marked("migration.md")
        assert reader.types(moving).endswith("running\n")
        assert [line.split()[0] for line in app("list").splitlines()] == ["web5"]

        (quick,) = marked(ROOT / "README.md")
        said = reader.types(quick, instead={"sudo dre-check": "true"})  # which tells whether this host lacks something
        assert '"running"' in said.splitlines()[-1]
        assert kernel(app("pid", "web1").split()[0], "pids", "pids.max") == "64"
