# SPDX-License-Identifier: Apache-2.0
"""The modules of a guest's kernel, as several structures of it have them.

list: what lsmod(8) shows. sysfs: /sys/module. tree: by address, what the kernel itself finds the owner of code with.
memory: what looks like one where modules are, whatever the others say.
"""

import struct
import time

from sysmonlib.kernel import Kernel
from sysmonlib.memory import PAGE, BadAddress
from sysmonlib.walk import Walk

SYMBOLS = frozenset(("modules", "module_kset", "mod_tree"))
TYPES = frozenset(
    (
        "module",
        "kset",
        "kobject",
        "module_kobject",
        "mod_tree_node",
        "mod_tree_root",
        "latch_tree_root",
        "latch_tree_node",
        "module_layout",
        "module_memory",
    )  # fmt: skip
)
VIEWS = ("list", "sysfs", "tree")
SWEEP = 30.0  # seconds between looks at all memory of modules, which is what is dear
RANGE = 0xFFFFFFFFC0000000, 0xFFFFFFFFFF000000  # where modules are; see Documentation/x86/x86_64/mm.rst of Linux
_NAME_MOST = 56  # MODULE_NAME_LEN
_STATE_LIVE = 0
_PIECES = 7  # MOD_MEM_NUM_TYPES: text, three of data, and those of its start
_MOST = 1 << 16
_WORD = struct.Struct("<Q")


class Modules:
    """The modules of *kernel*. Raises MissingError where it lacks a view."""

    def __init__(self, kernel: Kernel) -> None:
        self._space, offset = kernel.space, kernel.types.offset
        self._head, self._set, self._root = (kernel.symbol(name) for name in ("modules", "module_kset", "mod_tree"))
        self._link, self._name = offset("module", "list"), offset("module", "name")
        self._state = offset("module", "state")
        self._members, self._entry = offset("kset", "list"), offset("kobject", "entry")
        self._object, self._of_object = offset("module_kobject", "kobj"), offset("module_kobject", "mod")
        self._tree = offset("latch_tree_root", "tree") + offset("mod_tree_root", "root")
        self._of_node = offset("mod_tree_node", "mod") - offset("mod_tree_node", "node")
        self._of_node -= offset("latch_tree_node", "node")
        self._self = offset("module", "mkobj") + self._of_object
        self._pieces = self._layout(kernel)
        self._swept, self._carved = -SWEEP, set[int]()

    def _layout(self, kernel: Kernel) -> list[tuple[int, int]]:
        """Where a module notes where its memory begins, and how much it is, of each piece."""
        types = kernel.types
        if types.has("module", "mem"):  # Linux 6.4
            first, step = types.offset("module", "mem"), types.sizes.get("module_memory", 0)
            base, size = types.offset("module_memory", "base"), types.offset("module_memory", "size")
            firsts = [first + step * number for number in range(_PIECES)]
        else:
            firsts = [types.offset("module", name) for name in ("core_layout", "init_layout")]
            base, size = types.offset("module_layout", "base"), types.offset("module_layout", "size")
        return [(first + base, first + size) for first in firsts]

    def pieces(self, module: int) -> list[tuple[int, int]]:
        """Where the memory of *module* begins, and how much it is, of each piece it has. Raises BadAddress."""
        space = self._space
        found = ((space.u64(module + base), space.u32(module + size)) for base, size in self._pieces)
        return [(base, size) for base, size in found if base and size]

    def owner(self, address: int, modules: set[int]) -> int | None:
        """Which of *modules* has *address* in its memory; None where none has."""
        for module in modules:
            try:
                for base, size in self._pieces:
                    if 0 <= address - self._space.u64(module + base) < self._space.u32(module + size):
                        return module
            except BadAddress:
                continue  # unloaded meanwhile
        return None

    def views(self) -> dict[str, set[int]]:
        """The addresses of modules, by view. Raises Broken, BadAddress."""
        u64, walk = self._space.u64, Walk(self._space, _MOST)
        listed = set(walk.list(self._head, self._link))
        objects = walk.list(u64(self._set) + self._members, self._entry + self._object)
        shown = {u64(kobject + self._of_object) for kobject in objects} - {0}  # those built in have no module
        owners = {u64(node + self._of_node) for node in walk.tree(u64(self._root + self._tree))}
        return {"list": listed, "sysfs": shown, "tree": owners}

    def carved(self) -> set[int]:
        """Those that memory shows, by a pointer of each to itself that it has for sysfs; each is looked at again."""
        if time.monotonic() - self._swept >= SWEEP:
            self._carved, self._swept = self._sweep(), time.monotonic()
        return {module for module in self._carved if self._is_one(module)}

    def _is_one(self, module: int) -> bool:
        try:
            return self._space.u64(module + self._self) == module and self.name(module) != ""
        except BadAddress:
            return False

    def _sweep(self) -> set[int]:
        found, memory, own = set(), self._space.memory, self._self
        for page, place in self._space.mapped(*RANGE):
            try:
                words = memory.read(place, PAGE)
            except BadAddress:
                continue
            for high in {page - own >> 16, page + PAGE - own >> 16}:  # of the pointer, were it in this page
                octets = high.to_bytes(6, "little")
                hit = words.find(octets, 2)
                while hit >= 0:
                    (word,) = _WORD.unpack_from(words, hit - 2)
                    if word == page + hit - 2 - own:
                        found.add(word)
                    hit = words.find(octets, hit + 6)
        return found

    def live(self, module: int) -> bool:
        """Whether it is neither coming nor going. Raises BadAddress."""
        return self._space.u32(module + self._state) == _STATE_LIVE

    def name(self, module: int) -> str:
        """Its name. Raises BadAddress."""
        return self._space.text(module + self._name, _NAME_MOST)
