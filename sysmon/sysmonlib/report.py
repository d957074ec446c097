# SPDX-License-Identifier: Apache-2.0
"""A report on what was found in a guest: files for who analyses it, their digests, and evidence in the D-Box.

Holds what the kernel notes of each hidden process, its memory, files and sockets, and the code of modules that are
hidden or that hooks lead to. Files of a report are nobody's but root's to read.
"""

import contextlib
import hashlib
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import event, files, packing
from dre.conf import Conf
from dre.dbox import Recorder
from dre.errors import DreError, UsageError

from sysmonlib import process
from sysmonlib.cross import Cross
from sysmonlib.memory import PAGE, BadAddress
from sysmonlib.process import Processes, Run

SUMS = "SHA256SUMS"
CLIENT, STREAM, PIECES = "sysmon", "sysmon", "sysmon-report"
MADE = "sysmon.report"
_PIECE = 8 << 20  # octets of a report that are an entry of the D-Box
_TASKS_MOST, _MODULES_MOST = 16, 16
_MODULE_MOST = 8 << 20
_ROUNDS = 5  # how often the memory of a process is read that the guest moves meanwhile
_SEVERITY = 5  # notice
_DRAIN = 10.0  # seconds that the D-Box may take; then the report waits in the spool


@dataclass(frozen=True)
class Report:
    """One that was written to *path*: the digest of its list of digests, how many files that has, and its archive."""

    path: Path
    sums: str
    files: int
    archive: Path


def check(path: Path) -> None:
    """Raises UsageError where no report can be written to *path*."""
    if os.path.lexists(path):
        raise UsageError(f"{path}: exists already")
    if not os.access(path.parent, os.W_OK | os.X_OK) or not path.parent.is_dir():
        raise UsageError(f"{path.parent}: no directory that can be written to")


