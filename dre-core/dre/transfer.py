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
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dre import existence, run
from dre.app import App
from dre.errors import DreError, NotFoundError, UsageError


def push(app: App, source: str, target: str) -> None:
    """Copy file *source* of the host to *target* in the app, replacing it at once; its mode goes with it.

    `-` is standard input, which gives a file that its owner alone may write.
    """
    _absolute(target)
    with open(0, "rb", closefd=False) if source == "-" else open(source, "rb") as stream:
        status = os.fstat(stream.fileno())
        if source != "-" and not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{source}: not a regular file")
        mode = 0o644 if source == "-" else stat.S_IMODE(status.st_mode)
        place = f"{target}/{Path(source).name}" if target.endswith("/") else target

        def write() -> None:
            goal = Path(place)
            if goal.is_dir():
                if source == "-":
                    raise OSError(0, "a directory, and standard input has no name", target)
                goal = goal / Path(source).name
            try:
                _replace(goal, stream, mode)
            except FileNotFoundError as error:
                raise FileNotFoundError(error.errno, error.strerror, str(goal.parent)) from None

        with _root(app) as there:
            _inside(app, there, write)


def pull(app: App, source: str, target: str) -> None:
    """Copy file *source* of the app to *target* on the host, replacing it at once; `-` is standard output.

    What is no file, a FIFO or a device, is written to.
    """
    _absolute(source)
    if target == "-":
        with open(1, "wb", closefd=False) as standard:
            _read(app, source, standard)
        return
    goal = Path(os.path.realpath(target))
    goal = goal / Path(source).name if goal.is_dir() else goal
    if goal.exists() and not goal.is_file():
        with open(goal, "wb") as stream:
            _read(app, source, stream)
        return
    if not goal.parent.is_dir():
        raise DreError(f"{goal.parent}: No such file or directory")
    temporary = goal.with_name(f".{goal.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as new:
            _read(app, source, new)
        temporary.rename(goal)
    finally:
        temporary.unlink(missing_ok=True)


def _read(app: App, source: str, stream: IO[bytes]) -> None:
    """Copy file *source* of the app to *stream*."""

    def read() -> None:
        # Not blocking: the app could have put a FIFO there, and nobody would ever write.
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a regular file", source)
        with open(fd, "rb") as found:
            shutil.copyfileobj(found, stream)
            stream.flush()

    with _root(app) as there:
        _inside(app, there, read)


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


@dataclass(frozen=True)
class Place:
    """Where the work is done: the root directory of the app, and its user namespace if it has one."""

    root: str
    namespace: int | None


@contextlib.contextmanager
def _root(app: App) -> Iterator[Place]:
    """The app as its init sees it, or with its overlay mounted for the moment."""
    ids = app.need().ids if app.need().unprivileged else None
    state = app.state()
    pid = app.init_pid() if state in ("running", "frozen") else None
    if pid is not None:
        with _user_namespace(ids) as namespace:
            yield Place(f"/proc/{pid}/root", namespace)
    elif state in ("stopped", "crashed"):
        existence.sweep(app)
        existence.mount(app)
        try:
            with _user_namespace(ids) as namespace:
                yield Place(str(app.rootfs), namespace)
        finally:
            existence.unmount(app)
    else:
        raise DreError(f"{app.name}: is {state}")


@contextlib.contextmanager
def _user_namespace(ids: tuple[int, int] | None) -> Iterator[int | None]:
    """A user namespace with these *ids*: files that are made in it belong to the app's root."""
    if ids is None:
        yield None
        return
    from dre import idmap  # late, for ctypes

    fd = idmap.userns(*ids)
    try:
        yield fd
    finally:
        os.close(fd)


def _inside(app: App, place: Place, work: Callable[[], None]) -> None:
    """Do *work* in a child that cannot leave *place*; an OSError there is raised here as DreError."""
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run.die_with(parent)
            if place.namespace is not None:
                from dre import idmap
            os.chroot(place.root)
            os.chdir("/")
            if place.namespace is not None:
                idmap.enter(place.namespace)
                run.die_with(parent)  # again: a change of ids lets the kernel forget it
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
