# SPDX-License-Identifier: Apache-2.0
"""Systems with a guest that boots: an image of dre-base, dre-sys around it, and what the guest itself says.

Each test begins with a new system that goes on from the warm start of the guests.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import subprocess
import time

import pytest
from guests import HARDWARE, NETWORK, ROOT
from programs import environment, program

ADDRESSES = {"v1": 11, "v2": 12, "v3": 13}
FULL = os.environ.get("DRE_FULL") == "1"
KILLS = int(os.environ.get("DRE_KILLS", "1"))
COUNTER = """
import socket, threading, time, secrets
token, count = secrets.token_hex(8), 0
server = socket.create_server(("0.0.0.0", 7777))
file = open("/root/counted", "w")
def answer():
    while True:
        peer, _ = server.accept()
        with peer: peer.sendall(f"{token} {count}".encode())
threading.Thread(target=answer, daemon=True).start()
while True:
    count += 1
    file.write("x"); file.flush()
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def host(state):
    """A host below that of the guests, with the image and the warm start that those have, too."""
    with state.ground(booted=True, limits=True) as made:
        made.image = next(made.images.glob(f"{state.place.parent.name.rsplit('-', 1)[0].replace('booted', 'guest')}"))
        made.key = made.place / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", made.key], check=True)
        yield made


@pytest.fixture
def system(host):
    """A running system."""
    with warm(host, "v1"):
        yield "v1"


@pytest.fixture(scope="module")
def shared(host):
    """One that tests leave as they found it."""
    with warm(host, "v3"):
        yield "v3"


@contextlib.contextmanager
def warm(host, name):
    words = ("--base", host.image.name, "--warm", *HARDWARE, "--ssh-key", f"{host.key}.pub")
    host.dre("create", name, "--ip", f"{NETWORK}.{ADDRESSES[name]}/24", *words)
    try:
        done = host.dre("start", name, "--wait", "120", timeout=300)
        assert "warm" not in done.stderr  # it did not have to boot
        yield
    finally:
        host.dre("destroy", "--force", name, check=False)


def guest(host, name, script, **kwargs):
    """The words that sh prints in the guest."""
    return host.dre("exec", name, "--", "sh", "-c", script, **kwargs).stdout.split()


def identity(host, name):
    """Machine id and fingerprint of the host key, once there are both."""
    told = guest(host, name, "cat /etc/machine-id; ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub | cut -d' ' -f2")
    return told if len(told) == 2 else None


def counted(host):
    """Token and count of the counter, asked over the network."""
    ask = f"import socket; print(socket.create_connection(('{NETWORK}.11', 7777), timeout=20).recv(100).decode())"
    token, number = host.call("python3", "-c", ask).stdout.split()
    return token, int(number)


