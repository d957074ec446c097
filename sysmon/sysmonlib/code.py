# SPDX-License-Identifier: Apache-2.0
"""What in a guest's memory is code of its kernel's own: its text, and what the kernel made at run time and lists.

Legal outside the text are the trampolines that the function tracer makes, what the BPF compiler made, and the places of
optimised kprobes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from sysmonlib.kernel import Kernel
from sysmonlib.memory import PAGE, BadAddress
from sysmonlib.modules import RANGE
from sysmonlib.walk import Broken, Walk

SYMBOLS = frozenset(("_stext", "_etext", "ftrace_ops_list", "ftrace_list_end", "bpf_kallsyms", "kprobe_optinsn_slots"))
TYPES = frozenset(("ftrace_ops", "bpf_ksym", "kprobe_insn_cache", "kprobe_insn_page"))
_OPS_MOST = 1 << 12
_LISTED_MOST = 1 << 16
_RANGE_MOST = 1 << 22  # octets of one piece of code that was made at run time


@dataclass(frozen=True, order=True)
class Hook:
    """What leads to *address*, where no code of the kernel's is: of which *kind*, and where it is itself, *place*."""

    kind: str
    place: int
    address: int


class Code:
    """That of *kernel*. Raises MissingError where it does not tell where its text is."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._space = kernel, kernel.space
        self._text = kernel.symbol("_stext"), kernel.symbol("_etext")
        self._legal: list[tuple[int, int]] | None = None
        self.traces = kernel.types.has("ftrace_ops", "func") and {"ftrace_ops_list", "ftrace_list_end"} <= set(
            kernel.symbols
        )

    def renew(self) -> None:
        """Read the lists of what was made at run time anew when they are needed next."""
        self._legal = None

    def in_text(self, address: int) -> bool:
        """Whether *address* is in the kernel's text."""
        return self._text[0] <= address < self._text[1]

    def own(self, address: int) -> bool:
        """Whether code at *address* is the kernel's, or was made by it at run time. Raises Broken, BadAddress."""
        if self.in_text(address):
            return True
        if self._legal is None:
            self._legal = [*self._trampolines(), *self._compiled(), *self._optimised()]
        return any(begin <= address < end for begin, end in self._legal)

    def of_module(self, address: int) -> bool:
        """Whether *address* is where modules are, and is mapped."""
        try:
            return RANGE[0] <= address < RANGE[1] and self._space.walk(address) >= 0
        except BadAddress:
            return False

    def operations(self) -> Iterator[int]:
        """What is registered with the function tracer (struct ftrace_ops). Raises Broken, BadAddress."""
        step, end = self._kernel.types.offset("ftrace_ops", "next"), self._kernel.symbol("ftrace_list_end")
        seen, ops = set[int](), self._space.u64(self._kernel.symbol("ftrace_ops_list"))
        while ops not in (end, 0):
            if ops in seen or len(seen) >= _OPS_MOST:
                raise Broken("the list of the function tracer does not end")
            seen.add(ops)
            yield ops
            ops = self._space.u64(ops + step)

    def _trampolines(self) -> Iterator[tuple[int, int]]:
        types = self._kernel.types
        if self.traces and types.has("ftrace_ops", "trampoline"):
            for ops in self.operations():
                begin = self._space.u64(ops + types.offset("ftrace_ops", "trampoline"))
                length = self._space.u64(ops + types.offset("ftrace_ops", "trampoline_size"))
                if begin and length <= 2 * PAGE:
                    yield begin, begin + length

    def _compiled(self) -> Iterator[tuple[int, int]]:
        types, head = self._kernel.types, self._kernel.symbols.get("bpf_kallsyms")
        if head is not None and types.has("bpf_ksym", "lnode"):
            for symbol in Walk(self._space, _LISTED_MOST).list(head, types.offset("bpf_ksym", "lnode")):
                begin, end = self._space.words(symbol + types.offset("bpf_ksym", "start"), 2)
                if 0 < end - begin <= _RANGE_MOST:
                    yield begin, end

    def _optimised(self) -> Iterator[tuple[int, int]]:
        types, cache = self._kernel.types, self._kernel.symbols.get("kprobe_optinsn_slots")
        if cache is not None and types.has("kprobe_insn_page", "insns"):
            head, link = cache + types.offset("kprobe_insn_cache", "pages"), types.offset("kprobe_insn_page", "list")
            for page in Walk(self._space, _LISTED_MOST).list(head, link):
                begin = self._space.u64(page + types.offset("kprobe_insn_page", "insns"))
                yield begin, begin + PAGE
