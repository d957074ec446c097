# SPDX-License-Identifier: Apache-2.0
"""A guest that was never booted: memory with just as much of a kernel in it as sysmonlib looks for."""

import os
import struct
import sys

from programs import ROOT

sys.path.insert(0, str(ROOT / "sysmon"))
from sysmonlib import hooks, kernel, modules, slabs, tasks  # noqa: E402
from sysmonlib.cross import Cross  # noqa: E402
from sysmonlib.memory import Layout, Memory  # noqa: E402

SIZE, PAGE = 4 << 20, 4096
IMAGE, DIRECT, PAGES = 0xFFFFFFFF80000000, 0xFFFF888000000000, 0xFFFFEA0000000000
MODULES = 0xFFFFFFFFC0000000
VMALLOC = DIRECT + (11 << 40)  # as near to the direct map as a random place may be; as in it, the first 2 MiB are here
TABLES, SYMBOLS, MODULES_AT, PAGES_AT = 0x10000, 0x20000, 0x180000, 0x200000  # where they are in memory
NOTE = 0x8000
TEXT = IMAGE + 0x38000  # the kernel's code: system calls, and what is in WAYS
WAYS = {"x64_sys_call": TEXT + 0x5000, "do_syscall_64": TEXT + 0x6000, "entry_SYSCALL_64": TEXT + 0x6100}
WAYS |= {"fprobe_handler": TEXT + 0x6500, "pre_handler_kretprobe": TEXT + 0x6600}
WAYS |= {"_stext": TEXT, "_etext": TEXT + 0x7000}
ABSENT = {"ia32_sys_call_table", "x32_sys_call_table", "ia32_sys_call", "x32_sys_call", "do_fast_syscall_32"}
ABSENT |= {"entry_SYSCALL_compat", "do_int80_syscall_32", "do_int80_emulation", "fprobe_kprobe_handler"}
CALLS = [f"call{number}" for number in range(300)]
POINTER = 8
# name: (members in octets from its begin, size)
LAYOUTS = {
    "task_struct": (
        "__state stack usage flags exit_state pid tgid start_boottime comm comm2 real_parent cred sighand signal tasks "
        "tasks2 thread_node thread_node2 children children2 sibling sibling2 pid_links pid_links2 thread_pid se se2 "
        "se3 se4 se5 se6 se7 rt rt2 dl dl2 dl3 dl4 mm files fs",
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
    "module": (
        "state list list2 name name2 name3 name4 name5 name6 name7 mkobj mkobj2 mkobj3 mkobj4 mtn core_layout "
        "core_layout2 init_layout init_layout2",
        256,
    ),
    "module_layout": ("base size", 16),
    "mm_struct": ("mm_mt mm_mt2 pgd arg_start arg_end exe_file", 64),
    "maple_tree": ("ma_lock ma_root", 16),
    "maple_range_64": ("parent pivot slot", 256),
    "maple_arange_64": ("parent pivot slot slot2 slot3 gap", 64),
    "vm_area_struct": ("vm_start vm_end vm_flags vm_file vm_mm vm_pgoff", 64),
    "files_struct": ("count fdt", 16),
    "fdtable": ("max_fds fd", 16),
    "file": ("f_path f_path2 f_inode private_data", 32),
    "path": ("mnt dentry", 16),
    "fs_struct": ("root root2 pwd pwd2", 32),
    "dentry": ("d_hash d_hash2 d_parent d_name d_name2 d_inode d_sb", 64),
    "qstr": ("len name", 16),
    "inode": ("i_mode i_ino", 16),
    "super_block": ("s_type", 8),
    "file_system_type": ("name", 8),
    "mount": ("mnt_parent mnt_mountpoint mnt mnt2", 32),
    "vfsmount": ("mnt_root", 16),
    "socket": ("type sk", 16),
    "sock": ("__sk_common " + " ".join(f"common{i}" for i in range(9)) + " sk_protocol", 128),
    "sock_common": (
        "skc_family skc_state skc_num skc_dport skc_rcv_saddr skc_daddr skc_v6_rcv_saddr v6 skc_v6_daddr v62",
        80,
    ),
    "unix_sock": ("sk " + " ".join(f"sk{i}" for i in range(15)) + " addr", 256),
    "unix_address": ("len name", 16),
    "syscall_metadata": ("name nr", 16),
    "ftrace_ops": ("func next saved_func func_hash trampoline trampoline_size", 64),
    "ftrace_ops_hash": ("notrace_hash filter_hash", 16),
    "ftrace_hash": ("size_bits buckets", 16),
    "ftrace_func_entry": ("hlist hlist2 ip direct", 32),
    "bpf_ksym": ("start end lnode lnode2", 32),
    "kprobe": ("hlist hlist2 list list2 addr pre_handler post_handler", 64),
    "kretprobe": ("kp kp2 kp3 kp4 kp5 kp6 kp7 handler entry_handler", 128),
    "fprobe": ("ops ops2 ops3 ops4 ops5 ops6 ops7 ops8 entry_handler exit_handler", 128),
    "kprobe_insn_cache": ("pages pages2", 16),
    "kprobe_insn_page": ("list list2 insns", 24),
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
        self._code()
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
        wanted = tasks.SYMBOLS | slabs.SYMBOLS | modules.SYMBOLS | hooks.SYMBOLS
        for number, name in enumerate(sorted(wanted - ABSENT - set(WAYS))):
            self.symbols[name] = IMAGE + 0x40000 + number * PAGE
        assert IMAGE + 0x40000 + number * PAGE < IMAGE + 0x70000
        self.symbols |= WAYS | {f"__x64_sys_{name}": TEXT + 64 * number for number, name in enumerate(CALLS)}
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
        upper, middle = TABLES + 7 * PAGE, TABLES + 8 * PAGE
        words |= {(root, VMALLOC >> 39 & 511): upper | 3, (upper, VMALLOC >> 30 & 511): middle | 3}
        words |= {(middle, VMALLOC >> 21 & 511): large}
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
        places = {word: base + 0x4000 * number for number, word in enumerate(TABLE)}
        text = b"".join(bytes([len(name) + 1]) + b"D" + name.encode() for name in names)
        assert len(text) <= 0x4000
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

    def _code(self):
        """System calls, interrupts and the function tracer, as they are where nothing is hooked."""
        notes = self.alloc(8 * len(CALLS))
        self.set(self.symbols["syscalls_metadata"], notes)
        dispatch = b""
        for number, name in enumerate(CALLS):
            function = self.symbols[f"__x64_sys_{name}"]
            self.write(function, bytes.fromhex("f30f1efa 0f1f440000 55"))  # endbr64; nop; push %rbp
            self.set(self.entry(name), function)
            note, text = self.alloc(16), self.alloc(64)
            self.set(notes + 8 * number, note)
            self.set(note, text)
            self.write(text, f"sys_{name}".encode())
            distance = function - (self.symbols["x64_sys_call"] + len(dispatch) + 5)
            dispatch += struct.pack("<Bi", 0xE9, distance)
        self.write(self.symbols["x64_sys_call"], dispatch)
        self.set(self.symbols["idt_descr"], 0)
        self.write(self.symbols["idt_descr"] + 2, struct.pack("<Q", self.symbols["idt_table"]))
        for vector in range(256):
            unused = 20 <= vector < 32
            self.gate(vector, self.symbols["early_idt_handler_array"] + 9 * vector if unused else TEXT + 0x6200)
        self.set(self.symbols["ftrace_ops_list"], self.symbols["ftrace_list_end"])
        self.set(self.symbols["ftrace_trace_function"], TEXT + 0x6300)
        self._empty(self.symbols["bpf_kallsyms"])
        self._empty(self.symbols["kprobe_optinsn_slots"])

    def entry(self, name):
        """Where the table of system calls has *name*."""
        return self.symbols["sys_call_table"] + 8 * CALLS.index(name)

    def gate(self, vector, address):
        """Let an interrupt lead to *address*."""
        words = address & 0xFFFF, 0x10, 0x8E00, address >> 16 & 0xFFFF, address >> 32, 0
        self.write(self.symbols["idt_table"] + 16 * vector, struct.pack("<HHHHII", *words))

    def tracer(self, function, *names):
        """Let *function* be called at the begin of system calls *names*, of all where there are none; the ops."""
        ops, both, table, buckets = (self.alloc(size) for size in (128, 64, 64, 64))
        self.set(ops + at("ftrace_ops", "func"), function)
        self.set(ops + at("ftrace_ops", "next"), self.get(self.symbols["ftrace_ops_list"]))
        self.set(ops + at("ftrace_ops", "func_hash"), both)
        self.set(both + at("ftrace_ops_hash", "filter_hash"), table)
        self.set(table + at("ftrace_hash", "buckets"), buckets)
        for name in names:
            entry = self.alloc(64)
            self.set(entry, self.get(buckets))
            self.set(entry + at("ftrace_func_entry", "ip"), self.symbols[f"__x64_sys_{name}"] + 4)
            self.set(buckets, entry)
        self.set(self.symbols["ftrace_ops_list"], ops)
        return ops

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
        self.set(module + at("module", "core_layout"), module)
        self.set(module + at("module", "core_layout2"), PAGE)
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
        wanted = [tasks, slabs, modules, hooks]
        symbols = frozenset().union(*(part.SYMBOLS for part in wanted))
        types = frozenset().union(*(part.TYPES for part in wanted))
        return Cross("test", kernel.find(memory, symbols, types, hooks.BEGINS))

    def scan(self, mapped=True):
        """What is found in it."""
        with self.memory(mapped) as memory:
            return self.cross(memory).scan()


TABLE = ("names", "num_syms", "token_table", "token_index", "offsets", "relative_base")
