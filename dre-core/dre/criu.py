# SPDX-License-Identifier: Apache-2.0
"""CRIU through lxc-checkpoint: whether it can work here, the dump of a running app, its restore, and why one failed.

Nothing here knows of tags, deltas or intents: that is dre.checkpoint's.
"""

import contextlib
import os
import platform
import re
import shutil
import time
from pathlib import Path

from dre import cgroup, lxcconfig
from dre.app import App
from dre.errors import DreError, MissingError, TimedOutError
from dre.run import need, run
from dre.spec import Spec

WAIT = 900.0  # seconds for a dump or a restore: some 100 MB of memory a second on a slow disk
STEP = 0.02
# What LXC 5 and 6 say on version 2 of control groups of an app that they restored (github.com/lxc/lxc/issues/4643).
_FORGOTTEN = "Failed getting freezer path"


def version() -> str:
    """The version of criu. Raises MissingError."""
    found = re.search(r"Version: (\S+)", run(["criu", "--version"]).stdout.decode(errors="replace"))
    return found[1] if found else "unknown"


def check(name: str, spec: Spec | None) -> None:
    """Raise MissingError, saying why and what helps, where app *name* cannot be saved or restored here."""
    if spec is not None and spec.unprivileged:
        raise MissingError(
            f"{name}: LXC cannot checkpoint an app that has ids of its own; one created with --privileged it can"
        )
    for program in ("lxc-checkpoint", "criu", "iptables-restore", "ip6tables-restore"):
        need(program)
    done = run(["criu", "check"], check=False)
    if done.returncode != 0:
        said = reason((done.stderr + done.stdout).decode(errors="replace")) or f"exit status {done.returncode}"
        remedy = "criu 4.2 or newer may, Debian 12 has one that is too old for kernels after 6.1"
        raise MissingError(f"{name}: criu {version()} cannot work on kernel {platform.release()} ({said}); {remedy}")


def reason(log: str) -> str | None:
    """The first error in a log of criu, which is the cause; the later ones follow from it."""
    for line in log.splitlines():
        found = re.match(r"(?:\([0-9.]+\) )?(?:\s*\d+: )?Error \([^)]*\): (.*)", line.strip())
        if found and "RLIMIT_NOFILE" not in found[1]:
            return found[1]
    return None


def dump(app: App, images: Path, script: Path, stop: bool) -> None:
    """Save the running app into *images*; criu calls *script* while no process of the app can run.

    Afterwards the app goes on, or with *stop* has ended. Raises DreError when it failed, and the app goes on.
    """
    argv = ["-D", str(images), "-A", str(script), *(["-s"] if stop else [])]
    _lxc_checkpoint(app, images, "dump", argv, "save")


def restore(app: App, images: Path) -> None:
    """Let the stopped app go on from *images*; `release` must follow."""
    argv = ["-r", "-D", str(images), "-A", str(lxcconfig.share() / "criu-hold")]
    _lxc_checkpoint(app, images, "restore", argv, "restore", DRE_DEVICES="\n".join(_devices(app)))


def _lxc_checkpoint(app: App, images: Path, action: str, argv: list[str], verb: str, **env: str) -> None:
    log = app.log.with_suffix(".criu.log")
    said = app.log.with_suffix(".lxc.log")
    for path in (log, said):
        path.unlink(missing_ok=True)
    # A session of its own: who kills us, or types ^C, must not kill criu while it holds the app's processes, nor the
    # monitor of the restored app. And none of our pipes, which that monitor would hold open for good.
    quiet = ("sh", "-c", 'exec setsid "$@" >/dev/null 2>&1', "sh")
    command = [*quiet, "lxc-checkpoint", "-n", app.name, "-P", str(app.conf.app_lxc_path), *argv]
    done = run([*command, "-o", str(said), "-l", "ERROR"], check=False, timeout=WAIT, env=env)
    with contextlib.suppress(FileNotFoundError):
        shutil.move(images / f"{action}.log", log)
    if done.returncode != 0:
        text = log.read_text(errors="replace") if log.exists() else ""
        why = reason(text) or _first_of_lxc(said) or "lxc-checkpoint gave no reason"
        if _FORGOTTEN in why:
            remedy = f"dre-app restart {app.name}, which starts it anew"
            raise DreError(f"{app.name}: cannot save it: LXC saves nothing that it has restored; {remedy}")
        raise DreError(f"{app.name}: cannot {verb} it: {why} ({log if text else said})")


def _first_of_lxc(said: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        found = re.search(r"ERROR +\S+ - [^ ]+ - (.*)", said.read_text(errors="replace"))
        return found[1] if found else None
    return None


def settled(images: Path) -> None:
    """Wait until no lxc-checkpoint and no criu works on *images*: one may have outlived the command that began it."""
    deadline = time.monotonic() + WAIT
    while pid := _at_work(str(images)):
        if time.monotonic() >= deadline:
            raise TimedOutError(f"process {pid} still works on {images} after {WAIT:g} s")
        time.sleep(STEP)


def _at_work(images: str) -> int | None:
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                if os.fsencode(images) in words:
                    return int(entry)
    return None


def _devices(app: App) -> list[str]:
    """What the app may do with which devices, as its configuration says."""
    family = "cgroup2" if cgroup.unified() else "cgroup"
    return list(app.container().get_config_item(f"lxc.{family}.devices.allow"))


def release(app: App, pid: int) -> None:
    """Let the restored app of init *pid* go on. On version 2 it was held until its device rules are there."""
    group = cgroup.Group.of(pid)
    if not group.v2:
        return
    container = app.container()
    for rule in _devices(app):
        if not container.set_cgroup_item("devices.allow", rule):
            raise DreError(f"{app.name}: its device rule {rule!r} could not be set again")
    group.write("", "cgroup.freeze", "0")
