# SPDX-License-Identifier: Apache-2.0
"""A report of dre-lms on memory made for it: what a hidden process had is in it, and it is evidence where it can be."""

import hashlib
import json
import os
import random
import socket
import struct
import subprocess
import tarfile
import types

import pytest
from dre.conf import Conf
from dre.dbox import Recorder
from dre.errors import UsageError
from lmskit import DIRECT, PAGE, TEXT, Guest, at
from sysmonlib import cross, guest, hooks, kernel, modules, process, report, slabs, tasks
from sysmonlib.cmd import dre_lms
from sysmonlib.cross import Cross

STACK, PROGRAM, LIBRARY = 0x7FFF_FFFF_E000, 0x55_5555_5000, 0x7F00_0020_0000
WANTED = (tasks, slabs, modules, hooks, process)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in (("SLOW", 0.02), ("PASSING", 0.04), ("AGAIN", 0.005), ("PATIENCE", 0.01)):
        monkeypatch.setattr(cross, name, value)


class Made(Guest):
    """With a process that has memory, files and sockets."""

    def text(self, words):
        place = self.alloc(256)
        self.write(place, words.encode())
        return place

    def put(self, kind, **members):
        """A structure with these members."""
        place = self.alloc(256)
        for member, value in members.items():
            self.set(place + at(kind, member), value)
        return place

    def page(self, table, address, content, entry=7):
        """Let a program have *content* at *address*."""
        for level in (3, 2, 1):
            slot = table + 8 * (address >> 12 + 9 * level & 511)
            if not self.get(slot):
                self.set(slot, self.alloc(PAGE, PAGE) - DIRECT | 7)
            table = DIRECT + (self.get(slot) & ~0xFFF)
        page = self.alloc(PAGE, PAGE)
        self.write(page, content)
        self.set(table + 8 * (address >> 12 & 511), page - DIRECT | entry)
        return table + 8 * (address >> 12 & 511)

    def dentry(self, name, parent=None, kind="ext4", inode=0):
        place = self.alloc(128)
        text = self.text(name)
        filesystem = self.put("super_block", s_type=self.put("file_system_type", name=self.text(kind)))
        words = {"d_hash2": 1, "d_parent": parent or place, "d_name": len(name), "d_name2": text, "d_sb": filesystem}
        for member, value in {**words, "d_inode": inode}.items():
            self.set(place + at("dentry", member), value)
        return place

    def mounted(self, root, above=0, point=0):
        mount = self.put("mount", mnt_parent=above, mnt_mountpoint=point, mnt=root)
        if not above:
            self.set(mount + at("mount", "mnt_parent"), mount)
        return mount

    def file(self, mount, dentry, mode=0o100644, number=7, private=0):
        inode = self.put("inode", i_mode=mode, i_ino=number)
        self.set(dentry + at("dentry", "d_inode"), inode)
        mnt = mount + at("mount", "mnt") if mount else 0
        return self.put("file", f_path=mnt, f_path2=dentry, f_inode=inode, private_data=private)

    def socket(self, family, *, state=0, protocol=6, kind=1, near=(b"", 0), far=(b"", 0), address=0):
        sk = self.put("unix_sock", addr=address)
        places = {"skc_family": family, "skc_state": state, "skc_num": near[1], "skc_dport": socket.htons(far[1])}
        for member, value in places.items():
            self.set(sk + at("sock_common", member), value)
        six = "v6_" if family == socket.AF_INET6 else ""
        self.write(sk + at("sock_common", f"skc_{six}rcv_saddr"), near[0])
        self.write(sk + at("sock_common", f"skc_{six}daddr"), far[0])
        self.set(sk + at("sock", "sk_protocol"), protocol)
        return self.file(0, self.dentry("", kind="sockfs"), 0o140777, 4711, self.put("socket", type=kind, sk=sk))

    def furnish(self, task):
        """Give *task* what a process has."""
        table = self.alloc(PAGE, PAGE)
        self.page(table, PROGRAM, b"\x7fELF program", 5)
        self.page(table, LIBRARY, b"library", 5)
        self.entry_of_data = self.page(table, LIBRARY + PAGE, b"its data", 1 << 63 | 7)
        self.page(table, STACK, b"/usr/sbin/evil\0--quiet\0", 1 << 63 | 7)
        root, slash = None, self.dentry("/")
        root = self.mounted(slash)
        usr = self.dentry("usr", slash)
        inner = self.dentry("/")
        mount = self.mounted(inner, root, usr)
        program = self.file(mount, self.dentry("evil", self.dentry("sbin", inner)))
        gone = self.dentry("log", slash)
        self.set(gone + at("dentry", "d_hash2"), 0)
        listening = self.socket(2, state=10, near=(bytes((10, 0, 0, 1)), 4444))
        six = socket.inet_pton(socket.AF_INET6, "fd00::1"), socket.inet_pton(socket.AF_INET6, "fd00::2")
        calling = self.socket(10, state=1, near=(six[0], 40000), far=(six[1], 443))
        name = self.put("unix_address", len=2 + 8)
        self.write(name + at("unix_address", "name"), struct.pack("<H", 1) + b"\0control")
        local = self.socket(1, kind=5, protocol=0, address=name)
        opened = [program, 0, self.file(root, gone), listening, calling, local]
        fds = self.alloc(64)
        for number, file in enumerate(opened):
            self.set(fds + 8 * number, file)
        of_task = self.put("files_struct", fdt=self.put("fdtable", max_fds=len(opened), fd=fds))
        node, top = self.alloc(256, 256), self.alloc(256, 256)
        self.set(top + at("maple_arange_64", "slot2"), node | 1 << 3 | 4)
        mm = self.put(
            "mm_struct", mm_mt2=top | 3 << 3 | 4 | 2, pgd=table, arg_start=STACK, arg_end=STACK + 23, exe_file=program
        )
        areas = [(PROGRAM, PROGRAM + PAGE, 5, program, 0), (STACK, STACK + PAGE, 3, 0, 0)]
        for number, (begin, end, flags, file, _) in enumerate(areas):
            area = self.put("vm_area_struct", vm_start=begin, vm_end=end, vm_flags=flags, vm_file=file, vm_mm=mm)
            self.set(node + at("maple_range_64", "slot") + 8 * number, area)
        self.set(node + 248, 0x1FF)  # of a node: how far it is filled
        place = self.put("fs_struct", root=root + 16, root2=slash, pwd=root + 16, pwd2=usr)
        for member, value in {"mm": mm, "files": of_task, "fs": place}.items():
            self.set(task + at("task_struct", member), value)
        return mm

    def looked(self, memory):
        """What looks at it, with all that a report needs."""
        symbols, wanted = (frozenset().union(*(getattr(part, of) for part in WANTED if hasattr(part, of)))
                           for of in ("SYMBOLS", "TYPES"))  # fmt: skip
        return Cross("test", kernel.find(memory, symbols, wanted, hooks.BEGINS))


