# SPDX-License-Identifier: Apache-2.0
"""kill -9 of either end of a migration at any moment: afterwards exactly one host runs the app, and nothing is half.

DRE_KILLS is how often each end is killed (default 2); the moments are drawn over the duration of a whole move.
"""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import time

import app_ground
import pytest
from app_ground import LXC, Ground
from checkpoint_ground import PATH, need_criu, with_path
from conftest import environment, program
from migrate_ground import There

KILLS = int(os.environ.get("DRE_KILLS", "2"))
NAME = "t-mvkill"


def states(ground):
    return {words[0]: words[1] for words in map(str.split, ground("list").splitlines())}


def receivers():
    """The processes of `dre-app receive`."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = pathlib.Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
            if b"receive" in words and any(word.endswith(b"/dre-app") for word in words):
                found.append(int(entry))
    return found


def move(here, there, live):
    words = [program("dre-app"), "--config", here.config, "migrate", "--ssh-config", there.ssh_config]
    words += [*(["--live"] if live else []), NAME, "there"]
    return subprocess.Popen(words, env={**environment(), "PATH": PATH}, start_new_session=True, stderr=subprocess.PIPE)


def fresh(here, there, base):
    for ground in (here, there):
        if NAME in states(ground):
            ground("destroy", "--force", NAME)
    here("create", NAME, "--base", base, "--ip", "none")
    (LXC / NAME / "delta/mark").write_bytes(b"mark\n" * 100000)
    here("start", NAME)


@pytest.mark.parametrize("end", ["sender", "receiver", "sender of a live app"])
def test_kill(run, settings, end):
    live = end == "sender of a live app"
    if live:
        need_criu()
    base, allowed = ("host", ["--allow-privileged", "--allow-live"]) if live else ("small", [])
    with Ground(with_path(run), settings) as here, There(with_path(run), *allowed) as there:
        app_ground.make_tree(here.place / "state/base/small")
        (here.place / "state").chmod(0o711)
        subprocess.run(["cp", "-a", here.place / "state/base/small", there.trees], check=True)
        fresh(here, there, base)
        before = app_ground.picture(NAME)
        begun = time.monotonic()
        assert move(here, there, live).wait(300) == 0
        duration = time.monotonic() - begun
        hits, homes = 0, []
        for number in range(KILLS):
            fresh(here, there, base)
            mover = move(here, there, live)
            time.sleep(random.uniform(0, duration))
            if end == "receiver":
                # There is none while the app is stopped and packed: then the next one.
                app_ground.wait_for(lambda mover=mover: receivers() or mover.poll() is not None, timeout=60)
                for pid in receivers():
                    hits += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            elif mover.poll() is None:
                hits += 1
                # In turn with ssh, as a lost session would, and alone, as the OOM killer would.
                os.killpg(mover.pid, signal.SIGKILL) if number % 2 else mover.kill()
            _, said = mover.communicate(timeout=300)
            app_ground.wait_for(lambda: not receivers(), timeout=60)
            here("recover")
            there("recover")
            where = [states(ground).get(NAME) for ground in (here, there)]
            assert where in (["running", None], [None, "running"]), f"{where}: {said.decode()}"
            home = LXC if where[0] else there.lxc
            assert (home / NAME / "delta/mark").read_bytes() == b"mark\n" * 100000
            homes.append("here" if where[0] else "there")
            if where[0]:
                assert app_ground.picture(NAME) == before
            else:
                assert app_ground.picture(NAME)["lxc"] == []
        print(f"{end}: {hits} hits, afterwards it was {', '.join(homes)}")
        assert hits, f"none of {KILLS} kills hit"
