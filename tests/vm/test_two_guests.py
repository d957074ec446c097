# SPDX-License-Identifier: Apache-2.0
"""Two guests: neither is the twin of the other, and an app moves between them, cold and with its memory.

The key that an app moves by can do nothing else. What arrived is looked at without dre-app: by LXC, by /proc and
control groups, and by tar as dre-app(8) says.
"""

import pathlib
import re

PAGE = pathlib.Path(__file__).resolve().parent.parent.parent / "dre-core/man/dre-app.8.rst"
DIGEST = re.search(r"^    (tar --create .*?sha256sum)$", PAGE.read_text(), re.M | re.S)[1].replace("web1", "v-cold")
PATIENCE = 600

# What only a delta can say: files deleted, a directory replaced, a link, a hole, an attribute, names of all kinds.
CHANGE = r"""
rm /etc/debian_version
rm -r /etc/terminfo
mkdir /etc/terminfo
echo new >/etc/terminfo/file
ln /etc/terminfo/file /srv/link
truncate -s 1M /srv/hole
echo end >>/srv/hole
setfattr -n user.note -v kept /srv/hole
head -c 3000000 /dev/urandom >"/srv/a name with
a line"
chown 12:34 "/srv/a name with
a line"
"""
INSIDE = "test ! -e /etc/debian_version; ls /etc/terminfo; stat -c %h /srv/link; tail -c 4 /srv/hole"

# The word is nowhere but in the memory of the shell: a new start would have another, and begin at one.
COUNT = """word=$(od -An -tx8 -N8 /dev/urandom) n=0
while :; do n=$((n+1)); echo $word $n >/now; mv /now /count; sleep 0.2; done"""
COUNTED = '[ -e count ] && read word n <count && [ "$n" -gt "$ABOVE" ] && echo "$word $n" && exit'


def receive(second, *allowed):
    """Let the first's key run `dre-app receive` and nothing else."""
    forced = " ".join(("dre-app receive", *allowed))
    second.ok(f"""sed -i 's/^.*ssh-ed25519/restrict,command="{forced}" ssh-ed25519/' /root/.ssh/authorized_keys""")


def lxc(guest, name):
    """State and init of an app, as LXC says; None when there is none."""
    done = guest.call(["lxc-info", "-n", name, "-s", "-p", "-H"])
    return done.stdout.split()[1::2] if done.returncode == 0 else None


def count(guest, name, above=0):
    """The word and the number that the app writes, once that is above *above*."""
    script = "cd /var/lib/lxc/$NAME/delta; for i in $(seq 99); do " + COUNTED + "; sleep 1; done; exit 1"
    word, number = guest.ok(script, NAME=name, ABOVE=str(above)).split()
    return word, int(number)


def kernel(guest, pid, *names):
    """What the files of the control group of process *pid* say."""
    files = " ".join(f'"$group/{name}"' for name in names)
    return guest.ok(f"group=/sys/fs/cgroup$(cut -d: -f3 /proc/{pid}/cgroup); cat {files}").splitlines()


def test_cold_and_live(two_guests):
    """One test, for a pair of guests is dear."""
    first, second = two_guests
    receive(second, "--allow-privileged", "--allow-live")
    moves_with_its_changes_once_the_host_is_known(first, second)
    moves_with_its_memory(first, second)


def moves_with_its_changes_once_the_host_is_known(first, second):
    """Cold."""
    limits = ("--memory", "200M", "--cpu", "70", "--env", "COLOUR=blue")
    first.ok(["dre-app", "create", "v-cold", *limits, "--", "sleep", "infinity"])
    first.ok("dre-app start v-cold")
    first.ok(["dre-app", "exec", "v-cold", "--", "sh", "-euc", CHANGE])
    digest, before = first.ok(DIGEST), lxc(first, "v-cold")

    first.ok("mv /root/.ssh/known_hosts /root/known")
    refused = first.call("dre-app migrate v-cold guest2", PATIENCE)
    assert (refused.returncode, "its host key is not known" in refused.stderr) == (4, True), refused.stderr
    assert (lxc(first, "v-cold"), lxc(second, "v-cold")) == (before, None)

    first.ok("mv /root/known /root/.ssh/known_hosts")
    moved = first.call("dre-app migrate v-cold guest2", PATIENCE)
    assert (moved.returncode, moved.stderr.endswith(" s down\n")) == (0, True), moved.stderr
    assert (lxc(first, "v-cold"), first.ok("ls /var/lib/lxc /var/lib/dre/app/state").count("v-cold")) == (None, 0)
    state, init = lxc(second, "v-cold")
    assert (state, second.ok(DIGEST)) == ("RUNNING", digest)
    assert kernel(second, init, "memory.max", "cpu.max") == [str(200 << 20), "70000 100000"]
    assert "COLOUR=blue" in second.ok(f"tr '\\0' '\\n' </proc/{init}/environ").splitlines()
    assert second.ok(["dre-app", "exec", "v-cold", "--", "sh", "-euc", INSIDE]).split() == ["file", "2", "end"]


def moves_with_its_memory(first, second):
    """Live."""
    first.ok(["dre-app", "create", "v-live", "--ip", "10.231.0.9/24", "--", "sh", "-c", COUNT])
    first.ok("dre-app start v-live")
    word, number = count(first, "v-live")
    moved = first.call("dre-app migrate --live v-live guest2", PATIENCE)
    said = moved.stderr + first.call("cat /var/log/dre/app/*.criu.log").stdout
    assert (moved.returncode, moved.stderr.endswith(" s down\n")) == (0, True), said
    assert (lxc(first, "v-live"), lxc(second, "v-live")[0]) == (None, "RUNNING")
    arrived = count(second, "v-live", number)
    assert (arrived[0], count(second, "v-live", arrived[1])[0]) == (word, word), "it began anew"
    second.ok("ping -c1 -W5 10.231.0.9")


def test_two_reach_each_other_and_share_no_secret(two_guests):
    first, second = two_guests
    assert first.ok("hostname; ssh root@guest2 hostname").split() == ["guest1", "guest2"]
    first.ok("ping -c1 -W5 10.99.0.2 && head -c 300000 /dev/urandom | tee /root/f | ssh root@10.99.0.2 'cat >/root/f'")
    assert first.ok("sha256sum /root/f") == second.ok("sha256sum /root/f")
    for what in (
        "cat /etc/machine-id",
        "cat /sys/class/net/eth0/address",
        "cat /etc/ssh/ssh_host_ed25519_key.pub",
        "head -c 16 /dev/urandom | od -An -tx1",
        "cat /proc/sys/kernel/random/uuid",
    ):
        assert first.ok(what) != second.ok(what), what
    for guest in two_guests:
        assert "crng reseeded due to virtual machine fork" in guest.ok("dmesg")
        assert "Journal started" in guest.ok("journalctl -b --no-pager -u systemd-journald")
