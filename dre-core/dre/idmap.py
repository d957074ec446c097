# SPDX-License-Identifier: Apache-2.0
"""Files seen through an id map: the mounts of an unprivileged app, whose root is an ordinary user of the host.

Layers and bound files are mounted id-mapped (mount_setattr(2)): what root in the app owns is root's on the disk too,
whatever range of ids the app has, so deltas, snapshots and shared trees know nothing of it. Also run as a program by
LXC's hook, so it imports nothing of ours. Needs Linux 5.19; says so by Refused where it cannot.
"""

import ctypes
import errno
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLAN = "mounts.json"  # in the app's directory: {"ids": [first, count], "binds": {NAME: [SOURCE, needed, read_only]}}
BINDS = "binds"  # there the bound files are mounted, by name

_libc = ctypes.CDLL(None, use_errno=True)
# The same numbers on all architectures, as for every system call since Linux 5.1.
_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT, _MOUNT_SETATTR = 428, 429, 430, 431, 432, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_CLONE_TREE, _MOVE_EMPTY_PATH, _CLOEXEC = 1, 4, 1
_SET_STRING, _CREATE = 1, 6
_ATTR_RDONLY, _ATTR_NODEV, _ATTR_IDMAP = 0x1, 0x4, 0x100000
_NEWNS, _NEWUSER = 0x20000, 0x10000000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000
_DETACH_NOFOLLOW = 2 | 8
_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 4


class Refused(Exception):
    """Kernel or file system cannot do it; the message says which."""


