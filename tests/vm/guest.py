# SPDX-License-Identifier: Apache-2.0
"""The guest of the VM ring: a Debian 12 image with systemd and pure cgroup v2, cached, booted under TCG.

A job is a directory with a script `run`; it travels as a second disk, is mounted at /job in the guest, runs as root
when the system is up, and comes back with whatever it wrote. No network between host and guest is needed.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("DRE_TEST_CACHE", "/var/cache/dre-test"))
SUITE = "bookworm"
FORMAT = 1  # raise it when this file changes what is in the image

SETUP = r"""
set -eu
root="$1"
mkdir -p "$root/job" "$root/etc/initramfs-tools/conf.d"
echo 'MODULES=list
COMPRESS=zstd
COMPRESSLEVEL=1
BUSYBOX=n' > "$root/etc/initramfs-tools/conf.d/dre"
printf '%s\n' virtio_pci virtio_blk virtio_net virtio_rng ext4 crc32c_generic > "$root/etc/initramfs-tools/modules"
"""

FINISH = r"""
set -eu
root="$1"
echo '/dev/vda / ext4 defaults 0 1' > "$root/etc/fstab"
echo guest > "$root/etc/hostname"
echo '127.0.0.1 localhost guest' > "$root/etc/hosts"
cat > "$root/etc/systemd/system/job.service" <<'UNIT'
[Unit]
Description=The job on the second disk
After=multi-user.target systemd-user-sessions.service
[Service]
Type=oneshot
StandardOutput=file:/dev/ttyS0
StandardError=inherit
TimeoutStartSec=infinity
ExecStart=/bin/sh -c 'mount /dev/vdb /job && cd /job && (sh ./run; echo $? > /job/status); cd / && umount /job; sync'
ExecStopPost=/bin/systemctl --no-block --force poweroff
[Install]
WantedBy=graphical.target
UNIT
mkdir -p "$root/etc/systemd/system/graphical.target.wants"
ln -sf ../job.service "$root/etc/systemd/system/graphical.target.wants/job.service"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service \
    ssh.service lxc-net.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
"""


def packages():
    lines = (HERE / "packages").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def image():
    """The directory of the cached image (disk.qcow2, vmlinuz, initrd.img), made when it is not there yet."""
    key = hashlib.sha256("\n".join([SUITE, str(FORMAT), SETUP, FINISH, *packages()]).encode()).hexdigest()[:16]
    place = CACHE / f"guest-{key}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            _make(place)
    return place


def _make(place):
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as scratch:
        work = pathlib.Path(scratch)
        root, made = work / "root", work / "made"
        made.mkdir()
        for name, text in (("setup", SETUP), ("finish", FINISH)):
            (work / name).write_text("#!/bin/sh\n" + text)
            (work / name).chmod(0o755)
        work.chmod(0o755)
        command = [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            '--aptopt=Apt::Install-Recommends "false"',
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            f"--include={','.join(packages())}",
            f"--essential-hook={work}/setup",
            f"--customize-hook={work}/finish",
            SUITE,
            str(root),
        ]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=900)
        kernel = next(iter(sorted((root / "boot").glob("vmlinuz-*"))))
        shutil.copy(kernel, made / "vmlinuz")
        shutil.copy(str(kernel).replace("vmlinuz", "initrd.img"), made / "initrd.img")
        raw = work / "disk.raw"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, raw, "4G"], check=True, timeout=300)
        disk = made / "disk.qcow2"
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, disk], check=True, timeout=300)
        made.rename(place)


def boot(job, megabytes=2048, timeout=600, console=None):
    """Boot the guest, run the job directory's `run` inside, and return (exit status, directory as it came back).

    The status is None when the guest did not finish in time; *console* is a path that keeps the serial line.
    """
    place = image()
    work = pathlib.Path(tempfile.mkdtemp(prefix="dre-vm-", dir="/var/tmp"))
    overlay, disk = work / "overlay.qcow2", work / "job.raw"
    base = place / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay], check=True)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", job, disk, "256M"], check=True)
    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "qemu64", "-smp", "2"),
        *("-m", f"{megabytes}M", "-kernel", place / "vmlinuz", "-initrd", place / "initrd.img"),
        *("-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet systemd.unified_cgroup_hierarchy=1"),
        *(
            "-drive",
            f"file={overlay},if=virtio,cache=unsafe",
            "-drive",
            f"file={disk},format=raw,if=virtio,cache=unsafe",
        ),
        *("-device", "virtio-rng-pci", "-serial", f"file:{console or work / 'console'}"),
    ]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True, timeout=timeout)
    back = work / "job"
    back.mkdir()
    subprocess.run(["debugfs", "-R", f"rdump / {back}", disk], check=True, capture_output=True)
    status = back / "status"
    for leftover in (overlay, disk):
        leftover.unlink()
    return (int(status.read_text()) if status.exists() else None), back
