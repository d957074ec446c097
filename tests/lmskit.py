# SPDX-License-Identifier: Apache-2.0
"""A guest that was never booted: memory with just as much of a kernel in it as sysmonlib looks for."""

import os
import struct
import sys

from programs import ROOT

sys.path.insert(0, str(ROOT / "sysmon"))
from sysmonlib import kernel, modules, slabs, tasks  # noqa: E402
from sysmonlib.cross import Cross  # noqa: E402
from sysmonlib.memory import Layout, Memory  # noqa: E402

SIZE, PAGE = 4 << 20, 4096
IMAGE, DIRECT, PAGES = 0xFFFFFFFF80000000, 0xFFFF888000000000, 0xFFFFEA0000000000
MODULES = 0xFFFFFFFFC0000000
TABLES, SYMBOLS, MODULES_AT, PAGES_AT = 0x10000, 0x20000, 0x180000, 0x200000  # where they are in memory
NOTE = 0x8000
POINTER = 8
# name: (members in octets from its begin, size)
LAYOUTS = {
    "task_struct": (
        "__state stack usage flags exit_state pid tgid start_boottime comm comm2 real_parent cred sighand signal tasks "
        "tasks2 thread_node thread_node2 children children2 sibling sibling2 pid_links pid_links2 thread_pid se se2 "
        "se3 se4 se5 se6 se7 rt rt2 dl dl2 dl3 dl4",
        2048,
    ),
    "signal_struct": ("sigcnt thread_head thread_head2", 64),
    "pid": ("count tasks numbers numbers2", 64),
    "upid": ("nr ns", 16),
    "pid_namespace": ("idr idr2 idr3", 64),
    "idr": ("idr_rt idr_rt2", 16),
    "xarray": ("xa_lock xa_head", 16),
    "xa_node": ("shift parent slots " + " ".join(f"slot{i}" for i in range(1, 64)) + " tags", 1024),
    "rq": ("curr idle cfs cfs2 cfs_tasks cfs_tasks2 rt " + " ".join(f"rt{i}" for i in range(1, 202)) + " dl dl2", 4096),
    "cfs_rq": ("curr tasks_timeline", 16),
    "rt_rq": ("active", 1600),
    "rt_prio_array": ("queue", 1600),
    "dl_rq": ("root", 16),
    "sched_entity": ("run_node run_node2 run_node3 group_node group_node2 my_q", 64),
    "sched_rt_entity": ("run_list run_list2", 16),
    "sched_dl_entity": ("rb_node rb_node2 rb_node3", 24),
    "cred": ("usage uid", 16),
    "timekeeper": ("offs_real offs_boot", 16),
    "slab": ("flags slab_list slab_list2 slab_cache freelist counters", 64),
    "kmem_cache": ("cpu_slab size red_left_pad", 64),
    "module": ("state list list2 name name2 name3 name4 name5 name6 name7 mkobj mkobj2 mkobj3 mkobj4 mtn", 256),
    "kset": ("list list2", 16),
    "kobject": ("name entry entry2", 24),
    "module_kobject": ("kobj kobj2 kobj3 mod", 32),
    "mod_tree_node": ("mod node node2 node3", 32),
    "mod_tree_root": ("root", 32),
    "latch_tree_root": ("seq tree tree2", 24),
    "latch_tree_node": ("node", 24),
}


def at(name, member):
    """The offset of a member."""
    return LAYOUTS[name][0].split().index(member) * POINTER


