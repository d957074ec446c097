# SPDX-License-Identifier: Apache-2.0
"""dre-lms on memory made for it: what is hidden is named, and what is made to mislead it ends soon and is told."""

import contextlib
import ctypes
import mmap
import os
import random
import struct
import subprocess
import tempfile
import time

import pytest
from dre.errors import MissingError
from lmskit import DIRECT, IMAGE, LAYOUTS, NOTE, SIZE, VMALLOC, Guest, at
from sysmonlib import cross, guest, memory
from sysmonlib.cmd import dre_lms
from sysmonlib.memory import PAGE, BadAddress, Layout

CASES = int(os.environ.get("DRE_CASES", "30"))
BOUND = 20.0  # seconds for one look at whatever memory; it takes some hundredths


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in (("SLOW", 0.02), ("PASSING", 0.04), ("AGAIN", 0.005), ("PATIENCE", 0.01)):
        monkeypatch.setattr(cross, name, value)


@pytest.fixture
def full():
    """A guest with five processes and two modules."""
    made = Guest()
    for pid in (1, 2, 30, 31, 32):
        made.task(pid, f"task{pid}")
    for name in ("ext4", "loop"):
        made.module(name)
    return made


def told(findings):
    """Type, name and missing views of each."""
    return [
        (found.type, found.data.get("pid", found.data.get("name")), found.data.get("views_missing"))
        for found in findings
    ]


@pytest.mark.parametrize("mapped", [True, False], ids=["shared", "private"])
def test_a_guest_that_hides_nothing_is_clean(full, mapped):
    assert full.scan(mapped) == []


def test_processes_are_listed_with_what_the_kernel_notes_of_them(full):
    with full.memory() as memory:
        seen = full.cross(memory)
        rows = sorted(
            (task.pid, task.comm, task.state, threads, missing) for task, threads, missing in seen.processes()
        )
    assert rows == [(pid, f"task{pid}", "S", 1, []) for pid in (1, 2, 30, 31, 32)]


def test_a_hidden_process_is_listed_with_the_views_that_lack_it(full):
    task = deeply(full, 31)
    full.set(task + at("task_struct", "exit_state"), 16)  # certain only after a while
    with full.memory() as memory:
        seen = full.cross(memory)
        seen.scan()
        rows = {task.pid: missing for task, _, missing in seen.processes()}
    assert rows == {1: [], 2: [], 30: [], 31: ["list", "idr", "tree"], 32: []}


@pytest.mark.parametrize("mapped", [True, False], ids=["shared", "private"])
def test_a_task_off_the_list_is_named(full, mapped):
    full.unlink(full.tasks[31] + at("task_struct", "tasks"))
    assert told(full.scan(mapped)) == [("sysmon.hidden.process", 31, ["list"])]


def test_a_task_without_a_number_is_named(full):
    full.set(full.numbers + at("xa_node", "slots") + 8 * 31, 0)
    assert told(full.scan()) == [("sysmon.hidden.process", 31, ["idr"])]


def deeply(full, pid):
    """Off the list, without a number, no child of its parent."""
    task = full.tasks[pid]
    full.unlink(task + at("task_struct", "tasks"))
    full.unlink(task + at("task_struct", "sibling"))
    full.set(full.numbers + at("xa_node", "slots") + 8 * pid, 0)
    return task


@pytest.mark.parametrize("runs", [True, False], ids=["runs", "sleeps"])
def test_a_task_that_is_in_no_list_is_named_while_it(full, runs):
    task = deeply(full, 31)
    if runs:
        full.run(task)
    assert told(full.scan()) == [("sysmon.hidden.process", 31, ["list", "idr", "tree"])]


def test_a_task_that_lost_its_number_and_seems_to_be_dead_is_named(full):
    task = deeply(full, 31)
    for member, value in (("pid", 0), ("tgid", 0), ("exit_state", 16)):
        full.set(task + at("task_struct", member), value)
    assert told(full.scan()) == [("sysmon.hidden.process", 31, ["list", "idr", "tree"])]


def test_a_task_whose_stack_is_near_the_direct_map_is_alive(full):
    stack = deeply(full, 31) + at("task_struct", "stack")
    full.set(stack, full.get(stack) - DIRECT + VMALLOC)
    assert told(full.scan()) == [("sysmon.hidden.process", 31, ["list", "idr", "tree"])]


