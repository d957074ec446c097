# SPDX-License-Identifier: Apache-2.0
"""Our packages and their services on a Debian with systemd: installed, started, still there, and evidence taken."""

import contextlib
import json
import os
import re
import subprocess
import time

import pytest
from guests import AWAKE, ROOT

FULL = os.environ.get("DRE_FULL") == "1"

# "active" is not enough: each must still be there, not restarted, after it had time to fail.
UNITS = """
set -eux
dbox-init
systemctl start dboxd dre-monitor dscript
test -p /run/dre/events && test -S /run/dre/events.sock  # who starts it need not wait for them
for _ in $(seq 60); do
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
test "$(systemctl show -P Result dboxd)" = success
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


WATCHED = """\
dscript: 1
name: watched
agreed: {case: guest, goal: G1, by: [owner]}
monitors: [{id: dead, watch: liveness, of: v-web, missing: 1h}]
responses: [{id: call-owner, when: dead, steps: [{action: notify, to: owner}]}]
"""
BEFORE = """
set -eux
dbox-init
dbox-init --client guest --role writer
dbox-init --client auditor --role auditor
dscript deploy /root/watched.yaml
# Without their init scripts, each of which makes systemd load all units twice.
SYSTEMCTL_SKIP_SYSV=1 systemctl --no-reload enable dboxd dre-monitor dscript
systemctl start dboxd dre-monitor dscript
test -p /run/dre/events && test -S /run/dre/events.sock
for _ in $(seq 120); do
    ss -Hltn 'sport = :8443' | grep -q . && break
    sleep 1
done
printf 'before the reboot' >/root/before
dbox-put --client guest --stream script </root/before >/root/before.receipt
dre-app create v-web --autostart --memory 64M --cpu 50 -- /usr/bin/python3 -m http.server --directory /srv 80
dre-app create v-cut --autostart
dre-app create v-idle --ip none
dre-app snapshot save v-web good
dre-app start v-web v-cut v-idle
dre-app isolate v-cut
dre-app exec v-web -- sh -c 'echo kept >/srv/page'
sync
"""
# What is found by the system alone, before any command of ours is called that could bring it about.
AFTER = """
set -eux
for _ in $(seq 300); do
    case $(systemctl is-system-running) in running | degraded) break ;; esac
    sleep 1
done
for unit in dboxd dre-monitor dscript dre-app dre-keep; do
    systemctl is-active "$unit"
    systemctl show -p NRestarts --value "$unit" | grep -qx 0
done
dre-monitor status
dscript status | grep watched
printf 'after the reboot' >/root/after
dbox-put --client guest --stream script </root/after >/root/after.receipt
dbox-audit --seen /root/before.receipt /root/after.receipt
systemctl stop dboxd dre-monitor dscript
if journalctl -b --no-pager -u dre-monitor | grep 'ended with status'; then exit 1; fi
for name in before after; do
    unshare -n dbox-verify /root/$name.receipt /root/$name
done
"""


def boot_of(guest):
    """Which boot of the guest it is; empty while it does not answer."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return guest.call("cat /proc/sys/kernel/random/boot_id", timeout=10).stdout
    return ""


def apps(guest):
    """Each with its state and address."""
    rows = map(json.loads, guest.ok("dre-app list --json").splitlines())
    return {row["name"]: (row["state"], *row["ip"]) for row in rows}


