# SPDX-License-Identifier: Apache-2.0
"""Whether KVM really runs guests here: tried once by booting a kernel, and kept until kernel or QEMU change.

That /dev/kvm opens, that libvirt lists the domain type kvm, and QEMU's own `accel=kvm:tcg` can all say yes on a host
where no guest ever gets beyond its first instructions, as under some hypervisors that emulate KVM.
"""

import contextlib
import functools
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dre import files
from dre.conf import Conf
from dre.errors import MissingError
from dre.run import die_with, need

QEMU = "qemu-system-x86_64"
KVM = Path("/dev/kvm")
DEADLINE = 15.0  # seconds for a kernel to come to its end; on working KVM it needs about one
# Without a disk each kernel ends by this panic, having set up memory, processors and timers.
_MARK = b"Unable to mount root fs"
NOT_TRIED = "there is no kernel to try KVM with"
PATIENCE = 5.0  # seconds for libvirt to begin with a system, which takes it less than one
# libvirt 9 keeps what it has found out of QEMU only where it found KVM, or where QEMU's user may not open the device.
_REMEDY = f"libvirt is slow; it may be trying KVM, as it does each time where that does not work: chmod 600 {KVM}"


def choose(conf: Conf, kernel: Path | None, keep: bool = True) -> tuple[str, str]:
    """libvirt's domain type, kvm or qemu (which is TCG), and why. *kernel* is one to try KVM with.

    Who only looks does not *keep* what a trial says: nothing is written. Raises MissingError when there is no QEMU, or
    the settings want kvm and there is no /dev/kvm.
    """
    need(QEMU)
    if conf.sys_virt == "tcg":
        return "qemu", "DRE_SYS_VIRT says so"
    if not os.access(KVM, os.R_OK | os.W_OK):
        if conf.sys_virt == "kvm":
            raise MissingError(f"{KVM}: not there or not to be opened, and DRE_SYS_VIRT is kvm")
        return "qemu", f"{KVM} is not there or not to be opened"
    if conf.sys_virt == "kvm":
        return "kvm", "DRE_SYS_VIRT says so"
    works, why = _tried(conf, kernel) if keep else _looked(conf, kernel)
    return ("kvm", why) if works else ("qemu", why)


@contextlib.contextmanager
def patience(name: str, kind: str, say: Callable[[str], object], after: float = PATIENCE) -> Iterator[None]:
    """Tell *say* once what would help, where libvirt is longer than *after* seconds at this block, and KVM may be why.

    *kind* is libvirt's domain type of the system *name*.
    """
    import threading

    timer = threading.Timer(after, say, [f"{name}: {_REMEDY}"])
    timer.daemon = True
    if kind == "qemu" and KVM.exists():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _tried(conf: Conf, kernel: Path | None) -> tuple[bool, str]:
    place, here = conf.core_state_dir / "sys" / "virt.json", _here()
    with files.lock(conf.core_run_dir / "lock" / "virt", timeout=2 * DEADLINE):
        known = _known(place, here)
        if known:
            return known
        kernel = kernel or _running()
        if kernel is None:  # not kept: the next image may bring one
            return False, NOT_TRIED
        works, why = _boots(kernel)
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(place, json.dumps({"here": here, "works": works, "why": why}) + "\n")
        return works, why


def _looked(conf: Conf, kernel: Path | None) -> tuple[bool, str]:
    """As `_tried`, but nothing is written."""
    known = _known(conf.core_state_dir / "sys" / "virt.json", _here())
    kernel = kernel or _running()
    return known or (_boots(kernel) if kernel else (False, NOT_TRIED))


def _known(place: Path, here: dict[str, Any]) -> tuple[bool, str] | None:
    """What a trial said under the same circumstances."""
    known = _read(place)
    return (bool(known["works"]), str(known["why"])) if known.get("here") == here else None


def _running() -> Path | None:
    """The kernel that runs now, where it is a file."""
    path = Path(f"/boot/vmlinuz-{os.uname().release}")
    return path if path.exists() else None


def _here() -> dict[str, Any]:
    """What the answer depends on."""
    qemu = Path(need(QEMU)).stat()
    return {"kernel": list(os.uname()[2:4]), "qemu": [qemu.st_size, qemu.st_mtime_ns], "kvm": KVM.stat().st_rdev}


def _read(place: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(place.read_text())
        return found if {"here", "works", "why"} <= set(found) else {}
    except (FileNotFoundError, ValueError, TypeError):
        return {}  # damaged is as good as never tried


def _boots(kernel: Path) -> tuple[bool, str]:
    argv = [QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "q35,accel=kvm"]
    argv += ["-cpu", "host", "-m", "256M", "-serial", "stdio", "-kernel", str(kernel)]
    argv += ["-append", "console=ttyS0 panic=-1"]
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
            preexec_fn=functools.partial(die_with, os.getpid()),
        )
    except subprocess.TimeoutExpired as late:
        if _MARK in (late.stdout or b""):
            return True, "a trial guest booted under KVM"
        return False, f"a trial guest under KVM did not come up within {DEADLINE:g} s"
    if _MARK in done.stdout:
        return True, "a trial guest booted under KVM"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return False, f"a trial guest under KVM ended at once: {said[-1] if said else 'it said nothing'}"
