# SPDX-License-Identifier: Apache-2.0
"""dbox-init, killed at any moment, is finished or not begun after the next call."""

import shutil

from dboxkit import Box, place


def test_killed_at_any_moment_the_next_call_makes_all():
    path = place()
    try:
        made = Box(path)
        for seconds in (0.4, 1.0, 1.6, 2.2):
            # timeout(1) kills with SIGKILL; whether it was finished by then is part of the draw.
            done = made.run("dbox-init", before=["timeout", "-s", "KILL", str(seconds)])
            if done.returncode == 0:
                break
            assert not made.certs.exists() or any(made.certs.iterdir())
        else:
            made.good("dbox-init")
        assert made.run("dbox-init").returncode == 1
        assert [entry.name for entry in made.certs.parent.iterdir()] == ["dbox"]
        made.good("dbox-init", "--client", "writer", "--role", "writer")
        made.start()
        made.put(b"first")
        made.stop()
    finally:
        shutil.rmtree(path, ignore_errors=True)
