# SPDX-License-Identifier: Apache-2.0
"""dre-lms on memory made for it: where a kernel was hooked is named, with the module; what is legal there is not."""

import os
import struct

import pytest
from lmskit import MODULES, TEXT, Guest, at
from sysmonlib import cross, hooks
from sysmonlib.cmd import dre_lms

CODE = 0x800  # of the module: where its code is
ELSEWHERE = MODULES + 15 * 4096  # mapped, and no module's


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in (("SLOW", 0.02), ("AGAIN", 0.005), ("PATIENCE", 0.01)):
        monkeypatch.setattr(cross, name, value)
    monkeypatch.setattr(hooks, "SWEEP", 0.0)


@pytest.fixture
def full():
    """A guest with a module, at `full.kit`."""
    made = Guest()
    made.task(1)
    made.kit = made.module("kit")
    return made


def told(made, mapped=True):
    """Each hook: kind, name, address and module."""
    found = made.scan(mapped)
    assert {finding.type for finding in found} <= {cross.HOOK}
    return sorted(
        (finding.data["hook"], finding.data["name"], int(finding.data["address"], 16), finding.data["module"])
        for finding in found
    )


@pytest.mark.parametrize("mapped", [True, False], ids=["shared", "private"])
def test_a_changed_system_call_is_named_with_the_module(full, mapped):
    full.set(full.entry("call217"), full.kit + CODE)
    assert told(full, mapped) == [("syscall", "call217 217", full.kit + CODE, "kit")]


def test_a_system_call_that_is_another_one_is_named(full):
    other = full.get(full.entry("call3"))
    full.set(full.entry("call62"), other)
    assert told(full) == [("syscall", "call62 62", other, None)]


def test_a_system_call_that_is_another_function_of_the_kernel_is_named(full):
    full.set(full.entry("call62"), TEXT + 0x6400)
    assert told(full) == [("syscall", "call62 62", TEXT + 0x6400, None)]


def test_without_names_of_system_calls_the_number_is_told(full):
    full.set(full.symbols["syscalls_metadata"], 0)
    full.set(full.entry("call62"), ELSEWHERE)
    assert told(full) == [("syscall", "62", ELSEWHERE, None)]


def test_a_table_that_is_all_changed_is_told_whole(full):
    for number in range(300):
        full.set(full.symbols["sys_call_table"] + 8 * number, ELSEWHERE)
    assert len(told(full)) >= 256


def test_a_hook_of_a_hidden_module_tells_which_views_lack_it(full):
    full.unlink(full.kit + at("module", "list"))
    full.set(full.entry("call217"), full.kit + CODE)
    found = {finding.type: finding.data for finding in full.scan()}
    assert set(found) == {"sysmon.hook", "sysmon.hidden.module"}
    assert (found["sysmon.hook"]["module"], found["sysmon.hook"]["views_missing"]) == ("kit", ["list"])


def test_a_finding_is_a_sentence(full):
    full.unlink(full.kit + at("module", "list"))
    full.set(full.entry("call217"), full.kit + CODE)
    (said,) = [dre_lms._sentence(finding) for finding in full.scan() if finding.type == cross.HOOK]
    assert said == f"hook syscall call217 217 leads to {full.kit + CODE:#x} in module kit not in list"


@pytest.mark.parametrize(
    "code",
    [
        lambda at, to: struct.pack("<Bi", 0xE9, to - at - 5),  # jmp
        lambda at, to: struct.pack("<Bi", 0xE8, to - at - 5),  # call, where the function tracer has its own
        lambda at, to: bytes.fromhex("48b8") + struct.pack("<Q", to) + bytes.fromhex("ffe0"),  # movabs, jmp *rax
        lambda at, to: bytes.fromhex("49bb") + struct.pack("<Q", to) + bytes.fromhex("41ffe3"),  # movabs, jmp *r11
        lambda at, to: bytes.fromhex("48b8") + struct.pack("<Q", to) + bytes.fromhex("50c3"),  # movabs, push, ret
        lambda at, to: b"\x68" + struct.pack("<I", to & 0xFFFFFFFF) + b"\xc3",  # push, ret
        lambda at, to: bytes.fromhex("ff25 00000000") + struct.pack("<Q", to),  # jmp *(rip)
    ],
    ids=["jmp", "call", "rax", "r11", "push-rax", "push", "memory"],
)
@pytest.mark.parametrize("behind", [0, 4, 9], ids=["first", "behind-endbr", "behind-the-tracer"])
def test_a_function_that_begins_with_a_jump_to_a_module_is_named(full, code, behind):
    function = full.symbols["__x64_sys_call217"]
    full.write(function + behind, code(function + behind, full.kit + CODE))
    assert told(full) == [("function", "__x64_sys_call217", full.kit + CODE, "kit")]


