# SPDX-License-Identifier: Apache-2.0
"""The disk of the VM ring's guest: Debian 12 with its full kernel, systemd and pure cgroup v2, and all we depend on.

It makes the file system and takes kernel and initrd out of it; nothing is booted here and no package of ours is in it.
"""

import pathlib
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SUITE = "bookworm"
SIZE = "8G"

SETUP = r"""
set -eu
root="$1"
mkdir -p "$root/etc/initramfs-tools/conf.d"
echo 'MODULES=list
COMPRESS=zstd
COMPRESSLEVEL=1
BUSYBOX=n' > "$root/etc/initramfs-tools/conf.d/dre"
printf '%s\n' virtio_pci virtio_blk virtio_net virtio_rng virtio_console ext4 crc32c_generic \
    > "$root/etc/initramfs-tools/modules"
"""

# hvc0 is tests/vm/shell's. Timers would wake up when a restored guest is told the present time.
FINISH = r"""
set -eu
root="$1"
echo '/dev/vda / ext4 defaults 0 1' > "$root/etc/fstab"
echo guest > "$root/etc/hostname"
printf '127.0.0.1 localhost\n10.99.0.1 guest1\n10.99.0.2 guest2\n' > "$root/etc/hosts"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    logrotate.timer man-db.timer systemd-tmpfiles-clean.timer \
    e2scrub_reap.service getty@tty1.service serial-getty@ttyS0.service serial-getty@hvc0.service \
    systemd-pstore.service lxc-net.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
rm -f "$root"/etc/systemd/system/multi-user.target.wants/ssh.service "$root/etc/systemd/system/sshd.service"
mkdir "$root/etc/systemd/system/qemu-guest-agent.service.d"
printf '[Service]\nLogLevelMax=notice\n' > "$root/etc/systemd/system/qemu-guest-agent.service.d/quiet.conf"
cat > "$root/etc/systemd/system/shell.service" <<'UNIT'
[Unit]
Description=A root shell on the virtio console
[Service]
Environment=TERM=linux HOME=/root
ExecStart=/sbin/agetty --autologin root --noclear --keep-baud 115200 hvc0 linux
StandardInput=tty
StandardOutput=tty
TTYPath=/dev/hvc0
UNIT
"""


def packages():
    """The names in the list beside this file."""
    lines = (HERE / "packages").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def recipe():
    """All that decides what is on the disk, as one text."""
    return "\n".join([SUITE, SIZE, SETUP, FINISH, *packages()])


def make(made):
    """Make the directory *made* with disk.qcow2, vmlinuz and initrd.img; takes minutes and a package mirror."""
    with tempfile.TemporaryDirectory(dir=made.parent, prefix="making-") as scratch:
        work = pathlib.Path(scratch)
        root = work / "root"
        for name, text in (("setup", SETUP), ("finish", FINISH)):
            (work / name).write_text("#!/bin/sh\n" + text)
            (work / name).chmod(0o755)
        work.chmod(0o755)
        _debian(work, root)
        made.mkdir()
        kernel = next(iter(sorted((root / "boot").glob("vmlinuz-*"))))
        shutil.copy(kernel, made / "vmlinuz")
        shutil.copy(str(kernel).replace("vmlinuz", "initrd.img"), made / "initrd.img")
        raw = work / "disk.raw"
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, raw, SIZE], check=True, timeout=300)
        command = ["qemu-img", "convert", "-O", "qcow2", raw, made / "disk.qcow2"]
        subprocess.run(command, check=True, timeout=300)


def _debian(work, root):
    command = [
        # Killed, it leaves neither processes nor mounts behind.
        *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"),
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
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1200)
    if done.returncode != 0:
        raise RuntimeError(f"mmdebstrap: exit status {done.returncode}:\n{done.stderr[-3000:]}")
