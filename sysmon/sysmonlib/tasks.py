# SPDX-License-Identifier: Apache-2.0
"""The tasks of a guest, as several structures of its kernel have them. Who hides one must unlink it from each.

list: what all walks through processes go by. threads: those of each process. idr: by number, what ps(1) shows. tree:
parents and children. runqueue: what the schedulers run. slab: where memory for tasks was given out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dre import event
from dre.errors import MissingError

from sysmonlib.kernel import Kernel
from sysmonlib.memory import BadAddress
from sysmonlib.walk import Broken, Walk

SYMBOLS = frozenset(
    (
        "init_task",
        "init_pid_ns",
        "runqueues",
        "__per_cpu_offset",
        "__cpu_possible_mask",
        "nr_cpu_ids",
        "jiffies_64",
        "shadow_timekeeper",
    )  # fmt: skip
)
TYPES = frozenset(
    (
        "task_struct",
        "signal_struct",
        "pid",
        "upid",
        "pid_namespace",
        "idr",
        "xarray",
        "xa_node",
        "rq",
        "cfs_rq",
        "rt_rq",
        "rt_prio_array",
        "dl_rq",
        "scx_rq",
        "sched_entity",
        "sched_rt_entity",
        "sched_dl_entity",
        "sched_ext_entity",
        "cred",
        "timekeeper",
    )  # fmt: skip
)
# state letters of ps(1), by the bits of task->__state, the lowest that is set; see fs/proc/array.c
_STATES = ((0x1, "S"), (0x2, "D"), (0x4, "T"), (0x8, "t"), (0x40, "P"))
_IDLE = 0x402  # TASK_IDLE: a kernel thread that waits without counting as load
_EXITS = {0x10: "X", 0x20: "Z"}
_KTHREAD = 0x00200000  # PF_KTHREAD
_DEAD, _NEW = 0x80, 0x800  # TASK_DEAD, TASK_NEW: no more or not yet a task
_STACK = 1 << 14  # octets of the stack that each task has
_STACK_END = 0x57AC6E9D  # STACK_END_MAGIC of include/uapi/linux/magic.h
_RT_PRIORITIES = 100
_CPUS_MOST = 8192
_WIDTHS = (16, 64)  # XA_CHUNK_SIZE
_LATEST = 4e9  # seconds since 1970; a later start is none
_LINKS = 4096  # of a page of a list in numbers: no walk of all lists has more steps for a task than this


@dataclass(frozen=True)
class Task:
    """One task at *address* in the guest's kernel; *start* in nanoseconds since it booted."""

    address: int
    pid: int
    tgid: int
    ppid: int
    uid: int
    state: str
    start: int
    comm: str
    kernel: bool
    passing: bool  # it is being born or dies: what is true of it will be otherwise in a moment
    unborn: bool  # a copy that is being made of another task

    @property
    def key(self) -> tuple[int, int, int]:
        """What is another one for another task, though its memory and number are used again."""
        return self.address, self.pid, self.start


