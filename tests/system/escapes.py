# SPDX-License-Identifier: Apache-2.0
"""Run inside an app as its root: tries to get out, and prints for each attempt what came of it.

The arguments are what the host knows and the app should not: the number of its disk (major:minor), a process of it, a
word that only lies in another app's delta, a file handle of that in hex, and what to write where nothing must change.
Imports nothing of the tests.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import stat
import sys

disk, pid, word, handle, mark = sys.argv[1:6]
pid = int(pid)
SYSCTL = "/proc/sys/kernel/poweroff_cmd"  # of the host alone, and never used by a test
libc = ctypes.CDLL(None, use_errno=True)
CALLS = ("init", "finit", "bpf", "keyctl", "handle", "syslog", "perf", "kexec")
NUMBERS = {
    "x86_64": (175, 313, 321, 250, 304, 103, 298, 246),
    "aarch64": (105, 273, 280, 219, 265, 116, 241, 104),
}
NUMBER = dict(zip(CALLS, NUMBERS[platform.machine()], strict=True))


def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def call(name, *words):
    words = [word if isinstance(word, (bytes, ctypes.Array)) else ctypes.c_long(word) for word in words]
    return check(libc.syscall(ctypes.c_long(NUMBER[name]), *words))


def write(path, text):
    with open(path, "w") as stream:
        stream.write(text)


def mount(source, target, kind, flags=0, data=b""):
    os.makedirs(target, exist_ok=True)
    return check(libc.mount(source.encode(), target.encode(), kind.encode(), flags, data))


def make_a_disk_node():
    os.mknod("/tmp/made", stat.S_IFBLK | 0o600, os.makedev(*map(int, disk.split(":"))))


def open_a_disk_node_of_the_tree():
    os.close(os.open("/disk", os.O_RDWR))


def open_a_made_disk_node():
    os.mknod("/tmp/opened", stat.S_IFBLK | 0o600, os.makedev(*map(int, disk.split(":"))))
    os.close(os.open("/tmp/opened", os.O_RDONLY))


def mount_the_disk():
    mount("/disk", "/tmp/m", "ext4")


def mount_without_a_device():
    mount("tmpfs", "/tmp/t", "tmpfs")


def write_to_what_is_read_only():
    write("/srv/fixed/mine", mark)


def write_to_what_is_read_only_made_writable():
    mount("none", "/srv/fixed", "", 32 | 4096)  # MS_REMOUNT | MS_BIND, without MS_RDONLY
    write("/srv/fixed/mine", mark)


def write_sysrq():
    write("/proc/sysrq-trigger", "h")  # it would only print its help


def write_sysrq_in_another_proc():
    mount("proc", "/tmp/p", "proc")
    write("/tmp/p/sysrq-trigger", "h")


def change_a_sysctl():
    write(SYSCTL, mark)


def change_a_sysctl_made_writable():
    mount("none", "/proc/sys", "", 32 | 4096)  # MS_REMOUNT | MS_BIND, without MS_RDONLY
    write(SYSCTL, mark)


def change_a_sysctl_in_another_proc():
    mount("proc", "/tmp/q", "proc")
    write(f"/tmp/q/{SYSCTL.removeprefix('/proc/')}", mark)


def load_a_module():
    call("init", b"x", 1, b"")


def load_a_module_file():
    call("finit", 0, b"", 0)


def load_bpf():
    call("bpf", 5, 0, 0)


def load_a_kernel():
    call("kexec", 0, 0, 0, 0)


def read_kernel_log():
    call("syslog", 3, ctypes.create_string_buffer(4096), 4096)


def use_kernel_keys():
    call("keyctl", 0, -3, 0)


def measure_the_kernel():
    call("perf", ctypes.create_string_buffer(b"\0\0\0\0\x70", 112), -1, 0, -1, 0)


def open_by_handle():
    octets = bytes.fromhex(handle)
    fd = call(
        "handle", os.open("/srv/data", os.O_RDONLY), ctypes.create_string_buffer(octets, len(octets)), os.O_RDONLY
    )
    os.read(fd, 1)


def read_kernel_log_file():
    os.read(os.open("/proc/kmsg", os.O_RDONLY | os.O_NONBLOCK), 1)


def read_kernel_memory():
    os.read(os.open("/proc/kcore", os.O_RDONLY), 1)


def read_all_memory():
    os.mknod("/tmp/mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))
    os.read(os.open("/tmp/mem", os.O_RDONLY), 1)


def signal_a_process_of_the_host():
    os.kill(pid, 0)


def trace_a_process_of_the_host():
    check(libc.ptrace(16, pid, None, None))


def enter_namespaces_of_the_host():
    check(libc.setns(os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY), 0))


def enter_the_parent_user_namespace():
    import fcntl

    fd = fcntl.ioctl(os.open("/proc/self/ns/user", os.O_RDONLY), 0xB702)  # NS_GET_PARENT
    check(libc.setns(fd, 0))


def raise_a_hard_limit():
    for limit in (100, 101):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def be_spared_by_the_oom_killer():
    write("/proc/self/oom_score_adj", "-1000")


def leave_a_setuid_program():
    """Done, if it can be: whether a user of the host can run it is looked at there."""
    with open("/tmp/setuid", "wb") as stream, open("/usr/bin/id", "rb") as original:
        stream.write(original.read())
    os.chmod("/tmp/setuid", 0o4755)


def set_the_clock():
    import time

    time.clock_settime(time.CLOCK_REALTIME, time.time() + 1)


def groups():
    """Every control group hierarchy that can be mounted here, as a directory."""
    for kind, option in [("cgroup2", ""), *(("cgroup", name) for name in ("memory", "pids", "cpu", "devices"))]:
        place = f"/tmp/g-{kind}{option}"
        try:
            mount("none", place, kind, 0, option.encode())
        except OSError:
            continue
        yield place
    yield "/sys/fs/cgroup"


def raise_own_limits():
    tried = PermissionError(errno.EPERM, "no hierarchy can be mounted")
    for place in groups():
        for name, value in {
            "memory.limit_in_bytes": "-1",
            "pids.max": "max",
            "memory.max": "max",
            "cpu.cfs_quota_us": "-1",
            "cpu.max": "max",
            "devices.allow": "a",
        }.items():
            if os.path.exists(f"{place}/{name}"):
                try:
                    write(f"{place}/{name}", value)
                    return
                except OSError as error:
                    tried = error
    raise tried


def above_root():
    """As far up as the old way out of a chroot leads: a directory left open, and a root below it."""
    os.makedirs("/tmp/c", exist_ok=True)
    fd = os.open("/", os.O_RDONLY)
    os.chroot("/tmp/c")
    os.fchdir(fd)
    for _ in range(100):
        os.chdir("..")
    os.chroot(".")
    return "/"


def leave_by_chroot():
    with open(f"{above_root()}/etc/release") as stream:
        if stream.read() == "from the tree\n":
            raise PermissionError(errno.EPERM, "still in the tree")


def read_another_app():
    """Looks for *word* wherever a path of this app may lead out of it."""
    tops = [
        "/var/lib/lxc",
        "/srv/data/../..",
        "/proc/1/root/..",
        "/proc/1/cwd/../../..",
        "/proc/self/root/../var/lib/lxc",
    ]
    tops += [f"/proc/{number}/{link}" for number in os.listdir("/proc") if number.isdigit() for link in ("root", "cwd")]
    for top in tops:
        for name in ("", "delta/", "rootfs/"):
            for path in (f"{top}/{name}secret", f"{top}/t-esc-b/{name}secret"):
                try:
                    with open(path) as stream:
                        if word in stream.read():
                            return
                except OSError:
                    continue
    raise PermissionError(errno.EPERM, "not found")


def read_passwords_of_the_host():
    for path in ("/etc/shadow", "/proc/1/root/etc/shadow", "/srv/data/../../etc/shadow"):
        try:
            with open(path) as stream:
                if stream.read() != "of the tree\n":
                    return
        except FileNotFoundError:
            continue
    raise PermissionError(errno.EPERM, "only the tree's own")


def attempts():
    skip = {"check", "call", "write", "mount", "groups", "above_root", "attempts", "main"}
    return {name: item for name, item in globals().items() if type(item).__name__ == "function" and name not in skip}


def main():
    """Each attempt in a child, because some cannot be taken back."""
    for name, attempt in attempts().items():
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                attempt()
                said = "DONE"
            except OSError as error:
                said = errno.errorcode.get(error.errno, str(error))
            except ValueError as error:
                said = "EPERM" if "not allowed" in str(error) else repr(error)  # setrlimit's words
            except BaseException as error:
                said = repr(error)
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            print(name, pipe.read().decode() or "KILLED")
        os.waitpid(child, 0)


main()