@pytest.mark.parametrize("member, value", [("usage", 0), ("stack", 0)])
def test_what_is_left_of_a_task_that_ended_is_none(full, member, value):
    full.set(deeply(full, 31) + at("task_struct", member), value)
    assert full.scan() == []


def test_a_copy_in_the_making_is_no_task(full):
    full.set(deeply(full, 31) + at("task_struct", "__state"), 0x800)
    assert full.scan() == []


def test_what_passes_between_two_readings_is_not_told(full, monkeypatch):
    node = full.tasks[31] + at("task_struct", "tasks")
    with full.memory() as memory:
        seen = full.cross(memory)
        full.unlink(node)
        os.pwrite(memory.fd, full.octets, 0)

        def put_back(_):
            full.link(full.init + at("task_struct", "tasks"), node)
            os.pwrite(memory.fd, full.octets, 0)

        monkeypatch.setattr(cross.time, "sleep", put_back)
        assert seen.scan() == []


def test_a_finding_is_told_once(full):
    full.unlink(full.tasks[31] + at("task_struct", "tasks"))
    with full.memory() as memory:
        seen = full.cross(memory)
        assert len(seen.scan()) == 1
        assert seen.scan() == []


@pytest.mark.parametrize("views", [["list"], ["list", "sysfs"], ["list", "sysfs", "tree"]])
def test_a_hidden_module_is_named(full, views):
    module = full.module("kit")
    full.unlink(module + at("module", "list"))
    if "sysfs" in views:
        full.unlink(module + at("module", "mkobj") + at("kobject", "entry"))
    if "tree" in views:
        root = full.symbols["mod_tree"] + at("latch_tree_root", "tree")
        full.set(root, full.get(full.get(root) + 16))
    assert told(full.scan()) == [("sysmon.hidden.module", "kit", views)]


def test_a_list_that_leaves_its_head_out_is_inconsistent(full):
    node = full.tasks[32] + at("task_struct", "tasks")
    full.set(node, full.tasks[30] + at("task_struct", "tasks"))
    (found,) = full.scan()
    assert found.type == "sysmon.inconsistent" and found.data["views"] == ["list"]
    assert "loop" in found.data["reason"]


@pytest.mark.parametrize("address", [0, 8, DIRECT + SIZE, DIRECT - 8, IMAGE + SIZE, (1 << 64) - 4, 0x7F0000000000])
def test_a_pointer_that_leads_nowhere_is_inconsistent(full, address):
    full.set(full.tasks[31] + at("task_struct", "tasks"), address)
    assert [(found.type, found.data["views"]) for found in full.scan()] == [("sysmon.inconsistent", ["list"])]


def test_a_number_tree_within_itself_is_inconsistent(full):
    full.set(full.numbers + at("xa_node", "slots"), full.numbers | 2)
    assert [found.data["views"] for found in full.scan()] == [["idr"]]


def test_more_processors_than_there_can_be_are_inconsistent(full):
    full.set(full.symbols["nr_cpu_ids"], 1 << 31)
    assert [found.data["views"] for found in full.scan()] == [["runqueue"]]


def test_a_name_without_an_end_is_cut(full):
    full.write(full.tasks[31] + at("task_struct", "comm"), b"\x1b[2J" + b"x" * 12)
    full.unlink(full.tasks[31] + at("task_struct", "tasks"))
    (found,) = full.scan()
    assert found.data["comm"] == "?[2J" + "x" * 12


def refused(made):
    with pytest.raises(MissingError) as error:
        made.scan()
    return str(error.value)


def test_memory_without_a_kernel_is_refused_with_the_reason(full):
    full.octets[NOTE : NOTE + 64] = bytes(64)
    assert "no Linux kernel" in refused(full)


@pytest.mark.parametrize(
    "old, new, reason",
    [
        (b"SYMBOL(kallsyms_names)", b"SYMBOL(kallsyms_other)", "Linux 6.0"),
        (b"NUMBER(phys_base)=0", b"NUMBER(phys_base)=x", "damaged"),
        (b"NUMBER(phys_base)=0", b"NUMBER(phys_base)=9", "page table"),
    ],
)
def test_a_kernel_that_does_not_tell_enough_is_refused_with_the_reason(full, old, new, reason):
    full.octets[:] = full.octets.replace(old, new)
    assert reason in refused(full)