@pytest.fixture
def made():
    """A guest where process 31 is hidden, which a module did that changed a system call."""
    guest = Made()
    for pid in (1, 30, 31):
        guest.task(pid, f"task{pid}")
    guest.kit = guest.module("kit/../x")
    guest.write(guest.kit + 0x800, b"code of the root-kit")
    guest.mm = guest.furnish(guest.tasks[31])
    guest.unlink(guest.tasks[31] + at("task_struct", "tasks"))
    guest.set(guest.entry("call217"), guest.kit + 0x800)
    return guest


def reported(guest, path, most=1 << 20):
    """A report on *guest* in *path*."""
    with guest.memory() as memory:
        seen = guest.looked(memory)
        findings = seen.scan()
        told = {"system": "test", "findings": [{"type": found.type, **found.data} for found in findings]}
        with report.written(path, seen, told, most) as done:
            return done


def segments(path):
    """What a core file holds: by address, rights and octets."""
    octets = path.read_bytes()
    assert octets[:4] == b"\x7fELF" and struct.unpack_from("<H", octets, 16) == (4,)
    (count,) = struct.unpack_from("<H", octets, 56)
    heads = (struct.unpack_from("<IIQQQQQQ", octets, 64 + 56 * number) for number in range(count))
    return {begin: (rights, octets[place : place + size]) for _, rights, place, begin, _, size, _, _ in heads}


