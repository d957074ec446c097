# SPDX-License-Identifier: Apache-2.0
"""What an app can do to its files, a snapshot brings back. Witness is a picture taken from inside, before and after."""

import json
import os

import pytest
from app_ground import LXC, Ground

NAME = "t-whole"

# All that overlayfs and the archive must agree on; the places deleted and replaced are in every Debian.
CHANGE = r"""
import os, shutil, socket, struct
os.umask(0o022)
os.mkdir("/srv/t"); os.chdir("/srv/t")
os.unlink("/etc/debian_version")
shutil.rmtree("/usr/share/base-files"); os.mkdir("/usr/share/base-files")
open("/usr/share/base-files/new", "w").write("new")
open("/etc/issue", "a").write("more")
os.chmod("/etc/issue.net", 0o640)
long = "/srv/t/" + "/".join(["d" * 100] * 3); os.makedirs(long); open(long + "/deep", "w").write("deep")
open("new\nline \\ *", "w").write("x")
open(b"latin-\xe9", "w").write("x")
os.makedirs("one/a"); os.makedirs("two"); open("one/a/f", "w").write("linked"); os.link("one/a/f", "two/f")
with open("holes", "wb") as f: f.seek(1 << 22); f.write(b"end"); f.truncate(1 << 24)
os.mkfifo("fifo", 0o620)
s = socket.socket(socket.AF_UNIX); s.bind("socket")
os.symlink("/etc/shadow", "link"); os.symlink("nowhere", "dangling")
open("suid", "w").write("x"); os.chown("suid", 1234, 5); os.chmod("suid", 0o6755)
open("cap", "w").write("x")
os.setxattr("cap", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
open("noted", "w").write("x"); os.setxattr("noted", "user.note", b"\0\xff=\n")
nobody = 0xffffffff
acl = struct.pack("<I" + 5 * "HHI", 2, 1, 7, nobody, 2, 5, 5, 4, 5, nobody, 16, 5, nobody, 32, 0, nobody)
for kind in ("access", "default"): os.setxattr("one", "system.posix_acl_" + kind, acl)
os.mknod("null", 0o20666, os.makedev(1, 3))
os.mkdir("sticky"); os.chmod("sticky", 0o3777)
os.utime("two/f", ns=(1, 1234567890123456789))
"""
PICTURE = r"""
import hashlib, os
def line(path):
    st = os.lstat(path)
    kind, size = st.st_mode, 0 if os.path.isdir(path) else st.st_size
    extra = os.readlink(path) if os.path.islink(path) else ""
    if (kind & 0o170000) == 0o100000: extra = hashlib.sha256(open(path, "rb").read()).hexdigest()[:12]
    names = sorted(os.listxattr(path, follow_symlinks=False))
    attributes = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]
    numbers = (oct(kind), st.st_uid, st.st_gid, st.st_rdev, size, st.st_mtime_ns, st.st_nlink, st.st_blocks < 64)
    return (path, numbers, extra, attributes)
for top in ("/srv", "/usr/share/base-files"):
    for directory, names, files in sorted(os.walk(top)):
        for name in sorted(names + files):
            path = os.path.join(directory, name)
            if path != "/srv/t/socket": print(ascii(line(path)))
for path in ("/etc/issue", "/etc/issue.net"): print(ascii(line(path)))
print(os.path.exists("/etc/debian_version"))
print(os.stat("/srv/t/one/a/f").st_ino == os.stat("/srv/t/two/f").st_ino)
"""
WRECK = r"""
import os, shutil
shutil.rmtree("/srv/t"); os.mkdir("/srv/t"); open("/srv/t/suid", "w").write("bad")
shutil.rmtree("/usr/share/base-files"); os.unlink("/etc/issue")
open("/etc/debian_version", "w").write("again")
"""


@pytest.fixture
def app(run, settings):
    with Ground(run, settings) as ground:
        ground("create", NAME, "--ip", "none")
        ground("start", NAME)
        yield ground


def python(app, script):
    return app("exec", NAME, "--", "/usr/bin/python3", "-c", script)


def test_all_kinds_of_changes_come_back(app):
    python(app, CHANGE)
    before = python(app, PICTURE)
    assert before.count("\n") > 20 and before.splitlines()[-2:] == ["False", "True"]
    app("stop", NAME)
    app("snapshot", "save", NAME, "good", "--description", "all kinds")
    saved = json.loads(app("snapshot", "list", NAME, "--json"))
    assert saved["description"] == "all kinds" and saved["size"] < 4 << 20  # the holes are not in it
    app("start", NAME)
    python(app, WRECK)
    assert python(app, "import os; print(os.listdir('/srv/t'))") == "['suid']"
    app("undo", NAME, "good")
    assert python(app, PICTURE) == before
    assert app("digest", NAME) == saved["digest"]
    app("stop", NAME)
    app("snapshot", "load", NAME, "good")
    delta = LXC / NAME / "delta"
    gone = (delta / "etc/debian_version").lstat()
    assert (gone.st_mode & 0o170000, gone.st_rdev) == (0o020000, 0)
    assert os.getxattr(delta / "usr/share/base-files", "trusted.overlay.opaque") == b"y"
    assert not (delta / "srv/t/socket").exists()