class _Attr(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def userns(first: int, count: int) -> int:
    """A descriptor of a new user namespace in which ids 0 to *count* are the host's from *first* on."""
    ready, made = os.pipe()
    wait, leave = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(leave)
        os.write(made, b"+" if _libc.unshare(_NEWUSER) == 0 else b"-")
        os.read(wait, 1)
        os._exit(0)
    try:
        if os.read(ready, 1) != b"+":
            raise Refused("the kernel allows no user namespace")
        for kind in ("uid", "gid"):
            Path(f"/proc/{child}/{kind}_map").write_text(f"0 {first} {count}\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        for fd in (ready, made, wait, leave):
            os.close(fd)
        os.waitpid(child, 0)


def enter(namespace: int) -> None:
    """Become root of user namespace *namespace*; there is no way back, so this is for children."""
    _checked(_libc.setns(namespace, _NEWUSER), "setns")
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def mount(directory: str) -> None:
    """Mount what the plan of the app in *directory* says: its bound files, then its overlay, which is the sign that
    all is there. Raises Refused, or OSError.
    """
    home = Path(directory)
    plan = json.loads((home / PLAN).read_text())
    first, count = plan["ids"]
    # LXC enters the directory as the app's root. Nobody else may: what root of an app writes into its delta with the
    # setuid bit is root's on the disk.
    os.chown(home, 0, first)
    home.chmod(0o710)  # noqa: S103 - the group is the app's root
    namespace = userns(first, count)
    try:
        _in_child(lambda: _mount(directory, plan, namespace))
    finally:
        os.close(namespace)


def _in_child(work: Callable[[], None]) -> None:
    """Do *work* in a child, whose mount namespace and ids may change. A lock of ours is the child's too: whoever gets
    it next will not meet a child that is still at work.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except (Refused, OSError) as error:
            code = 6 if isinstance(error, Refused) else 1
            said = getattr(error, "strerror", None) or str(error)
            os.write(writer, said.encode(errors="replace")[:2000])
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        message = pipe.read().decode(errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0:
        raise (Refused if code == 6 else OSError)(message or f"the mounting process ended with {code}")


def _mount(directory: str, plan: dict[str, Any], namespace: int) -> None:
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    root = f"{directory}/rootfs"
    binds = {}
    for name, (source, needed, read_only) in plan["binds"].items():
        binds[name] = _bound(source, needed, read_only, namespace)
    overlay = _overlay(directory, root, plan["ids"][0], namespace)
    # The private mount namespace ends with this child, and the layers' mounts with it; the overlay has clones of them.
    _checked(_libc.setns(host, _NEWNS), "setns")
    for name, fd in binds.items():
        place = Path(directory, BINDS, name)
        _place(place, stat.S_ISDIR(os.fstat(fd).st_mode))
        _attach(fd, str(place))
    _attach(overlay, root)


def _bound(source: str, needed: bool, read_only: bool, namespace: int) -> int:
    """A detached mount of *source*, mapped; if it cannot be and is not *needed*, as it is: owners look like nobody."""
    fd = _syscall(f"open_tree {source}", _OPEN_TREE, _AT_FDCWD, source, _CLONE_TREE | os.O_CLOEXEC)
    if read_only:
        _set(fd, _Attr(set=_ATTR_RDONLY))
    try:
        _map(fd, source, namespace)
    except Refused:
        if needed:
            raise
    return fd


def _overlay(directory: str, root: str, first: int, namespace: int) -> int:
    """The detached overlay of the app, made in a mount namespace of this process's own."""
    layers = {
        name: _syscall(f"open_tree {path}", _OPEN_TREE, _AT_FDCWD, path, _CLONE_TREE | os.O_CLOEXEC)
        for name, path in (("lower", f"{directory}/lower"), ("app", directory))
    }
    _checked(_libc.unshare(_NEWNS), "unshare")
    # What is mounted here must not be seen outside. Slave, not private: LXC's AppArmor profile, which its hooks run
    # under, allows only that.
    _checked(_libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None), "mount / slave")
    # overlayfs takes paths, so the layers need places in this namespace.
    _checked(_libc.mount(b"tmpfs", os.fsencode(root), b"tmpfs", 0, b"mode=0700"), f"mount {root}")
    for name, fd in layers.items():
        _map(fd, os.path.realpath(f"{directory}/lower") if name == "lower" else directory, namespace)
        Path(root, name).mkdir()
        _attach(fd, f"{root}/{name}")
    # overlayfs works with the credentials of this moment: its files must belong to an id that the map knows, and
    # its capabilities must stay.
    _checked(_libc.prctl(_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0), "prctl")
    _libc.setfsgid(first)
    _libc.setfsuid(first)
    fs = _syscall("fsopen", _FSOPEN, "overlay", _CLOEXEC)
    options = {
        "source": "dre-app",
        "index": "off",
        "metacopy": "off",
        "lowerdir": f"{root}/lower",
        "upperdir": f"{root}/app/delta",
        "workdir": f"{root}/app/work",
    }
    for key, value in options.items():
        _syscall(f"overlay {key}", _FSCONFIG, fs, _SET_STRING, key, value, 0)
    try:
        _syscall("overlay", _FSCONFIG, fs, _CREATE, 0, 0, 0)
    except OSError as error:
        raise Refused(f"overlayfs refuses mapped layers, which it takes since Linux 5.19: {error.strerror}") from None
    return _syscall("fsmount", _FSMOUNT, fs, _CLOEXEC, _ATTR_NODEV)


def _map(fd: int, path: str, namespace: int) -> None:
    """Make the detached mount *fd* of *path* show ids as *namespace* has them. Raises Refused."""
    try:
        _set(fd, _Attr(set=_ATTR_IDMAP, userns=namespace))
    except OSError as error:
        raise Refused(f"the file system of {path} cannot be mounted with mapped ids: {error.strerror}") from None


def _set(fd: int, attr: _Attr) -> None:
    _syscall("mount_setattr", _MOUNT_SETATTR, fd, "", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))


def _attach(fd: int, place: str) -> None:
    _syscall(f"mount on {place}", _MOVE_MOUNT, fd, "", _AT_FDCWD, place, _MOVE_EMPTY_PATH)


def _place(place: Path, is_dir: bool) -> None:
    """An empty place to mount on; what a killed start has mounted there goes."""
    while _libc.umount2(os.fsencode(place), _DETACH_NOFOLLOW) == 0:
        pass
    if place.exists() and place.is_dir() != is_dir:  # another bind had this number
        place.unlink() if place.is_file() else place.rmdir()
    place.parent.mkdir(exist_ok=True)
    if is_dir:
        place.mkdir(exist_ok=True)
    else:
        place.touch(mode=0o600)


def _syscall(what: str, number: int, *words: Any) -> int:
    """System call *number*. Raises OSError that says *what* failed."""
    ready = [ctypes.c_char_p(os.fsencode(word)) if isinstance(word, str) else word for word in words]
    return _checked(
        _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(w) if isinstance(w, int) else w for w in ready)), what
    )


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        if error == errno.ENOSYS:
            raise Refused(f"the kernel has no {what.split()[0]}; Linux 5.19 has all that is needed")
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


if __name__ == "__main__":
    try:
        mount(sys.argv[1])
    except (Refused, OSError) as failure:
        sys.exit(f"{sys.argv[1]}: {failure}")
