# SPDX-License-Identifier: Apache-2.0
"""A full /run keeps nobody from stopping an app: what is written there helps, and is not needed."""

import subprocess

import app_ground
import pytest
from app_ground import Ground, picture

NAME = "t-runfull"


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings) as ground:
        place = tmp_path / "run"
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)], check=True, timeout=10)
        try:
            ground("create", NAME, "--ip", "none", "--base", app_ground.make_tree(tmp_path / "tree"))
            yield ground
            (place / "fill").unlink(missing_ok=True)
            ground("destroy", "--force", NAME)
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=10)


def test_stop(app, tmp_path):
    app("start", NAME)
    with pytest.raises(OSError, match="No space left"), (tmp_path / "run/fill").open("wb", buffering=0) as stream:
        while stream.write(bytes(512)):
            pass
    app("stop", "--timeout", "2", NAME)
    assert app("list").split()[1] == "stopped"
    assert picture(NAME)["groups"] == [] and picture(NAME)["mounts"] == []
