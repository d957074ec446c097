# SPDX-License-Identifier: Apache-2.0
"""What the soak adds to the stage of the demonstration: a small disk, a network apart for writers, a witness, clocks.

All of it is removed by `disconnect` and `remove`, by what lies there, so that they clear up after a killed soak, too.
"""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path

from demolib import shop
from demolib.places import ADDRESSES, APP, BRIDGE, CONF, DBOX_PORT, HOME, STATE
from demolib.programs import Failed, call, dre, wait
from demolib.stage import SOAK
from demolib.story import Say, Story

from soaklib import processes

HERE = Path(__file__).resolve().parent.parent
GATE = "10.231.77.1"  # of the bridge: the D-Box is reached there from the writers' network
NETWORK, INSIDE, OUTSIDE, ADDRESS = "dresoak", "soak1", "soak0", "10.231.77.31/24"
WRITERS = ("soak-a", "soak-b")
DISK, DISK_SIZE = HOME / "disk.img", 256 << 20
BALLAST = STATE / "ballast"
CLOCKS = HOME / "clock"
SLEEP = CLOCKS / "nanosleep.so"
WITNESS, WITNESS_PORT = HOME / "witness", 18445
WITNESSES = WITNESS / "witnesses"
PROGRAMS = ("cc", "mkfs.ext4", "mount", "umount", "ip", "dbox-witness", "dbox-export", "dbox-rotate", "dbox-put")
SHARED = Path("/dev/shm")


class SoakStory(Story):
    """The shop as always; nothing happens to it but faults."""

    title = "The shop goes on for hours, whatever is killed, cut off, full or told a wrong time"
    script = HERE / "scripts" / "soak.yaml"
    rate = 600
    settings = f"""
DRE_DBOX_LISTEN="0.0.0.0:{DBOX_PORT}"
DRE_DBOX_URL="https://{GATE}:{DBOX_PORT}"
DRE_DBOX_RESERVE="8M"
DRE_DBOX_WITNESSES="{WITNESSES}"
"""

    def lay(self) -> None:
        """The disk under all state, the directories beside it, and the key of the witness."""
        SOAK.touch()
        STATE.mkdir(mode=0o755)
        with DISK.open("wb") as disk:
            disk.truncate(DISK_SIZE)
        call("mkfs.ext4", "-q", "-m", "0", str(DISK))
        call("mount", "-o", "loop", str(DISK), str(STATE))
        (STATE / "lost+found").rmdir()
        for directory in (CLOCKS, WITNESS):
            directory.mkdir(mode=0o755)
        call("cc", "-shared", "-fPIC", "-o", str(SLEEP), str(HERE / "nanosleep.c"))
        key = dre("dbox-witness", "--make-key", "witness.soak/1", "--key", str(WITNESS / "key")).decode().strip()
        WITNESSES.write_text(f"{key} http://127.0.0.1:{WITNESS_PORT}\n")

    def set_up(self, say: Say) -> None:
        """Writers and their network, the log's key for the witness, and a spare app."""
        for name in WRITERS:
            dre("dbox-init", "--client", name, "--role", "writer")
        chain = WITNESS / "chain.pem"
        chain.write_bytes(dre("dbox-get", "--certs"))
        (WITNESS / "logs").write_bytes(dre("dbox-witness", "--log-key", str(chain)))
        shop.make_jobs()
        call("ip", "netns", "add", NETWORK)
        call("ip", "link", "add", OUTSIDE, "type", "veth", "peer", "name", INSIDE, "netns", NETWORK)
        call("ip", "link", "set", OUTSIDE, "master", BRIDGE, "up")
        for argv in (
            ("addr", "add", ADDRESS, "dev", INSIDE),
            ("link", "set", INSIDE, "up"),
            ("link", "set", "lo", "up"),
        ):
            call("ip", "-n", NETWORK, *argv)
        say(f"a disk of {DISK_SIZE >> 20} MB, a network for the writers, a witness and a spare app are there")


def keep_apps() -> None:
    """Have the apps started again when they crash, which holds from their next start on. The keeper runs by then."""
    for name in reversed(ADDRESSES):  # the database first
        dre("dre-app", "set", name, "restart=on-failure:1000")
        dre("dre-app", "restart", name)
        shop.answers(name)
    for verb in ("isolate", "rejoin"):  # the firewall's table that the bridge gets with the first stays as long as it
        dre("dre-app", verb, APP)


def check_host() -> None:
    """Raise Failed where something is missing that the soak needs beside the demonstration's."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise Failed(f"{program}: no such program; `make soak` installs what the soak needs")
    faketime()


def faketime() -> str:
    """The library that gives a process a clock of its own. Raises Failed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        raise Failed("libfaketime is not installed; `make soak` installs what the soak needs")
    return str(found[0])


def own_clock(name: str) -> dict[str, str]:
    """The environment in which a program reads the time by the clock *name*; see `step`."""
    step(name, 0)
    return {
        "LD_PRELOAD": f"{SLEEP} {faketime()}",
        "FAKETIME_TIMESTAMP_FILE": str(CLOCKS / name),
        "FAKETIME_CACHE_DURATION": "1",  # seconds after which it looks again
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as who sets the clock of a host does not
        "NO_FAKE_STAT": "1",
    }


def step(name: str, seconds: int) -> None:
    """Have the clock *name* differ by that much from the host's."""
    fresh = CLOCKS / f".{name}.{time.monotonic_ns()}"
    fresh.write_text(f"{seconds:+d}\n")
    fresh.rename(CLOCKS / name)


def mounts() -> list[str]:
    """Where something is mounted below our directory, the deepest first."""
    found = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    return sorted((path for path in found if path.startswith(f"{HOME}/")), reverse=True)


def empty_disk() -> None:
    """Take away what fills the disk."""
    with contextlib.suppress(OSError):
        BALLAST.unlink()


def disconnect() -> None:
    """Take the writers' network off the bridge, which could not go else. Raises Failed."""
    if Path("/run/netns", NETWORK).exists():
        call("ip", "netns", "delete", NETWORK)  # and with it both ends of the link
    wait(lambda: not Path("/sys/class/net", OUTSIDE).exists(), 10, "the end of the writers' network")


def remove() -> None:
    """Remove it all; nothing that was started as a service runs any more. Raises Failed."""
    # A keeper that dre-app has called by itself would stay for another minute.
    for process in processes.given(str(CONF)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    wait(lambda: not processes.given(str(CONF)), 10, "the end of what was started")
    for path in mounts():
        call("umount", path)
    for path in SHARED.glob("*faketime_*"):  # libfaketime leaves them behind in a process that is killed
        pid = path.name.rpartition("_")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)
