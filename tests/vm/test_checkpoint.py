# SPDX-License-Identifier: Apache-2.0
"""The ground of checkpoints holds in the guest: CRIU with a stock kernel 6.1, driven by lxc-checkpoint.

The container is written by hand: nothing of ours takes part.
"""

# The conditions under which CRIU restores at all: `dir:` as root file system, no terminals, no console.
CONFIG = """
lxc.include = /usr/share/lxc/config/common.conf
lxc.uts.name = v-criu
lxc.arch = linux64
lxc.rootfs.path = dir:/srv/v-criu/rootfs
lxc.net.0.type = veth
lxc.net.0.link = vcriu0
lxc.net.0.flags = up
lxc.net.0.name = eth0
lxc.net.0.veth.pair = vcriu1
lxc.net.0.ipv4.address = 10.98.0.2/24
lxc.tty.max = 0
lxc.console.path = none
lxc.init.cmd = /usr/sbin/init.lxc --name v-criu -- /bin/sh /counter
"""

PREPARE = """
set -eu
ip link add vcriu0 type bridge
ip address add 10.98.0.1/24 dev vcriu0
ip link set vcriu0 up
mkdir -p /srv/v-criu/rootfs /srv/v-criu/delta /srv/v-criu/work /var/lib/lxc/v-criu
cat >/var/lib/lxc/v-criu/config
echo 'n=0; while :; do n=$((n+1)); echo $n >/count; sleep 0.1; done' >/srv/v-criu/delta/counter
"""

MOUNT = """
set -eu
cd /srv/v-criu
mount -t overlay overlay -o lowerdir=/,upperdir=delta,workdir=work rootfs
"""


def test_memory_and_network_continue_after_a_restore_and_after_a_second_one(guest):
    assert "Looks good" in "".join((done := guest.call("criu check")).stdout + done.stderr)
    assert done.returncode == 0
    guest.ok(PREPARE, stdin=CONFIG.encode())
    guest.ok(MOUNT)
    guest.ok("lxc-start -n v-criu -o /root/start.log -l INFO >/dev/null 2>&1 || { cat /root/start.log; exit 1; }")
    guest.ok("for i in $(seq 100); do test -s /srv/v-criu/rootfs/count && exit; sleep 0.1; done; exit 1")
    dumped = guest.call("lxc-checkpoint -n v-criu -s -D /root/images -o /root/dump.log -l DEBUG", timeout=300)
    assert dumped.returncode == 0, guest.call("tail -n 40 /root/dump.log /root/images/dump.log").stdout
    count = int(guest.ok("cat /srv/v-criu/rootfs/count"))
    assert guest.ok("lxc-info -n v-criu -s -H").strip() == "STOPPED"
    for _ in range(2):
        guest.call("umount /srv/v-criu/rootfs")
        guest.ok(MOUNT)
        back = guest.call("lxc-checkpoint -n v-criu -r -D /root/images -o /root/back.log -l DEBUG", timeout=300)
        assert back.returncode == 0, guest.call("tail -n 40 /root/back.log /root/images/restore.log").stdout
        again = guest.ok("sleep 1; cat /srv/v-criu/rootfs/count; ping -c1 -W5 10.98.0.2 >/dev/null")
        # It goes on where the memory was; a new start would begin at one.
        assert count < int(again) < count + 300
        guest.ok("lxc-stop -k -n v-criu")