def test_what_leads_to_all_system_calls_is_looked_at_too(full):
    function = full.symbols["do_syscall_64"]
    full.write(function, struct.pack("<Bi", 0xE9, full.kit + CODE - function - 5))
    assert told(full) == [("function", "do_syscall_64", full.kit + CODE, "kit")]


@pytest.mark.parametrize("mark", ["f30f1efa", "660f1f00", "0f1f40d6"], ids=["endbr", "sealed", "sealed-newer"])
def test_a_jump_behind_the_mark_of_a_function_is_named(full, mark):
    function = full.symbols["do_syscall_64"]
    full.write(function, bytes.fromhex(mark) + struct.pack("<Bi", 0xE9, full.kit + CODE - function - 9))
    assert told(full) == [("function", "do_syscall_64", full.kit + CODE, "kit")]


def test_a_system_call_that_is_not_called_any_more_is_named(full):
    place = full.symbols["x64_sys_call"] + 5 * 217
    full.write(place, struct.pack("<Bi", 0xE9, full.kit + CODE - place - 5))
    assert told(full) == [("dispatch", "__x64_sys_call217", full.kit + CODE, "kit")]


def test_calls_that_lead_before_or_behind_the_begin_are_calls(full):
    """Call depth tracking of Linux 6.2 has them lead to padding before it; some skip the endbr64."""
    for number, more in ((3, -16), (4, 4)):
        place = full.symbols["x64_sys_call"] + 5 * number
        full.write(place, struct.pack("<Bi", 0xE9, full.symbols[f"__x64_sys_call{number}"] + more - place - 5))
    assert told(full) == []


def test_a_changed_gate_is_named(full):
    full.gate(14, full.kit + CODE)
    assert told(full) == [("interrupt", "14", full.kit + CODE, "kit")]


def test_an_unused_gate_is_no_place_for_code_either(full):
    full.gate(21, full.symbols["early_idt_handler_array"] + 9 * 21 + 1)
    assert [found[:2] for found in told(full)] == [("interrupt", "21")]


def test_a_gate_that_is_not_present_leads_nowhere(full):
    full.gate(14, full.kit + CODE)
    full.write(full.symbols["idt_table"] + 16 * 14 + 5, b"\0")
    assert told(full) == []


def test_another_table_of_interrupts_is_told(full):
    full.write(full.symbols["idt_descr"] + 2, struct.pack("<Q", full.kit + CODE))
    assert told(full) == [("interrupt", "idt_descr", full.kit + CODE, "kit")]


def test_what_the_function_tracer_calls_is_named_with_its_functions(full):
    full.tracer(full.kit + CODE, "call217", "call78")
    full.tracer(TEXT + 0x6400, "call3")  # of the kernel: kprobes, livepatch, perf
    assert told(full) == [("ftrace", "__x64_sys_call217,__x64_sys_call78", full.kit + CODE, "kit")]


def test_one_who_traces_all_functions_is_told_so(full):
    full.tracer(full.kit + CODE)
    assert told(full) == [("ftrace", "all functions", full.kit + CODE, "kit")]


def test_one_who_left_the_list_of_the_function_tracer_is_told(full):
    full.set(full.symbols["ftrace_trace_function"], full.kit + CODE)
    assert told(full) == [("ftrace", "ftrace_trace_function", full.kit + CODE, "kit")]


def direct(full, function, address):
    """Let the function tracer call *address* itself in place of *function*."""
    table, buckets, entry = (full.alloc(64) for _ in range(3))
    full.set(full.symbols["direct_functions"], table)
    full.set(table + at("ftrace_hash", "buckets"), buckets)
    full.set(buckets, entry)
    full.set(entry + at("ftrace_func_entry", "ip"), function)
    full.set(entry + at("ftrace_func_entry", "direct"), address)


def test_a_direct_call_is_named(full):
    direct(full, full.symbols["__x64_sys_call217"], full.kit + CODE)
    assert told(full) == [("ftrace", "__x64_sys_call217", full.kit + CODE, "kit")]


def probe(full, **members):
    """A kprobe at a system call; its address."""
    probe, table = full.alloc(128), full.symbols["kprobe_table"] + 8 * 5
    place = full.symbols["__x64_sys_call217"] + 9
    for member, value in {"addr": place, "pre_handler": TEXT + 0x6400, **members}.items():
        full.set(probe + at("kprobe", member), value)
    full._empty(probe + at("kprobe", "list"))
    full.set(probe, full.get(table))
    full.set(table, probe)
    return probe


@pytest.mark.parametrize("member", ["pre_handler", "post_handler"])
def test_what_a_kprobe_calls_is_named(full, member):
    probe(full)
    probe(full, **{member: full.kit + CODE})
    assert told(full) == [("probe", "__x64_sys_call217", full.kit + CODE, "kit")]


