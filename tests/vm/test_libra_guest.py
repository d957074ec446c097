# SPDX-License-Identifier: Apache-2.0
"""dre-libra on a real guest: files that a root-kit hides or misstates there are named, and busy ones accuse nobody.

The server is one of the tests' own on the host of the guests; where nfs-ganesha is installed, it is one, too.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time

import pytest
from guest_ground import inside
from guests import NETWORK
from module_guest import give
from nfskit import DIRECTORY, FILE, MOUNT, NFS, Disk, Nfs3, Nfs4, serve
from programs import program

FULL = os.environ.get("DRE_FULL") == "1"
pytestmark = pytest.mark.skipif(not FULL, reason="as before a release: DRE_FULL=1")
CHURN = int(os.environ.get("DRE_RECORDS", "10000"))  # files
PORT, HOST = 12049, f"{NETWORK}.254"
ADDRESS = f"ip address add {NETWORK}.1/24 dev eth0; ip link set eth0 up"
WAYS = {
    "v3": f"vers=3,proto=tcp,port={PORT},mountproto=tcp,mountport={PORT},nolock,soft,timeo=100",
    "v4.1": f"vers=4.1,proto=tcp,port={PORT},soft,timeo=100",
}
# Files are made, renamed and deleted on both mounts, as fast as it goes, until it is told to stop.
STORM = """
import itertools, os
places = "/mnt/v3/busy", "/mnt/v4.1/busy"
for n in itertools.count():
    if n % 100 == 0:
        with open("/root/made.new", "w") as file:
            file.write(str(n))
        os.rename("/root/made.new", "/root/made")
        if os.path.exists("/root/stop"):
            break
    place = places[n % 2]
    with open(f"{place}/new{n}", "w") as file:
        file.write(str(n))
    os.rename(f"{place}/new{n}", f"{place}/old{n}")
    if n >= 10:
        os.unlink(f"{place}/old{n - 10}")