@contextlib.contextmanager
def written(path: Path, cross: Cross, told: Mapping[str, Any], most: int) -> Iterator[Report]:
    """Write a report to *path*, a new directory, or an archive if it is named so, and have its archive meanwhile.

    *told* is what is known of the system and was found; of the memory of processes at most *most* octets are written.
    It is there whole or not at all. Raises OSError.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as scratch:
        made, archive = Path(scratch, path.name.removesuffix(".tar")), Path(scratch, "archive.tar")
        made.mkdir(mode=0o700)
        _fill(made, cross, told, most)
        names = sorted(entry.name for entry in made.iterdir())
        sums = "".join(f"{_digest(made / name)}  {name}\n" for name in names)
        _put(made / SUMS, [sums.encode()])
        _pack(archive, made, [*names, SUMS])
        files.fsync_dir(made)
        if path.suffix == ".tar":
            archive = archive.rename(path)
        else:
            made.rename(path)
        files.fsync_dir(path.parent)
        yield Report(path, hashlib.sha256(sums.encode()).hexdigest(), len(names), archive)


def record(conf: Conf, report: Report, source: str, system: str) -> dict[str, Any]:
    """Tell the monitor of *report*, and make it evidence where there is a D-Box; the data of the event about it.

    The archive goes there in pieces, as entries ``first`` to ``last`` of the stream *sysmon-report*, and the event
    after it. All of it is in the spool then, and `deliver` brings it to the D-Box. Raises DreError.
    """
    data: dict[str, Any] = {"system": system, "path": str(report.path), "files": report.files, "sums": report.sums}
    data |= {"octets": report.archive.stat().st_size, "archive": _digest(report.archive), "first": None, "last": None}
    there = (conf.dbox_certs_dir / "root.pem").exists()
    recorder = Recorder(conf, CLIENT) if there else None
    if recorder is not None:
        # No pieces of another report in between.
        with report.archive.open("rb") as stream, files.lock(recorder.directory / "report.lock"):
            numbers = [recorder.record(PIECES, piece) for piece in iter(lambda: stream.read(_PIECE), b"")]
        data |= {"first": numbers[0], "last": numbers[-1]}
    identity = event.emit(conf, MADE, source, data, _SEVERITY)
    if recorder is not None:
        made = event.Event(event.stamp(), source, MADE, _SEVERITY, data, {"id": identity})
        recorder.record(STREAM, event.new_line(made).rstrip(b"\n"), identity)
    return data


def deliver(conf: Conf) -> None:
    """Bring what was recorded to the D-Box. Raises DreError where it does not take it now; it waits in the spool."""
    recorder = Recorder(conf, CLIENT)
    recorder.drain(_DRAIN)
    if recorder.pending():
        raise DreError(f"not all of it was taken within {_DRAIN:g} s")


def _fill(place: Path, cross: Cross, told: Mapping[str, Any], most: int) -> None:
    processes, kernel = Processes(cross.kernel), cross.kernel
    tasks, left = [], most
    for address, missing in list(cross.hidden.items())[:_TASKS_MOST]:
        try:
            task = cross.tasks.task(address)
        except BadAddress:  # it has ended meanwhile
            continue
        name = _free(place, f"{task.pid}")
        octets, whole = _memory(place / f"memory-{name}.core", cross, processes, address, left)
        left -= octets
        opened, sockets, all_of_them = processes.files(address)
        described = {
            **{key: getattr(task, key) for key in ("pid", "tgid", "ppid", "uid", "state", "comm", "kernel")},
            "address": f"{address:#x}",
            "start": cross.tasks.moment(task),
            "views_missing": missing,
            **processes.places(address),
            "arguments": processes.arguments(address),
            "memory": {"octets": octets, "complete": whole, "areas": processes.areas(address)},
            "files": opened,
            "sockets": sockets,
            "files_complete": all_of_them,
        }
        _put(place / f"task-{name}.json", [_json(described)])
        tasks.append(name)
    modules = [
        {"name": name, "address": f"{address:#x}", "file": _module(place, cross, number, address, name)}
        for number, (address, name) in enumerate(list(cross.suspicious.items())[:_MODULES_MOST], 1)
    ]
    about = {
        "report": 1,
        "time": event.stamp(),
        "host": os.uname().nodename,
        **told,
        "kernel": {"release": kernel.release, "build_id": _told(kernel.space.told, "BUILD-ID")},
        "hidden": {"tasks": tasks, "of": len(cross.hidden)},
        "modules": modules,
    }
    _put(place / "report.json", [_json(about)])


def _memory(path: Path, cross: Cross, processes: Processes, task: int, most: int) -> tuple[int, bool]:
    """Write the memory of *task* to *path*, at most *most* octets; how many these are, and whether they are all.

    The guest's kernel moves pages as it likes (compaction, huge pages: admin-guide/mm of Linux), and what is read where
    one was may be another's by then. So they are read until each is found in its place afterwards.
    """
    runs, whole = processes.memory(task, most)
    for _ in range(_ROUNDS):
        path.unlink(missing_ok=True)
        if runs:
            _put(path, _pages(cross, runs))
        before, (runs, whole) = runs, processes.memory(task, most)
        if runs == before:
            break
        if not runs:  # it has ended: what was read of it is all that there will be
            runs, whole = before, False
            break
    else:
        runs, whole = before, False
    return sum(len(run.places) for run in runs) * PAGE, whole


def _told(told: Mapping[str, str], key: str) -> str | None:
    return re.sub(r"[^ -~]", "?", told[key]) if key in told else None


def _free(place: Path, name: str) -> str:
    """*name*, or with a number behind it where that is taken: whoever hides may take any."""
    number, found = 1, name
    while (place / f"task-{found}.json").exists():
        number += 1
        found = f"{name}-{number}"
    return found


def _module(place: Path, cross: Cross, number: int, address: int, name: str) -> str | None:
    """Write the memory of a module to a core file and return its name; None where there is none to be read."""
    runs, left, space = list[Run](), _MODULE_MOST // PAGE, cross.kernel.space
    try:
        for base, size in cross.modules.pieces(address):
            run = Run(base & ~(PAGE - 1), False, True, [])
            for page in range(run.begin, base + min(size, _MODULE_MOST), PAGE):
                if left == 0:
                    break
                run.places.append(space.physical(page))
                left -= 1
            runs.append(run)
    except BadAddress:
        pass
    runs = [run for run in runs if run.places]
    if not runs:
        return None
    file = f"module-{number}-{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.core"
    _put(place / file, _pages(cross, runs))
    return file


def _pages(cross: Cross, runs: list[Run]) -> Iterator[bytes]:
    header, places = process.core(runs)
    yield header
    for page in places:
        try:
            yield cross.kernel.space.memory.read(page, PAGE)
        except BadAddress:  # not memory of the guest, but of a device
            yield bytes(PAGE)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode() + b"\n"


def _put(path: Path, pieces: Iterable[bytes]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        for piece in pieces:
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _pack(archive: Path, place: Path, names: list[str]) -> None:
    fd = os.open(archive, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as stream:
        with tarfile.open(fileobj=stream, mode="w|") as tar:
            for name in names:
                with (place / name).open("rb") as content:
                    packing.add(tar, f"{place.name}/{name}", content, os.fstat(content.fileno()).st_size)
        stream.flush()
        os.fsync(stream.fileno())
