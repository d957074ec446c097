# SPDX-License-Identifier: Apache-2.0
"""The only door to other programs: an argv list, never a shell string, with a deadline."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dre.errors import DreError, MissingError, TimedOutError

# Which Debian package brings a program that may be missing; asked only to word the error.
PACKAGES = {
    "criu": "criu",
    "debugfs": "e2fsprogs",
    "dnsmasq": "dnsmasq-base",
    "dumpe2fs": "e2fsprogs",
    "grub-mkimage": "grub-common",
    "ip": "iproute2",
    "ip6tables-restore": "iptables",
    "iptables-restore": "iptables",
    "lxc-attach": "lxc",
    "lxc-checkpoint": "lxc",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mmd": "mtools",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "sec": "sec",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "setsid": "util-linux",
    "ssh": "openssh-client",
    "tar": "tar",
    "udhcpc": "udhcpc",
    "unshare": "util-linux",
    "zstd": "zstd",
    "usermod": "passwd",
    "virsh": "libvirt-clients",
    "xorriso": "xorriso",
}
# Children that write must end with us: else a killed command's tar would go on while the next command works.
MORTAL = ("setpriv", "--pdeathsig", "KILL", "--")
_PDEATHSIG, _SUBREAPER = 1, 36  # linux/prctl.h


def die_with(parent: int) -> None:
    """In a process that *parent* has just forked: work that is killed there ends here, too. See prctl(2)."""
    import ctypes  # late, for it is slow

    ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def adopt() -> None:
    """Be given, in place of the first process of the host, what loses its parent among those that we start."""
    import ctypes

    ctypes.CDLL(None).prctl(_SUBREAPER, 1)


def children(pid: int) -> list[int]:
    """The processes that process *pid* has started and that have not ended, and those it was given; [] when it has."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def kill_family(pid: int) -> None:
    """SIGKILL to *pid* and to what it has started, each stopped first so that it starts nothing more meanwhile."""
    family = [pid]
    for member in family:  # grows as it goes
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGSTOP)
        family += children(member)
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member, signal.SIGKILL)


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    stdin: bytes | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run *argv*, wait for at most *timeout* seconds, and return what it printed (octets).

    LC_ALL is C, so that messages can be quoted; *env* is added to the caller's environment. With *check* a
    status other than 0 raises DreError with the command and its last words. Raises MissingError when the
    program is not installed and TimedOutError (after SIGKILL) when it did not end in time.
    """
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            env=environment,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError:
        raise missing(argv[0]) from None
    except subprocess.TimeoutExpired:
        raise TimedOutError(f"{' '.join(argv)}: no answer within {timeout:g} s") from None
    if check and done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace").strip()
        last = said.splitlines()[-1] if said else "no message"
        raise DreError(f"{' '.join(argv)}: exit status {done.returncode}: {last}")
    return done


def follow(argv: Sequence[str], on_line: Callable[[str], None], *, timeout: float, stdin: bytes = b"") -> int:
    """Run *argv* and give each line that it writes to stderr to *on_line* as it comes; return its status.

    stdin must fit a pipe (64 KiB); stdout is dropped. Raises MissingError and, after SIGKILL, TimedOutError.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise missing(argv[0]) from None
    deadline = time.monotonic() + timeout
    with child, selectors.DefaultSelector() as selector:
        try:
            assert child.stdin and child.stderr
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(stdin)
                child.stdin.close()
            selector.register(child.stderr, selectors.EVENT_READ)
            rest = b""
            while selector.select(max(0.0, deadline - time.monotonic())):
                octets = os.read(child.stderr.fileno(), 65536)
                *lines, rest = (rest + octets).split(b"\n")
                if not octets and rest:  # the last line has no end
                    lines.append(rest)
                for line in lines:
                    on_line(line.decode(errors="replace"))
                if not octets:
                    return child.wait(max(0.1, deadline - time.monotonic()))
            raise TimedOutError(f"{' '.join(argv)}: no end within {timeout:g} s")
        except subprocess.TimeoutExpired:
            raise TimedOutError(f"{' '.join(argv)}: no end within {timeout:g} s") from None
        finally:
            child.kill()  # harmless once it has been waited for


