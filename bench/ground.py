# SPDX-License-Identifier: Apache-2.0
"""What the measurements share: programs run and timed in turn with their peers, settings in a scratch directory, rows.

A row is Markdown: medians, and the median of the ratios pair by pair, because a machine whose speed drifts slows both.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
IMAGE_PACKAGES = (  # of the default image of dre-base, for debvm-create
    "systemd-sysv,dbus,udev,openssh-server,qemu-guest-agent,iproute2,iputils-ping,procps,kmod,netbase,ca-certificates,"
    "initramfs-tools,zstd,systemd-resolved"
)
PROGRAMS = ("sh", "sleep", "true", "cat", "mkdir", "rm")


def call(*argv, stdin=b"", check=True):
    """Run a program to its end; its output is returned."""
    done = subprocess.run([str(word) for word in argv], input=stdin, capture_output=True, env=ENVIRONMENT, timeout=600)
    if check and done.returncode:
        raise SystemExit(f"bench: {' '.join(map(str, argv))}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def cost(*argv, stdin=os.devnull):
    """Exit status, seconds that a program takes, and those of processors that it and its children use."""
    null, given = os.open(os.devnull, os.O_RDWR), os.open(stdin, os.O_RDONLY)
    begun = time.monotonic()
    actions = [(os.POSIX_SPAWN_DUP2, given, 0), *((os.POSIX_SPAWN_DUP2, null, fd) for fd in (1, 2))]
    pid = os.posix_spawnp(str(argv[0]), [str(word) for word in argv], ENVIRONMENT, file_actions=actions)
    os.close(null)
    os.close(given)
    _, status, used = os.wait4(pid, 0)
    seconds = time.monotonic() - begun
    return os.waitstatus_to_exitcode(status), seconds, used.ru_utime + used.ru_stime


def costs_of(programs, rounds):
    """Run all *programs*, argument lists, in turn *rounds* times after one warm-up; for each round the cost of each."""
    first = [cost(*argv)[0] for argv in programs]
    found = [[cost(*argv) for argv in programs] for _ in range(rounds)]
    if any([status for status, _, _ in turn] != first for turn in found):
        raise SystemExit("bench: what ended one way ended another way the next time")
    return [[(seconds, used) for _, seconds, used in turn] for turn in found]


def debvm_create(path, suite="bookworm"):
    """A disk of 2 GiB by debvm-create, with the packages of dre-base's default image."""
    argv = ["-r", suite, "-z", "2G", "-o", path]
    call("debvm-create", *argv, "--", f"--include={IMAGE_PACKAGES}", "--variant=minbase")


def timed(work):
    """Seconds that *work* takes."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def rounds_of(works, rounds):
    """Run all *works* in turn *rounds* times after one warm-up; for each round the seconds of each."""
    for work in works:
        work()
    return [[timed(work) for work in works] for _ in range(rounds)]


def pairs(ours, theirs, rounds):
    """Run both in turn *rounds* times after one warm-up; the seconds of each."""
    return rounds_of([ours, theirs], rounds)


def head():
    """Print the conditions and the head of the table."""
    print(
        f"{os.cpu_count()} processors, kernel {os.uname().release}, load {os.getloadavg()[0]:.1f}, Python "
        f"{sys.version.split()[0]}; medians, ratio = ours / peer pair by pair (below 1: we are quicker)\n"
    )
    print("| what | peer | ours | peer's | ratio | pairs | aim |\n|---|---|---|---|---|---|---|")


def report(what, peer, times, most=None):
    """One row; with *most* the ratio that is aimed at, and whether it was met."""
    ours = statistics.median(first for first, _ in times)
    theirs = statistics.median(second for _, second in times)
    ratio = statistics.median(first / second for first, second in times)
    aim = "" if most is None else f"≤ {most:g}: {'met' if ratio <= most else 'MISSED'}"
    print(
        f"| {what} | {peer} | {ours * 1000:.0f} ms | {theirs * 1000:.0f} ms | {ratio:.2f} | {len(times)} | {aim} |",
        flush=True,
    )


class Ground:
    """Settings below a scratch directory, and what the comparisons make; all is removed at the end."""

    def __init__(self, scratch, program="dre-app"):
        self.scratch = scratch
        self.app = program
        self.conf = scratch / "dre.conf"
        self.conf.write_text(
            f'DRE_CORE_STATE_DIR="{scratch}/state"\nDRE_CORE_RUN_DIR="{scratch}/run"\n'
            f'DRE_CORE_ETC_DIR="{scratch}/etc"\nDRE_CORE_LOG_DIR="{scratch}/log"\n'
            f'DRE_MONITOR_SINK="{scratch}/run/events.sock"\n'
            f'DRE_BRIDGE_IF="drebench0"\nDRE_BRIDGE_ADDRESS="10.231.109.1/24"\nDRE_BRIDGE_NAT="no"\n'
            f'DRE_BRIDGE_DNS="no"\nDRE_BRIDGE_DHCP="no"\n'
        )

    def set_dbox(self):
        """Settings for a D-Box as well; returns the port it is to listen on."""
        port = free_port()
        with self.conf.open("a") as stream:
            stream.write(
                f'DRE_DBOX_LISTEN="127.0.0.1:{port}"\nDRE_DBOX_URL="https://localhost:{port}"\n'
                f'DRE_DBOX_DATABASE="sqlite:{self.scratch}/state/dbox/dbox.sqlite"\n'
                f'DRE_DBOX_CERTS_DIR="{self.scratch}/certs"\n'
            )
        return port

    def ours(self, program, *argv, **kwargs):
        """Call one of our programs with the settings of the bench."""
        return call(self.app if program == "dre-app" else program, "--config", self.conf, *argv, **kwargs)

    def tree(self):
        """A root file system of a few programs of the host and their libraries; made once."""
        tree = self.scratch / "tree"
        if not tree.exists():
            _make_tree(tree)
        return tree


def _make_tree(tree):
    for directory in ("usr/bin", "usr/lib", "usr/lib64", "usr/sbin", "etc", "proc", "sys", "dev", "run", "tmp", "root"):
        (tree / directory).mkdir(parents=True)
    for link in ("bin", "lib", "lib64", "sbin"):
        (tree / link).symlink_to(f"usr/{link}")
    for program in PROGRAMS:
        path = shutil.which(program, path="/usr/bin:/bin")
        shutil.copy(path, tree / "usr/bin" / program)
        for library in re.findall(r"(/\S+) \(0x", call("ldd", path).decode()):
            target = tree / library.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
    (tree / "etc/os-release").write_text("ID=bench\n")  # systemd-nspawn wants one


class Served:
    """One dre-app --serve, asked request by request."""

    def __init__(self, ground):
        argv = [ground.app, "--config", str(ground.conf), "--serve"]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def __call__(self, *argv):
        """Have one verb done; a failure ends the bench."""
        self.process.stdin.write(json.dumps({"id": 0, "argv": list(map(str, argv))}).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if answer["code"] or answer.get("status"):
            raise SystemExit(f"bench: {' '.join(map(str, argv))}: {answer}")
        return answer["rows"]


@contextlib.contextmanager
def ground(program="dre-app"):
    """A Ground in a scratch directory. Needs root."""
    if os.geteuid() != 0:
        sys.exit("bench: needs root")
    with tempfile.TemporaryDirectory(prefix="dre-bench-", dir="/var/tmp") as scratch:
        os.chmod(scratch, 0o755)
        yield Ground(pathlib.Path(scratch), program)


def free_port():
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
