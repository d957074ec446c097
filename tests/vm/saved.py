# SPDX-License-Identifier: Apache-2.0
"""The saved states of the guest in the cache: booted once for an image, and once more for a set of packages of ours.

    $DRE_TEST_CACHE/guest-KEY/                      disk.qcow2 vmlinuz initrd.img: what image.py makes
    $DRE_TEST_CACHE/guest-KEY/booted-KEY/           the guest after its boot, nothing of ours inside
    $DRE_TEST_CACHE/guest-KEY/booted-KEY/with-KEY/  the same with our packages: where tests begin

Each is a layer on the one before, and named by what it depends on. Whoever uses a state holds a lock on it. At most two
of each kind are kept, but none in use is removed.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import image
import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CACHE = pathlib.Path(os.environ.get("DRE_TEST_CACHE", "/var/cache/dre-test"))
KEPT = 2

INSTALL = """
set -eu
export DEBIAN_FRONTEND=noninteractive
dpkg --install /run/debs/*.deb >/run/debs/log 2>&1 </dev/null || { cat /run/debs/log; exit 1; }
rm -r /run/debs
"""


class State:
    """A saved state that stays as long as this object is open: start guests from it."""

    def __init__(self, place):
        self.place = place
        self.lock = _lock(place, fcntl.LOCK_SH)
        if self.lock is None:
            raise FileNotFoundError(place)
        os.utime(place)

    def guest(self, name="guest", peers=None):
        """One more guest."""
        return machine.restore(_image(), self.place, name, peers=peers)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.lock.close()


def obtain(say=lambda text: None):
    """The State with the packages of dist/ installed, made when it is not there yet; *say* hears what takes long."""
    with tempfile.TemporaryDirectory(prefix="dre-debs-") as scratch:
        debs = _packages(pathlib.Path(scratch))
        top, booted = _image(), _booted()
        place = booted / f"with-{_digest(path.read_bytes() for path in debs)}"
        with contextlib.suppress(FileNotFoundError):
            return State(place)
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for path in CACHE.glob("half-*"):  # of a maker that was killed
                _remove(path)
            _made(top, image.make, say, "made the image")
            _made(booted, lambda made: _boot(top, made), say, "booted it")
            _made(place, lambda made: _install(top, booted, made, debs), say, "installed the packages in it")
            state = State(place)
            _prune(CACHE, "guest-*", keep=top)
            _prune(top, "booted-*", keep=booted)
            _prune(booted, "with-*", keep=place)
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
        debs = [pathlib.Path(shutil.copy(path, scratch)) for path in sorted((ROOT / "dist").glob("*.deb"))]
    if not debs:
        raise RuntimeError("no packages in dist/: run make deb")
    return debs


def _digest(pieces):
    return hashlib.sha256(b"".join(hashlib.sha256(piece).digest() for piece in pieces)).hexdigest()[:12]


def _image():
    """The directory of the present image, whether it is there or not."""
    return CACHE / f"guest-{_digest([image.recipe().encode()])}"


def _booted():
    """The directory of the booted guest. It depends on its hardware, and on the QEMU and processor it runs on."""
    version = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True, timeout=60).stdout
    lines = pathlib.Path("/proc/cpuinfo").read_bytes().splitlines()
    processor = next((line for line in lines if line.startswith(b"model name")), b"")
    return _image() / f"booted-{_digest([*(word.encode() for word in machine.HARDWARE), version, processor])}"


def _made(place, make, say, done):
    """Unless *place* is there, let *make* fill a new directory that becomes *place* only when it is whole."""
    if place.exists():
        return
    begun = time.monotonic()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="half-", dir=CACHE))
    try:
        make(scratch / "made")
        (scratch / "made").rename(place)
    finally:
        _remove(scratch)
    say(f"guest: {done} in {time.monotonic() - begun:.0f} s: {place}")


def _boot(top, made):
    made.mkdir()
    with machine.boot(top, top / "disk.qcow2", made / "ram") as guest:
        guest.save(made)


def _install(top, booted, made, debs):
    made.mkdir()
    copy = ["cp", "--sparse=always", "--reflink=auto", booted / "ram", made / "ram"]
    subprocess.run(copy, check=True, timeout=120)
    with machine.restore(top, booted, ram=made / "ram") as guest:
        guest.push_files(debs[0].parent, debs, "/run/debs")
        guest.ok(INSTALL, timeout=900)
        guest.save(made)
    (made / "packages").write_text("".join(f"{path.name}\n" for path in debs))


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