@dataclass(frozen=True)
class Captured:
    """How a program ended, and what it printed, as far as that was kept."""

    status: int  # 128 + N when signal N ended it, as a shell has it
    stdout: bytes
    stderr: bytes
    cut: bool  # it printed more than was kept


def captured(begin: Callable[[Sequence[int]], int], end: Callable[[], int], stdin: bytes, limit: int) -> Captured:
    """What a program prints of *stdin* until it ends, without a deadline; at most *limit* octets of each output.

    *begin* starts it on three descriptors, its standard streams, and returns one that becomes readable when it has
    ended; *end* then tells how, as subprocess has it. What it leaves in the background may hold the outputs open; that
    is not waited for.
    """
    theirs, ours = [], []
    try:
        for fd in (0, 1, 2):
            ends = os.pipe()
            theirs.append(ends[fd > 0])
            ours.append(ends[fd == 0])
        ended = begin(theirs)
        while theirs:
            os.close(theirs.pop())
        outputs = [_Kept(fd, limit) for fd in ours[1:]]
        _converse(ended, ours, stdin, outputs)
        status = end()
    finally:
        for fd in (*theirs, *ours):
            os.close(fd)
    octets = [bytes(output.octets) for output in outputs]
    return Captured(status if status >= 0 else 128 - status, octets[0], octets[1], any(item.cut for item in outputs))


class _Kept:
    """The first *limit* octets of what comes out of *fd*."""

    def __init__(self, fd: int, limit: int) -> None:
        self.fd, self.limit = fd, limit
        self.octets = bytearray()
        self.cut = False

    def read(self) -> bool:
        """Take what is there, at most what a pipe can hold; False at the end."""
        octets = os.read(self.fd, 1 << 20)
        room = self.limit - len(self.octets)
        self.octets += octets[:room]
        self.cut = self.cut or len(octets) > room
        return bool(octets)


def _converse(ended: int, streams: list[int], stdin: bytes, outputs: Sequence[_Kept]) -> None:
    """Feed *stdin* to the first of *streams*, which is taken away when that is closed, and take the outputs."""
    given = memoryview(stdin)
    os.set_blocking(streams[0], False)
    with selectors.DefaultSelector() as selector:
        selector.register(ended, selectors.EVENT_READ)
        selector.register(streams[0], selectors.EVENT_WRITE)
        for output in outputs:
            selector.register(output.fd, selectors.EVENT_READ, output)
        running = True
        while running:
            for key, _ in selector.select():
                if key.fd == ended:
                    running = False
                elif key.data is not None:
                    if not key.data.read():
                        selector.unregister(key.fd)
                else:
                    given = _feed(key.fd, given)
                    if not given:
                        selector.unregister(key.fd)
                        os.close(streams.pop(0))
        for output in outputs:  # what it printed last
            os.set_blocking(output.fd, False)
            with contextlib.suppress(BlockingIOError):
                output.read()


def _feed(fd: int, octets: memoryview) -> memoryview:
    """Write what fits; returns the rest, nothing when nobody wants it any more."""
    try:
        return octets[os.write(fd, octets) if octets else 0 :]
    except BrokenPipeError:
        return octets[:0]


def missing(program: str) -> MissingError:
    """The error for a *program* that is not installed, naming its Debian package."""
    name = Path(program).name
    package = PACKAGES.get(name)
    hint = f"; apt-get install {package}" if package else ""
    return MissingError(f"{program}: no such program{hint}")


def which(program: str) -> str | None:
    """The path of *program*, or None. As that of shutil, which knows archives and is slow to load."""
    found = (f"{directory}/{program}" for directory in os.get_exec_path())
    return next((path for path in found if os.access(path, os.X_OK)), None)


def need(program: str) -> str:
    """The path of *program*; raises MissingError when it is not in PATH."""
    path = which(program)
    if path is None:
        raise missing(program)
    return path


@contextlib.contextmanager
def talk(argv: Sequence[str], said: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """*argv* at work, to be written to and read from; what it writes to stderr goes into the file *said*.

    At the end it gets no more input and is killed if that does not end it. Raises MissingError.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise missing(argv[0]) from None
    try:
        yield child
    finally:
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe:
                    pipe.close()
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