def test_a_kernel_without_types_is_refused(full):
    full.octets[:] = full.octets.replace(b"__start_BTF", b"__other_BTF")
    full.set(full.symbols["__start_BTF"], 0)
    assert refused(full)


def test_what_a_program_says_of_a_kernel_is_not_taken_for_one(full):
    note = bytes(full.octets[NOTE : NOTE + 4096])
    full.octets[PLACE : PLACE + 4096] = note  # a copy, in a page of its own
    full.unlink(full.tasks[31] + at("task_struct", "tasks"))
    assert told(full.scan()) == [("sysmon.hidden.process", 31, ["list"])]


PLACE = 0x4000  # below the true one


def test_a_guest_that_has_ended_is_not_clean(full):
    with subprocess.Popen(["sleep", "60"]) as process:
        memory = full.memory(owner=os.pidfd_open(process.pid))
        with memory:
            known = dre_lms._open("test", memory)
            assert dre_lms._open("test", memory, known) is known
            process.kill()
            process.wait()
            with pytest.raises(MissingError, match="does not run any more"):
                dre_lms._open("test", memory, known)


def test_a_kernel_booted_anew_is_looked_at_anew(full):
    with full.memory() as memory:
        known = dre_lms._open("test", memory)
        full.octets[:] = full.octets.replace(b"OSRELEASE=6.1.0-test", b"OSRELEASE=6.1.0-next")
        os.pwrite(memory.fd, full.octets, 0)
        assert dre_lms._open("test", memory, known).kernel.release == "6.1.0-next"


def test_addresses_are_those_of_qemu_and_none_wraps():
    small = Layout.of(1 << 30, "pc-q35-7.2")
    large = Layout.of(4 << 30, "pc-q35-7.2")
    assert (small.low, large.low, Layout.of(4 << 30, "pc-i440fx-7.2").low) == (1 << 30, 2 << 30, 3 << 30)
    assert large.offset(1 << 32, 8) == 2 << 30 and large.address(2 << 30) == 1 << 32
    for layout, address in ((small, (1 << 30) - 7), (small, -8), (large, 2 << 30), (large, 6 << 30)):
        with pytest.raises(BadAddress):
            layout.offset(address, 8)


