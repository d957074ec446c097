# SPDX-License-Identifier: Apache-2.0
"""kill -9 in the middle of a checkpoint, of a restart from one or of its deletion: done or not begun, the app runs,
nothing is left.

DRE_KILLS is how often each verb is killed (default 2); the moments are spread over the verb's own duration.
"""

import os
import random
import signal
import subprocess
import time

import app_ground
import pytest
from checkpoint_ground import PATH, Counting, need_criu
from conftest import environment, program

KILLS = int(os.environ.get("DRE_KILLS", "2"))
NAME, ADDRESS = "t-ckkill", "10.231.101.62"


@pytest.mark.parametrize("verb", ("save", "restart", "delete"))
def test_kill(run, settings, verb):
    need_criu()
    with Counting(run, settings, NAME, ADDRESS) as app:
        app.ask("before")
        app("checkpoint", "save", NAME, "good")
        before = app_ground.picture(NAME)
        if verb == "delete":  # all at once, for LXC may not save what it has restored
            for tag in ("other", *(f"n{number}" for number in range(KILLS))):
                app("checkpoint", "save", NAME, tag)
        begun = time.monotonic()
        app("checkpoint", verb, NAME, "good" if verb == "restart" else "other")
        duration = time.monotonic() - begun
        hits = 0
        for number in range(KILLS):
            if verb == "save":  # started anew, for the same reason
                app("restart", NAME)
            (app.delta / "later").write_text("made after the checkpoint\n")
            app.ask("after")
            words = (program("dre-app"), "--config", app.config, "checkpoint", verb, NAME)
            tag = "good" if verb == "restart" else f"n{number}"
            victim = subprocess.Popen(
                [*words, tag], env={**environment(), "PATH": PATH}, start_new_session=True, stderr=subprocess.PIPE
            )
            time.sleep(random.uniform(0.05, duration))
            # In turn with the programs it has started, as a lost session would, and alone, as the OOM killer would.
            os.killpg(victim.pid, signal.SIGKILL) if number % 2 and victim.poll() is None else victim.kill()
            victim.communicate(timeout=60)
            hits += victim.returncode == -signal.SIGKILL
            assert app("status", NAME) == "running"
            assert app.ask()[0] == 2
            there = tag in [line.split()[0] for line in app("checkpoint", "list", NAME).splitlines()]
            if verb != "restart" and there:
                app("checkpoint", "restart", NAME, tag)  # it is whole
            if verb == "delete":
                app("checkpoint", "delete", NAME, tag, code=0 if there else 3)
            assert not [path.name for path in app.checkpoints.iterdir() if path.name.startswith(".")]
            if verb == "restart":
                # Either memory and disk are those of the checkpoint, or neither is.
                assert (app.delta / "later").exists() == (app.mark() == "after")
            app("checkpoint", "restart", NAME, "good")
            assert not (app.delta / "later").exists()
            assert not (app_ground.LXC / NAME / "delta.old").exists()
            assert {key: len(value) for key, value in app_ground.picture(NAME).items()} == {
                key: len(value) for key, value in before.items()
            }
        assert hits, f"none of {KILLS} kills hit the running command"