def wait_for(look, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def test_two_of_one_image_are_machines_of_their_own(host, system):
    with warm(host, "v2"):
        told = {}
        for name in (system, "v2"):
            address = f"{NETWORK}.{ADDRESSES[name]}"
            assert guest(host, name, "hostname; cat /etc/hostname") == [name, name]
            assert f"{address}/24" in guest(host, name, "ip -4 -br addr show eth0")
            row = json.loads(host.dre("status", name, "--json").stdout)
            assert row["ip"] == [address]
            assert guest(host, name, "journalctl --quiet --boot --lines 1")  # not lost with the old machine id
            mac = guest(host, name, "cat /sys/class/net/eth0/address")
            assert mac[0] in host.virsh("domiflist", name)
            wait_for(lambda name=name: guest(host, name, "systemctl is-active ssh || true") == ["active"])
            told[name] = [*mac, *identity(host, name), *guest(host, name, "od -An -tx8 -N16 /dev/urandom")]
            ssh = ["ssh", "-i", host.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
            done = host.call(*ssh, "-o", "ConnectTimeout=60", f"root@{address}", "hostname")
            assert done.stdout.strip() == name, done.stderr
        assert not set(told[system]) & set(told["v2"])


def test_a_warm_start_that_was_killed_makes_no_second_machine_of_one(host, shared):
    """It goes on as itself, or boots as itself; never from the warm memory on a disk that it has written to."""
    seen = {*wait_for(lambda: identity(host, shared)), *guest(host, shared, "hostname")}
    words = ("--base", host.image.name, "--warm", *HARDWARE, "--ssh-key", f"{host.key}.pub")
    for _ in range(KILLS):
        host.dre("create", "v2", "--ip", f"{NETWORK}.12/24", *words)
        try:
            process = host.begin("start", "v2")
            time.sleep(random.uniform(0, 4))
            process.kill()
            process.communicate(timeout=60)
            host.dre("recover", timeout=300)
            host.dre("start", "v2", "--wait", "300", timeout=400)
            told = [*wait_for(lambda: identity(host, "v2")), *guest(host, "v2", "hostname")]
            assert not seen & set(told)
            assert told[-1] == "v2"
            seen |= set(told[:-1])
            assert f"{NETWORK}.12/24" in guest(host, "v2", "ip -4 -br addr show eth0")
            assert json.loads((host.place / "state/sys/state/v2/system.json").read_text()).get("warm") is None
        finally:
            host.dre("destroy", "--force", "v2", check=False)


def test_what_began_warm_comes_back_from_an_export(host, system):
    guest(host, system, "head -c 3000000 /dev/urandom >/root/octets; sync; rm /etc/motd; fstrim / || true; sync")
    digest = guest(host, system, "sha256sum </root/octets")
    host.dre("stop", "--timeout", "0", system)
    host.dre("export", "--without-image", system, host.place / "v1.dre", timeout=300)
    host.dre("import", "--as", "v2", host.place / "v1.dre", timeout=300)
    try:
        disks = [host.seen / "state/sys/state" / name / "disk.qcow2" for name in (system, "v2")]
        told = [
            json.loads(host.call("qemu-img", "info", "--backing-chain", "--output=json", disk).stdout) for disk in disks
        ]
        assert [len(chain) for chain in told] == [3, 2]
        assert told[0][-1]["filename"] == told[1][-1]["filename"]
        host.call("qemu-img", "compare", *disks, timeout=300)
        if FULL:
            host.dre("start", "v2", "--wait", "400", timeout=500)
            assert guest(host, "v2", "sha256sum </root/octets") == digest
    finally:
        host.dre("destroy", "--force", "v2", check=False)
        (host.place / "v1.dre").unlink(missing_ok=True)


def test_exec_passes_words_streams_and_status(host, shared):
    octets = os.urandom(700_000)
    words = [*host.inside, program("dre-sys"), "--config", str(host.conf), "exec", "--env", "WORD=$x", shared, "--"]
    done = subprocess.run(
        [*words, "sh", "-c", "cat; echo talk >&2; exit 7"], input=octets, capture_output=True, env=environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, octets, b"talk\n")
    done = subprocess.run(
        [*words, "printf", "%s|", "a b'c", "$WORD", "$(id)"], input=b"", capture_output=True, env=environment()
    )
    assert done.stdout == b"a b'c|$WORD|$(id)|"
    assert guest(host, shared, "kill -9 $$", check=False) == []
    assert host.dre("exec", shared, "--", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    late = host.dre("exec", "--timeout", "1", shared, "--", "sleep", "1000", check=False)
    assert late.returncode == 5
    assert guest(host, shared, "pgrep -x sleep || true") == []
    assert host.dre("exec", shared, "--", "/nonexistent", check=False).returncode == 127
    much = host.dre(
        "exec", shared, "--", "sh", "-c", "head -c 9000000 /dev/zero | tr '\\0' x; echo y >&2; exit 3", check=False
    )
    assert (much.returncode, len(much.stdout), set(much.stdout), much.stderr) == (3, 9_000_000, {"x"}, "y\n")
    assert len(guest(host, shared, "ls -d /run/dre-exec.*")) == 1  # this one's own
    served = json.dumps({"id": 1, "argv": ["exec", shared, "--", "echo", "hi"]}) + "\n"
    answer = json.loads(host.dre("--serve", stdin=served.encode()).stdout)
    assert (answer["code"], answer["status"], answer["stdout"]) == (0, 0, "aGkK")


def test_files_go_in_and_out_whole(host, shared):
    source = host.place / "sent"
    source.write_bytes(os.urandom(1_500_000))
    source.chmod(0o640)
    host.dre("push", shared, source, "/root/got")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert guest(host, shared, "sha256sum </root/got; stat -c %a /root/got") == [digest, "-", "640"]
    host.dre("pull", shared, "/root/got", host.place / "back")
    assert (host.place / "back").read_bytes() == source.read_bytes()
    missing = host.dre("pull", shared, "/root/none", host.place / "none", check=False)
    assert (missing.returncode, (host.place / "none").exists()) == (1, False)


def test_without_an_agent_it_says_so(host, system):
    guest(host, system, "systemd-run --quiet sh -c 'sleep 1; systemctl stop qemu-guest-agent'")
    done = wait_for(lambda: (d := host.dre("exec", system, "--", "true", check=False)).returncode and d, 30)
    assert (done.returncode, "qemu-guest-agent" in done.stderr) == (6, True)


def test_memory_and_disk_go_back_together(host, system):
    """A counter in memory, a file's offset and a listening socket; and any of several checkpoints."""
    host.dre("exec", system, "--", "sh", "-c", "cat >/root/counter.py", stdin=COUNTER.encode())
    guest(host, system, "systemd-run --quiet --unit=counter python3 /root/counter.py")
    wait_for(lambda: not host.dre("exec", system, "--", "test", "-s", "/root/counted", check=False).returncode)
    token, first = counted(host)
    tags = [f"c{number}" for number in range(10 if FULL else 2)]
    counts = []
    for tag in tags:
        guest(host, system, f"echo {tag} >/root/tag; sync")
        counts.append(counted(host)[1])
        host.dre("checkpoint", "save", system, tag)
    assert host.virsh("snapshot-list", system, "--name").split() == tags
    guest(host, system, "echo later >/root/tag; touch /root/later; sync")
    # Further than it comes from the last of them before it is asked again.
    later = wait_for(lambda: (number := counted(host)[1]) > counts[-1] + 300 and number, 120)
    for tag, count in [*zip(tags, counts, strict=True)][::-1]:
        host.dre("checkpoint", "restart", system, tag)
        again = wait_for(lambda: _counted(host))
        assert (again[0], first < count <= again[1] < later) == (token, True)
        assert behind(host, system) < 10
        size = guest(host, system, "cat /root/tag; ls /root/later 2>/dev/null; stat -c %s /root/counted")
        assert (size[0], len(size)) == (tag, 2)
        assert abs(int(size[1]) - again[1]) < 200
        time.sleep(1)
        assert counted(host)[1] > again[1]  # it goes on


def test_it_goes_on_under_another_name(host, system):
    host.dre("exec", system, "--", "sh", "-c", "cat >/root/counter.py", stdin=COUNTER.encode())
    guest(host, system, "systemd-run --quiet --unit=counter python3 /root/counter.py")
    token, count = wait_for(lambda: _counted(host))
    host.dre("migrate", system, "localhost", "--as", "v9", timeout=300)
    try:
        again = wait_for(lambda: _counted(host))
        assert (again[0], again[1] > count) == (token, True)
        assert host.dre("exec", "v9", "--", "true").returncode == 0
    finally:
        host.dre("destroy", "--force", "v9")


def behind(host, name):
    """Seconds that the guest's clock is off from the host's."""
    before = time.time()
    told = float(guest(host, name, "date +%s.%N")[0])
    return max(before - told, told - time.time(), 0.0)


def test_its_clock_is_right_after_a_way_back(host, system):
    host.dre("checkpoint", "save", system, "one")
    guest(host, system, "date -s @1500000000")
    host.dre("checkpoint", "save", system, "long-ago")
    for verb in (("checkpoint", "restart"), ("undo",)):
        host.dre(*verb, system, "long-ago")
        assert behind(host, system) < 10
        # An agent that knows no such command, or finds no hwclock for it: the clock is set all the same.
        guest(host, system, "mv /sbin/hwclock /sbin/hwclock.gone; date -s @1500000000")
        host.dre("checkpoint", "save", system, f"without-{verb[0]}")
        host.dre(*verb, system, f"without-{verb[0]}")
        assert behind(host, system) < 10
        assert guest(host, system, "ls /sbin/hwclock*") == ["/sbin/hwclock.gone"]


def _counted(host):
    with contextlib.suppress(AssertionError, ValueError):
        return counted(host)
    return None


def test_a_quota_holds_its_processor_back(host, system):
    guest(host, system, "systemd-run --quiet sh -c 'while :; do :; done'")
    host.dre("limit", system, "--cpu", "30")
    rows = [
        json.loads(line)
        for line in host.dre("stat", system, "--interval", "4", "--count", "6", "--json").stdout.splitlines()
    ]
    used = rows[-1]["cpu"]
    # What QEMU's own threads use comes on top of the quota of the virtual processors, and most of it at the beginning.
    assert 5 < used < 45, rows  # less than its quota where others want the host, too


def test_the_balloon_gives_memory_back(host, shared):
    before = int(guest(host, shared, "awk '/MemTotal/ {print $2}' /proc/meminfo")[0])
    host.dre("limit", shared, "--memory", "1G")
    wait_for(lambda: int(guest(host, shared, "awk '/MemTotal/ {print $2}' /proc/meminfo")[0]) < before - 100_000)
    host.dre("limit", shared, "--memory", "2G")
    wait_for(lambda: int(guest(host, shared, "awk '/MemTotal/ {print $2}' /proc/meminfo")[0]) > before - 20_000)


def test_isolation_stops_every_packet_and_nothing_else(host, shared):
    ping = ["ping", "-c", "1", "-W", "2", f"{NETWORK}.254"]
    assert host.dre("exec", shared, "--", *ping, check=False).returncode == 0
    host.dre("isolate", shared)
    assert host.dre("exec", shared, "--", *ping, check=False).returncode != 0
    assert guest(host, shared, "cat /sys/class/net/eth0/carrier 2>/dev/null || echo 0") == ["0"]
    host.dre("rejoin", shared)
    wait_for(lambda: host.dre("exec", shared, "--", *ping, check=False).returncode == 0)


@pytest.mark.skipif(not FULL, reason="boots twice more, which takes minutes: DRE_FULL=1")
def test_a_clone_boots_as_another_machine_and_a_reboot_keeps_who_one_is(host, system):
    mine = wait_for(lambda: identity(host, system))
    host.dre("stop", system)
    host.dre("clone", system, "v2")
    try:
        host.dre("start", system, "v2", "--wait", "400", timeout=600)
        assert identity(host, system) == mine
        other = wait_for(lambda: identity(host, "v2"))
        assert not set(mine) & set(other)
        assert guest(host, "v2", "hostname") == ["v2"]
    finally:
        host.dre("destroy", "--force", "v2")


@pytest.mark.skipif(not FULL, reason="boots it anew, which takes minutes: DRE_FULL=1")
def test_the_example_of_libdresys_leads_a_system_through_its_life(host):
    example, life = ROOT / "libdre/examples/sys-life.c", host.place / "life"
    library = [ROOT / f"libdre/src/{name}.c" for name in ("serve", "verbs", "sys")]
    argv = [
        "gcc",
        "-std=c11",
        "-Wall",
        "-Werror",
        f"-I{ROOT}/libdre/include",
        example,
        *library,
        "-ljson-c",
        "-o",
        life,
    ]
    subprocess.run(list(map(str, argv)), check=True, timeout=60)
    variables = {**environment(), "DRE_CONFIG": str(host.conf), "DRE_SYS": str(program("dre-sys"))}
    done = subprocess.run(
        list(map(str, [*host.inside, life, "v2", host.image.name])),
        capture_output=True,
        text=True,
        env=variables,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    saved, kernel, undone, *listed = done.stdout.splitlines()
    assert saved == "snapshot good" and "v2: running" in listed
    assert re.fullmatch(r"it runs Linux 6\.\d+\.\S+", kernel)
    assert undone == f"after the undo it is running, with {512 << 20} octets of memory"
    others = host.virsh("list", "--all", "--name").split()
    assert {line.partition(":")[0] for line in listed} - {"v2"} == set(others) and "v2" not in others