@pytest.mark.parametrize("kind", ["anonymous", "file"])
def test_memory_of_another_process_is_found_and_of_it_what_was_touched_is_searched(kind):
    """Of a file that is mapped for it alone, what was not touched is searched, too: that is in the file."""
    size, text = 64 << 20, b"OSRELEASE=it"
    with tempfile.TemporaryFile() as stream:
        stream.truncate(size)
        os.pwrite(stream.fileno(), text, 5 * PAGE)
        fd = -1 if kind == "anonymous" else stream.fileno()
        with mmap.mmap(fd, size, mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if fd < 0 else 0)) as ram:
            ram.madvise(mmap.MADV_DONTDUMP)  # so that it is no part of a larger mapping
            for page in (0, 3, 9000, size // PAGE - 1):
                ram[page * PAGE : page * PAGE + len(text)] = text
            ram[100 * PAGE + 1 : 100 * PAGE + len(text)] = text[1:]
            with memory.attach(os.getpid(), Layout(size, size)) as found:
                pages = list(found.pages_with(text))
                searched = sum(end - begin for begin, end in found._touched())
                assert found.read(3 * PAGE, 4) == b"OSRE" and not found.ended()
    expected = [0, 3, 9000, size // PAGE - 1]
    assert pages == [page * PAGE for page in sorted([*expected, *([5] if kind == "file" else [])])]
    assert searched == size if kind == "file" else 5 * PAGE <= searched <= size // 2  # huge pages are whole ones


@pytest.fixture(params=["at once", "one by one"])
def ram(request):
    """Private memory of 1 MiB, and what reads it: as who may read it all in one call, or who may not any more."""
    size = 1 << 20
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as octets:
        octets[:] = random.Random(3).randbytes(size)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(octets))
        own = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
        pid = os.getpid() if request.param == "at once" else 0
        with memory.Memory(own, Layout(size, size), begin, mapped=False, pid=pid) as found:
            yield octets, found


def test_what_is_read_ahead_is_of_the_begin_of_a_look_and_forgotten_at_its_end(ram, monkeypatch):
    octets, found = ram
    calls = []
    plain = found._at
    monkeypatch.setattr(found, "_at", lambda *piece: calls.append(piece) or plain(*piece))
    with found.ahead("look"):
        assert found.u64(5000) == int.from_bytes(octets[5000:5008], "little")
        octets[6000:6004] = b"new1"  # nothing is known yet of what this look reads
        assert found.read(6000, 4) == b"new1"
    octets[6000:6004] = b"new2"
    assert found.read(6000, 4) == b"new2"
    with found.ahead("look"):
        calls.clear()
        octets[6000:6004] = b"new3"
        assert found.read(6000, 4) == b"new2" and found.u64(5000) == int.from_bytes(octets[5000:5008], "little")
        assert found.u64(7000) == int.from_bytes(octets[7000:7008], "little")
        assert calls == [(7000, 8)]
    assert found.read(6000, 4) == b"new3"
    with found.ahead("another"):
        octets[6000:6004] = b"new4"
        assert found.read(6000, 4) == b"new4"


def test_after_a_look_that_failed_all_is_read_when_it_is_wanted(ram):
    octets, found = ram
    with found.ahead("look"):
        found.read(6000, 4)
    with contextlib.suppress(BadAddress), found.ahead("look"):
        found.read(-1, 1)
    with found.ahead("look"):
        octets[6000:6004] = b"new1"
        assert found.read(6000, 4) == b"new1"


def test_pieces_that_are_read_ahead_are_those_of_the_memory_however_they_lie(ram, monkeypatch):
    octets, found = ram
    chosen = random.Random(5)
    pieces = [
        (place, count)
        for place in (chosen.randrange(len(octets) - 3000) for _ in range(300))
        for count in chosen.sample((1, 4, 8, 16, 2000, 3000), 2)
    ]
    with found.ahead("look"):
        assert all(found.read(place, count) == octets[place : place + count] for place, count in pieces)
    octets[:] = chosen.randbytes(len(octets))
    with found.ahead("look"):
        monkeypatch.setattr(found, "_at", None)
        for place, count in pieces:
            if count < 3000:  # more than is read ahead
                assert found.read(place, count) == octets[place : place + count]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("<os><type arch='aarch64' machine='virt'>hvm</type></os>", "architecture"),
        ("<os><type arch='x86_64' machine='q35'>hvm</type></os><launchSecurity type='sev'/>", "encrypted"),
        ("<os><type arch='x86_64' machine='q35'>hvm</type></os><maxMemory unit='KiB'>1</maxMemory>", "plugged"),
    ],
)
def test_a_system_that_cannot_be_read_is_refused_with_the_reason(text, reason):
    with pytest.raises(MissingError, match=reason):
        guest.layout(f"<domain><memory unit='KiB'>1048576</memory>{text}</domain>")


def test_any_memory_ends_in_bounded_time_without_a_crash(full):
    """Words of a whole guest changed at random: some stay readable, and each ends as it may end."""
    whole = bytes(full.octets)
    words = [place for place in range(0, SIZE, 8) if whole[place : place + 8] != bytes(8)]
    pointers = [struct.unpack_from("<Q", whole, place)[0] for place in words]
    ends = dict.fromkeys(("clean", "found", "refused"), 0)
    for number in range(CASES):
        chance = random.Random(number)
        full.octets[:] = whole
        for _ in range(chance.choice((1, 3, 30))):
            value = chance.choice((0, 1, (1 << 64) - 1, chance.getrandbits(64), chance.choice(pointers) + 8, 1 << 31))
            struct.pack_into("<Q", full.octets, chance.choice(words), value % (1 << 64))
        begun = time.monotonic()
        try:
            ends["found" if full.scan() else "clean"] += 1
        except MissingError:
            ends["refused"] += 1
        assert time.monotonic() - begun < BOUND, number
    assert all(ends.values()), ends


def test_layouts_of_the_kit_do_not_overlap():
    for name, (members, size) in LAYOUTS.items():
        assert len(members.split()) * 8 <= size, name
