# SPDX-License-Identifier: Apache-2.0
"""What guests begin with, in the cache: an image of dre-base, hosts where it was booted, and with our packages inside.

    $DRE_TEST_CACHE/base/guest-KEY/  the image, in a store of dre-base
    $DRE_TEST_CACHE/booted-KEY/      a host whose systems go on warm from one boot; nothing of ours is inside
    $DRE_TEST_CACHE/with-KEY/        above that, with our packages and a checkpoint: where tests begin

Each is named by what it depends on. Whoever uses a host holds a lock on it. At most two of each kind are kept, but none
in use is removed.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time

from guests import ALL, HARDWARE, NAMES, NETWORK, READY, ROOT, WANTED, Ground
from programs import environment, program

CACHE = pathlib.Path(os.environ.get("DRE_TEST_CACHE", "/var/cache/dre-test"))
IMAGES = CACHE / "base"
LIST = pathlib.Path(__file__).resolve().parent / "packages"
SIZE = "8G"
KEPT = 2
LEFT_OUT = r"^dbox-apache_|^daware-mod_|-dev_|-dbgsym_"
# For speed under TCG: each of them made processes start faster.
KERNEL = "mitigations=off tsc=reliable clocksource=tsc init_on_alloc=0"

# No network. The console logs in who calls tests/vm/shell.
PREPARE = """
exec >/dev/null
systemctl --quiet stop systemd-networkd.socket systemd-networkd systemd-resolved lxc-net
systemctl --quiet --no-reload disable systemd-networkd.socket systemd-networkd systemd-resolved
systemctl --quiet --no-reload mask lxc-net
ip address flush dev eth0
ip link set eth0 down
rm -f /etc/systemd/network/* /etc/resolv.conf
printf '127.0.0.1 localhost\\n10.99.0.1 guest1\\n10.99.0.2 guest2\\n' >/etc/hosts
mkdir /etc/systemd/system/serial-getty@ttyS0.service.d
printf '[Service]\\nExecStart=\\nExecStart=-/sbin/agetty --autologin root --noclear %%I linux\\n' \
    >/etc/systemd/system/serial-getty@ttyS0.service.d/root.conf
systemctl daemon-reload
systemctl restart serial-getty@ttyS0
"""

# Before a release under systemd. Else it is hidden meanwhile, for a package or two make it load all units some twenty
# times, each of them seconds under TCG; what the packages would have started is started after that.
UNDER_SYSTEMD = "dpkg --install /run/debs/*.deb >/run/debs/log 2>&1 </dev/null || { cat /run/debs/log; exit 1; }\n"
APART = """
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
unshare --mount sh -euc "mount -t tmpfs none /run/systemd; $INSTALL"
rm /usr/sbin/policy-rc.d
systemctl daemon-reload
systemctl start dre-keep dre-app dre-sys
"""
INSTALL = f"""
export DEBIAN_FRONTEND=noninteractive
INSTALL='{UNDER_SYSTEMD}'
{'eval "$INSTALL"' if ALL else APART}
rm -r /run/debs
systemctl stop '*.timer'  # they would wake up when it is told the present time
sync
"""
PATIENT = 1800  # seconds for a step of what is made beside other rings, to which it gives way


class State:
    """A saved host that stays as long as this object is open; `ground` starts one from it."""

    def __init__(self, place):
        self.place = place
        self.lock = _lock(place, fcntl.LOCK_SH)
        if self.lock is None:
            raise FileNotFoundError(place)
        os.utime(place)

    def ground(self, booted=False, **kwargs):
        """One more host that goes on from here; with *booted* from below our packages."""
        layers = [self.place.parent / "host"]
        return Ground(IMAGES, *([] if booted else [self.place / "host"]), *layers, **kwargs)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.lock.close()


def obtain(say=lambda text: None):
    """The State with the packages of dist/ installed, made when it is not there yet; *say* hears what takes long."""
    with tempfile.TemporaryDirectory(prefix="dre-debs-") as scratch:
        debs = _packages(pathlib.Path(scratch))
        image, booted = _image(), _booted()
        how = "".join((PREPARE, INSTALL, *WANTED)).encode()
        place = booted / f"with-{_digest([how, *(path.read_bytes() for path in debs)])}"
        with contextlib.suppress(FileNotFoundError):
            return State(place)
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in CACHE.glob("half-*"):  # of a maker that was killed
                _remove(path)
            _made(IMAGES / image, lambda _: _debian(image), say, "made the image")
            _made(booted, lambda made: _boot(image, made), say, "booted it")
            _made(place, lambda made: _install(booted, made, debs), say, "installed the packages in it")
            state = State(place)
            _prune(CACHE, "booted-*", keep=booted)
            _prune(booted, "with-*", keep=place)
            for path in IMAGES.glob("guest-*"):
                if not list(CACHE.glob(path.name.replace("guest", "booted") + "-*")):
                    _remove(path)
            return state


def newest():
    """The State that was used last, whatever packages it has; None when there is none."""
    places = sorted(_booted().glob("with-*"), key=lambda path: path.stat().st_mtime)
    return State(places[-1]) if places else None


def _packages(scratch):
    """Copies of the packages in dist/, all of one build."""
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "lock").open("w") as lock:  # packaging/build-deb's
        fcntl.flock(lock, fcntl.LOCK_SH)
        # Not dbox-apache: nothing in the guest needs its Apache, which is none of the image's packages. Nor what is for
        # who builds C programs, nor daware-mod, which has a guest of its own.
        wanted = (path for path in sorted((ROOT / "dist").glob("*.deb")) if not re.search(LEFT_OUT, path.name))
        debs = [pathlib.Path(shutil.copy(path, scratch)) for path in wanted]
    if not debs:
        raise RuntimeError("no packages in dist/: run make deb")
    return debs


def _digest(pieces):
    return hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()[:12]


def _wanted():
    """The names in the list beside this file."""
    return [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]


def _image():
    """The name of the present image, whether it is there or not."""
    steps = [path.read_bytes() for path in sorted((ROOT / "dre-base/steps").iterdir())]
    return f"guest-{_digest([' '.join([SIZE, KERNEL, *_wanted()]).encode(), *steps])}"


def _booted():
    """The directory of the booted guest: of its hardware, what waits in it, and the QEMU and processor it runs on."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True, timeout=60).stdout
    lines = pathlib.Path("/proc/cpuinfo").read_bytes().splitlines()
    processor = next((line for line in lines if line.startswith(b"model name")), b"")
    waits = [(ROOT / "dre-core/dre/system" / name).read_bytes() for name in ("warm.py", "resident.py")]
    digest = _digest([repr(HARDWARE).encode(), version, processor, *waits])
    return CACHE / f"{_image()}-{digest}".replace("guest", "booted")


def _made(place, make, say, done):
    """Unless *place* is there, let *make* fill a new directory that becomes *place* only when it is whole."""
    if place.exists():
        return
    begun = time.monotonic()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="half-", dir=CACHE))
    scratch.chmod(0o755)  # QEMU is another user
    try:
        make(scratch / "made")
        if not place.exists():
            (scratch / "made").rename(place)
    finally:
        _remove(scratch)
    say(f"guest: {done} in {time.monotonic() - begun:.0f} s: {place}")


def _debian(name):
    conf = CACHE / "dre.conf"
    conf.write_text(f'DRE_CORE_STATE_DIR="{CACHE}"\nDRE_CORE_RUN_DIR="{CACHE}/run"\n')
    argv = [program("dre-base"), "--config", conf, "--quiet", "--name", name, "--size", SIZE, "--package", *_wanted()]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), timeout=PATIENT)
    if done.returncode != 0:
        raise RuntimeError(f"dre-base: exit status {done.returncode}: {done.stderr[-3000:]}")


def _boot(image, made):
    made.mkdir()
    manifest = IMAGES / image / "image.json"
    told = json.loads(manifest.read_text())
    if KERNEL not in told["cmdline"]:
        manifest.write_text(json.dumps({**told, "cmdline": f"{told['cmdline']} {KERNEL}"}))
    with Ground(IMAGES, parent=made.parent) as host, _aside(host):
        for number, name in enumerate(NAMES, 1):
            words = ("--base", image, "--warm", *HARDWARE, "--ip", f"{NETWORK}.{number}/24")
            host.dre("create", name, *words, timeout=PATIENT)
        host.keep(made / "host")


def _install(booted, made, debs):
    made.mkdir()

    def install(guest):
        started = host.dre("start", "--wait", "600", guest.name, timeout=PATIENT)
        assert "warm" not in started.stderr, started.stderr  # it did not have to boot
        guest.ok(["sh", "-euc", PREPARE], timeout=PATIENT)
        guest.push_files(debs[0].parent, debs, "/run/debs")
        guest.ok(["sh", "-euc", INSTALL], timeout=PATIENT)
        host.dre("checkpoint", "save", guest.name, READY, timeout=PATIENT)

    with Ground(IMAGES, booted / "host", parent=made.parent) as host, _aside(host):
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(install, (host.guests[name] for name in WANTED)))
        host.keep(made / "host")
    (made / "packages").write_text("".join(f"{path.name}\n" for path in debs))


@contextlib.contextmanager
def _aside(host):
    """While this is entered, all processes of *host* give way as we do.

    QEMU is in a session of its own, and between sessions niceness says nothing where the kernel groups by them: what
    counts is that of the group (sched(7), autogroup).
    """
    done = threading.Event()

    def look():
        while not done.wait(1.0):
            with contextlib.suppress(OSError):
                space = os.readlink(f"/proc/{host.first_pid()}/ns/mnt")
                for process in pathlib.Path("/proc").glob("[0-9]*"):
                    with contextlib.suppress(OSError):  # it has ended, or the kernel does not group
                        if os.readlink(process / "ns/mnt") == space:
                            (process / "autogroup").write_text(str(os.nice(0)))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _lock(place, how):
    """The open lock of a state; None when somebody else's is in the way or the state has gone."""
    try:
        lock = (place / "used").open("a")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    with contextlib.suppress(FileNotFoundError):  # removed before the lock was ours
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(place / "used")):
            return lock
    lock.close()
    return None


def _prune(top, pattern, keep):
    """Of the directories of *top* like *pattern* leave *keep*, the newest others, and those in use."""
    others = sorted((path for path in top.glob(pattern) if path != keep), key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) - KEPT + 1)]:
        states = [path] if pattern == "with-*" else list(path.rglob("with-*"))
        locks = [_lock(state, fcntl.LOCK_EX) for state in states]
        if all(locks):
            gone = pathlib.Path(tempfile.mkdtemp(prefix="half-", dir=CACHE))
            path.rename(gone / "gone")
            _remove(gone)
        for lock in filter(None, locks):
            lock.close()


def _remove(directory):
    """Remove all of it, but never what is mounted in it."""
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=True, timeout=300)
