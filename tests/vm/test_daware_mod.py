# SPDX-License-Identifier: Apache-2.0
"""The module daware in a guest of its own: loaded and unloaded, right answers, refusals, wrong calls, ending processes.

And its package: DKMS builds it, builds it again for a second kernel, signs it, and removes it.
"""

import os
import re
import shutil
import subprocess

import module_guest
import pytest
from guests import ROOT

FULL = os.environ.get("DRE_FULL") == "1"
TIMES, ENDING, CALLS = (100, 300, 10000) if FULL else (5, 10, 2000)
# That of Debian 12, and one of Debian 13, which is in the archive of 12, too.
KERNELS = ["linux-image-cloud-amd64", *(["linux-image-6.12-cloud-amd64"] if FULL else [])]

# Each part says its name, then what it has to say, then its status.
SCRIPT = r"""
part() {
    echo "--- part $1"
    shift
    "$@"
    echo "--- status $?"
}

load() { insmod /daware.ko; }

# Loaded and unloaded: lsmod, an ioctl, the list held open while it goes, and nothing left.
cycle() (
    set -e
    load
    lsmod | grep -q '^daware '
    /daware_device answers
    exec 3</proc/daware
    read -r word _ <&3
    test "$word" = outer
    rmmod daware
    ! lsmod | grep -q '^daware '
    test ! -e /dev/daware
    test ! -e /proc/daware
)

cycles() {
    done=0
    while [ $done -lt TIMES ] && cycle; do done=$((done + 1)); done
    echo "$done times"
}

# While its device is open, it stays.
busy() (
    set -e
    exec 3</dev/daware
    ! rmmod daware 2>/dev/null
    /daware_device answers
)

# The first process of a namespace and its child are $first and $child here, 1 and $inner there.
which() (
    set -e
    test "$(/daware-pid inside $first)" = 1
    test "$(/daware-pid inside $child)" = $inner
    test "$(/daware-pid outside 1 $first)" = $first
    test "$(/daware-pid outside $inner $first)" = $child
    test "$(/daware-pid outside $inner $child)" = $child
    test "$(/daware-pid inside $$)" = $$
    absent=0
    /daware-pid inside $$ $first 2>/dev/null || absent=$?
    test $absent = 3
    absent=0
    /daware-pid outside 3999 $first 2>/dev/null || absent=$?
    test $absent = 3
    denied=0
    unshare --user /daware-pid outside 1 $first 2>/dev/null || denied=$?
    test $denied = 4
)

# Nothing of /proc is there but the namespace itself: who is not told by the module cannot know.
alone() (
    set -e
    unshare --mount sh -euc '
        touch /tmp/space
        mount --bind /proc/$0/ns/pid /tmp/space
        mount -t tmpfs none /proc
        mkdir -p /proc/$0/ns
        touch /proc/$0/ns/pid
        mount --bind /tmp/space /proc/$0/ns/pid
        test "$(/daware-pid outside 1 $0 2>/dev/null)" = $0
    ' $first
)

cd /tmp
unshare --pid --fork sh -c 'sleep 9999 & echo $! >/tmp/inner; wait' &
while [ ! -s /tmp/inner ]; do sleep 0.1; done
inner=$(cat /tmp/inner)
first=$(cat /proc/$!/task/$!/children)
child=$(cat /proc/${first% }/task/${first% }/children)
first=${first% } child=${child% }

part which-without which
part alone-without alone
part cycles cycles
load
part which-with which
part alone-with alone
part busy busy
part nested /daware_device nested
part hidden /daware_device hidden
/daware_device dying ENDING >/tmp/dying &
part fuzz /daware_device fuzz CALLS 1
wait $!
echo "--- part dying"
cat /tmp/dying
echo "--- status 0"
part end rmmod daware
"""
KNOWN = r"daware: loading out-of-tree module taints kernel|daware: module verification failed"
WRONG = r"daware|BUG|WARNING|Oops|Call Trace|protection fault|Unable to|[Pp]oison|[Ss]lab|SLUB|Redzone|refcount|leak"


def compiled(place):
    """The programs that ask, linked statically."""
    words = ["gcc", "-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-static", f"-I{module_guest.SOURCE}"]
    library = [f"-I{ROOT}/libdaware/include", '-DDAWARE_VERSION="0"', *ROOT.glob("libdaware/src/*.c"), "-pthread"]
    programs = {"daware_device": [ROOT / "tests/c/daware_device.c"]}
    programs["daware-pid"] = [ROOT / "libdaware/tools/daware-pid.c", *library]
    for name, sources in programs.items():
        subprocess.run([*words, *sources, "-o", place / name], check=True, timeout=120)
    return [place / name for name in programs]


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request):
    return module_guest.archived(request.param)


@pytest.fixture(scope="module")
def told(kernel, tmp_path_factory):
    """What the console of the guest has, once the whole script was run."""
    place = tmp_path_factory.mktemp("daware-mod")
    files = [module_guest.built(kernel, place / "src"), *compiled(place)]
    script = SCRIPT
    for word, number in (("TIMES", TIMES), ("ENDING", ENDING), ("CALLS", CALLS)):
        script = script.replace(word, str(number))
    return module_guest.console(kernel, place, files, script, timeout=1800)


