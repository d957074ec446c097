# SPDX-License-Identifier: Apache-2.0
"""A disk from a root file system: GPT, GRUB for BIOS and for UEFI, ext4. Needs no loop device, no mount, no boot.

The parts are written into a sparse file. GRUB's core images hold all the modules they need and find their menu in
/boot/grub on the third partition of the disk they came from.
"""

import os
import platform
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from dre.errors import DreError, MissingError, UsageError
from dre.run import need, run

from baselib.debian import MORTAL

LEAST = 256 << 20  # no Debian with a kernel is smaller
MIB = 1 << 20
_SECTOR = 512
_CORE = 34  # the first sector after the partition table: GRUB's core image
_ESP, _ROOT = 1 * MIB, 5 * MIB  # where these partitions begin
_END = 1 * MIB  # of the disk, kept for the second partition table
_GRUB = Path("/usr/lib/grub")
_MODULES = ["part_gpt", "ext2", "normal", "linux", "echo", "test", "configfile", "search", "search_label", "serial"]
_MODULES += ["search_fs_uuid", "terminal", "halt", "reboot", "ls", "cat"]
_EFI_MODULES = ["efi_gop", "all_video"]
_PROGRAMS = ("mke2fs", "debugfs", "sfdisk", "mformat", "mmd", "mcopy", "grub-mkimage", "qemu-img")
# Offsets in GRUB's boot.img and in the first sector of its core image; see grub-core/boot/i386/pc/boot.S, diskboot.S.
_KERNEL_SECTOR, _DRIVE_CHECK, _BLOCKLIST, _SEGMENT = 0x5C, 0x66, 500, 0x820