def test_one_kprobe_of_several_at_a_place_is_named(full):
    first, second = probe(full), full.alloc(128)
    full.set(second + at("kprobe", "addr"), full.symbols["__x64_sys_call217"])
    full.set(second + at("kprobe", "pre_handler"), full.kit + CODE)
    full.link(first + at("kprobe", "list"), second + at("kprobe", "list"))
    assert told(full) == [("probe", "__x64_sys_call217", full.kit + CODE, "kit")]


@pytest.mark.parametrize("member", ["handler", "entry_handler"])
def test_what_a_kretprobe_calls_is_named(full, member):
    whole = probe(full, pre_handler=full.symbols["pre_handler_kretprobe"])
    full.set(whole + at("kretprobe", member), full.kit + CODE)
    assert told(full) == [("probe", "__x64_sys_call217", full.kit + CODE, "kit")]


def test_a_kprobe_in_a_module_is_told_by_its_place(full):
    probe(full, addr=full.kit + 8, pre_handler=full.kit + CODE)
    assert told(full) == [("probe", f"{full.kit + 8:#x}", full.kit + CODE, "kit")]


@pytest.mark.parametrize("member", ["entry_handler", "exit_handler"])
def test_what_an_fprobe_calls_is_named(full, member):
    ops = full.tracer(full.symbols["fprobe_handler"], "call78")
    assert told(full) == []
    full.set(ops + at("fprobe", member), full.kit + CODE)
    assert told(full) == [("probe", "__x64_sys_call78", full.kit + CODE, "kit")]


def test_a_loop_of_kprobes_is_inconsistent(full):
    one = probe(full)
    full.set(one, one)
    assert [(found.type, found.data["views"]) for found in full.scan()] == [("sysmon.inconsistent", ["kprobes"])]


def compiled(full, begin):
    """Let the BPF compiler have made code at *begin*."""
    symbol = full.alloc(64)
    full.set(symbol + at("bpf_ksym", "start"), begin)
    full.set(symbol + at("bpf_ksym", "end"), begin + 256)
    full.link(full.symbols["bpf_kallsyms"], symbol + at("bpf_ksym", "lnode"))


def traced(full, trampoline):
    full.set(full.tracer(TEXT + 0x6400, "call217") + at("ftrace_ops", "trampoline"), trampoline)
    full.set(full.get(full.symbols["ftrace_ops_list"]) + at("ftrace_ops", "trampoline_size"), 256)


def optimised(full, begin):
    page = full.alloc(64)
    full.set(page + at("kprobe_insn_page", "insns"), begin)
    full.link(full.symbols["kprobe_optinsn_slots"], page)


@pytest.mark.parametrize("made", [compiled, traced, optimised], ids=["bpf", "tracer", "kprobe"])
def test_code_that_the_kernel_made_itself_is_its_own(full, made):
    function = full.symbols["__x64_sys_call217"]
    full.write(function + 4, struct.pack("<Bi", 0xE8, ELSEWHERE - function - 9))
    assert [found[0] for found in told(full)] == ["function"]
    made(full, ELSEWHERE)
    assert told(full) == []


def test_a_bpf_program_at_a_function_is_no_hook(full):
    compiled(full, ELSEWHERE)
    direct(full, full.symbols["__x64_sys_call217"], ELSEWHERE + 64)
    assert told(full) == []


def test_a_loop_of_tracers_is_inconsistent(full):
    ops = full.tracer(TEXT + 0x6400, "call3")
    full.set(ops + at("ftrace_ops", "next"), ops)
    assert [(found.type, found.data["views"]) for found in full.scan()] == [("sysmon.inconsistent", ["ftrace"])]


def test_a_name_of_any_length_fits_in_an_event(full):
    names = [f"call{number}" for number in range(100, 200)]
    full.tracer(full.kit + CODE, *names)
    ((_, name, _, _),) = told(full)
    assert name.endswith(",...") and name.count(",") == 8


def test_a_kernel_without_a_function_tracer_is_looked_at_all_the_same(full):
    full.octets[:] = full.octets.replace(b"ftrace_ops_list", b"fxrace_ops_list")
    full.set(full.entry("call217"), full.kit + CODE)
    assert [found[0] for found in told(full)] == ["syscall"]


def test_a_hook_that_passes_is_not_told(full, monkeypatch):
    with full.memory() as memory:
        seen = full.cross(memory)
        good = bytes(full.octets)
        full.set(full.entry("call217"), full.kit + CODE)
        os.pwrite(memory.fd, full.octets, 0)
        monkeypatch.setattr(cross.time, "sleep", lambda _: os.pwrite(memory.fd, good, 0))
        assert seen.scan() == []


def test_no_number_of_hooks_takes_long_to_name(full, monkeypatch):
    looked = []
    for _ in range(40):
        full.tracer(full.kit + CODE, "call3")
    with full.memory() as memory:
        seen = full.cross(memory)
        monkeypatch.setattr(type(seen.kernel.table), "places", lambda self, addresses: looked.append(1) or {})
        found = seen.scan()
    assert (len(found), len(looked)) == (40, 16)
