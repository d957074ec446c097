# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the VM ring: a fresh guest, or two that reach each other, with our packages installed, in a second or so.

When a test fails, its report ends with the guest's serial console and journal, and the console stays in a file.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import tempfile

import pytest
import saved

GUESTS = pytest.StashKey()
FAILED = pytest.StashKey()

# What a clone must not share with its siblings before anybody uses it. The journal's directory is called like the id.
OWN_IDENTITY = """
set -eu
old=$(cat /etc/machine-id)
new=$(od -An -tx1 -N16 /dev/urandom | tr -d ' \\n')
echo "$new" >/etc/machine-id
mv "/var/log/journal/$old" "/var/log/journal/$new"
systemctl restart systemd-journald
ip link set eth0 address "52:54:00:99:00:0$NUMBER"
ip address add "10.99.0.$NUMBER/24" dev eth0
ip link set eth0 up
rm -f /etc/ssh/ssh_host_*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
systemctl start ssh
"""

KEY = "mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519 && cat /root/.ssh/*.pub"


def say(text):
    """A line for who watches the run, whatever pytest captures."""
    with contextlib.suppress(OSError), open("/dev/stderr", "w") as terminal:
        print(text, file=terminal)


@pytest.fixture(scope="session")
def state():
    """The saved state that all guests start from."""
    if os.geteuid() != 0:
        pytest.skip("building the guest image needs root")
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no qemu-system-x86_64: apt-get install qemu-system-x86 qemu-utils")
    with saved.obtain(say) as held:
        yield held


@pytest.fixture
def guest(state, request):
    """A fresh guest: call(), ok(), push(), pull(); see machine.Machine."""
    with _watched(request.node, state.guest()) as machine:
        yield machine


@pytest.fixture
def two_guests(state, request):
    """Guests `guest1` and `guest2` at 10.99.0.1 and .2; root of the first may log in to the second by ssh."""
    with tempfile.TemporaryDirectory(prefix="dre-vm-net-", dir="/var/tmp") as net, contextlib.ExitStack() as stack:
        ends = [pathlib.Path(net, "1"), pathlib.Path(net, "2")]
        pair = [
            stack.enter_context(_watched(request.node, state.guest(f"guest{number}", peers)))
            for number, peers in ((1, ends), (2, ends[::-1]))
        ]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda both: both[1].ok(OWN_IDENTITY, NUMBER=str(both[0])), enumerate(pair, 1)))
        first, second = pair
        second.ok("mkdir -p -m 700 /root/.ssh && cat >/root/.ssh/authorized_keys", stdin=first.ok(KEY).encode())
        host = second.ok("cat /etc/ssh/ssh_host_ed25519_key.pub")
        first.ok("cat >/root/.ssh/known_hosts", stdin=f"guest2,10.99.0.2 {host}".encode())
        yield first, second


@contextlib.contextmanager
def _watched(node, machine):
    """*machine* for one test; at the end it is gone, and its console is kept if the test failed."""
    node.stash.setdefault(GUESTS, []).append(machine)
    try:
        yield machine
    finally:
        machine.end(keep=node.stash.get(FAILED, False))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
        for machine in item.stash.get(GUESTS, []):
            report.sections.append((f"guest, console kept in {machine.console}", machine.remains()))


def pytest_terminal_summary(terminalreporter):
    """Which tests took longest inside the guests."""
    times = {
        (float(value), name)  # once, though each report of a test has it
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", [])
        if name.startswith("test_")
    }
    if times:
        terminalreporter.section(f"slowest in the guest, of {len(times)} tests, {sum(time for time, _ in times):.0f} s")
        for seconds, name in sorted(times, reverse=True)[:15]:
            terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