@pytest.mark.skipif(not FULL, reason="boots it anew, which takes minutes: DRE_FULL=1, as before a release")
def test_a_reboot_brings_back_what_was_in_service(guest):
    guest.ok("cat >/root/watched.yaml", stdin=WATCHED.encode())
    guest.ok(BEFORE, timeout=1200)
    boot, before = boot_of(guest), apps(guest)
    web, cut = before["v-web"][1], before["v-cut"][1]
    page = ["curl", "-s", "-f", "--retry", "60", "--retry-connrefused", "--retry-delay", "1", f"http://{web}/page"]
    assert guest.ok(page) == "kept\n"
    with contextlib.suppress(subprocess.TimeoutExpired):
        guest.call("systemctl reboot", timeout=30)  # the agent may end before it can answer
    deadline = time.monotonic() + 600
    while boot_of(guest) in ("", boot):
        assert time.monotonic() < deadline, "it does not come back"
        time.sleep(2)
    guest.ok(["sh", "-euc", AWAKE, f"{time.time():.3f}"])

    guest.ok(AFTER, timeout=1200)
    failed = guest.ok("systemctl --failed --no-legend --plain")
    assert not re.search(r"dre|dbox|dscript|daware|modules-load", failed), failed
    started = [record for record in journal(guest) if record["kind"] == "start"]
    assert [list(record["scripts"]) for record in started] == [["watched"]] * 2

    assert apps(guest) == {**before, "v-idle": ("stopped",)}
    group = "/sys/fs/cgroup$(cut -d: -f3 /proc/$(dre-app pid v-web 1 | cut -d' ' -f1)/cgroup)"
    assert guest.ok(f"cat {group}/memory.max {group}/cpu.max") == "67108864\n50000 100000\n"
    assert guest.ok(page) == "kept\n"
    assert guest.call(["ping", "-c", "1", "-W", "5", cut]).returncode == 1
    guest.ok(["dre-app", "rejoin", "v-cut"])
    guest.ok(["ping", "-c", "1", "-W", "30", cut])
    guest.ok("dre-app undo v-web good")
    assert guest.call([*page, "-S"], timeout=240).returncode == 22  # an answer, but the page is of later


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


WAIT = 180  # seconds that nobody answers the question; it is asked before an upgrade and over after it
GREEDY = f"""\
dscript: 1
name: greedy
agreed: {{case: guest, goal: G1, by: [owner]}}
monitors:
  - {{id: busy, watch: cpu, of: v-busy, above: 30%, clear: 10%, for: 1s}}
responses:
  - id: hold-back
    when: busy
    steps:
      - {{action: limit, of: v-busy, cpu: 20%, pids: 50, timeout: 60s}}
      - {{action: ask, to: owner, text: "may v-busy be stopped?", default: approve, timeout: {WAIT}s}}
      - {{action: stop, of: v-busy, timeout: 60s}}
    at-most: {{attempts: 1, per: 1d}}
    then: call-owner
  - {{id: call-owner, steps: [{{action: notify, to: owner}}]}}
"""

# Until the app that takes all it can get is held back; then who is there.
ENGINE = r"""
set -eu
dre-app create v-busy --ip none -- sh -c 'while :; do :; done'
dre-app start v-busy
cp /usr/share/sec-monitor/rules/shop.sec /etc/dre/rules.d
mkdir -p /run/systemd/system/dscript.service.d
printf '[Service]\nWatchdogSec=10\n' >/run/systemd/system/dscript.service.d/quick.conf
systemctl daemon-reload
dscript deploy /root/greedy.yaml >/dev/null
systemctl start dscript dre-monitor
group=/sys/fs/cgroup$(cut -d: -f3 /proc/$(dre-app pid v-busy 1 | cut -d' ' -f1)/cgroup)
until [ "$(cat $group/cpu.max $group/pids.max | xargs)" = '20000 100000 50' ] && [ -s /var/log/dre/notify.log ]; do
    sleep 1
done
main=$(systemctl show -P MainPID dscript)
grep -E '^Cap(Prm|Eff|Inh)' /proc/$main/status >&2
systemctl show -P WatchdogUSec dscript >&2
stat -c '%U %n' /var/lib/dre/script/journal /var/lib/dre/script/deployed/greedy.yaml >&2
ps -o pid=,ppid=,user=,args= -e
"""

# What must be the same after an upgrade, and the journal, which may only grow.
KEPT = r"""
cd /var/lib/dre/script
find deployed versions history watch.d -type f | sort | xargs sha256sum
cat journal/*.log | head -c ${OCTETS:-1000000000} | sha256sum
"""

AGAIN = """
set -eu
dre-app limit v-busy --cpu none
dre-app start v-busy
until grep -q call-owner /var/log/dre/notify.log; do sleep 1; done
"""

HANG = """
set -eu
kill -STOP $(systemctl show -P MainPID dscript)
until [ "$(systemctl show -P NRestarts dscript)" = 1 ] && systemctl is-active --quiet dscript; do sleep 0.5; done
systemctl is-active dscript
ps -o user= -p $(systemctl show -P MainPID dscript)
journalctl -b --no-pager -u dscript | grep -c 'Watchdog timeout'
"""