class Tasks:
    """The tasks of *kernel*. Raises MissingError where it lacks what all views need."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._space = kernel, kernel.space
        offset = kernel.types.offset
        self._next = offset("task_struct", "tasks")
        self._signal = offset("task_struct", "signal")
        self._thread = offset("task_struct", "thread_node")
        self._threads = offset("signal_struct", "thread_head")
        self._children, self._sibling = offset("task_struct", "children"), offset("task_struct", "sibling")
        self._init = kernel.symbol("init_task")
        self._idr = (
            kernel.symbol("init_pid_ns")
            + offset("pid_namespace", "idr")
            + offset("idr", "idr_rt")
            + offset("xarray", "xa_head")
        )
        self._slots = offset("xa_node", "slots")
        self._width = (offset("xa_node", "tags", "marks") - self._slots) // 8
        if self._width not in _WIDTHS:
            raise MissingError(f"its kernel says that a node of its trees has {self._width} slots")
        self._of_pid = offset("pid", "tasks")
        self._pid_link = offset("task_struct", "pid_links")
        self._fields = [
            offset("task_struct", name)
            for name in (
                *("pid", "tgid", "exit_state", "flags", "usage", "start_boottime", "comm", "real_parent", "cred"),
                *("__state", "stack", "sighand", "thread_pid"),
            )
        ]
        self._uid = offset("cred", "uid")
        self._number = offset("pid", "numbers") + offset("upid", "nr")
        self.most = self._space.memory.layout.size // _STACK  # tasks that memory can hold
        self._queues = _Queues(kernel)
        clock = kernel.symbols.get("shadow_timekeeper")  # Linux 6.13 has another
        self._clock = (
            (clock + offset("timekeeper", "offs_real"), clock + offset("timekeeper", "offs_boot")) if clock else None
        )

    def _walk(self) -> Walk:
        """Of all lists of one view; a run queue or a tree has few nodes more than there are tasks."""
        return Walk(self._space, 2 * self.most + _LINKS)

    def listed(self) -> tuple[set[int], set[int]]:
        """Processes and all threads, as the lists have them. Raises Broken, BadAddress."""
        walk, u64 = self._walk(), self._space.u64
        processes = set(walk.list(self._init + self._next, self._next))
        threads = set(processes)
        for process in processes:
            threads.update(walk.list(u64(process + self._signal) + self._threads, self._thread))
        return processes, threads

    def numbered(self) -> set[int]:
        """Those that have a number in the first namespace. Raises Broken, BadAddress."""
        u64, of_pid, link = self._space.u64, self._of_pid, self._pid_link
        firsts = (u64(pid + of_pid) for pid in self._walk().radix(u64(self._idr), self._slots, self._width))
        return {first - link for first in firsts if first}

    def related(self, known: set[int]) -> set[int]:
        """The children of the first task and of *known*, and theirs. Raises Broken, BadAddress."""
        walk, children, sibling = self._walk(), self._children, self._sibling
        found: set[int] = set()
        waiting = [self._init, *known]
        while waiting:
            for child in walk.list(waiting.pop() + children, sibling):
                if child not in found and child not in known:
                    waiting.append(child)
                found.add(child)  # twice, when it got another parent meanwhile
        return found

    def runnable(self) -> set[int]:
        """Those that run or wait for a processor. Raises Broken, BadAddress."""
        return self._queues.tasks(self._walk())

    def idle(self) -> set[int]:
        """The tasks that each processor has for having nothing to do: in no view, by right. Raises BadAddress."""
        return {self._init, *self._queues.idle()}

    def task(self, address: int) -> Task:
        """What the kernel notes of the task at *address*. Raises BadAddress."""
        at = self._fields
        u32, u64 = self._space.u32, self._space.u64
        parent, cred = u64(address + at[7]), u64(address + at[8])
        state, gone = u32(address + at[9]), u32(address + at[2])
        number, group, noted = _signed(u32(address + at[0])), _signed(u32(address + at[1])), u64(address + at[12])
        if number == 0 and noted:  # taken from it, but what it was given for is there
            number = group = _signed(u32(noted + self._number))
        return Task(
            address,
            number,
            group,
            _signed(u32(parent + at[1])) if parent else 0,
            _signed(u32(cred + self._uid)) if cred else -1,
            _letter(state, gone),
            u64(address + at[5]),
            self._space.text(address + at[6], 16),
            bool(u32(address + at[3]) & _KTHREAD),
            gone != 0 or state & (_DEAD | _NEW) != 0 or u64(address + at[11]) == 0,
            state & _NEW != 0,
        )

    def moment(self, task: Task) -> str | None:
        """When *task* was started, by the guest's clock, in the form of events; None where that cannot be told."""
        if self._clock is None:
            return None
        try:
            real, boot = (self._space.u64(place) for place in self._clock)
        except BadAddress:
            return None
        seconds = (task.start - boot + real) / 1e9
        return event.stamp(seconds) if 0 <= seconds < _LATEST else None

    def alive(self, address: int) -> bool:
        """Whether a task is there that can run: it is in use, and its stack ends as stacks do. Raises BadAddress."""
        stack = self._space.u64(address + self._fields[10])
        return bool(self._space.u32(address + self._fields[4])) and stack != 0 and self._space.u32(stack) == _STACK_END


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number