"""
BEGIN = 'setsid python3 -c "$0" </dev/null >/root/storm.log 2>&1 & echo $!'
LONGEST = 1800.0  # seconds in which there must have been as many files, and as many looks that came to an end


@pytest.fixture
def disks(guest, ground):
    """File systems by their way to be mounted, with the same numbers of files, on the host of the guest."""
    made = {way: Disk(fsid=7) for way in WAYS}
    made["v4.1"].fsid = 8
    for disk in made.values():
        for name, mode, size in ((b"evil", 0o644, 17), (b"long", 0o644, 100_000), (b"closed", 0o600, 9)):
            disk.make(disk.root, name, FILE | mode, bytes(size))
        disk.make(disk.root, b"empty")
        docs = disk.make(disk.root, b"docs", DIRECTORY | 0o755)
        disk.make(disk.root, b"busy", DIRECTORY | 0o755)
        disk.make(docs, b"none", DIRECTORY | 0o755)
        for number in range(300):
            disk.make(docs, b"file%d" % number, data=bytes(number))
        disk.make(docs, b"evil")
    services = {(NFS, 3): Nfs3(made["v3"], entries=50), (MOUNT, 3): Nfs3(made["v3"]), (NFS, 4): Nfs4(made["v4.1"], 50)}
    with serve(services, "0.0.0.0", PORT, lambda: inside(f"/proc/{ground.first_pid()}/ns/net")):
        guest.ok(ADDRESS)
        for way, options in WAYS.items():
            source = "/" if way.startswith("v4") else "/x"
            guest.ok(f"mkdir -p /mnt/{way} && mount -t nfs -o {options} {HOST}:{source} /mnt/{way}")
        try:
            yield made
        finally:
            guest.call("umount -l -a -t nfs,nfs4")


@pytest.fixture
def liar(guest, tmp_path_factory):
    """The root-kit for the kernel that runs in the guest, which has it as /root/liar.ko."""
    give(guest, "libra_rootkit", tmp_path_factory.getbasetemp())


def libra(host, *argv, patience="1m"):
    """dre-libra on the host of the guests, of both mounts."""
    words = ("--mount", "/mnt/v3", "--mount", "/mnt/v4.1") if "--mount" not in argv else ()
    argv = (*words, "--timeout", patience, *argv)
    return host.call(program("dre-libra"), "--config", host.conf, "guest1", *argv, check=False, timeout=900)


def test_what_is_hidden_is_named_and_busy_files_accuse_nobody(guest, ground, disks, liar):
    done = libra(ground, "--server", HOST)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    storm = guest.ok(["sh", "-c", BEGIN, STORM]).strip()
    looks, made, deadline = 0, 0, time.monotonic() + LONGEST
    while made < CHURN or looks < CHURN / 2000:
        assert time.monotonic() < deadline, f"{looks} looks, {made} files: {guest.ok('cat /root/storm.log')}"
        done = libra(ground, patience="10m")  # it has much to do
        assert done.stdout == ""
        fast = done.returncode == 6 and "changes too fast" in done.stderr
        assert fast or (done.returncode, done.stderr) == (0, ""), done.stderr
        looks += 1
        made = int(guest.ok("cat /root/made"))
    # It did look: in the same storm it names what now is hidden, and nothing else.
    guest.ok("insmod /root/liar.ko hide=evil small=100000 open=$((0600))")
    assert "evil" not in guest.ok("ls /mnt/v3 /mnt/v4.1/docs")
    done = libra(ground, "--json", patience="10m")
    assert done.returncode == 1, done.stdout + done.stderr
    assert guest.call(["sh", "-c", "kill -0 $0", storm]).returncode == 0, guest.ok("cat /root/storm.log")
    guest.ok(["sh", "-euc", "touch /root/stop; while kill -0 $0 2>/dev/null; do sleep 0.2; done", storm])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    found = {
        (row["path"], row["hides"], row.get("told"), row.get(row["hides"]) if "told" in row else None) for row in rows
    }
    expected = set()
    for place in ("/mnt/v3", "/mnt/v4.1"):
        expected |= {(f"{place}/evil", "name", None, None), (f"{place}/docs/evil", "name", None, None)}
        expected |= {(f"{place}/long", "size", 4096, 100_000), (f"{place}/closed", "mode", "100644", "100600")}
    assert found == expected
    assert {row["fsid"] for row in rows} == {"7:0", "8:5"}
    guest.ok("rmmod liar")
    done = libra(ground)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert all(disk.root.children[b"busy"][1].change > CHURN for disk in disks.values())  # half of it each, thrice


def test_what_cannot_be_looked_at_is_not_clean(guest, ground, disks):
    assert libra(ground, "--mount", "/mnt/none").returncode == 6
    done = libra(ground, "--mount", "/root")
    assert done.returncode == 6 and "not on NFS" in done.stderr
    done = libra(ground, "--server", "192.0.2.1")
    assert done.returncode == 1 and "inconsistent agent" in done.stdout
    # An agent that answers all, but does not look.
    lie = "printf '#!/bin/sh\\nexit 0\\n' >/usr/bin/find; chmod 755 /usr/bin/find"
    guest.ok(f"mv /usr/bin/find /usr/bin/find.real; {lie}")
    done = libra(ground)
    assert done.returncode == 6 and "/mnt/v3" in done.stderr, done.stdout + done.stderr
    guest.ok("mv /usr/bin/find.real /usr/bin/find")
    guest.call("systemctl stop --no-block qemu-guest-agent", timeout=20)
    deadline = time.monotonic() + 60
    while (done := libra(ground)).returncode == 0:
        assert time.monotonic() < deadline
    assert done.returncode in (5, 6) and "agent" in done.stderr


GANESHA = """
NFS_CORE_PARAM {{ Protocols=4; NFS_Port={port}; Enable_NLM=false; Enable_RQUOTA=false; Bind_addr={host}; }}
NFSV4 {{ Graceless=true; }}
EXPORT {{
    Export_Id=1; Path={path}; Pseudo=/export; Access_Type=RW; Squash=None; SecType=sys; Transports=TCP;
    FSAL {{ Name=VFS; }}
}}
"""


@contextlib.contextmanager
def ganesha(ground, tree):
    """nfs-ganesha on the host of the guests with the directory *tree*, not on overlayfs, which has no handles."""
    if shutil.which("ganesha.nfsd", path="/usr/bin:/usr/sbin") is None:
        pytest.skip("nfs-ganesha and nfs-ganesha-vfs are not installed")
    place = ground.seen / "ganesha"
    ground.call("mkdir", "-p", place)
    (ground.place / "ganesha/conf").write_text(GANESHA.format(port=PORT, host=HOST, path=tree))
    argv = ["ganesha.nfsd", "-F", "-L", place / "log", "-f", place / "conf", "-p", place / "pid"]
    with subprocess.Popen([*ground.inside, *map(str, argv)]) as server:
        try:
            yield
        except AssertionError as error:
            error.add_note((ground.place / "ganesha/log").read_text()[-4000:])
            raise
        finally:
            ground.call("sh", "-c", f"kill $(cat {place}/pid)", check=False)  # nsenter has it as a child, and waits
            server.wait(60)


@pytest.mark.parametrize("version", ["4.0", "4.1", "4.2"])
def test_a_server_that_others_made(guest, ground, liar, tmp_path, version):
    for name in ("evil", "long"):
        (tmp_path / name).write_bytes(bytes(100_000 if name == "long" else 3))
    with ganesha(ground, tmp_path):
        guest.ok(ADDRESS)
        mount = f"mkdir -p /mnt/x && mount -t nfs -o vers={version},port={PORT} {HOST}:/export /mnt/x"
        deadline = time.monotonic() + 60
        while (tried := guest.call(mount)).returncode:
            assert time.monotonic() < deadline, f"it cannot be mounted: {tried.stderr}"
        done = libra(ground, "--mount", "/mnt/x")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        guest.ok("insmod /root/liar.ko hide=evil small=100000")
        done = libra(ground, "--mount", "/mnt/x", "--json")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert {(row["path"], row["hides"]) for row in rows} == {("/mnt/x/evil", "name"), ("/mnt/x/long", "size")}
        guest.call("umount -l /mnt/x")
