# SPDX-License-Identifier: Apache-2.0
"""One file into an app or out of it, whether it runs or not.

The work inside is done by a child that has changed its root to the app's: a symbolic link in there, which the app may
have made to mislead us, then leads to another place in there and never to one of the host.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from dre import lifecycle
from dre.app import App
from dre.errors import DreError, NotFoundError, UsageError


def push(app: App, source: str, target: str) -> None:
    """Copy file *source* of the host to *target* in the app, replacing it at once; its mode goes with it."""
    _absolute(target)
    with open(source, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{source}: not a regular file")
        place = f"{target}/{Path(source).name}" if target.endswith("/") else target

        def write() -> None:
            goal = Path(place) / Path(source).name if Path(place).is_dir() else Path(place)
            _replace(goal, stream, stat.S_IMODE(status.st_mode))

        with _root(app) as root:
            _inside(app, root, write)


def pull(app: App, source: str, target: str) -> None:
    """Copy file *source* of the app to *target* on the host, replacing it at once."""
    _absolute(source)
    goal = Path(target) / Path(source).name if Path(target).is_dir() else Path(target)
    temporary = goal.with_name(f".{goal.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as stream:

            def read() -> None:
                # Not blocking: the app could have put a FIFO there, and nobody would ever write.
                fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise OSError(0, "not a regular file", source)
                with open(fd, "rb") as found:
                    shutil.copyfileobj(found, stream)
                    stream.flush()

            with _root(app) as root:
                _inside(app, root, read)
        temporary.rename(goal)
    finally:
        temporary.unlink(missing_ok=True)


def _absolute(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{path!r}: a path in the app must begin with /")


def _replace(goal: Path, stream: IO[bytes], mode: int) -> None:
    temporary = goal.with_name(f".{goal.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as new:
            shutil.copyfileobj(stream, new)
            os.fchmod(new.fileno(), mode)
        temporary.rename(goal)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _root(app: App) -> Iterator[str]:
    """The app's root directory: that of its init, or the overlay mounted for the moment."""
    app.need()
    state = app.state()
    pid = app.init_pid() if state in ("running", "frozen") else None
    if pid is not None:
        yield f"/proc/{pid}/root"
    elif state in ("stopped", "crashed"):
        lifecycle.sweep(app)
        lifecycle.mount(app)
        try:
            yield str(app.rootfs)
        finally:
            lifecycle.unmount(app)
    else:
        raise DreError(f"{app.name}: is {state}")


def _inside(app: App, root: str, work: Callable[[], None]) -> None:
    """Do *work* in a child with *root* as its root directory; an OSError there is raised here as DreError."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.chroot(root)
            os.chdir("/")
            work()
            code = 0
        except OSError as error:
            code = 3 if isinstance(error, FileNotFoundError) else 1
            os.write(writer, f"{error.filename}: {error.strerror}".encode(errors="replace")[:4000])
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        message = pipe.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 3:
        raise NotFoundError(f"{app.name}: {message}")
    if code != 0:
        raise DreError(f"{app.name}: {message or f'the copying process ended with {code}'}")
