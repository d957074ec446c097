# SPDX-License-Identifier: Apache-2.0
"""Root of an app tries to get out. Each attempt fails as dre-app(8) says, and on the host nothing has happened.

What is tried, and how, stands in escapes.py, which runs inside; what shall come of it is the table of the manual page.
"""

import ctypes
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile
import time

import pytest
from app_ground import LXC, Ground, kernel, make_tree
from conftest import ROOT

PROGRAM = pathlib.Path(__file__).with_name("escapes.py")
SYSCTL = pathlib.Path("/proc/sys/kernel/poweroff_cmd")
MARK = "t-esc-was-here"

# The rows of the table, and the attempts that each stands for.
ROWS = {
    "make a block device": ("make_a_disk_node",),
    "open a block device, made or in the tree": ("open_a_disk_node_of_the_tree", "open_a_made_disk_node"),
    "mount the host's disk": ("mount_the_disk",),
    "mount a file system without a device (proc, tmpfs)": ("mount_without_a_device",),
    "write to what is bound read-only": (
        "write_to_what_is_read_only",
        "write_to_what_is_read_only_made_writable",
    ),
    "write */proc/sysrq-trigger*": ("write_sysrq", "write_sysrq_in_another_proc"),
    "change a sysctl of the host": (
        "change_a_sysctl",
        "change_a_sysctl_made_writable",
        "change_a_sysctl_in_another_proc",
    ),
    "load a kernel module, another kernel, or BPF": (
        "load_a_module",
        "load_a_module_file",
        "load_a_kernel",
        "load_bpf",
    ),
    "raise the app's limits in the control groups": ("raise_own_limits",),
    "raise a hard limit of **setrlimit**\\ (2)": ("raise_a_hard_limit",),
    "be spared by the OOM killer": ("be_spared_by_the_oom_killer",),
    "read another app's delta by any path, or by handle": ("read_another_app", "open_by_handle"),
    "read the host's */etc/shadow*, not being its base": ("read_passwords_of_the_host",),
    "read the kernel's log, memory, or measurements": (
        "read_kernel_log",
        "read_kernel_log_file",
        "read_kernel_memory",
        "read_all_memory",
        "measure_the_kernel",
    ),
    "use the kernel's keys": ("use_kernel_keys",),
    "signal or trace a process of the host": ("signal_a_process_of_the_host", "trace_a_process_of_the_host"),
    "enter namespaces of the host, or leave by **chroot**": (
        "enter_namespaces_of_the_host",
        "enter_the_parent_user_namespace",
        "leave_by_chroot",
    ),
    "set the clock": ("set_the_clock",),
    "leave a setuid program for a user of the host": ("leave_a_setuid_program",),
}
REFUSALS = {"EPERM", "EACCES", "EROFS", "ESRCH", "ENOENT", "ENOSYS"}
NEED_SYS_RESOURCE = {"raise_a_hard_limit", "be_spared_by_the_oom_killer"}  # which a host's root may lack itself


def table():
    """What the manual page says of each row: unprivileged and privileged."""
    page = (ROOT / "dre-core/man/dre-app.8.rst").read_text()
    section = page.partition("What an app can and cannot do\n---")[2]
    lines = re.findall(r"^(\S.*?) +(no|yes\S*) +(no|yes.*)$", section.partition("\nVERBS\n")[0], re.MULTILINE)
    return {row: (first == "no", second == "no") for row, first, second in lines}