def _letter(state: int, gone: int) -> str:
    if gone:
        return _EXITS.get(gone, "X")
    if state & 0xFFFF == _IDLE:
        return "I"
    return next((letter for bit, letter in _STATES if state & bit), "R")


class _Queues:
    """The run queues of all processors."""

    def __init__(self, kernel: Kernel) -> None:
        self._space, types, offset = kernel.space, kernel.types, kernel.types.offset
        self._queue = kernel.symbol("runqueues")
        self._offsets, self._count = kernel.symbol("__per_cpu_offset"), kernel.symbol("nr_cpu_ids")
        self._possible = kernel.symbol("__cpu_possible_mask")
        self._current, self._idle = offset("rq", "curr"), offset("rq", "idle")
        self._size = types.sizes["rq"]
        self._fair = offset("rq", "cfs")
        self._fair_tasks = offset("rq", "cfs_tasks")
        self._timeline, self._running = offset("cfs_rq", "tasks_timeline"), offset("cfs_rq", "curr")
        self._node, self._group = offset("sched_entity", "run_node"), offset("sched_entity", "my_q")
        self._entity = offset("task_struct", "se")
        self._linked = self._entity + offset("sched_entity", "group_node")
        self._real_time = offset("rq", "rt") + offset("rt_rq", "active") + offset("rt_prio_array", "queue")
        self._real_time_link = offset("task_struct", "rt") + offset("sched_rt_entity", "run_list")
        self._deadlines = offset("rq", "dl") + offset("dl_rq", "root")
        self._deadline_node = offset("task_struct", "dl") + offset("sched_dl_entity", "rb_node")
        self._extended = None
        if types.has("rq", "scx"):  # Linux 6.12
            lists = offset("rq", "scx") + offset("scx_rq", "runnable_list")
            self._extended = lists, offset("task_struct", "scx") + offset("sched_ext_entity", "runnable_node")

    def _places(self) -> Iterator[int]:
        count = self._space.u32(self._count)
        if not 0 < count <= _CPUS_MOST:
            raise Broken(f"it says that it has {count} processors")
        mask = self._space.words(self._possible, (count + 63) // 64)
        for cpu, base in enumerate(self._space.words(self._offsets, count)):
            if mask[cpu // 64] >> cpu % 64 & 1:
                yield (base + self._queue) & (1 << 64) - 1

    def idle(self) -> set[int]:
        """The idle task of each processor."""
        return {self._space.u64(place + self._idle) for place in self._places()}

    def tasks(self, walk: Walk) -> set[int]:
        """All that is queued or runs."""
        found = set()
        for place in self._places():
            found.add(self._space.u64(place + self._current))
            # Of a real-time and a deadline entity that is the queue's own, not a task's, the address is within it.
            queued = [
                *self._fair_ones(walk, place),
                *self._real_time_ones(walk, place),
                *self._deadline_ones(walk, place),
            ]
            if self._extended is not None:
                queued += walk.list(place + self._extended[0], self._extended[1])
            found.update(task for task in queued if not 0 <= task + self._deadline_node - place < self._size)
        return found - {0}

    def _fair_ones(self, walk: Walk, place: int) -> Iterator[int]:
        u64, node = self._space.u64, self._node
        yield from walk.list(place + self._fair_tasks, self._linked)
        waiting, seen = [place + self._fair], set()
        while waiting:
            group = waiting.pop()
            if group in seen:
                raise Broken(f"a group of tasks at {group:#x} is within itself")
            seen.add(group)
            running = u64(group + self._running)
            entities = {found - node for found in walk.tree(u64(group + self._timeline))} | ({running} - {0})
            for entity in entities:
                inner = u64(entity + self._group)
                if inner:
                    waiting.append(inner)
                else:
                    yield entity - self._entity

    def _real_time_ones(self, walk: Walk, place: int) -> Iterator[int]:
        head = place + self._real_time
        for first in self._space.words(head, 2 * _RT_PRIORITIES)[::2]:
            if first != head:
                yield from walk.list(head, self._real_time_link)
            head += 16

    def _deadline_ones(self, walk: Walk, place: int) -> Iterator[int]:
        for node in walk.tree(self._space.u64(place + self._deadlines)):
            yield node - self._deadline_node
