# SPDX-License-Identifier: Apache-2.0
"""What one process of a guest has, as its kernel notes it: its memory, its files, its sockets. For a report on it.

All of it is read once, while the guest goes on; what cannot be read is left out, and that it was is told.
"""

import ipaddress
import socket as sockets
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sysmonlib.kernel import Kernel
from sysmonlib.memory import PAGE, BadAddress

TYPES = frozenset(
    (
        *("task_struct", "mm_struct", "vm_area_struct", "maple_tree", "maple_range_64", "maple_arange_64"),
        *("files_struct", "fdtable", "file", "path", "fs_struct", "dentry", "qstr", "inode", "super_block"),
        *("file_system_type", "mount", "vfsmount", "socket", "sock", "sock_common", "unix_sock", "unix_address"),
    )  # fmt: skip
)
_AREAS_MOST, _NODES_MOST = 1 << 13, 1 << 14
_FILES_MOST, _OPEN_MOST = 1 << 10, 1 << 16
_DEPTH_MOST, _MOUNTS_MOST, _NAME_MOST = 128, 64, 255
_TEXT_MOST = 4096  # octets of arguments
_RUNS_MOST = 60_000  # pieces of a core file: e_phnum has 16 bits
_WRITABLE, _NOT_EXECUTABLE = 1 << 1, 1 << 63
# maple_leaf_64, maple_range_64, maple_arange_64, MAPLE_ENODE_NULL: see include/linux/maple_tree.h of Linux
_LEAF, _RANGE, _INNER, _NODE, _MARKS = 1, 2, 3, 4, 4096
_STATES = (  # include/net/tcp_states.h of Linux
    *("", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSE", "CLOSE_WAIT"),
    *("LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)
_TYPES = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 10: "packet"}
_FAMILIES = {1: "unix", 2: "inet", 10: "inet6", 16: "netlink", 17: "packet", 38: "alg", 40: "vsock", 44: "xdp"}
_RIGHTS = ((1 << 0, "r"), (1 << 1, "w"), (1 << 2, "x"), (1 << 3, "s"))  # VM_READ …


@dataclass(frozen=True)
class Run:
    """Pages of a program that follow each other and have the same rights: *places* is where each is in memory."""

    begin: int
    writable: bool
    executable: bool
    places: list[int]


class Processes:
    """Those of *kernel*. Raises MissingError where it does not tell of them."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._space = kernel, kernel.space
        offset = self._at = kernel.types.offset
        self._mm, self._files, self._fs = (offset("task_struct", name) for name in ("mm", "files", "fs"))
        self._table = offset("mm_struct", "pgd")
        self._area = [offset("vm_area_struct", name) for name in ("vm_start", "vm_end", "vm_flags", "vm_file", "vm_mm")]
        self._offset = offset("vm_area_struct", "vm_pgoff")

    # --- Memory ---

    def memory(self, task: int, most: int) -> tuple[list[Run], bool]:
        """The pages that *task* has in memory, at most *most* octets of them, by address; and whether these are all."""
        pages, whole, left = list[tuple[int, int, int]](), True, most // PAGE
        try:
            mm = self._space.u64(task + self._mm)
            for address, place, span, entry in self._space.user(self._space.u64(mm + self._table)) if mm else ():
                count = min(span // PAGE, left)
                pages += [(address + PAGE * n, place + PAGE * n, entry) for n in range(count)]
                left -= count
                if count < span // PAGE:
                    whole = False
                    break
        except BadAddress:
            whole = False
        runs = list[Run]()
        for address, place, entry in sorted(pages):
            rights = bool(entry & _WRITABLE), not entry & _NOT_EXECUTABLE
            last = runs[-1] if runs else None
            if last and address == last.begin + PAGE * len(last.places) and rights == (last.writable, last.executable):
                last.places.append(place)
            elif len(runs) == _RUNS_MOST:
                whole = False
                break
            else:
                runs.append(Run(address, *rights, [place]))
        return runs, whole

    def areas(self, task: int) -> list[dict[str, Any]]:
        """What /proc/PID/maps would show: each with ``begin``, ``end``, ``rights``, ``file`` and ``offset``."""
        found, space = [], self._space
        try:
            mm = space.u64(task + self._mm)
            for area in self._mapped(mm) if mm else ():
                begin, end, flags, file, _ = (space.u64(area + place) for place in self._area)
                rights = "".join(letter if flags & bit else "-" for bit, letter in _RIGHTS)
                page = space.u64(area + self._offset) if file else 0
                found.append(
                    {
                        "begin": f"{begin:#x}",
                        "end": f"{end:#x}",
                        "rights": rights,
                        "file": self._path_of(file) if file else None,
                        "offset": page * PAGE,
                    }
                )
        except BadAddress:
            pass
        return sorted(found, key=lambda area: int(area["begin"], 16))

    def _mapped(self, mm: int) -> Iterator[int]:
        """The areas of memory in the maple tree of *mm* (Linux 6.1), each of which says that it is *mm*'s."""
        space, seen = self._space, set[int]()
        root = space.u64(mm + self._at("mm_struct", "mm_mt") + self._at("maple_tree", "ma_root"))
        areas, waiting = [] if root & 3 == 2 else [root], [root] if root & 3 == 2 else []  # else: the only one there is
        leaf, inner = self._at("maple_range_64", "slot"), self._at("maple_arange_64", "slot")
        counts = (256 - leaf) // 8, (self._at("maple_arange_64", "gap") - inner) // 8
        while waiting and len(seen) < _NODES_MOST and len(areas) < _AREAS_MOST:
            entry = waiting.pop()
            node, kind = entry & ~0xFF, entry >> 3 & 0xF
            if node in seen or kind not in (_LEAF, _RANGE, _INNER):
                continue
            seen.add(node)
            place, count = (inner, counts[1]) if kind == _INNER else (leaf, counts[0])
            try:
                slots = space.words(node + place, count)
            except BadAddress:
                continue
            if kind == _LEAF:
                areas += slots
            else:
                waiting += [slot for slot in slots if slot & _NODE and slot > _MARKS]
        return (area for area in areas if area and self._is_area(area, mm))

    def _is_area(self, area: int, mm: int) -> bool:
        try:
            return self._space.u64(area + self._area[4]) == mm
        except BadAddress:  # the last slots of a node hold something else
            return False

    def arguments(self, task: int) -> list[str]:
        """The arguments of the program, from its own memory, where it may have changed them; none where unknown."""
        try:
            mm = self._space.u64(task + self._mm)
            if not mm:
                return []
            begin, end = (self._space.u64(mm + self._at("mm_struct", name)) for name in ("arg_start", "arg_end"))
            octets = self._of_program(self._space.u64(mm + self._table), begin, min(max(0, end - begin), _TEXT_MOST))
        except BadAddress:
            return []
        return [_printable(word) for word in octets.split(b"\0") if word]

    def _of_program(self, table: int, begin: int, count: int) -> bytes:
        """*count* octets of a program, up to the first page that it has not in memory."""
        pages, octets = {}, b""
        first = begin & ~(PAGE - 1)
        for address, place, span, _ in self._space.user(table):
            for page in range(first, begin + count, PAGE):
                if address <= page < address + span:
                    pages[page] = place + page - address
        for page in range(first, begin + count, PAGE):
            if page not in pages:
                break
            octets += self._space.memory.read(pages[page], PAGE)
        return octets[begin - first :][:count]

    # --- Files ---

    def places(self, task: int) -> dict[str, str | None]:
        """The program's file, and the directories that it is in, ``exe``, ``cwd``, ``root``; None where unknown."""
        found: dict[str, str | None] = dict.fromkeys(("exe", "cwd", "root"))
        space = self._space
        try:
            mm, fs = space.u64(task + self._mm), space.u64(task + self._fs)
            program = space.u64(mm + self._at("mm_struct", "exe_file")) if mm else 0
            found["exe"] = self._path_of(program) if program else None
            if fs:
                found["cwd"] = self._path(fs + self._at("fs_struct", "pwd"))
                found["root"] = self._path(fs + self._at("fs_struct", "root"))
        except BadAddress:
            pass
        return found

    def files(self, task: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], bool]:
        """Its open files, each with ``fd``, ``path``, ``inode``; its sockets; and whether these are all."""
        files, found, whole, space = list[dict[str, Any]](), list[dict[str, Any]](), True, self._space
        try:
            of_task = space.u64(task + self._files)
            if not of_task:
                return [], [], True
            table = space.u64(of_task + self._at("files_struct", "fdt"))
            count = space.u32(table + self._at("fdtable", "max_fds"))
            whole = count <= _OPEN_MOST
            entries = space.words(space.u64(table + self._at("fdtable", "fd")), min(count, _OPEN_MOST))
        except BadAddress:
            return [], [], False
        for fd, file in enumerate(entries):
            if not file:
                continue
            if len(files) == _FILES_MOST:
                whole = False
                break
            try:
                inode = space.u64(file + self._at("file", "f_inode"))
                number = space.u64(inode + self._at("inode", "i_ino"))
                mode = space.u32(inode + self._at("inode", "i_mode")) & 0xFFFF
                files.append({"fd": fd, "path": self._path_of(file), "inode": number})
                if stat.S_ISSOCK(mode):
                    found.append({"fd": fd, "inode": number, **self._socket(file)})
            except BadAddress:
                whole = False
        return files, found, whole

    def _path_of(self, file: int) -> str:
        return self._path(file + self._at("file", "f_path"))

    def _path(self, path: int) -> str:
        """The name of what *path* (struct path) is; of what has none, `socket:[number]` and the like."""
        u64, at = self._space.u64, self._at
        mounted, dentry = u64(path + at("path", "mnt")), u64(path + at("path", "dentry"))
        parent, name = u64(dentry + at("dentry", "d_parent")), self._name(dentry)
        if parent == dentry and name != "/":
            return self._unseen(dentry, name)
        # That a name is in no table of names any more has two reasons; a root never was in one.
        gone = " (deleted)" if parent != dentry and not u64(dentry + at("dentry", "d_hash") + 8) else ""
        words: list[str] = []
        left = _MOUNTS_MOST
        while len(words) < _DEPTH_MOST:
            parent = u64(dentry + at("dentry", "d_parent"))
            if dentry == u64(mounted + at("vfsmount", "mnt_root")) or dentry == parent:
                mount = mounted - at("mount", "mnt")
                above = u64(mount + at("mount", "mnt_parent"))
                left -= 1
                if above == mount or left < 0:
                    break
                dentry, mounted = u64(mount + at("mount", "mnt_mountpoint")), above + at("mount", "mnt")
                continue
            words.append(self._name(dentry))
            dentry = parent
        return "/" + "/".join(reversed(words)) + gone

    def _unseen(self, dentry: int, name: str) -> str:
        """That of one in a file system that is mounted nowhere, as of sockets."""
        u64, at = self._space.u64, self._at
        kind = u64(u64(dentry + at("dentry", "d_sb")) + at("super_block", "s_type"))
        kind_name = self._space.text(u64(kind + at("file_system_type", "name")), 32).removesuffix("fs")
        if name:
            return f"anon_inode:{name}" if kind_name == "anon_inode" else f"/{name} (deleted)"
        inode = u64(dentry + at("dentry", "d_inode"))
        number = u64(inode + at("inode", "i_ino")) if inode else 0
        return f"{'socket' if kind_name == 'sock' else kind_name}:[{number}]"

    def _name(self, dentry: int) -> str:
        name = dentry + self._at("dentry", "d_name")
        length = min(self._space.u32(name + self._at("qstr", "len")), _NAME_MOST)
        return self._space.text(self._space.u64(name + self._at("qstr", "name")), length) if length else ""

    # --- Sockets ---

    def _socket(self, file: int) -> dict[str, Any]:
        """Its ``family``, ``type``, ``protocol``, ``state`` and the addresses ``local`` and ``remote``."""
        space, at = self._space, self._at
        of_file = space.u64(file + at("file", "private_data"))
        kind = space.u32(of_file + at("socket", "type")) & 0xFFFF
        sock = space.u64(of_file + at("socket", "sk"))
        if not sock:
            return {"family": None, "type": _TYPES.get(kind, str(kind)), "protocol": None, "state": None}
        common = sock + at("sock", "__sk_common")
        family = space.u32(common + at("sock_common", "skc_family")) & 0xFFFF
        protocol = space.u32(sock + at("sock", "sk_protocol")) & 0xFFFF
        state = space.u32(common + at("sock_common", "skc_state")) & 0xFF
        local, remote = self._addresses(sock, common, family)
        return {
            "family": _FAMILIES.get(family, str(family)),
            "type": _TYPES.get(kind, str(kind)),
            "protocol": protocol,
            "state": _STATES[state] if protocol == sockets.IPPROTO_TCP and state < len(_STATES) else state,
            "local": local,
            "remote": remote,
        }

    def _addresses(self, sock: int, common: int, family: int) -> tuple[str | None, str | None]:
        space, at = self._space, self._at
        if family == sockets.AF_UNIX:
            return self._unix_name(sock), None
        places: dict[int, tuple[str, str, int]] = {
            sockets.AF_INET: ("skc_rcv_saddr", "skc_daddr", 4),
            sockets.AF_INET6: ("skc_v6_rcv_saddr", "skc_v6_daddr", 16),
        }
        if family not in places:
            return None, None
        own, other, length = places[family]
        (near,) = struct.unpack("<H", space.read(common + at("sock_common", "skc_num"), 2))
        (far,) = struct.unpack(">H", space.read(common + at("sock_common", "skc_dport"), 2))
        here, there = (space.read(common + at("sock_common", member), length) for member in (own, other))
        return _endpoint(here, near), _endpoint(there, far)

    def _unix_name(self, sock: int) -> str | None:
        address = self._space.u64(sock + self._at("unix_sock", "addr"))
        if not address:
            return None
        length = min(self._space.u32(address + self._at("unix_address", "len")), 110)  # of struct sockaddr_un
        name = self._space.read(address + self._at("unix_address", "name"), length)[2:]
        return "@" + _printable(name[1:]) if name.startswith(b"\0") else _printable(name.split(b"\0", 1)[0])


def _endpoint(address: bytes, port: int) -> str:
    named = ipaddress.ip_address(address)
    return f"[{named}]:{port}" if named.version == 6 else f"{named}:{port}"


def _printable(octets: bytes) -> str:
    return "".join(chr(octet) if 0x20 <= octet < 0x7F else "?" for octet in octets)


def core(runs: list[Run]) -> tuple[bytes, Iterator[int]]:
    """The begin of a core file of *runs* (ELF, see elf(5)), and where each page that follows is in memory."""
    place = -(-(64 + 56 * len(runs)) // PAGE) * PAGE
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, len(runs), 0, 0, 0)
    for run in runs:
        size = PAGE * len(run.places)
        rights = 4 | (2 if run.writable else 0) | (1 if run.executable else 0)
        header += struct.pack("<IIQQQQQQ", 1, rights, place, run.begin, 0, size, size, PAGE)
        place += size
    header += bytes(-len(header) % PAGE)
    return header, (page for run in runs for page in run.places)