@dataclass(frozen=True)
class Ids:
    """The identifiers of one disk: random, or all from *seed*, so that making it again gives the same."""

    seed: str | None

    def uuid(self, what: str) -> str:
        """The one for *what*; ask once."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{self.seed}/{what}") if self.seed else uuid.uuid4())


def check_tools() -> None:
    """Raise MissingError where the programs that make disks are missing, before the long work begins."""
    if platform.machine() != "x86_64":
        raise MissingError(f"images are made on x86_64 only, not on {platform.machine()}")
    for program in _PROGRAMS:
        need(program)
    for platform_, package in (("i386-pc", "grub-pc-bin"), ("x86_64-efi", "grub-efi-amd64-bin")):
        if not (_GRUB / platform_ / "modinfo.sh").is_file():
            raise MissingError(f"{_GRUB / platform_}: not there; apt-get install {package}")


def need_room(root: Path, size: int) -> None:
    """Raise UsageError where what is in *root* cannot fit into a disk of *size* bytes."""
    held = sum(entry.lstat().st_blocks * 512 for entry in root.rglob("*"))
    if held > size - _ROOT - _END:
        raise _too_small(held, size)


def _too_small(held: int, size: int) -> UsageError:
    return UsageError(f"--size {size >> 20}M is too small: the packages take {held >> 20}M, and ext4 more")


def make(root: Path, raw: Path, size: int, root_uuid: str, ids: Ids, epoch: int | None) -> None:
    """Write the disk *raw* of *size* bytes with what is in *root*; with *epoch*, no later time is in it.

    Raises UsageError where it does not fit.
    """
    with raw.open("wb") as stream:
        stream.truncate(size)
    _partition(raw, ids)
    _bios(raw)
    _uefi(raw, ids, epoch)
    _ext4(root, raw, size, root_uuid, ids, epoch)


def convert(raw: Path, disk: Path, format: str = "raw") -> None:
    """Make the qcow2 *disk* from *raw*."""
    run([*MORTAL, "qemu-img", "convert", "-f", format, "-O", "qcow2", str(raw), str(disk)], timeout=3600)


def _partition(raw: Path, ids: Ids) -> None:
    parts = (
        (_CORE * _SECTOR, _ESP, "21686148-6449-6E6F-744E-656564454649", "bios"),
        (_ESP, _ROOT, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "esp"),
        (_ROOT, raw.stat().st_size - _END, "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "root"),  # root-x86-64
    )
    lines = ["label: gpt", f"label-id: {ids.uuid('disk')}", f"first-lba: {_CORE}"]
    for begin, end, kind, name in parts:
        place = f"start={begin // _SECTOR}, size={(end - begin) // _SECTOR}"
        lines.append(f"{place}, type={kind}, uuid={ids.uuid(name)}, name={name}")
    run([*MORTAL, "sfdisk", "--quiet", str(raw)], stdin="\n".join(lines).encode() + b"\n")


def _bios(raw: Path) -> None:
    """Put GRUB's first sector before the partition table and its core image into the first partition."""
    boot = bytearray((_GRUB / "i386-pc/boot.img").read_bytes()[:440])  # what follows is the partition table's
    core = bytearray(_grub("i386-pc", raw.with_name("core.img"), ["biosdisk", *_MODULES]))
    core += bytes(-len(core) % _SECTOR)
    if len(core) > _ESP - _CORE * _SECTOR or struct.unpack_from("<H", core, _BLOCKLIST + 10)[0] != _SEGMENT:
        raise DreError(f"{_GRUB}: its core image is not as expected: {len(core)} bytes")
    struct.pack_into("<Q", boot, _KERNEL_SECTOR, _CORE)
    boot[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"  # a hard disk's number is taken as the BIOS gives it
    struct.pack_into("<QHH", core, _BLOCKLIST, _CORE + 1, len(core) // _SECTOR - 1, _SEGMENT)
    with raw.open("r+b") as stream:
        stream.write(boot)
        stream.seek(_CORE * _SECTOR)
        stream.write(core)


def _uefi(raw: Path, ids: Ids, epoch: int | None) -> None:
    """The EFI system partition, with GRUB where firmware looks when nobody has told it more."""
    esp, program = raw.with_name("esp.img"), raw.with_name("bootx64.efi")
    _grub("x86_64-efi", program, [*_MODULES, *_EFI_MODULES], keep=True)
    with esp.open("wb") as stream:
        stream.truncate(_ROOT - _ESP)
    if epoch is not None:
        os.utime(program, (epoch, epoch))
    env = {"SOURCE_DATE_EPOCH": str(epoch)} if epoch is not None else {}
    serial = ids.uuid("fat")[:8]
    run([*MORTAL, "mformat", "-i", str(esp), "-v", "ESP", "-N", serial, "::"], env=env)
    run([*MORTAL, "mmd", "-i", str(esp), "::/EFI", "::/EFI/BOOT"], env=env)
    run([*MORTAL, "mcopy", "-m", "-i", str(esp), str(program), "::/EFI/BOOT/BOOTX64.EFI"], env=env)
    with raw.open("r+b") as stream:
        stream.seek(_ESP)
        stream.write(esp.read_bytes())
    esp.unlink()
    program.unlink()


def _grub(platform: str, image: Path, modules: list[str], keep: bool = False) -> bytes:
    """A core image; the drive of its prefix is the one it came from."""
    argv = [*MORTAL, "grub-mkimage", "-O", platform, "-o", str(image), "-p", "(,gpt3)/boot/grub", *modules]
    run(argv)
    octets = image.read_bytes()
    if not keep:
        image.unlink()
    return octets


def _ext4(root: Path, raw: Path, size: int, root_uuid: str, ids: Ids, epoch: int | None) -> None:
    # Features that GRUB 2.06 and kernels before 6.1 do not know stay off.
    argv = [*MORTAL, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root", "-U", root_uuid]
    argv += ["-O", "^metadata_csum_seed,^orphan_file", "-E", f"offset={_ROOT},hash_seed={ids.uuid('hash')}"]
    argv += ["-d", str(root), str(raw), f"{(size - _ROOT - _END) // 1024}k"]
    env = {"E2FSPROGS_FAKE_TIME": str(epoch)} if epoch is not None else {}
    done = run(argv, timeout=1800, env=env, check=False)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()
        if "Could not allocate" in said or "No space" in said or "no free space" in said.lower():
            held = sum(entry.lstat().st_blocks * 512 for entry in root.rglob("*"))
            raise _too_small(held, size)
        raise DreError(f"mke2fs: {said.splitlines()[-1] if said else f'exit status {done.returncode}'}")
    if epoch is not None:
        _set_times(raw, root_uuid, epoch)


def _set_times(raw: Path, root_uuid: str, epoch: int) -> None:
    """mke2fs before 1.48 takes the times of change and access from *root*, where they cannot be set."""
    partition = f"{raw}?offset={_ROOT}"
    told = run(["dumpe2fs", "-h", partition]).stdout.decode()
    fields = dict(line.partition(":")[::2] for line in told.splitlines() if ":" in line)
    last = int(fields["Inode count"]) - int(fields["Free inodes"])
    lines = []
    for inode in (2, *range(11, last + 1)):
        for name in ("atime", "ctime", "crtime"):
            lines.append(f"set_inode_field <{inode}> {name} @{epoch}\nset_inode_field <{inode}> {name}_extra 0\n")
        lines.append(f"set_inode_field <{inode}> mtime_extra 0\n")
    script = "".join(lines).encode()
    run(
        [*MORTAL, "debugfs", "-w", "-f", "-", partition],
        stdin=script,
        timeout=600,
        env={"E2FSPROGS_FAKE_TIME": str(epoch)},
    )