class Guest:
    """Its memory is `octets`; `task` and `module` add to it, `cross` looks at it as it is then."""

    def __init__(self):
        self.octets = bytearray(SIZE)
        self._free = 0x100000
        self._module = MODULES
        self.symbols = {}
        self._name_symbols()
        self._empty(self.symbols["modules"])
        self.set(self.symbols["module_kset"], self.alloc(64))
        self._empty(self.get(self.symbols["module_kset"]))
        self.cache = self.alloc(64)
        self.set(self.symbols["task_struct_cachep"], self.cache)
        self.set(self.cache + at("kmem_cache", "size"), LAYOUTS["task_struct"][1])
        self.set(self.symbols["vmemmap_base"], PAGES)
        self.set(self.symbols["page_offset_base"], DIRECT)
        self.set(self.symbols["vmcoreinfo_data"], DIRECT + NOTE)
        self.set(self.symbols["nr_cpu_ids"], 1)
        self.set(self.symbols["__cpu_possible_mask"], 1)
        self.numbers = self.alloc(1024)  # one node of the tree of numbers, for 0 … 63
        head = self.symbols["init_pid_ns"] + at("xarray", "xa_head")
        self.set(head, self.numbers | 2)
        self.queue = self.symbols["runqueues"]
        self._empty(self.queue + at("rq", "cfs_tasks"))
        for number in range(100):
            self._empty(self.queue + at("rq", "rt") + 16 * number)
        self.tasks = {}
        self.init = self._made(self.symbols["init_task"], 0, "swapper/0")
        self._empty(self.init + at("task_struct", "tasks"))
        for member in ("curr", "idle"):
            self.set(self.queue + at("rq", member), self.init)
        self._types()
        self._table()

    # Memory, by addresses of the kernel's.

    def place(self, address):
        if address >= MODULES:
            return address - MODULES + MODULES_AT
        return address - (IMAGE if address >= IMAGE else DIRECT)

    def set(self, address, value):
        struct.pack_into("<Q", self.octets, self.place(address), value)

    def get(self, address):
        return struct.unpack_from("<Q", self.octets, self.place(address))[0]

    def alloc(self, size, align=64):
        """Zeroed memory in the direct map."""
        self._free = -(-self._free // align) * align
        self._free += size
        assert self._free <= MODULES_AT
        return DIRECT + self._free - size

    def write(self, address, octets):
        self.octets[self.place(address) : self.place(address) + len(octets)] = octets

    def _empty(self, head):
        self.set(head, head)
        self.set(head + 8, head)

    def link(self, head, node):
        """Append *node* to a list."""
        last = self.get(head + 8)
        for address, value in ((last, node), (node, head), (node + 8, last), (head + 8, node)):
            self.set(address, value)

    def unlink(self, node):
        before, after = self.get(node + 8), self.get(node)
        self.set(before, after)
        self.set(after + 8, before)
        self._empty(node)

    # The kernel.

    def _name_symbols(self):
        for number, name in enumerate(sorted(tasks.SYMBOLS | slabs.SYMBOLS | modules.SYMBOLS)):
            self.symbols[name] = IMAGE + 0x40000 + number * PAGE
        for number, name in enumerate(("page_offset_base", "vmcoreinfo_data")):
            self.symbols[name] = IMAGE + 0x70000 + number * 64

    def _table(self):
        large = 0x83
        root, upper, middle = TABLES, TABLES + PAGE, TABLES + 2 * PAGE
        words = {(root, 511): upper | 3, (upper, 510): middle | 3, (middle, 0): large, (middle, 1): PAGES_AT | large}
        upper, middle = TABLES + 3 * PAGE, TABLES + 4 * PAGE
        words |= {
            (root, PAGES >> 39 & 511): upper | 3,
            (upper, PAGES >> 30 & 511): middle | 3,
            (middle, PAGES >> 21 & 511): PAGES_AT | large,
        }
        words |= {(TABLES + PAGE, 511): TABLES + 5 * PAGE | 3, (TABLES + 5 * PAGE, 0): TABLES + 6 * PAGE | 3}
        words |= {(TABLES + 6 * PAGE, number): MODULES_AT + number * PAGE | 3 for number in range(16)}
        for (table, index), value in words.items():
            struct.pack_into("<Q", self.octets, table + 8 * index, value)

    def _types(self):
        strings, types = b"\0", b""

        def name_of(word):
            nonlocal strings
            known = strings.find(b"\0" + word.encode() + b"\0")  # each once, as compilers have it
            if known < 0:
                known = len(strings) - 1
                strings += word.encode() + b"\0"
            return known + 1

        for name, (members, size) in LAYOUTS.items():
            words = members.split()
            types += struct.pack("<III", name_of(name), 4 << 24 | len(words), size)
            for number, word in enumerate(words):
                types += struct.pack("<III", name_of(word), 0, number * POINTER * 8)
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
        text = header + types + strings
        begin = 0xA0000
        assert begin + len(text) <= 0x100000
        self.octets[begin : begin + len(text)] = text
        self.symbols |= {"__start_BTF": IMAGE + begin, "__stop_BTF": IMAGE + begin + len(text)}
        self._kallsyms()

    def _kallsyms(self):
        base = SYMBOLS
        names = sorted(self.symbols)
        places = {word: base + 0x1000 * number for number, word in enumerate(TABLE)}
        text = b"".join(bytes([len(name) + 1]) + b"D" + name.encode() for name in names)
        self.octets[places["names"] : places["names"] + len(text)] = text
        struct.pack_into("<I", self.octets, places["num_syms"], len(names))
        for number in range(256):
            struct.pack_into("<H", self.octets, places["token_index"] + 2 * number, 2 * number)
            self.octets[places["token_table"] + 2 * number] = number
        struct.pack_into("<Q", self.octets, places["relative_base"], IMAGE)
        for number, name in enumerate(names):
            offset = -1 - (self.symbols[name] - IMAGE)
            struct.pack_into("<i", self.octets, places["offsets"] + 4 * number, offset)
        told = {"OSRELEASE": "6.1.0-test", "NUMBER(phys_base)": 0, "NUMBER(PG_slab)": 9}
        told |= {f"SYMBOL(kallsyms_{word})": f"{IMAGE + place:x}" for word, place in places.items()}
        told["SYMBOL(swapper_pg_dir)"] = f"{IMAGE + TABLES:x}"
        note = "".join(f"{key}={value}\n" for key, value in told.items()).encode()
        self.octets[NOTE : NOTE + len(note)] = note

    # What runs on it.

    def _made(self, task, pid, comm):
        """What each task has, in no list yet."""
        stack, signal, number, cred = (self.alloc(64) for _ in range(4))
        self.set(stack, 0x57AC6E9D)
        values = {
            "__state": 1,
            "stack": stack,
            "usage": 1,
            "pid": pid,
            "tgid": pid,
            "signal": signal,
            "sighand": signal,
        }
        values |= {"real_parent": self.symbols["init_task"], "cred": cred, "thread_pid": number, "start_boottime": pid}
        for member, value in values.items():
            self.set(task + at("task_struct", member), value)
        self.write(task + at("task_struct", "comm"), comm.encode())
        self.set(number + at("pid", "numbers"), pid)
        self.set(number + at("pid", "tasks"), task + at("task_struct", "pid_links"))
        for member in ("children", "sibling", "tasks"):
            self._empty(task + at("task_struct", member))
        self._empty(signal + at("signal_struct", "thread_head"))
        self.link(signal + at("signal_struct", "thread_head"), task + at("task_struct", "thread_node"))
        return task

    def task(self, pid, comm="task"):
        """A process in all views; its address."""
        page = self.alloc(PAGE, PAGE)
        struct_page = PAGES_AT + (page - DIRECT) // PAGE * 64
        words = {"flags": 1 << 9, "slab_cache": self.cache, "counters": 1 << 16}
        for member, value in words.items():
            struct.pack_into("<Q", self.octets, struct_page + at("slab", member), value)
        task = self._made(page, pid, comm)
        self.link(self.init + at("task_struct", "tasks"), task + at("task_struct", "tasks"))
        self.link(self.init + at("task_struct", "children"), task + at("task_struct", "sibling"))
        number = self.get(task + at("task_struct", "thread_pid"))
        self.set(self.numbers + at("xa_node", "slots") + 8 * pid, number)
        self.tasks[pid] = task
        return task

    def run(self, task):
        """Let it be what the processor does."""
        self.set(self.queue + at("rq", "curr"), task)

    def module(self, name):
        """A module in all views; its address."""
        module, self._module = self._module, self._module + PAGE
        self.write(module + at("module", "name"), name.encode())
        self.link(self.symbols["modules"], module + at("module", "list"))
        kobject = module + at("module", "mkobj")
        self.set(kobject + at("module_kobject", "mod"), module)
        self.link(self.get(self.symbols["module_kset"]), kobject + at("kobject", "entry"))
        owner = self.alloc(64)
        node, root = owner + at("mod_tree_node", "node"), self.symbols["mod_tree"] + at("latch_tree_root", "tree")
        self.set(owner, module)
        self.set(node + 16, self.get(root))  # the tree is a chain, which a tree may be
        self.set(root, node)
        return module

    # From outside.

    def memory(self, mapped=True, owner=-1):
        """Its memory as it is now."""
        fd = os.memfd_create("guest")
        os.write(fd, self.octets)
        return Memory(fd, Layout(SIZE, SIZE), 0, mapped, owner)

    def cross(self, memory):
        """Raises what is raised where it cannot be read."""
        wanted = [tasks, slabs, modules]
        symbols = frozenset().union(*(part.SYMBOLS for part in wanted))
        return Cross("test", kernel.find(memory, symbols, frozenset().union(*(part.TYPES for part in wanted))))

    def scan(self, mapped=True):
        """What is found in it."""
        with self.memory(mapped) as memory:
            return self.cross(memory).scan()


TABLE = ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")
