# SPDX-License-Identifier: Apache-2.0
"""Where CRIU cannot work dre-app says so, and why, before it changes anything: exit 6."""

import app_ground
import pytest
from app_ground import Ground
from checkpoint_ground import with_path

NAME = "t-ckno"
BROKEN = """#!/bin/sh
test "$1" = --version && echo "Version: 3.17.1" && exit 0
echo "Error (criu/vdso.c:651): vdso: Unexpected rt vDSO area bounds" >&2
exit 1
"""


@pytest.fixture
def programs(tmp_path):
    """A directory for PATH with what dre-app needs, but without criu."""
    place = tmp_path / "programs"
    place.mkdir()
    for name in ("criu", "iptables-restore", "ip6tables-restore"):
        (place / name).write_text("#!/bin/sh\nexit 1\n")
        (place / name).chmod(0o755)
    return place


def test_a_criu_that_does_not_fit_the_kernel_is_named(run, settings, programs, tmp_path):
    (programs / "criu").write_text(BROKEN)
    with Ground(with_path(run, f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"), settings) as app:
        app("create", NAME, "--base", "host", "--ip", "none")
        app("start", NAME)
        pid = app("pid", NAME)
        words = app("checkpoint", "save", NAME, "one", code=6)
        assert "criu 3.17.1 cannot work on kernel" in words
        assert "vdso: Unexpected rt vDSO area bounds" in words
        assert app("pid", NAME) == pid
        assert app("checkpoint", "list", NAME) == ""
        assert "no checkpoint one" in app("checkpoint", "restart", NAME, "one", code=3)


def test_no_criu_at_all(run, settings, programs):
    (programs / "criu").unlink()
    for name in ("lxc-checkpoint", "lxc-start", "lxc-info", "lxc-config", "ip", "nft", "tar", "setpriv", "rm", "mount"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    with Ground(run, settings) as app:
        app("create", NAME, "--base", "host", "--ip", "none")
        done = with_path(run, str(programs))("dre-app", "--config", app.config, "checkpoint", "save", NAME)
        assert done.returncode == 6, done.stderr
        assert b"criu: no such program; apt-get install criu" in done.stderr


def test_an_unprivileged_app(run, settings, tmp_path):
    tree = app_ground.make_tree(tmp_path / "tree")
    with Ground(run, settings) as app:
        app("create", NAME, "--base", tree, "--ip", "none")
        words = app("checkpoint", "save", NAME, code=6)
        assert "LXC cannot checkpoint an app that has ids of its own" in words
        assert "--privileged" in words
