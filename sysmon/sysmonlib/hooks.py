# SPDX-License-Identifier: Apache-2.0
"""Where a guest's kernel would go on in code that is not its own, though nothing but its own belongs there.

syscall: an entry of a table of system calls. dispatch: the function that calls system calls by their number, which
newer kernels have in place of the table. function: the begin of a system call's function, or of what leads there.
interrupt: a gate of the interrupt descriptor table. And what sysmonlib.tracing finds.
"""

import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dre.errors import MissingError

from sysmonlib import code as own_code
from sysmonlib import tracing
from sysmonlib.code import Code, Hook
from sysmonlib.kernel import Kernel
from sysmonlib.memory import BadAddress

SYSCALL, DISPATCH, FUNCTION, INTERRUPT = "syscall", "dispatch", "function", "interrupt"
SYMBOLS = frozenset(
    (
        *("sys_call_table", "ia32_sys_call_table", "x32_sys_call_table", "syscalls_metadata"),
        *("x64_sys_call", "ia32_sys_call", "x32_sys_call", "do_syscall_64", "entry_SYSCALL_64", "do_fast_syscall_32"),
        *("entry_SYSCALL_compat", "do_int80_syscall_32", "do_int80_emulation"),
        *("idt_table", "idt_descr", "early_idt_handler_array"),
    )  # fmt: skip
).union(own_code.SYMBOLS, tracing.SYMBOLS)
TYPES = frozenset(("syscall_metadata",)).union(own_code.TYPES, tracing.TYPES)
BEGINS = ("__x64_sys_", "__ia32_sys_", "__x64_compat_sys_", "__ia32_compat_sys_", "sys_ni_syscall")
_TABLES = {
    "sys_call_table": "x64_sys_call",
    "ia32_sys_call_table": "ia32_sys_call",
    "x32_sys_call_table": "x32_sys_call",
}
_WAYS = (
    "entry_SYSCALL_64",
    "do_syscall_64",
    "entry_SYSCALL_compat",
    "do_fast_syscall_32",
    "do_int80_syscall_32",
    "do_int80_emulation",
    *_TABLES.values(),
)
SWEEP = 10.0  # seconds between looks at the begins of all functions, which is what is dear
_ENTRIES_MOST, _ENTRIES_LEAST = 1024, 256  # of a table of system calls
_CODE_MOST = 1 << 16  # octets of a function that calls them
_PADDING, _ENDBR_LENGTH = 16, 4  # a call may lead so much before a function (call depth tracking), or behind its begin
_GATES, _GATE = 256, struct.Struct("<HHHHII")
_GATE_PRESENT = 1 << 15
_EXCEPTIONS, _EARLY = 32, (9, 13)  # EARLY_IDT_HANDLER_SIZE without and with ENDBR
_BEGIN = 40  # octets of a function that are looked at
# endbr64, and what older and newer kernels put in its place where no address leads to it (ENDBR_POISON of asm/ibt.h);
# then the place of the function tracer, where it is not at work.
_ENDBR, _NOP = (b"\xf3\x0f\x1e\xfa", b"\x66\x0f\x1f\x00", b"\x0f\x1f\x40\xd6"), b"\x0f\x1f\x44\x00\x00"
_REL = struct.Struct("<i")


@dataclass
class _Entries:
    """A table of system calls, and its octets when there was last nothing wrong with them."""

    name: str
    begin: int
    length: int
    good: bytes = b""


@dataclass
class _Dispatcher:
    """A function that calls the functions of a table, likewise."""

    table: _Entries
    begin: int
    length: int
    good: tuple[bytes, bytes] = (b"", b"")