def newer(name, place):
    """The package *name* of dist/ once more, as the version after it."""
    tree = place / "tree"
    subprocess.run(["dpkg-deb", "-R", ROOT / "dist" / name, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub("^(Version: .*)$", r"\1+next", control.read_text(), flags=re.M))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-b", tree, place / "next.deb"], check=True)
    return place / "next.deb"


def journal(guest):
    """Its records."""
    lines = guest.ok("cat /var/lib/dre/script/journal/*.log").splitlines()
    return [json.loads(line[9:]) for line in lines]


@pytest.mark.skipif(not FULL, reason="takes some minutes: DRE_FULL=1, as before a release")
def test_the_engine_is_a_user_of_its_own_and_an_upgrade_and_a_hang_lose_nothing(guest, state, tmp_path):
    """By its service, with the real monitor and dre-app; the kernel, ps and systemd tell."""
    guest.ok("cat >/root/greedy.yaml", stdin=GREEDY.encode())
    done = guest.call(ENGINE, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^Cap...:\t(\w+)$", done.stderr, re.M) == ["0" * 16] * 3
    watchdog, log, deployed = done.stderr.splitlines()[-3:]
    assert (watchdog, log.split()[0], deployed.split()[0]) == ("10s", "dscript", "root")
    main = guest.ok("systemctl show -P MainPID dscript").strip()
    rows = [line.split(None, 3) for line in done.stdout.splitlines()]
    assert [user for pid, _, user, _ in rows if pid == main] == ["dscript"]
    ((hands, acts),) = [(pid, user) for pid, parent, user, _ in rows if parent == main]
    ((served, words),) = [(user, args.split()) for _, parent, user, args in rows if parent == hands]
    assert (acts, served) == ("root", "root") and "--serve" in words
    allowed = set(words[words.index("--allow") + 1].split(","))
    assert (allowed, words[words.index("--names") + 1]) == ({"limit", "stop", "start"}, "v-busy")

    name = next(line for line in (state.place / "packages").read_text().split() if line.startswith("dscript_"))
    guest.push(newer(name, tmp_path), "/root/next.deb")
    octets = guest.ok("cat /var/lib/dre/script/journal/*.log | wc -c").strip()
    before = guest.ok(KEPT, OCTETS=octets)
    guest.ok("dpkg -i /root/next.deb >/root/log 2>&1 || { cat /root/log; exit 1; }", timeout=400)
    assert guest.ok("dpkg-query -W -f '${Version}' dscript").endswith("+next")
    assert guest.ok(KEPT, OCTETS=octets) == before
    assert guest.ok("systemctl is-active dscript").strip() == "active"
    assert guest.ok("systemctl show -P MainPID dscript").strip() != main
    restarted = [record for record in journal(guest) if record["kind"] == "start"]
    assert len(restarted) == 2

    # The question is over when it was to be, and its default is done.
    done = guest.call("until lxc-info -n v-busy -sH | grep -qx STOPPED; do sleep 1; done", timeout=WAIT + 120)
    steps = [record for record in journal(guest) if record["kind"] in ("intent", "outcome")]
    assert done.returncode == 0, steps
    (asked,) = [one["time"] for one in steps if (one["kind"], one["step"]) == ("outcome", 2)]
    (stopped,) = [
        one["time"] for one in steps if (one["kind"], one["response"], one["step"]) == ("intent", "hold-back", 3)
    ]
    late = guest.ok(["sh", "-c", 'echo $(($(date -d "$1" +%s) - $(date -d "$0" +%s)))', asked, stopped])
    assert WAIT - 1 <= int(late) <= WAIT + 15

    # An attempt from before the upgrade still counts: it is not held back again, and the owner is told.
    done = guest.call(AGAIN, timeout=240)
    assert done.returncode == 0, journal(guest)
    told = guest.ok("cat /var/log/dre/notify.log").splitlines()
    assert len(told) == 2 and "may v-busy be stopped?" in told[0] and " greedy/call-owner: " in told[1]
    refused = guest.ok("cat /var/lib/dre/spool/dbox/dscript/records-1").count("1 attempts within 86400 s are used up")
    assert refused == 1

    active, user, timeouts = guest.ok(HANG, timeout=300).split()
    assert (active, user, timeouts) == ("active", "dscript", "1")
