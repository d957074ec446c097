# SPDX-License-Identifier: Apache-2.0
"""Modules built for a kernel of Debian, and a guest that is nothing but such a kernel, busybox and a script.

It is booted anew, in some seconds, with what finds wrong uses of memory.
"""

import pathlib
import re
import shutil
import struct
import subprocess
import tempfile

import pytest
from guests import ROOT
from saved import CACHE
from system_ground import need

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = ROOT / "daware-mod/src"
KEPT = CACHE / "module"  # kernels, and headers for them
# A stall would be one of the host, which has no processor to spare.
OPTIONS = "console=ttyS0 rdinit=/init panic=-1 mitigations=off rcupdate.rcu_cpu_stall_suppress=1"
DEBUG = "slub_debug=FZPU page_poison=1 slab_nomerge panic_on_oops=1"
INIT = """#!/busybox sh
/busybox mkdir -p /bin /proc /sys /dev /tmp
/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "--- begun"
sh -u /script </dev/null
echo "--- ended $?"
poweroff -f
"""
# The headers say that they are in /usr/src, and kbuild in /usr/lib; the layer goes with the namespace.
BUILD = """
mount -t tmpfs none /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay -o "lowerdir=$1:/usr,upperdir=/mnt/upper,workdir=/mnt/work" none /usr
exec make -C "/usr/src/linux-headers-$2" M="$3" CONFIG_DEBUG_INFO_BTF_MODULES= W=1 KCFLAGS=-Werror modules
"""


def release_of(kernel):
    """What `uname -r` says of *kernel*, a bzImage: see the Linux/x86 boot protocol."""
    octets = kernel.read_bytes()
    (offset,) = struct.unpack_from("<H", octets, 0x20E)
    return octets[0x200 + offset :].split(b" ", 1)[0].decode()


def _needs(package, kind):
    """The packages that *package* depends on whose names begin with *kind*, a pattern."""
    told = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False).stdout
    return re.findall(rf"^ *Depends: ({kind}\S+)", told, re.MULTILINE)


def _unpacked(packages, wanted):
    """What *packages* of the package mirror have below *wanted*, a directory at their top; kept for the next time."""
    need("apt-get", "dpkg-deb")
    kept = KEPT / packages[0]
    if not kept.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="half-", dir=CACHE) as scratch:
            argv = ["apt-get", "download", *packages]
            done = subprocess.run(argv, cwd=scratch, capture_output=True, text=True, timeout=300)
            if done.returncode != 0:
                pytest.skip(f"no package mirror has {packages}: {done.stderr}")
            for deb in pathlib.Path(scratch).glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", deb, f"{scratch}/root"], check=True, timeout=120)
            pathlib.Path(scratch, "root", wanted).rename(kept)
    return kept


def archived(package):
    """The kernel that the metapackage *package* depends on."""
    names = _needs(package, "linux-image-")
    if not names:
        pytest.skip(f"apt knows no {package}")
    (kernel,) = _unpacked(names[:1], "boot").glob("vmlinuz-*")
    return kernel


def built(kernel, place):
    """daware.ko for *kernel*, made in the new directory *place*; a warning of the compiler fails."""
    return _modules(SOURCE, release_of(kernel), place)[0]


def built_from(name, kernel, place):
    """The modules of the directory *name* here for *kernel*, made in the new directory *place*."""
    return _modules(HERE / name, release_of(kernel), place)


def compiled(name, place):
    """The program of tests/vm/NAME.c in the directory *place*; it needs no library."""
    program = place / name
    source = pathlib.Path(__file__).with_name(f"{name}.c")
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-O1", "-static", "-o", program, source], check=True)
    return program


def give(guest, name, scratch):
    """Let *guest* have, in /root, the modules of the directory *name* here, for the kernel that runs in it.

    They are made in *scratch*, and used from there for the next guest.
    """
    release = guest.ok(["uname", "-r"]).strip()
    place = scratch / f"{name}-{release}"
    for module in sorted(place.glob("*.ko")) or _modules(HERE / name, release, place):
        guest.push(module, f"/root/{module.name}")


def _modules(source, release, place):
    first = f"linux-headers-{release}"
    headers = _unpacked([first, *_needs(first, "linux-(?:headers|kbuild)-")], "usr")
    shutil.copytree(source, place)
    argv = ["unshare", "--mount", "sh", "-euc", BUILD, "sh", headers, release, place]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(place.glob("*.ko"))


def console(kernel, place, files, script, timeout=600):
    """Boot *kernel* with *files* at its root and run *script*: what the console has from its begin to its end."""
    need("qemu-system-x86_64", "busybox")
    root = place / "initramfs"
    root.mkdir()
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (root / "script").write_text(script)
    for path in (pathlib.Path("/bin/busybox"), *files):
        shutil.copy(path, root)
    names = "".join(f"{path.name}\n" for path in root.iterdir())
    with (place / "initrd").open("wb") as archive:
        pack = ["busybox", "cpio", "-o", "-H", "newc"]
        subprocess.run(pack, input=names.encode(), cwd=root, stdout=archive, stderr=subprocess.PIPE, check=True)
    words = ["-m", "512M", "-smp", "2", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]
    words += ["-kernel", kernel, "-initrd", place / "initrd"]
    words += ["-append", f"{OPTIONS} {DEBUG}"]
    done = subprocess.run(["qemu-system-x86_64", *words], capture_output=True, timeout=timeout)
    text = (done.stdout + done.stderr).decode(errors="replace").replace("\r", "")
    found = re.search(r"^--- begun\n(.*)^--- ended 0$", text, re.MULTILINE | re.DOTALL)
    assert found, text[-8000:]
    return found[1]