class Hooks:
    """Those in *kernel*. Raises MissingError where it lacks what all of them need."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._space = kernel, kernel.space
        self._code = Code(kernel)
        self._tracing = tracing.Tracing(kernel, self._code)
        self._functions = kernel.table.families
        self._tables = self._with_tables()
        self._dispatchers = self._with_dispatchers()
        if not self._tables:
            raise MissingError(f"its kernel {kernel.release} has no table of system calls")
        self._idt, self._descriptor = kernel.symbol("idt_table"), kernel.symbol("idt_descr")
        self._gates = b""  # when there was last nothing wrong with them
        self._titles: list[str] | None = None
        self._bent, self._swept = set[Hook](), -SWEEP

    def views(self) -> Mapping[str, Callable[[], set[Hook]]]:
        """What finds the hooks of each view, which raises Broken and BadAddress; a new look begins."""
        self._code.renew()
        found = {"syscalls": self.syscalls, "interrupts": self.interrupts, "kprobes": self._tracing.probed}
        return {**found, "ftrace": self._tracing.traced} if self._code.traces else found

    # --- System calls ---

    def _with_tables(self) -> dict[str, _Entries]:
        found, kernel = {}, self._kernel
        for name in _TABLES:
            begin = kernel.symbols.get(name)
            if begin is not None:
                end = kernel.table.end(begin) or begin
                found[name] = _Entries(name, begin, min(end - begin, 8 * _ENTRIES_MOST) // 8 * 8)
        return found

    def _with_dispatchers(self) -> list[_Dispatcher]:
        found, kernel = [], self._kernel
        for name, function in _TABLES.items():
            begin = kernel.symbols.get(function)
            if begin is not None and name in self._tables:
                end = kernel.table.end(begin) or begin
                found.append(_Dispatcher(self._tables[name], begin, min(end - begin, _CODE_MOST)))
        return found

    def syscalls(self) -> set[Hook]:
        """Entries of the tables, the functions that dispatch, and the begins of all these functions."""
        found, entries = set[Hook](), dict[str, tuple[int, ...]]()
        for table in self._tables.values():
            octets = self._space.read(table.begin, table.length)
            words = entries[table.name] = self._entries(octets)
            if octets != table.good:
                changed = self._changed(table, words)
                table.good = b"" if changed else octets
                found |= changed
        for dispatcher in self._dispatchers:
            words = entries[dispatcher.table.name]
            state = self._space.read(dispatcher.begin, dispatcher.length), struct.pack(f"<{len(words)}Q", *words)
            if state != dispatcher.good:
                changed = self._uncalled(dispatcher, state[0], words)
                dispatcher.good = (b"", b"") if changed else state
                found |= changed
        return found | self._begins()

    def _entries(self, octets: bytes) -> tuple[int, ...]:
        """The entries of a table, without what is behind it: up to the last that is a system call."""
        words = struct.unpack(f"<{len(octets) // 8}Q", octets)
        count = max((number for number, word in enumerate(words, 1) if word in self._functions), default=0)
        return words[: max(count, min(_ENTRIES_LEAST, len(words)))]

    def _changed(self, table: _Entries, words: tuple[int, ...]) -> set[Hook]:
        titles = self._native() if table.name == "sys_call_table" else []
        found = set()
        for number, word in enumerate(words):
            names = self._functions.get(word)
            title = titles[number] if number < len(titles) else ""
            if names is None or (title and f"__x64_sys_{title}" not in names):
                found.add(Hook(SYSCALL, table.begin + 8 * number, word))
        return found

    def _native(self) -> list[str]:
        """The names of the system calls by number, as the kernel has them for tracing; none where it has none."""
        if self._titles is None:
            self._titles = []
            metadata, types = self._kernel.symbols.get("syscalls_metadata"), self._kernel.types
            table = self._tables.get("sys_call_table")
            if metadata is not None and table is not None and types.has("syscall_metadata", "name"):
                count = len(self._entries(self._space.read(table.begin, table.length)))
                self._titles = self._noted(metadata, types.offset("syscall_metadata", "name"), count)
        return self._titles

    def _noted(self, metadata: int, offset: int, count: int) -> list[str]:
        space, found = self._space, []
        try:
            notes = space.words(space.u64(metadata), count)
        except BadAddress:
            return []
        for note in notes:
            try:
                text = space.text(space.u64(note + offset), 64) if note else ""
            except BadAddress:
                text = ""
            found.append(text.removeprefix("sys_") if text.startswith("sys_") else "")
        return found

    def _uncalled(self, dispatcher: _Dispatcher, code: bytes, words: tuple[int, ...]) -> set[Hook]:
        """The system calls of a table that are called nowhere in *code*, which should call each of them."""
        targets = [dispatcher.begin + place + 4 + rel for place, rel in _relative(code)]
        reached = {target + more for target in targets for more in (0, _PADDING, -_ENDBR_LENGTH)}
        functions = {word for word in words if self._implemented(word)}
        missing = functions - reached
        if len(missing) == len(functions):  # it is no such function in this kernel
            return set()
        # Where it is called now: four octets within other instructions are no call, and lead anywhere.
        calls = (dispatcher.begin + place + 4 + rel for place, rel in _relative(code, b"\xe8\xe9") if missing)
        strange = next((target for target in calls if self._code.of_module(target)), dispatcher.begin)
        return {Hook(DISPATCH, function, strange) for function in missing}

    def _implemented(self, function: int) -> bool:
        names = self._functions.get(function, ())
        return bool(names) and not any(name.endswith("sys_ni_syscall") for name in names)

    def _begins(self) -> set[Hook]:
        if self._bent or time.monotonic() - self._swept >= SWEEP:
            self._bent = set()
            ways = {self._kernel.symbols[way] for way in _WAYS if way in self._kernel.symbols}
            for function in ways.union(self._functions):
                if self._code.in_text(function):
                    target = self._leads(function, self._space.read(function, _BEGIN))
                    if target is not None:
                        self._bent.add(Hook(FUNCTION, function, target))
            self._swept = time.monotonic()
        return self._bent

    def _leads(self, address: int, octets: bytes) -> int | None:
        """Where a function at *address* goes with its first instructions, if that is not code of the kernel."""
        place = _ENDBR_LENGTH if octets.startswith(_ENDBR) else 0
        for _ in range(2):  # the second after the call of the function tracer, or its place
            code = octets[place]
            if code in (0xE8, 0xE9):  # call, jmp
                target = address + place + 5 + int(_REL.unpack_from(octets, place + 1)[0])
                if not self._code.own(target):
                    return target
                if code == 0xE9:
                    return None
            elif not octets.startswith(_NOP, place):
                far = self._far(address, octets, place)
                return None if far is None or self._code.own(far) else far
            place += 5
        return None

    def _far(self, address: int, octets: bytes, place: int) -> int | None:
        """Where other jumps that root-kits write lead: of an address in a register, on the stack or in memory."""
        code = octets[place:]
        if code.startswith(b"\xff\x25"):  # jmp [rip+…]
            try:
                return self._space.u64(address + place + 6 + _REL.unpack_from(code, 2)[0])
            except BadAddress:
                return None
        if code[0] == 0x68 and code[5] == 0xC3:  # push, ret
            return int(_REL.unpack_from(code, 1)[0]) & (1 << 64) - 1
        if code[0] in (0x48, 0x49) and 0xB8 <= code[1] <= 0xBF:  # movabs, and then jmp or push, ret
            after = code[10:].removeprefix(b"\x41")
            if (after[0] == 0xFF and 0xE0 <= after[1] <= 0xE7) or (0x50 <= after[0] <= 0x57 and after[1] == 0xC3):
                return int.from_bytes(code[2:10], "little")
        return None

    # --- Interrupts ---

    def interrupts(self) -> set[Hook]:
        """Gates of the table, and where the processors are told that it is."""
        space, found = self._space, set()
        told = int.from_bytes(space.read(self._descriptor + 2, 8), "little")
        try:
            moved = space.physical(told) != space.physical(self._idt)
        except BadAddress:
            moved = True
        if moved:
            found.add(Hook(INTERRUPT, self._descriptor, told))
        octets = space.read(self._idt, _GATES * _GATE.size)
        if octets != self._gates:
            changed = set(self._gated(octets))
            self._gates = b"" if changed else octets
            found |= changed
        return found

    def _gated(self, octets: bytes) -> Iterator[Hook]:
        early = self._kernel.symbols.get("early_idt_handler_array")
        for vector, (low, _, bits, middle, high, _) in enumerate(_GATE.iter_unpack(octets)):
            address = low | middle << 16 | high << 32
            if not bits & _GATE_PRESENT or self._code.in_text(address):
                continue
            # Of exceptions that nothing handles, the gates are those of the start still, whose code is gone.
            if early is not None and vector < _EXCEPTIONS and address - early in [vector * step for step in _EARLY]:
                continue
            yield Hook(INTERRUPT, self._idt + vector * _GATE.size, address)

    # --- Names ---

    def name(self, hook: Hook) -> str:
        """What *hook* is one of, as people know it: a system call, a vector, functions. Raises Broken, BadAddress."""
        if hook.kind == SYSCALL:
            return self._named_entry(hook.place)
        if hook.kind == INTERRUPT:
            return "idt_descr" if hook.place == self._descriptor else f"{(hook.place - self._idt) // _GATE.size}"
        if hook.kind in (tracing.FTRACE, tracing.PROBE):
            return self._tracing.name(hook.place)
        names = self._functions.get(hook.place) or {way for way in _WAYS if self._kernel.symbols.get(way) == hook.place}
        return min(names, default=f"{hook.place:#x}")

    def _named_entry(self, place: int) -> str:
        for table in self._tables.values():
            if 0 <= place - table.begin < table.length:
                number = (place - table.begin) // 8
                titles = self._native() if table.name != "ia32_sys_call_table" else []
                title = titles[number] if number < len(titles) else ""
                kind = "" if table.name == "sys_call_table" else table.name.partition("_")[0] + " "
                return f"{kind}{title} {number}" if title else f"{kind}{number}"
        raise BadAddress(f"{place:#x}: in no table of system calls")


def _relative(code: bytes, before: bytes = b"") -> Iterator[tuple[int, int]]:
    """Each four octets of *code* as the distance of a call or jump; only those behind an octet of *before*, if any."""
    for place in range(1, len(code) - 3):
        if not before or code[place - 1] in before:
            yield place, _REL.unpack_from(code, place)[0]
