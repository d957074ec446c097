# SPDX-License-Identifier: Apache-2.0
"""Who is called by the function tracer and the probes of a guest's kernel.

ftrace: what the function tracer calls. probe: what a kprobe, a kretprobe or an fprobe calls; their own handlers, which
are in the kernel's text, call these.
"""

from collections.abc import Iterator

from sysmonlib.code import Code, Hook
from sysmonlib.kernel import Kernel
from sysmonlib.walk import Broken, Walk

FTRACE, PROBE = "ftrace", "probe"
SYMBOLS = frozenset(
    (
        *("ftrace_trace_function", "direct_functions", "fprobe_handler", "fprobe_kprobe_handler"),
        *("kprobe_table", "pre_handler_kretprobe"),
    )  # fmt: skip
)
TYPES = frozenset(
    ("ftrace_ops", "ftrace_ops_hash", "ftrace_hash", "ftrace_func_entry", "kprobe", "kretprobe", "fprobe")
)
_HASH_BITS_MOST, _HASHED_MOST = 14, 1 << 14
_PROBE_LISTS, _PROBES_MOST = 64, 1 << 14
_NAMED = 8  # functions that are named of one tracer
_LOOKUPS = 16  # hooks whose functions are named; to look names up is dear, and nobody needs so many


class Tracing:
    """That of *kernel*, whose own *code* is."""

    def __init__(self, kernel: Kernel, code: Code) -> None:
        self._kernel, self._space, self._code = kernel, kernel.space, code
        self._lookups = _LOOKUPS

    def _callback(self, kind: str, place: int, address: int) -> Iterator[Hook]:
        """One if *address* is that of a function elsewhere than in the kernel's text."""
        if address and not self._code.in_text(address):
            yield Hook(kind, place, address)

    # --- The function tracer ---

    def traced(self) -> set[Hook]:
        """What it calls: of all that is registered, at last for all, in place of functions, and by fprobes.

        Raises Broken, BadAddress.
        """
        found, called, space, offset = set[Hook](), set[int](), self._space, self._kernel.types.offset
        for ops in self._code.operations():
            for member in ("func", "saved_func"):
                address = space.u64(ops + offset("ftrace_ops", member))
                called.add(address)
                found.update(self._callback(FTRACE, ops, address))
        last = self._kernel.symbols.get("ftrace_trace_function")
        if last is not None:
            address = space.u64(last)
            if address not in called:
                found.update(self._callback(FTRACE, last, address))
        direct = self._kernel.symbols.get("direct_functions")
        if direct is not None and self._kernel.types.has("ftrace_func_entry", "direct"):
            for entry in self._hashed(space.u64(direct), _HASHED_MOST):
                address = space.u64(entry + offset("ftrace_func_entry", "direct"))
                if not self._code.own(address):
                    found.add(Hook(FTRACE, space.u64(entry + offset("ftrace_func_entry", "ip")), address))
        if self._kernel.types.has("fprobe", "ops"):
            found.update(self._filtered())
        return found

    def _hashed(self, table: int, most: int) -> Iterator[int]:
        """The entries of a hash of functions, at most *most* of them. Raises BadAddress."""
        if not table:
            return
        space, offset = self._space, self._kernel.types.offset
        bits = space.u32(table + offset("ftrace_hash", "size_bits"))
        buckets = space.u64(table + offset("ftrace_hash", "buckets"))
        if not buckets or bits > _HASH_BITS_MOST:
            return
        link = offset("ftrace_func_entry", "hlist")
        for node in space.words(buckets, 1 << bits):
            while node:
                most -= 1
                if most < 0:
                    return
                yield node - link
                node = space.u64(node)

    # --- Probes ---

    def probed(self) -> set[Hook]:
        """What kprobes call. Raises Broken, BadAddress."""
        found, symbols = set[Hook](), self._kernel.symbols
        if "kprobe_table" in symbols and self._kernel.types.has("kprobe", "pre_handler"):
            for probe in self._probes(symbols["kprobe_table"]):
                found.update(self._called(probe))
        return found

    def _probes(self, table: int) -> Iterator[int]:
        """The kprobes, and those that share a place with another."""
        space, offset, seen = self._space, self._kernel.types.offset, set[int]()
        link, others = offset("kprobe", "hlist"), offset("kprobe", "list")
        for node in space.words(table, _PROBE_LISTS):
            while node:
                if node in seen or len(seen) >= _PROBES_MOST:
                    raise Broken("the lists of kprobes do not end")
                seen.add(node)
                probe = node - link
                yield probe
                if space.u64(probe + others):  # what stands for several has the list of them; others may have none
                    yield from Walk(space, _PROBES_MOST).list(probe + others, others)
                node = space.u64(node)

    def _called(self, probe: int) -> Iterator[Hook]:
        space, types = self._space, self._kernel.types
        pre = space.u64(probe + types.offset("kprobe", "pre_handler"))
        place = space.u64(probe + types.offset("kprobe", "addr"))
        yield from self._callback(PROBE, place, pre)
        yield from self._callback(PROBE, place, space.u64(probe + types.offset("kprobe", "post_handler")))
        if pre and pre == self._kernel.symbols.get("pre_handler_kretprobe") and types.has("kretprobe", "kp"):
            whole = probe - types.offset("kretprobe", "kp")
            for member in ("handler", "entry_handler"):
                yield from self._callback(PROBE, place, space.u64(whole + types.offset("kretprobe", member)))

    def _filtered(self) -> Iterator[Hook]:
        """What fprobes call, whose handler is registered with the function tracer."""
        space, offset = self._space, self._kernel.types.offset
        handlers = {self._kernel.symbols.get(name) for name in ("fprobe_handler", "fprobe_kprobe_handler")}
        for ops in self._code.operations():
            if space.u64(ops + offset("ftrace_ops", "func")) in handlers:
                whole = ops - offset("fprobe", "ops")
                for member in ("entry_handler", "exit_handler"):
                    yield from self._callback(PROBE, ops, space.u64(whole + offset("fprobe", member)))

    # --- Names ---

    def name(self, place: int) -> str:
        """The functions that a hook at *place* is called for. Raises Broken, BadAddress."""
        if place == self._kernel.symbols.get("ftrace_trace_function"):
            return "ftrace_trace_function"
        registered = not self._code.in_text(place) and place in set(self._code.operations())
        if self._lookups == 0 or not (registered or self._code.in_text(place)):  # else in a module
            return f"{place:#x}"
        self._lookups -= 1
        names = sorted(name.partition("+")[0] for name in self._kernel.table.places(self._traced_by(place)).values())
        more = ["..."] if len(names) > _NAMED else []
        return ",".join(names[:_NAMED] + more) or "all functions"

    def _traced_by(self, place: int) -> list[int]:
        if self._code.in_text(place):
            return [place]
        offset = self._kernel.types.offset
        wanted = self._space.u64(place + offset("ftrace_ops", "func_hash"))
        wanted = self._space.u64(wanted + offset("ftrace_ops_hash", "filter_hash"))
        entries = list(self._hashed(wanted, _NAMED + 1))
        return [self._space.u64(entry + offset("ftrace_func_entry", "ip")) for entry in entries]
