# SPDX-License-Identifier: Apache-2.0
"""Setting the stage and clearing it: settings, bridge, shop, D-Box, monitor and script engine; and all of it gone.

Clearing works from what lies on the disk, so that it also removes what a killed demonstration left.
"""

import contextlib
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demolib import evidence, hypervisor, shop
from demolib.places import (
    ADDRESSES,
    BRIDGE,
    CONF,
    DBOX_PORT,
    HOME,
    JOBS,
    LOG,
    PAY,
    REMAINS,
    RUN,
    SETTINGS,
    STATE,
)
from demolib.programs import Failed, dre, end, listens, running, start, wait
from demolib.story import Say, Story

KEPT = HOME / "kept"  # left running on purpose, for a person to look at
SOAK = HOME / "soak"  # it is not the demonstration's: soak/run, which adds disks and networks to it, made it
MADE_RUN = HOME / "made-run"  # /run/dre was not there before us
PROGRAMS = ("dre-app", "dre-bridge", "dre-base", "dre-event", "dre-monitor", "dre-rules", "dscript")
PROGRAMS += ("dbox-init", "dboxd", "dbox-get", "dbox-verify", "lxc-start", "mmdebstrap", "sec", "unshare")
RULES = "shop.sec"  # the rule set that comes with the monitor
SINK = RUN / "events.sock"


def check_host() -> None:
    """Raise Failed when the demonstration cannot run here, or would disturb something of this host."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise Failed(f"{program}: no such program; `make demo` installs what the demonstration needs")
    if intake_lives():
        raise Failed(f"a D-RE monitor runs on this host ({SINK} answers); stop it first: dre-monitor is not shared")
    if listens(DBOX_PORT):
        raise Failed(f"port {DBOX_PORT} on this host is taken by another program")
    for name in (*ADDRESSES, *JOBS):
        if (Path("/var/lib/lxc") / name).exists():
            raise Failed(f"{name}: this host has an LXC container of that name, which the demonstration would need")
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        raise Failed(f"{BRIDGE}: this host has a network interface of that name already")


def intake_lives() -> bool:
    """Whether a monitor takes events in on this host."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, contextlib.suppress(OSError):
        probe.connect(str(SINK))
        return True
    return False


def prepare(story: Story, without: str, say: Say) -> None:
    """Bring everything into service for *story* but the load. *without* is a part to leave out, or empty."""
    HOME.mkdir(mode=0o755)
    if not RUN.exists():
        MADE_RUN.touch()
    LOG.mkdir(mode=0o755)
    CONF.write_text(SETTINGS + story.settings)
    CONF.chmod(0o644)
    story.lay()
    dre("dre-bridge", "up")
    with ThreadPoolExecutor() as pool:
        made, recorder = pool.submit(story.make, say), pool.submit(_dbox)
    recorder.result()
    made.result()
    _monitor(story, without)
    story.set_up(say)
    say("D-Box, monitor and script engine run" + (f", without {without}" if without in ("sec", "dscript") else ""))


def _dbox() -> None:
    dre("dbox-init")
    dre("dbox-init", "--client", "dscript", "--role", "writer")
    dre("dbox-init", "--client", evidence.READER, "--role", "reader")
    start_dboxd()


def start_dboxd() -> None:
    """Start dboxd and wait until it listens."""
    start("dboxd", "dboxd", "--config", str(CONF))
    wait(lambda: listens(DBOX_PORT), 20, "dboxd")


def _monitor(story: Story, without: str) -> None:
    rules, actions = HOME / "etc/rules.d", HOME / "etc/actions.d"
    for directory in (rules, actions):
        directory.mkdir(mode=0o755)
    shutil.copy(_beside("dre-monitor", "rules") / RULES, rules)
    for name in story.actions:
        shutil.copy(_beside("dscript", "actions") / name, actions)
    dre("dre-rules", "check", str(rules / RULES))
    dre("dscript", "check", str(story.script))
    dre("dscript", "deploy", str(story.script))
    left_out = ["--without", "sec"] if without == "sec" else []
    start("dre-monitor", "dre-monitor", "--config", str(CONF), "run", *left_out)
    wait(intake_lives, 20, "the monitor's intake")
    if without != "dscript":
        start("dscript", "dscript", "--config", str(CONF), "run", "--user", "dscript")


def _beside(program: str, directory: str) -> Path:
    """A directory of what comes with *program*."""
    return Path(shutil.which(program)).resolve().parent / directory


def clear(say: Say, last: Callable[[], None] = lambda: None) -> list[str]:
    """End and remove everything of the demonstration; what could not be removed is returned as sentences.

    *last* is called once nothing runs any more, before the files go. It may raise Failed.
    """
    if not HOME.exists():
        return []
    troubles: list[str] = []
    others = (name for name in running() if name not in hypervisor.DAEMONS)  # these are wanted till the end
    for name in ("load", "dscript", "dre-monitor", "dboxd", *others):
        with _noting(troubles):
            end(name)
    if CONF.exists():
        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(shop.destroy, name) for name in (*ADDRESSES, *JOBS)]:
                with _noting(troubles):
                    done.result()
        if (STATE / "sys").exists():
            with _noting(troubles):
                dre("dre-sys", "destroy", PAY, "--force", ok=(0, 3), timeout=120)
        with _noting(troubles):
            hypervisor.leave()
        if Path(f"/sys/class/net/{BRIDGE}").exists():
            with _noting(troubles):
                dre("dre-bridge", "down")
    with _noting(troubles):
        last()
    if not troubles:
        if MADE_RUN.exists() and not any(RUN.glob("app/*.json")):  # nobody else has begun to use it
            shutil.rmtree(RUN, ignore_errors=True)
        shutil.rmtree(HOME)
        say("all of it is removed; the tree stays for the next time")
    return troubles


@contextlib.contextmanager
def _noting(troubles: list[str]) -> Iterator[None]:
    """Go on with the clearing after a failure, and remember it."""
    try:
        yield
    except (Failed, OSError) as error:
        troubles.append(str(error))


def keep_logs() -> Path:
    """Copy logs, spools and evidence of a failed demonstration to where they outlive it."""
    shutil.rmtree(REMAINS, ignore_errors=True)
    REMAINS.mkdir(mode=0o750, parents=True)
    for source in (LOG, STATE / "spool", STATE / "script", HOME / "evidence"):
        if source.exists():
            shutil.copytree(source, REMAINS / source.name, ignore=_unreadable)
    return REMAINS


def _unreadable(directory: str, names: list[str]) -> list[str]:
    """Sockets and FIFOs cannot be copied."""
    return [name for name in names if not (path := Path(directory, name)).is_dir() and not path.is_file()]


def need_root() -> None:
    """Raise Failed unless root started us."""
    if os.geteuid() != 0:
        raise Failed("the demonstration makes containers and a bridge: run it as root")


def only_one(fd: int) -> None:
    """Take the lock. Raises Failed when another demonstration, or a soak, has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Failed("another demo/run or soak/run is at work on this host") from None
