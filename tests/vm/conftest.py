# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the VM ring: a fresh guest, or two that reach each other, with our packages installed, in a second or so.

When a test fails, its report ends with the guest's serial console and journal.
"""

import contextlib
import os
import shutil

import pytest
import saved
from guests import ALL

GUESTS = pytest.StashKey()
# Before a release: the ground of checkpoints, which are tested themselves, and what wants our packages in two guests.
collect_ignore = [] if ALL else ["test_checkpoint.py", "test_two_guests.py"]

NETWORK = "ip address add 10.99.0.$0/24 dev eth0 && ip link set eth0 up"
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
    if not shutil.which("libvirtd", path="/usr/sbin"):
        pytest.skip("no libvirtd: apt-get install libvirt-daemon-system qemu-system-x86 qemu-utils python3-libvirt")
    with saved.obtain(say) as held:
        yield held


@pytest.fixture(scope="session")
def ground(state):
    """The host of this process's guests."""
    with state.ground() as host:
        yield host


@pytest.fixture
def guest(ground, request):
    """A fresh guest: call(), ok(), push(), pull(); see guests.Guest."""
    with _fresh(ground.guests["guest1"], request.node) as made:
        yield made


@pytest.fixture
def shared_guest(ground, request):
    """A guest for tests that only look at it, or do not mind what the others of their file did."""
    made = ground.guests["guest1"]
    request.node.stash[GUESTS] = [made]
    if made.shared != request.path:
        made.restart()
        made.shared = request.path
    return made


@pytest.fixture
def two_guests(ground, request):
    """`guest1` and `guest2` at 10.99.0.1 and .2; root of the first may log in to the second by ssh."""
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(_fresh(guest, request.node)) for guest in ground.guests.values())
        for guest in (first, second):
            guest.ok(["sh", "-c", NETWORK, guest.number])
        second.ok("mkdir -p -m 700 /root/.ssh && cat >/root/.ssh/authorized_keys", stdin=first.ok(KEY).encode())
        host = second.ok("cat /etc/ssh/ssh_host_ed25519_key.pub")
        first.ok("cat >/root/.ssh/known_hosts", stdin=f"guest2,10.99.0.2 {host}".encode())
        yield first, second


@contextlib.contextmanager
def _fresh(guest, node):
    node.stash.setdefault(GUESTS, []).append(guest)
    guest.restart()
    try:
        yield guest
    finally:
        guest.stop()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed:
        for guest in [*item.stash.get(GUESTS, []), *item.parent.stash.get(GUESTS, [])]:
            report.sections.append((guest.name, guest.remains()))


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