def outcome(told, name):
    """What a part of the script said, without what the kernel said, and its status."""
    found = re.search(rf"^--- part {name}\n(.*?)^--- status (\d+)$", told, re.MULTILINE | re.DOTALL)
    assert found, told
    return re.sub(r"^\[ *\d+\.\d+\].*\n", "", found[1], flags=re.MULTILINE), int(found[2])


def test_it_is_loaded_and_unloaded_and_answers_each_time(told):
    text, status = outcome(told, "cycles")
    assert (text, status) == ("answers: 0 failures\n" * TIMES + f"{TIMES} times\n", 0)
    assert outcome(told, "busy") == ("answers: 0 failures\n", 0)
    assert outcome(told, "end") == ("", 0)


def test_processes_in_nested_namespaces_are_told_right_and_foreign_ones_not_at_all(told):
    assert outcome(told, "nested") == ("nested: 0 failures\n", 0)


def test_what_proc_hides_the_list_hides(told):
    assert outcome(told, "hidden") == ("hidden: 0 failures\n", 0)


def test_calls_that_make_no_sense_while_processes_end(told):
    text, status = outcome(told, "fuzz")
    assert re.fullmatch(rf"{CALLS} calls, \d+ answered\nfuzz: 0 failures\n", text) and status == 0
    assert outcome(told, "dying") == ("dying: 0 failures\n", 0)


def test_daware_pid_is_right_without_the_module_and_with_it(told):
    assert outcome(told, "which-without") == outcome(told, "which-with") == ("", 0)


def test_the_library_asks_the_module_first(told, kernel):
    later = module_guest.release_of(kernel) >= "6.12"  # has the ioctl
    assert (outcome(told, "alone-without")[1], outcome(told, "alone-with")[1]) == (0 if later else 1, 0)


def test_the_kernel_says_nothing_of_it(told):
    lines = [line for line in re.findall(r"^\[ *\d+\.\d+\].*", told, re.MULTILINE) if not re.search(KNOWN, line)]
    assert [line for line in lines if re.search(WRONG, line)] == []
    assert len(re.findall("taints kernel", told)) == 1


# --- the package ---

ENTER = 'mount -t proc proc "$0/proc"; root=$0 script=$1; shift; exec chroot "$root" sh -euc "$script" sh "$@"'
BEGIN = r"""
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d
mkdir -p /var/lib/dkms
openssl req -new -x509 -newkey rsa:2048 -nodes -days 9 -subj '/CN=the owner of this machine' -outform DER \
    -keyout /var/lib/dkms/mok.key -out /var/lib/dkms/mok.pub 2>/dev/null
apt-get -qq update
apt-get -qq -y --no-install-recommends install /root/daware-mod.deb >/dev/null
dkms status daware-mod
"""
UPDATE = """
apt-get -qq -y --no-install-recommends install linux-headers-6.12-cloud-amd64 >/dev/null
dkms status daware-mod
"""
# The script of the specification builds and installs it once more.
AGAIN = r"""
version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"/\1/p' /usr/src/daware-mod-*/dkms.conf)
dkms remove -m daware-mod -v "$version" --all >/dev/null
test ! -e "/lib/modules/$1/updates/dkms/daware.ko"
/var/lib/dre/daware-mod/install.sh "$1" >/dev/null
test -e "/lib/modules/$1/updates/dkms/daware.ko"
status=0
/var/lib/dre/daware-mod/install.sh 1.0 2>/tmp/said || status=$?
test $status = 6
grep -q 'headers of 1.0 are missing' /tmp/said
"""
PURGE = "apt-get -qq -y purge daware-mod >/dev/null; find / -xdev -name '*daware*'"


@pytest.mark.skipif(not FULL, reason="takes minutes: DRE_FULL=1, as before a release")
def test_dkms_builds_it_for_each_kernel_signs_it_and_removes_it(tmp_path):
    """In a chroot of Debian 12, with the headers of a kernel, and of one that comes later."""
    packages = sorted(ROOT.glob("dist/daware-mod_*.deb"))
    assert len(packages) == 1, "dist/ has no such package: make deb"
    kernel, root = module_guest.archived(KERNELS[0]), tmp_path / "root"
    first = module_guest.release_of(kernel)
    words = ["--quiet", "--mode=root", "--variant=apt", f"--include=dkms,kmod,openssl,linux-headers-{first}"]
    subprocess.run(["mmdebstrap", *words, "bookworm", root], check=True, timeout=1800)
    shutil.copy(packages[0], root / "root/daware-mod.deb")

    def inside(script, *argv):
        words = ["unshare", "--mount", "sh", "-euc", ENTER, root, script, *argv]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(words, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL, timeout=1800)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def installed(told):
        return set(re.findall(r"^daware-mod/[\d.]+, (\S+), x86_64: installed$", told, re.MULTILINE))

    assert installed(inside(BEGIN)) == {first}
    module = root / f"lib/modules/{first}/updates/dkms/daware.ko"
    assert inside('modinfo -k "$1" -F signer daware', first) == "the owner of this machine\n"
    script = "insmod /daware.ko; /daware_device answers"
    assert "answers: 0 fail" in module_guest.console(kernel, tmp_path, [module, *compiled(tmp_path)], script)
    (later,) = installed(inside(UPDATE)) - {first}
    assert inside('modinfo -k "$1" -F vermagic daware', later).split()[0] == later
    inside(AGAIN, first)
    assert inside(PURGE) == "/root/daware-mod.deb\n"
