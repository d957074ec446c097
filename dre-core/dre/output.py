# SPDX-License-Identifier: Apache-2.0
"""What an app's program prints: where it is kept, how it is held to a size, how it is read.

The program writes to the end of NAME.log, a file of the host that is bound into the app; so the file can be cut but not
moved while it runs. NAME.log.old is what was cut off since the start, NAME.log.1 is what was left of the run before.
"""

import collections
import contextlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from dre import files
from dre.app import App

BLOCK = 1 << 20
PAUSE = 0.2  # seconds between two looks of one who follows


def begin(app: App, again: bool = False) -> None:
    """A new run: what the last one printed becomes the run before, unless it is only started *again* after a crash."""
    app.log.parent.mkdir(parents=True, exist_ok=True)
    with _alone(app):
        if app.log.exists() and not again:
            app.log.rename(before(app))
            cut_off(app).unlink(missing_ok=True)
        app.log.touch(mode=0o640)


def _alone(app: App) -> contextlib.AbstractContextManager[None]:
    """One who moves logs at a time. Not the app's lock: a verb may hold that for long while the program prints."""
    return files.lock(app.conf.core_run_dir / "lock" / "logs")


def before(app: App) -> Path:
    """What the run before the last start printed."""
    return app.log.with_suffix(".log.1")


def cut_off(app: App) -> Path:
    """The older part of what this run printed."""
    return app.log.with_suffix(".log.old")


def of_lxc(app: App) -> Path:
    """What LXC itself had to say of the last start."""
    return app.log.with_suffix(".lxc.log")


def cut(app: App, limit: int) -> bool:
    """Hold the log to *limit* octets: move what it holds to the older part, whose content is lost; whether it was done.

    Killed in between, the older part is the old or the new one, and the log is cut the next time. What the program
    prints between the last read and the truncation is lost, a moment of some microseconds.
    """
    with _alone(app), app.log.open("r+b") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size <= limit:
            return False
        temporary = cut_off(app).with_name(f".{cut_off(app).name}.tmp")
        with temporary.open("wb") as older:
            os.fchmod(older.fileno(), 0o640)
            stream.seek(size - limit)
            # A program may print faster than we copy: the second *limit* is the last.
            for _ in range(0, 2 * limit, BLOCK):
                block = stream.read(BLOCK)
                if not block:
                    break
                older.write(block)
        temporary.rename(cut_off(app))
        stream.truncate(0)
    return True


def kept(paths: Iterable[Path], limit: int, count: int | None = None) -> Iterable[bytes]:
    """The lines in *paths*, at most *limit* octets of each: all, or the last *count*."""
    lines = itertools.chain.from_iterable(_lines(path, limit) for path in paths)
    return lines if count is None else collections.deque(lines, count)


def _lines(path: Path, limit: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            # An app may make its log a hole of any size.
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - limit))
            yield from stream
    except FileNotFoundError:
        return


def follow(app: App, position: int) -> Iterator[bytes]:
    """The lines of the log from *position* on, as they come, through cuts and starts, until the app is destroyed."""
    rest = b""
    stream = app.log.open("rb")
    try:
        stream.seek(position)
        while True:
            *lines, rest = (rest + stream.read(BLOCK)).split(b"\n")
            yield from (line + b"\n" for line in lines)
            if len(rest) > BLOCK:  # a line that does not end
                yield rest
                rest = b""
            if lines:
                continue
            try:
                now = app.log.stat()
            except FileNotFoundError:
                if not app.exists():
                    return
                now = None  # between two runs
            if now is not None and now.st_ino != os.fstat(stream.fileno()).st_ino:
                stream.close()
                stream = app.log.open("rb")
                continue
            if now is not None and now.st_size < stream.tell():
                stream.seek(0)
                continue
            time.sleep(PAUSE)
    finally:
        stream.close()
