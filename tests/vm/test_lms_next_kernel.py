# SPDX-License-Identifier: Apache-2.0
"""dre-lms on the kernel of Debian 13, which is in the archive of 12, too: what is hidden and hooked there is named.

The guest is nothing but that kernel, busybox and a shell on its serial port.
"""

import json
import os
import re
import select
import termios
import time
import tty

import guest_ground
import pytest
from module_guest import archived, built_from, compiled
from programs import program
from system_ground import Apart
from test_lms import NAMES, TRACE, TRACING, WAYS

FULL = os.environ.get("DRE_FULL") == "1"
pytestmark = pytest.mark.skipif(not FULL, reason="a second kernel, as before a release: DRE_FULL=1")
SCANS = 1000
INIT = b"""#!/busybox sh
/busybox mkdir -p /bin /proc /sys /dev /root /tmp
/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo 1 >/proc/sys/kernel/printk
stty raw -echo </dev/ttyS0
echo ready >/dev/ttyS0
sh </dev/ttyS0 2>&1 | cat >/dev/ttyS0
"""
STORM = """
for name in one two; do
    setsid sh -c 'while :; do (/bin/busybox true); done' </dev/null >/dev/null 2>&1 &
done
setsid sh -c 'n=0
until [ -e /root/stop ]; do
    unshare -f -p /bin/true; insmod /hider.ko; rmmod hider
    n=$((n + 1)); echo $n >/root/loaded
done
' </dev/null >/dev/null 2>&1 &
"""
HIDE = """
touch /root/stop
sleep 3
for level in 1 2 3; do
    /bin/sleep 1000 </dev/null >/dev/null 2>&1 &
    echo $!
    insmod /hider.ko pid=$! level=$level
    rmmod hider
done
insmod /hider.ko hide=2
"""


class Shell:
    """The guest's shell, on its serial port."""

    def __init__(self, host):
        self._port = os.open(host.virsh("ttyconsole", "next").strip(), os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._port, termios.TCSANOW)
        self._asked = 0
        self._heard(r"(ready)\n", 300)  # what is sent before is lost

    def _heard(self, pattern, timeout):
        """The match of *pattern* in what the guest says."""
        heard, deadline = "", time.monotonic() + timeout
        while not (found := re.search(pattern, heard, re.DOTALL)):
            assert time.monotonic() < deadline, heard
            if select.select([self._port], [], [], 0.2)[0]:
                heard += os.read(self._port, 65536).decode(errors="replace").replace("\r", "")
        return found

    def ok(self, script, timeout=300):
        """What *script* says; it must succeed."""
        self._asked += 1
        mark = f"== {self._asked}"
        lines = f"{{\necho 'begin {mark}'\n{script}\n}}; status=$?; echo; echo 'end {mark}' $status\n"
        os.write(self._port, lines.encode())
        found = self._heard(rf"begin {mark}\n(.*)\nend {mark} (\d+)\n", timeout)
        assert found[2] == "0", found[1]
        return found[1]

    def close(self):
        os.close(self._port)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    kernel = archived("linux-image-6.12-cloud-amd64")
    scratch = tmp_path_factory.mktemp("next")
    made = built_from("lms_rootkit", kernel, scratch / "kit")
    files = [("init", 0o100755, INIT), guest_ground.busybox()]
    files.append(("bpf_at", 0o100755, compiled("bpf_at", scratch).read_bytes()))
    files += [(module.name, 0o100644, module.read_bytes()) for module in made]
    with Apart() as place:
        image = guest_ground.image(place, "next", kernel, files)
        place.dre("create", "next", "--base", image, "--ip", "none", "--memory", "256M", "--vcpus", "2")
        yield place


@pytest.fixture
def shell(host):
    """A guest that has just booted."""
    host.dre("start", "next")
    found = Shell(host)
    assert found.ok("uname -r").startswith("6.12.")
    yield found
    found.close()
    host.dre("stop", "--timeout", "0", "next")


def lms(host, *argv, **kwargs):
    """dre-lms, and what it found."""
    done = host.call(program("dre-lms"), "--config", host.conf, "next", "--json", *argv, check=False, **kwargs)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


def test_what_is_hidden_is_named_and_a_busy_guest_is_not_accused(host, shell):
    shell.ok(STORM)
    done, _ = lms(host, "--interval", "20ms", "--count", SCANS, timeout=900)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert int(shell.ok("cat /root/loaded")) > 10
    first, second, third = map(int, shell.ok(HIDE).split())
    assert shell.ok(f"ps | grep -c '^ *{second} ' || true").split() == ["0"]
    done, rows = lms(host)
    assert done.returncode == 1, done.stdout + done.stderr
    found = {row.get("pid", row.get("name")): set(row["views_missing"]) for row in rows}
    assert found == {first: {"list"}, second: NAMES, third: NAMES, "hider": {"list", "sysfs", "tree"}}


def test_hooks_are_named_and_gone_when_they_are_put_back(host, shell):
    shell.ok("touch /root/hidden-by-the-kit")
    for way, (kind, name, hides) in WAYS.items():
        shell.ok(f"insmod /hooker.ko way={way}")
        assert not hides or "hidden-by-the-kit" not in shell.ok("ls /root").split(), way
        done, rows = lms(host)
        told = [(row["type"], row["hook"], row["name"], row["module"]) for row in rows]
        assert (done.returncode, told) == (1, [("sysmon.hook", kind, name, "hooker")]), way + done.stderr
        shell.ok("rmmod hooker")
        assert "hidden-by-the-kit" in shell.ok("ls /root").split()
    done, _ = lms(host)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_kernel_hooks_itself_is_not_told(host, shell):
    assert shell.ok("/bpf_at __x64_sys_getdents64 __x64_sys_umask").count("at __x64_sys_") == 2
    shell.ok(f"({TRACE})")
    done, _ = lms(host, "--interval", "100ms", "--count", "20")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    shell.ok("grep -q bpf_trampoline /proc/kallsyms")  # else it proves nothing, and without these
    shell.ok(f"grep -q __x64_sys_ {TRACING}/trace && grep -q OPTIMIZED /sys/kernel/debug/kprobes/list")