def test_a_report_has_what_the_hidden_process_had(made, tmp_path):
    reported(made, tmp_path / "one")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    module = "module-1-kit____x.core"
    assert names == [report.SUMS, "memory-31.core", module, "report.json", "task-31.json"]
    about = json.loads((tmp_path / "one/report.json").read_text())
    assert [found["type"] for found in about["findings"]] == ["sysmon.hidden.process", "sysmon.hook"]
    assert about["kernel"] == {"release": "6.1.0-test", "build_id": None}
    assert about["modules"] == [{"name": "kit/../x", "address": f"{made.kit:#x}", "file": module}]
    task = json.loads((tmp_path / "one/task-31.json").read_text())
    assert (task["pid"], task["comm"], task["views_missing"]) == (31, "task31", ["list"])
    assert (task["exe"], task["cwd"], task["root"]) == ("/usr/sbin/evil", "/usr", "/")
    assert task["arguments"] == ["/usr/sbin/evil", "--quiet"]
    assert task["files"][:2] == [
        {"fd": 0, "path": "/usr/sbin/evil", "inode": 7},
        {"fd": 2, "path": "/log (deleted)", "inode": 7},
    ]
    assert [file["path"] for file in task["files"][2:]] == ["socket:[4711]"] * 3
    assert [area["file"] for area in task["memory"]["areas"]] == ["/usr/sbin/evil", None]
    assert [area["rights"] for area in task["memory"]["areas"]] == ["r-x-", "rw--"]
    assert (task["memory"]["octets"], task["memory"]["complete"], task["files_complete"]) == (4 * PAGE, True, True)


def test_sockets_are_told_with_state_and_addresses(made, tmp_path):
    reported(made, tmp_path / "one")
    task = json.loads((tmp_path / "one/task-31.json").read_text())
    told = [[row[key] for key in ("fd", "family", "type", "state", "local", "remote")] for row in task["sockets"]]
    assert told == [
        [3, "inet", "stream", "LISTEN", "10.0.0.1:4444", "0.0.0.0:0"],
        [4, "inet6", "stream", "ESTABLISHED", "[fd00::1]:40000", "[fd00::2]:443"],
        [5, "unix", "seqpacket", 0, "@control", None],
    ]


def test_its_memory_is_a_core_file(made, tmp_path):
    reported(made, tmp_path / "one")
    found = segments(tmp_path / "one/memory-31.core")
    assert {
        begin: (rights, octets.rstrip(b"\0").replace(b"\0", b" ")) for begin, (rights, octets) in found.items()
    } == {
        PROGRAM: (5, b"\x7fELF program"),
        LIBRARY: (5, b"library"),
        LIBRARY + PAGE: (6, b"its data"),
        STACK: (6, b"/usr/sbin/evil --quiet"),
    }
    code = segments(tmp_path / "one/module-1-kit____x.core")[made.kit]
    assert code[1][0x800:].startswith(b"code of the root-kit")


