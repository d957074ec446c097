# SPDX-License-Identifier: Apache-2.0
"""Archives of deltas: what the recipe packs comes back the same, and what it cannot have packed is refused."""

import hashlib
import io
import os
import struct
import subprocess
import tarfile

import pytest
from dre import archive
from dre.errors import DreError

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices, trusted attributes")


def packed(path):
    done = subprocess.run([*archive.PACK, "-C", path, "-f", "-", "."], capture_output=True, check=True)
    return done.stdout


def unpack(octets, into, **options):
    into.mkdir()
    return archive.unpack_checked(io.BytesIO(octets), into, **options)


def made(*members, root_directory=True):
    """An archive of *members*, each a name and what a TarInfo shall have, or a ready TarInfo with its content."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as new:
        for name, fields in ([(".", {"type": tarfile.DIRTYPE, "mode": 0o755})] if root_directory else []) + list(
            members
        ):
            info = tarfile.TarInfo(name)
            info.uid, info.gid = os.geteuid(), os.getegid()
            content = fields.pop("content", b"")
            info.size = len(content)
            for key, value in fields.items():
                setattr(info, key, value)
            new.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_plain_files_come_back(tmp_path):
    octets = made(
        ("./etc", {"type": tarfile.DIRTYPE, "mode": 0o750}),
        ("./etc/a\nb", {"content": b"one"}),
        ("./etc/link", {"type": tarfile.SYMTYPE, "linkname": "/etc/shadow"}),
        ("./same", {"type": tarfile.LNKTYPE, "linkname": "./etc/a\nb"}),
    )
    found = unpack(octets, tmp_path / "new")
    assert (found.digest, found.size) == (hashlib.sha256(octets).hexdigest(), len(octets))
    assert (tmp_path / "new/same").read_bytes() == b"one" and (tmp_path / "new/same").stat().st_nlink == 2
    assert os.readlink(tmp_path / "new/etc/link") == "/etc/shadow"
    assert (tmp_path / "new/etc").stat().st_mode & 0o7777 == 0o750


FILE = {"content": b"x"}
DIRECTORY = {"type": tarfile.DIRTYPE, "mode": 0o755}
NOBODY = 0xFFFFFFFF
CAPABILITY = "\1\0\0\2\0\4" + "\0" * 14


def xattr(name, value="y"):
    return {"pax_headers": {f"SCHILY.xattr.{name}": value}}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("/etc/passwd", FILE)], "absolute name"),
        ([("./../x", FILE)], "no plain path"),
        ([("a", DIRECTORY), ("a/../../x", FILE)], "no plain path"),
        ([("a/./b", FILE)], "no plain path"),
        ([("a/b", FILE)], "lies in no directory"),
        ([("a", {"type": tarfile.SYMTYPE, "linkname": "/tmp"}), ("a/b", FILE)], "lies in no directory"),
        ([("a", {"type": tarfile.SYMTYPE, "linkname": "/tmp"}), ("a", FILE)], "is there twice"),
        ([("a", DIRECTORY), ("a", DIRECTORY)], "is there twice"),
        ([("a", DIRECTORY), ("a", {"type": tarfile.SYMTYPE, "linkname": "/tmp"})], "is there twice"),
        ([("a", {"type": tarfile.LNKTYPE, "linkname": "/etc/shadow"})], "absolute name"),
        ([("a", {"type": tarfile.LNKTYPE, "linkname": "../../etc/shadow"})], "no plain path"),
        ([("a", {"type": tarfile.LNKTYPE, "linkname": "etc/shadow"})], "not in the archive"),
        ([("sda", {"type": tarfile.BLKTYPE, "devmajor": 8})], "is a device"),
        ([("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})], "is a device"),
        ([("a", {"type": tarfile.CONTTYPE, "uid": -5})], "belongs to"),
        ([("a", FILE | xattr("trusted.overlay.metacopy"))], "has the attribute trusted.overlay.metacopy"),
        ([("a", DIRECTORY | xattr("trusted.overlay.redirect", "/root"))], "redirected"),
        ([("a", DIRECTORY | xattr("security.selinux"))], "has the attribute"),
        ([("a", FILE | xattr("system.posix_acl_access"))], "a: Invalid argument"),
        ([("a", FILE | {"pax_headers": {"mtime": "soon"}})], "archive|time"),
        ([("a", FILE | {"mode": 0o4755})], "setuid, setgid or capabilities: a; --allow-setuid"),
        pytest.param(
            [("a", FILE | xattr("security.capability", CAPABILITY))],
            "setuid, setgid or capabilities: a; --allow-setuid",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it gives a file capabilities"),
        ),
        ([(f"f{n}", FILE | {"mode": 0o2755}) for n in range(7)], "f4 and 2 more"),
        ([("a\x1b[2J", {"type": tarfile.BLKTYPE})], r"'a\\x1b\[2J'"),
        ([("a", {"content": b"x" * 10, "pax_headers": {"GNU.sparse.size": "5", "GNU.sparse.map": "8,10"}})], "holes|5"),
    ],
)
def test_hostile_archives_are_refused(tmp_path, members, reason):
    with pytest.raises(DreError, match=reason) as caught:
        unpack(made(*members), tmp_path / "new")
    assert str(caught.value).isprintable()
    assert sorted(os.listdir(tmp_path)) == ["new"]


def test_no_root_directory(tmp_path):
    with pytest.raises(DreError, match="no root directory"):
        unpack(made(("a", FILE), root_directory=False), tmp_path / "new")


def test_cut_and_foreign_octets(tmp_path):
    octets = made(("a", {"content": b"x" * 5000}))
    for number, cut in enumerate((octets[:2000], b"", b"hello" * 500)):
        with pytest.raises(DreError, match="not an archive of a delta"):
            unpack(cut, tmp_path / str(number))


def test_header_that_claims_to_fill_the_memory(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(DreError, match="header of"):
        unpack(info.tobuf(tarfile.GNU_FORMAT) + b"1 x=y\n", tmp_path / "new")


def test_setuid_when_allowed(tmp_path):
    unpack(made(("su", FILE | {"mode": 0o4755})), tmp_path / "new", allow_setuid=True)
    assert (tmp_path / "new/su").stat().st_mode & 0o7777 == 0o4755


# user::rwx, user:5 (games, on Debian) r-x, group::r-x, mask::r-x, other::---
ACL = struct.pack("<I" + 5 * "HHI", 2, 1, 7, NOBODY, 2, 5, 5, 4, 5, NOBODY, 16, 5, NOBODY, 32, 0, NOBODY)


@root
def test_everything_a_delta_holds_comes_back_octet_for_octet(tmp_path):
    old = tmp_path / "old"
    long = old / "/".join(["d" * 60] * 5)
    long.mkdir(parents=True)
    (long / "deep").write_text("deep")
    (old / "new\nline").write_text("x")
    os.mkdir(os.fsencode(old) + b"/latin-\xe9")
    with (old / "sparse").open("wb") as stream:
        for place in (1 << 20, 1 << 22):
            stream.seek(place)
            stream.write(b"data")
        stream.truncate(1 << 24)
    (old / "allholes").touch()
    os.truncate(old / "allholes", 1 << 20)
    os.link(old / "sparse", old / "zz-second-name")
    os.mkfifo(old / "fifo")
    os.mknod(old / "gone", 0o20000, 0)
    os.link(old / "gone", old / "gone-too")  # as the kernel makes them since 5.9
    (old / "opaque").mkdir()
    os.setxattr(old / "opaque", "trusted.overlay.opaque", b"y")
    os.setxattr(old / "new\nline", "user.any", b"\x00\xff\n=")
    (old / "su").write_text("x")
    os.chown(old / "su", 100033, 5)
    (old / "su").chmod(0o6755)
    os.setxattr(old / "su", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    for kind in ("access", "default"):
        os.setxattr(old / "opaque", f"system.posix_acl_{kind}", ACL)
    os.setxattr(old / "new\nline", "system.posix_acl_access", ACL)
    os.utime(old / "fifo", ns=(1, -1_500_000_000))
    os.utime(old / "opaque", ns=(1, 1_234_567_890_123_456_789))
    octets = packed(old)
    found = unpack(octets, tmp_path / "new", allow_setuid=True)
    assert found.digest == hashlib.sha256(octets).hexdigest()
    assert packed(tmp_path / "new") == octets
    (tmp_path / "by-tar").mkdir()
    subprocess.run([*archive.UNPACK, "-C", tmp_path / "by-tar", "-f", "-"], input=octets, check=True)
    assert packed(tmp_path / "by-tar") == octets
    assert (tmp_path / "new/sparse").stat().st_blocks < 100
