# SPDX-License-Identifier: Apache-2.0
"""The configuration of another's container: what an app can be is read, everything else is refused with its line."""

import contextlib
import signal

import pytest
from dre import foreign
from dre.errors import DreError
from dre.spec import Bind
from hypothesis import given
from hypothesis import strategies as st

BUSYBOX = """
# Template used to create this container: /usr/share/lxc/templates/lxc-busybox
lxc.net.0.type = veth
lxc.net.0.link = lxcbr0
lxc.net.0.flags = up
lxc.net.0.ipv4.address = 10.0.3.7/24
lxc.apparmor.profile = generated
lxc.apparmor.allow_nesting = 1
lxc.rootfs.path = dir:/var/lib/lxc/web1/rootfs
lxc.signal.halt = SIGUSR1
lxc.signal.reboot = SIGTERM
lxc.uts.name = "web1"
lxc.tty.max = 5
lxc.pty.max = 1
lxc.cap.drop = sys_module mac_admin mac_override sys_time
lxc.mount.auto = cgroup:mixed proc:mixed sys:ro
lxc.mount.entry = shm dev/shm tmpfs defaults,create=dir 0 0
lxc.mount.entry = /usr/lib usr/lib none ro,bind 0 0
lxc.mount.entry = /sys/kernel/security sys/kernel/security none ro,bind,optional 0 0
lxc.environment = GREETING=good day
lxc.cgroup2.memory.max = 64M
lxc.cgroup.memory.limit_in_bytes = 67108864
lxc.cgroup2.cpu.max = 50000 100000
lxc.cgroup.pids.max = 40
lxc.start.auto = 1
"""


def read(tmp_path, text):
    path = tmp_path / "config"
    path.write_text(text)
    return foreign.read(path, "web1")


def test_what_a_template_writes_is_read(tmp_path):
    found = read(tmp_path, BUSYBOX)
    assert (found.rootfs, found.halt, found.command) == ("dir:/var/lib/lxc/web1/rootfs", signal.SIGUSR1, ())
    assert (found.ip, found.network, found.autostart) == ("10.0.3.7/24", True, True)
    assert (found.env, found.binds) == ({"GREETING": "good day"}, [Bind("/usr/lib", "/usr/lib", True)])
    assert found.limits == {"memory": 64 << 20, "cpu": 50.0, "pids": 40}


@pytest.mark.parametrize(
    ("line", "command", "halt"),
    [
        ("lxc.init.cmd = /usr/sbin/init.lxc --name web1 -- /bin/httpd -f", ("/bin/httpd", "-f"), None),
        ("lxc.init.cmd = /sbin/my-init 'a b'", ("/sbin/my-init", "a b"), signal.SIGPWR),
        ("lxc.signal.halt = SIGRTMIN+3", (), signal.SIGRTMIN + 3),
        ("lxc.signal.halt = 15", (), 15),
    ],
)
def test_init_and_its_signal(tmp_path, line, command, halt):
    found = read(tmp_path, f"lxc.rootfs.path = /x\n{line}\n")
    assert (found.command, found.halt) == (command, halt)


@pytest.mark.parametrize(
    "line",
    [
        "lxc.hook.pre-start = /bin/evil",
        "lxc.include = /tmp/evil.conf",
        "lxc.include = /usr/share/lxc/config/../../../../tmp/evil",
        "lxc.idmap = u 0 100000 65536",
        "lxc.net.1.type = veth",
        "lxc.net.0.type = none",
        "lxc.net.0.type = phys",
        "lxc.net.0.script.up = /bin/evil",
        "lxc.cap.drop = net_raw",
        "lxc.cap.keep = sys_admin",
        "lxc.mount.auto = proc:rw",
        "lxc.mount.entry = /dev/sda1 mnt ext4 defaults 0 0",
        "lxc.mount.entry = /etc ../../etc none bind 0 0",
        "lxc.mount.entry = proc proc proc nodev 0 0",
        "lxc.mount.fstab = /etc/fstab",
        "lxc.cgroup.devices.allow = a",
        "lxc.cgroup2.io.max = 8:0 rbps=1",
        "lxc.apparmor.profile = my-own",
        "lxc.seccomp.profile = /etc/my.seccomp",
        "lxc.uts.name = other",
        "lxc.signal.halt = SIGNONSENSE",
        "lxc.signal.halt = SIGTERM+1",
        "lxc.environment = TERM",
        "lxc.ephemeral = 1",
        "lxc.arch = i686",
        "lxc.sysctl.net.ipv4.ip_forward = 1",
        "lxc.init.uid = 1000",
        "lxc.frobnicate = 1",
        "nonsense",
    ],
)
def test_refused_with_its_line(tmp_path, line):
    if line == "nonsense":
        line = "nonsense = x"
    with pytest.raises(DreError, match=r"config:2: [a-z0-9._-]+ = "):
        read(tmp_path, f"lxc.rootfs.path = /x\n{line}\n")


def test_without_a_root_file_system_it_is_none(tmp_path):
    with pytest.raises(DreError, match=r"no lxc.rootfs.path"):
        read(tmp_path, "lxc.uts.name = web1\n")


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=60), max_size=4))
def test_any_text_is_read_or_refused(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any")
    with contextlib.suppress(DreError):
        read(path, "lxc.rootfs.path = /x\n" + "\n".join(f"lxc.{line}" for line in lines))