def test_readelf_reads_the_core_file(made, tmp_path):
    reported(made, tmp_path / "one")
    argv = ["readelf", "--wide", "--file-header", "--segments", tmp_path / "one/memory-31.core"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("apt-get install binutils")
    assert (done.returncode, done.stderr) == (0, "")
    assert "CORE (Core file)" in done.stdout and done.stdout.count("LOAD") == 4


def test_memory_is_bounded_and_that_it_was_is_told(made, tmp_path):
    reported(made, tmp_path / "one", 2 * PAGE)
    task = json.loads((tmp_path / "one/task-31.json").read_text())
    assert (task["memory"]["octets"], task["memory"]["complete"]) == (2 * PAGE, False)
    assert sum(len(octets) for _, octets in segments(tmp_path / "one/memory-31.core").values()) == 2 * PAGE


def moving(made, monkeypatch, times):
    """Let the guest move the page with the data, and use the place where it was, *times* times while it is read."""
    pages, left = report._pages, list(range(times))
    places = [made.alloc(PAGE, PAGE) for _ in left]

    def moved(seen, runs):
        if left and len(runs) > 1:  # not the module's
            left.pop()
            fd, slot = seen.kernel.space.memory.fd, made.place(made.entry_of_data)
            (entry,) = struct.unpack("<Q", os.pread(fd, 8, slot))
            old, new = entry & 0xF_FFFF_F000, places.pop() - DIRECT
            os.pwrite(fd, os.pread(fd, PAGE, old), new)
            os.pwrite(fd, struct.pack("<Q", entry - old + new), slot)
            os.pwrite(fd, b"of another", old)
        return pages(seen, runs)

    monkeypatch.setattr(report, "_pages", moved)


@pytest.mark.parametrize(("times", "complete"), [(1, True), (2, True), (4, True), (5, False)])
def test_what_is_moved_while_it_is_read_is_read_again(made, tmp_path, monkeypatch, times, complete):
    moving(made, monkeypatch, times)
    reported(made, tmp_path / "one")
    _, octets = segments(tmp_path / "one/memory-31.core")[LIBRARY + PAGE]
    assert octets.rstrip(b"\0") == (b"its data" if complete else b"of another")
    told = json.loads((tmp_path / "one/task-31.json").read_text())["memory"]
    assert (told["octets"], told["complete"]) == (4 * PAGE, complete)


def test_what_was_read_of_a_process_that_ends_meanwhile_is_kept(made, tmp_path, monkeypatch):
    pages = report._pages

    def ended(seen, runs):
        if len(runs) > 1:  # not the module's
            os.pwrite(seen.kernel.space.memory.fd, bytes(8), made.place(made.tasks[31] + at("task_struct", "mm")))
        return pages(seen, runs)

    monkeypatch.setattr(report, "_pages", ended)
    reported(made, tmp_path / "one")
    assert segments(tmp_path / "one/memory-31.core")[LIBRARY + PAGE][1].startswith(b"its data")
    told = json.loads((tmp_path / "one/task-31.json").read_text())["memory"]
    assert (told["octets"], told["complete"]) == (4 * PAGE, False)


def test_digests_are_those_of_the_files(made, tmp_path):
    done = reported(made, tmp_path / "one")
    check = subprocess.run(["sha256sum", "--check", report.SUMS], cwd=tmp_path / "one", capture_output=True, text=True)
    assert check.returncode == 0 and check.stdout.count(": OK") == done.files == 4
    assert hashlib.sha256((tmp_path / "one" / report.SUMS).read_bytes()).hexdigest() == done.sums


def test_a_report_is_for_its_owner_alone_and_leaves_nothing_else(made, tmp_path):
    reported(made, tmp_path / "one")
    reported(made, tmp_path / "two.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two.tar"]
    for path in (tmp_path / "one", tmp_path / "two.tar", *(tmp_path / "one").iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_an_archive_has_the_same_files(made, tmp_path):
    reported(made, tmp_path / "two.tar")
    with tarfile.open(tmp_path / "two.tar") as tar:
        names = sorted(tar.getnames())
    assert names[0] == f"two/{report.SUMS}" and "two/memory-31.core" in names


def test_a_report_is_never_written_over_something(tmp_path):
    (tmp_path / "one").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        report.check(tmp_path / "one")
    with pytest.raises(UsageError, match="no directory"):
        report.check(tmp_path / "none/one")


def test_where_there_is_a_dbox_the_report_waits_for_it_in_pieces(made, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_PIECE", 16 << 10)
    (tmp_path / "certs").mkdir()
    conf = Conf()
    values = {"core_state_dir": tmp_path, "dbox_certs_dir": tmp_path / "certs", "monitor_sink": tmp_path / "none"}
    conf = types.SimpleNamespace(**{**{key: getattr(conf, key) for key in ("dbox_url",)}, **values})
    done = reported(made, tmp_path / "one.tar")
    assert report.record(conf, done, "/host:h/sys:test", "test")["first"] is None  # no D-Box here
    (tmp_path / "certs/root.pem").write_text("")
    data = report.record(conf, done, "/host:h/sys:test", "test")
    waiting = list(Recorder(conf, report.CLIENT).spool.pending())
    pieces = [record.octets for record in waiting if record.stream == report.PIECES]
    assert b"".join(pieces) == (tmp_path / "one.tar").read_bytes() and len(pieces) > 1
    assert (data["first"], data["last"]) == (1, len(pieces))
    (line,) = [json.loads(record.octets) for record in waiting if record.stream == report.STREAM]
    assert (line["type"], line["data"]) == ("sysmon.report", data)
    assert data["archive"] == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_any_memory_of_a_process_ends_in_a_report(made, tmp_path):
    """Words of what the process has changed at random: something is told, and in bounded time."""
    whole = bytes(made.octets)
    begin, end = made.place(made.mm) - 0x20000, made.place(made.mm) + 0x2000
    words = [place for place in range(begin, end, 8) if whole[place : place + 8] != bytes(8)]
    pointers = [struct.unpack_from("<Q", whole, place)[0] for place in words]
    for number in range(30):
        chance = random.Random(number)
        made.octets[:] = whole
        for _ in range(chance.choice((1, 5, 50))):
            value = chance.choice((0, (1 << 64) - 1, chance.getrandbits(64), chance.choice(pointers) + 8, 1 << 31))
            struct.pack_into("<Q", made.octets, chance.choice(words), value % (1 << 64))
        reported(made, tmp_path / f"{number}")
        assert (tmp_path / f"{number}" / "report.json").exists()


def test_a_thread_of_the_kernel_has_no_memory_and_is_reported(made, tmp_path):
    for member in ("mm", "files", "fs"):
        made.set(made.tasks[31] + at("task_struct", member), 0)
    made.set(made.entry("call217"), TEXT + 64 * 217)
    reported(made, tmp_path / "one")
    task = json.loads((tmp_path / "one/task-31.json").read_text())
    assert (task["exe"], task["files"], task["memory"]["octets"]) == (None, [], 0)
    assert not (tmp_path / "one/memory-31.core").exists()


def asked(made, tmp_path, monkeypatch):
    """dre-lms --report on *made*; its status."""
    conf = tmp_path / "dre.conf"
    places = {"CORE_STATE_DIR": "state", "DBOX_CERTS_DIR": "certs", "MONITOR_SINK": "none"}
    conf.write_text("".join(f'DRE_{key}="{tmp_path}/{name}"\n' for key, name in places.items()))
    monkeypatch.setattr(guest, "memory", lambda conf, name: made.memory())
    return dre_lms.main(["test", "--config", str(conf), "--report", str(tmp_path / "one"), "--json"])


def test_the_command_tells_what_it_found_and_writes_it(made, tmp_path, monkeypatch, capsys):
    assert asked(made, tmp_path, monkeypatch) == 1
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    about = json.loads((tmp_path / "one/report.json").read_text())
    assert [row["type"] for row in told] == ["sysmon.hidden.process", "sysmon.hook"]
    assert about["findings"] == told and about["system"] == "test"
    assert [row["pid"] for row in about["processes"]] == [1, 30, 31]
    events = "".join(path.read_text() for path in (tmp_path / "state/spool/event").iterdir() if path.is_file())
    assert '"type":"sysmon.report"' in events


def test_without_a_finding_there_is_no_report(tmp_path, monkeypatch, capsys):
    made = Made()
    made.task(1)
    assert asked(made, tmp_path, monkeypatch) == 0
    assert not (tmp_path / "one").exists() and "no report" in capsys.readouterr().err