def a_disk():
    """A block device of the host: that of its root directory, or any."""
    number = os.stat("/var/lib/lxc").st_dev
    if os.path.exists(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"):
        return number
    first = next(iter(sorted(pathlib.Path("/sys/class/block").glob("*/dev"))))
    return os.makedev(*map(int, first.read_text().strip().split(":")))


def handle_of(path):
    """A file handle of *path* in hex, as open_by_handle_at(2) takes it."""
    libc = ctypes.CDLL(None, use_errno=True)
    room = ctypes.create_string_buffer(b"\x80\0\0\0", 136)
    assert libc.name_to_handle_at(-100, os.fsencode(path), room, ctypes.byref(ctypes.c_int()), 0) == 0
    return room.raw[: 8 + int.from_bytes(room.raw[:4], "little")].hex()


def host():
    """What an escape could have changed."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
    return {
        "sysctl": SYSCTL.read_text(),
        "modules": pathlib.Path("/proc/modules").read_text() if os.path.exists("/proc/modules") else "",
        "sysrq": len(re.findall(r"sysrq", log)),
        "name": os.uname().nodename,
        "clock": round(time.time() - time.monotonic()),
    }


@pytest.fixture
def shared():
    """A directory that is bound into the app, on the file system of the deltas."""
    place = tempfile.mkdtemp(prefix="t-esc-", dir="/var/lib")
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("kind", ["--unprivileged", "--privileged"])
def test_attempts_fail(kind, run, settings, tmp_path, shared):
    tree = make_tree(tmp_path / "tree")
    os.mknod(tree / "disk", stat.S_IFBLK | 0o666, a_disk())
    (tree / "etc/shadow").write_text("of the tree\n")
    disk = f"{os.major(a_disk())}:{os.minor(a_disk())}"
    with Ground(run, settings) as app:
        app("create", "t-esc-b", "--base", tree, "--ip", "none", kind)
        secret = LXC / "t-esc-b/delta/secret"
        secret.write_text(MARK)
        # The programs of the host, Python among them, for the tree has none.
        binds = ("--bind", "/usr:/usr:ro", "--bind", f"{shared}:/srv/data", "--bind", f"{shared}:/srv/fixed:ro")
        app("create", "t-esc-a", "--base", tree, "--ip", "none", "--memory", "200M", "--pids", "60", *binds, kind)
        app("start", "t-esc-a")
        pid = int(app("status", "t-esc-a", "--json").partition('"pid":')[2].partition(",")[0])
        limits = [kernel(pid, *key) for key in own_limits()]
        before = host()
        words = (disk, os.getpid(), MARK, handle_of(secret), MARK)
        inside = ("/usr/bin/python3", "-IS", "-", *words)
        said = dict(map(str.split, app("exec", "t-esc-a", "--", *inside, stdin=PROGRAM.read_bytes()).splitlines()))
        try:
            assert host() == before
            assert os.listdir(shared) == []
            assert [kernel(pid, *key) for key in own_limits()] == limits
            assert app("status", "t-esc-a") == "running"
            assert_nobody_gains("t-esc-a")
        finally:
            if SYSCTL.read_text() != before["sysctl"]:
                SYSCTL.write_text(before["sysctl"])
    assert sorted(said) == sorted(name for names in ROWS.values() for name in names)
    # The setuid program is made, and of no use: see above.
    said["leave_a_setuid_program"] = {"DONE": "EACCES"}[said["leave_a_setuid_program"]]
    judge(kind, said)


def own_limits():
    """The files that hold the limits of the app."""
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return ("memory", "memory.max"), ("pids", "pids.max")
    return ("memory", "memory.limit_in_bytes"), ("pids", "pids.max")


def assert_nobody_gains(name):
    """A user of the host cannot run the setuid program that root of the app has left in its delta."""
    left = LXC / name / "delta/tmp/setuid"
    assert left.stat().st_mode & stat.S_ISUID, "the attempt has left nothing to try"
    assert left.stat().st_uid == 0
    for path in (left, LXC / name / "rootfs/tmp/setuid"):
        with pytest.raises(PermissionError):
            subprocess.run([path, "-u"], user=65534, group=65534, extra_groups=[], check=False)


def judge(kind, said):
    """Compare with the manual page, row by row, and print what was tried."""
    page = table()
    assert sorted(page) == sorted(ROWS)
    has_cap = int(re.search(r"CapEff:\s*(\w+)", pathlib.Path("/proc/self/status").read_text())[1], 16) >> 24 & 1
    wrong = []
    for row, attempts in ROWS.items():
        refused = page[row][kind == "--privileged"]
        for name in attempts:
            print(f"{kind} {name}: {said[name]}")
            if name in NEED_SYS_RESOURCE and not has_cap:
                continue
            if said[name] not in REFUSALS if refused else said[name] != "DONE":
                wrong.append(f"{row}: {name}: {said[name]}")
    assert wrong == []
