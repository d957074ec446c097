# SPDX-License-Identifier: Apache-2.0
"""How each stage does its work: what went in and out, what did not, and how far it is behind. It only looks.

Stages note their numbers themselves, at most a second late (see tally); what waits in front of one the kernel tells.
"""

import fcntl
import os
import struct
import termios
import time
from pathlib import Path

from dre.conf import Conf

from monitorlib import tally

STALE = 2.0  # seconds without a note, while something waits, that count as lag
BEHIND = 10.0  # seconds of lag from which a stage is not well
FIELDS = ("in", "out", "late", "refused", "dropped", "waiting", "lag")


def tally_file(conf: Conf, stage: str) -> Path | None:
    """Where *stage* notes its numbers; None for those that note none."""
    spool = conf.core_state_dir / "spool" / "ingest"
    return {
        "ingest": spool / "ingest.tally",
        "reorder": spool / "reorder.tally",
        "correlate": conf.core_state_dir / "correlate" / "tally",
        "act": conf.core_run_dir / "actions.tally",
    }.get(stage)


def numbers(conf: Conf, stage: str, pid: int) -> dict[str, float | None]:
    """FIELDS of a *stage* that runs as *pid*; None is unknown, as to who may not look, or for what sec does not tell.

    `waiting` counts octets in the pipe in front of the stage, for the intake those in its spool, for the programs
    requests; `lag` is in seconds.
    """
    file = tally_file(conf, stage)
    told = tally.read(file) if file else {}
    made: dict[str, float | None] = {key: told.get(key) for key in FIELDS}
    if stage == "act" and told:
        made |= {"in": told["taken"], "out": told["done"] + told["failed"], "dropped": told["dropped"] + told["lost"]}
    elif stage in ("sec", "correlate", "reorder"):
        made["waiting"] = unread(conf.core_run_dir / "ordered" if stage == "sec" else Path(f"/proc/{pid}/fd/0"))
    if made["waiting"] and (last := _last_work(conf, stage, file)):
        behind = round(time.time() - last, 1)
        made["lag"] = max(made["lag"] or 0.0, behind if behind > STALE else 0.0)  # it may hang, and note nothing
    return made


def _last_work(conf: Conf, stage: str, file: Path | None) -> float | None:
    """When *stage* has noted something, or sec has read its FIFO (its atime)."""
    try:
        return file.stat().st_mtime if file else (conf.core_run_dir / "ordered").stat().st_atime
    except OSError:
        return None


def unread(path: Path) -> int | None:
    """Octets that stand in a FIFO or a pipe; None when that cannot be told."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0\0\0\0"))[0])
    except OSError:
        return None
    finally:
        os.close(fd)


def is_well(row: dict[str, object]) -> bool:
    """Whether a stage runs and keeps up."""
    lag = row.get("lag")
    return row["state"] == "running" and not (isinstance(lag, int | float) and lag > BEHIND)
