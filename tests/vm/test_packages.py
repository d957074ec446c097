# SPDX-License-Identifier: Apache-2.0
"""Our packages and their services on a Debian with systemd: installed, started, still there, and evidence taken."""

import re
import subprocess

from guests import ROOT

# "active" is not enough: each must still be there, not restarted, after it had time to fail.
UNITS = """
set -eux
dbox-init
systemctl start dboxd dre-monitor dscript
for _ in $(seq 120); do
    dre-monitor status && break
    sleep 1
done
sleep 5
for unit in dboxd dre-monitor dscript; do
    systemctl is-active "$unit"
    systemctl show -p NRestarts --value "$unit" | grep -qx 0
done
dre-monitor status
"""

EVIDENCE = """
set -eux
dbox-init --client guest --role writer
for _ in $(seq 120); do
    ss -Hltn 'sport = :8443' | grep -q . && break
    sleep 1
done
printf 'an observation made in the guest' >/tmp/octets
dbox-put --client guest --stream script </tmp/octets >/tmp/receipt
systemctl stop dboxd
unshare -n dbox-verify /tmp/receipt /tmp/octets
printf 'another observation' >/tmp/other
if unshare -n dbox-verify /tmp/receipt /tmp/other; then exit 1; else test $? -eq 1; fi
"""


def test_the_guest_is_pure_cgroup_v2_with_systemd(shared_guest):
    world = shared_guest.ok(
        "stat -fc %T /sys/fs/cgroup; cat /proc/1/comm; ls -d /sys/fs/cgroup/memory || echo none"
    ).split()
    assert world == ["cgroup2fs", "systemd", "none"]


def test_packages_are_installed_without_network(state, shared_guest):
    assert shared_guest.ok("dpkg --audit") == ""
    installed = shared_guest.ok("dpkg-query -W -f '${Package}_${Version}_${Architecture}.deb\n'").split()
    ours = set((state.place / "packages").read_text().split())
    assert "dre_" in "".join(ours) and ours <= set(installed)
    assert shared_guest.ok("ip -oneline address show scope global") == ""


def test_units_start_and_stay_and_take_evidence(guest):
    """One test: to make the keys takes long."""
    guest.ok(UNITS, timeout=600)
    failed = guest.ok("systemctl --failed --no-legend --plain")
    assert not re.search(r"dre|dbox|dscript|daware|modules-load", failed), failed
    guest.ok(EVIDENCE, timeout=600)


APPS = """
set -eux
systemctl is-enabled dre-app dre-keep
systemctl is-active dre-app dre-keep
dre-app create v-db --ip none
dre-app create v-web --ip none --autostart --after v-db --restart on-failure:3
systemctl restart dre-app
dre-app status v-db
dre-app status v-web

# The service ends, is restarted by an upgrade, or is killed: the apps go on.
init=$(dre-app pid v-web 1 | cut -d' ' -f1)
monitor=$(cut -d' ' -f4 /proc/$init/stat)
if grep -E 'dre-(app|keep)' /proc/$init/cgroup /proc/$monitor/cgroup; then exit 1; fi
systemctl restart dre-keep
systemctl kill -s KILL dre-keep
sleep 3
systemctl is-active dre-keep
test -e /proc/$init

# LXC's monitor is killed: the keeper starts the app again.
kill -9 $monitor
for i in $(seq 100); do
    if [ ! -e /proc/$init ] && dre-app status v-web; then break; fi
    sleep 0.3
done
dre-app status v-web
init=$(dre-app pid v-web 1 | cut -d' ' -f1)
if grep -E 'dre-(app|keep)' /proc/$init/cgroup; then exit 1; fi
systemctl restart dre-keep
test -e /proc/$init

# The end of the system.
systemctl stop dre-app
test "$(dre-app list | grep -c ' stopped ')" = 2
systemctl is-active dre-keep
"""


def the_module_that_this_kernel_does_not_have_is_no_failure(guest, place):
    """What daware-mod has for the boot, by systemd and by init, where DKMS had no headers to build it with."""
    (package,) = (ROOT / "dist").glob("daware-mod_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, place], check=True, timeout=60)
    files = [place / name for name in ("lib/systemd/system/daware-mod.service", "etc/init.d/daware-mod")]
    guest.push_files(place, files, "/")
    guest.ok("! modprobe -n -q daware && systemctl daemon-reload")
    guest.ok("systemctl enable daware-mod && systemctl start daware-mod && ! systemctl is-failed daware-mod")
    told = guest.ok("systemctl show -P Result daware-mod; systemctl show -P ConditionResult daware-mod")
    assert told.split() == ["success", "no"]
    guest.ok("/etc/init.d/daware-mod start")
    assert guest.call(["/etc/init.d/daware-mod", "status"]).returncode == 3


def test_apps_start_and_stop_with_the_system_and_are_kept(guest, tmp_path):
    """One test with the module's, for a guest of its own is dear."""
    guest.ok(APPS, timeout=240)
    the_module_that_this_kernel_does_not_have_is_no_failure(guest, tmp_path)
