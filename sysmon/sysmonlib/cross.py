# SPDX-License-Identifier: Apache-2.0
"""Cross views of a running guest: what one structure of its kernel has and another should have, but has not.

The guest goes on while it is read, so a difference alone says nothing: what it is about is read again, and counts only
when it is the same task, is still alive and still is not where it belongs.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dre import event

from sysmonlib.code import Hook
from sysmonlib.hooks import Hooks
from sysmonlib.kernel import Kernel
from sysmonlib.memory import BadAddress
from sysmonlib.modules import VIEWS as MODULE_VIEWS
from sysmonlib.modules import Modules
from sysmonlib.slabs import Slabs
from sysmonlib.tasks import Task, Tasks
from sysmonlib.walk import Broken

PROCESS, MODULE, INCONSISTENT = "sysmon.hidden.process", "sysmon.hidden.module", "sysmon.inconsistent"
HOOK = "sysmon.hook"
AGAIN = 0.02  # seconds between two readings
SLOW = 1.0  # how long it lasts at least where a difference may be one of a task in the making
PASSING = 3.0  # the same, of one that seems to be born or to die
PATIENCE = 0.25  # seconds to try again to walk through what is changed meanwhile
MOST = 1000  # suspects at a time; more are none of a root-kit's
_Value = TypeVar("_Value")
_Thing = TypeVar("_Thing", int, Hook)


@dataclass(frozen=True)
class Finding:
    """Something that a guest hides, or that was changed in it; *type* and *data* are those of its event."""

    type: str
    data: Mapping[str, Any]


@dataclass
class _Suspect:
    """What is not where it should be, and for how long and how often it was found so."""

    data: dict[str, Any]
    lasts: float
    begun: float = field(default_factory=time.monotonic)
    seen: int = 0

    def certain(self) -> bool:
        """Whether it is no moment between two changes."""
        return self.seen >= (3 if self.lasts else 2) and time.monotonic() - self.begun >= self.lasts


@dataclass(frozen=True)
class _Look:
    """The views of one moment, or nearly: of the lists before and after the others."""

    processes: set[int]
    threads: set[int]
    numbered: set[int]
    related: set[int]
    runnable: set[int]
    given: set[int]
    idle: set[int]

    def missing(self, task: Task) -> list[str]:
        """The views that should have *task* and have not."""
        views = {"idr": self.numbered}
        if task.pid == task.tgid:
            views = {"list": self.processes, **views, "tree": self.related}
        else:
            views = {"threads": self.threads, **views}
        return [name for name, tasks in views.items() if task.address not in tasks]


class Cross:
    """Looks again and again at one guest, *system*, whose kernel is *kernel*."""

    def __init__(self, system: str, kernel: Kernel) -> None:
        """Raises MissingError where the kernel does not tell what is needed."""
        self._system, self.kernel = system, kernel
        self._holders: dict[int, tuple[int, str]] = {}  # by address of code of hooks, the module it is in
        self.tasks, self._slabs, self.modules = Tasks(kernel), Slabs(kernel), Modules(kernel)
        self._hooks = Hooks(kernel)
        self._suspects: dict[tuple[Any, ...], _Suspect] = {}  # by the type of the finding, and what it is about
        self._broken: dict[str, str] = {}  # views that could not be read, and why
        self._reported: set[tuple[Any, ...]] = set()
        self.hidden: dict[int, list[str]] = {}  # by address, tasks found to be hidden, and from which views
        self.suspicious: dict[int, str] = {}  # by address, modules that are hidden or hold hooks, and their names

    def scan(self) -> list[Finding]:
        """Look once, and again at what is suspect until it is certain or gone; what is new of what was found."""
        self._pass()
        waiting = set(self._suspects)
        while any(not self._suspects[key].certain() for key in waiting):
            time.sleep(AGAIN)
            self._pass()
            waiting &= set(self._suspects)
        certain = {key: suspect for key, suspect in self._suspects.items() if suspect.certain()}
        self.hidden = {key[1]: suspect.data["views_missing"] for key, suspect in certain.items() if key[0] == PROCESS}
        self.suspicious = {key[1]: key[2] for key in certain if key[0] == MODULE}
        holders = (self._holders.get(key[1].address) for key in certain if key[0] == HOOK)
        self.suspicious |= {holder[0]: holder[1] for holder in holders if holder is not None}
        found = []
        for key, suspect in certain.items():
            if key not in self._reported:
                self._reported.add(key)
                found.append(Finding(key[0], {**suspect.data, "confirmed": event.stamp()}))
        return found

    def processes(self) -> list[tuple[Task, int, list[str]]]:
        """Each process, how many threads it has, and the views that lack it; what is hidden as the last scan had it."""
        self.kernel.space.forget()
        look = self._look()
        found, threads = {}, dict[int, int]()
        for address in (look.threads | look.numbered | set(self.hidden)) - look.idle if look else set(self.hidden):
            task = self._task(address)
            if task is None:
                continue
            threads[task.tgid] = threads.get(task.tgid, 0) + 1
            if task.pid == task.tgid or address in self.hidden:
                found[address] = task
        return [(task, threads[task.tgid], self.hidden.get(task.address, [])) for task in found.values()]

    def _pass(self) -> None:
        """Bring the suspects up to date."""
        before = self._suspects
        self.kernel.space.forget()
        self._suspects, self._broken = {}, {}
        look = self._look()
        if look is not None:
            self._judge_tasks(look, before)
        views = self._whole("modules", self.modules.views)
        carved = self._whole("memory", self.modules.carved)
        if views is not None:
            self._judge_modules(views, carved or set(), before)
        self._judge_hooks(views or {}, carved or set(), before)
        for view, reason in self._broken.items():
            data = {"system": self._system, "views": [view], "reason": reason, "first_seen": event.stamp()}
            self._suspect((INCONSISTENT, view), before, data, SLOW)

    def _suspect(
        self, key: tuple[Any, ...], before: Mapping[tuple[Any, ...], _Suspect], data: dict[str, Any], lasts: float
    ) -> _Suspect:
        """Note once more what *key* stands for, with *data* as it was noted first."""
        suspect = before.get(key) or _Suspect(data, lasts)
        suspect.seen += 1
        self._suspects[key] = suspect
        return suspect

    def _look(self) -> _Look | None:
        """The views, those that are broken empty; None where there is nothing to compare with."""
        first = self._whole("list", self.tasks.listed)
        idle = self._whole("runqueue", self.tasks.idle, "idle")
        if first is None or idle is None:
            return None
        numbered = self._whole("idr", self.tasks.numbered)
        listed = first[1]
        related = self._whole("tree", lambda: self.tasks.related(listed))
        runnable = self._whole("runqueue", self.tasks.runnable)
        given = self._whole("slab", self._slabs.objects)
        last = self._whole("list", self.tasks.listed)
        if last is None:
            return None
        processes, threads = first[0] | last[0], first[1] | last[1]
        # A view that cannot be read is a finding of its own, and accuses nobody.
        return _Look(
            processes,
            threads,
            threads if numbered is None else numbered,
            processes if related is None else related,
            runnable or set(),
            given or set(),
            idle,
        )

    def _whole(self, view: str, read: Callable[[], _Value], look: str = "") -> _Value | None:
        """What *read* gives; None, and a note, where it fails however often it is tried.

        *look* is what the memory knows this by, where that is not the *view*.
        """
        deadline, pause = time.monotonic() + PATIENCE, AGAIN / 10
        while True:
            try:
                with self.kernel.space.memory.ahead(look or view):
                    return read()
            except (Broken, BadAddress) as error:
                if time.monotonic() > deadline:
                    self._broken[view] = str(error)
                    return None
            time.sleep(pause)
            pause *= 2

    def _judge_tasks(self, look: _Look, before: Mapping[tuple[Any, ...], _Suspect]) -> None:
        seen = look.numbered | look.related | look.runnable
        unlisted = (seen | look.given | {key[1] for key in before if key[0] == PROCESS}) - look.threads
        unnumbered = look.threads - look.numbered
        for address in self._bounded("tasks", (unlisted | unnumbered) - look.idle):
            task = self._task(address)
            if task is None:
                continue
            key = (PROCESS, *task.key)
            earlier = before.get(key)
            if address not in seen and earlier is None and task.unborn:
                continue
            lasts = PASSING if task.passing else SLOW if address not in seen else 0.0
            if earlier is not None:  # one that ran and sleeps now, is the same task still
                lasts = min(lasts, earlier.lasts) if not task.passing else lasts
            missing = look.missing(task)
            data = {"pid": task.pid, "comm": task.comm, "start": self.tasks.moment(task), "tgid": task.tgid}
            data = {"system": self._system, **data, "first_seen": event.stamp()}
            suspect = self._suspect(key, before, data, lasts)
            suspect.data["views_missing"], suspect.lasts = missing, lasts

    def _bounded(self, view: str, suspects: set[_Thing]) -> list[_Thing]:
        """Those to be looked at, and a note when there are more."""
        if len(suspects) > MOST:
            self._broken[view] = f"{len(suspects)} differences between the views; {MOST} are looked at"
        return sorted(suspects)[:MOST]

    def _task(self, address: int) -> Task | None:
        """The task at *address* if one is there and alive."""
        try:
            return self.tasks.task(address) if self.tasks.alive(address) else None
        except BadAddress:
            return None

    def _judge_modules(
        self, views: Mapping[str, set[int]], carved: set[int], before: Mapping[tuple[Any, ...], _Suspect]
    ) -> None:
        modules: set[int] = carved.union(*views.values())
        for module in self._bounded("modules", modules - modules.intersection(*views.values())):
            try:
                name, live = self.modules.name(module), self.modules.live(module)
            except BadAddress:
                continue  # unloaded meanwhile
            key = (MODULE, module, name)
            missing = [view for view in MODULE_VIEWS if module not in views[view]]
            data = {"system": self._system, "name": name, "views_missing": missing, "first_seen": event.stamp()}
            lasts = PASSING if not live else SLOW if len(missing) == len(views) else 0.0
            suspect = self._suspect(key, before, data, lasts)
            suspect.data["views_missing"] = missing

    def _judge_hooks(
        self, views: Mapping[str, set[int]], carved: set[int], before: Mapping[tuple[Any, ...], _Suspect]
    ) -> None:
        found = set[Hook]()
        for view, read in self._hooks.views().items():
            found |= self._whole(view, read) or set()
        for hook in self._bounded("hooks", found):
            key = (HOOK, hook)
            data: dict[str, Any] = {}
            if key not in before:
                data = {"system": self._system, "hook": hook.kind, "name": self._hook_name(hook)}
                data |= {"address": f"{hook.address:#x}", **self._module_at(hook.address, views, carved)}
                data["first_seen"] = event.stamp()
            self._suspect(key, before, data, 0.0)

    def _hook_name(self, hook: Hook) -> str:
        try:
            return self._hooks.name(hook)
        except (Broken, BadAddress):  # it is being made or undone, or leads astray
            return f"{hook.place:#x}"

    def _module_at(self, address: int, views: Mapping[str, set[int]], carved: set[int]) -> dict[str, Any]:
        """The module that *address* is in, by whichever view, and the views that lack it."""
        module = self.modules.owner(address, carved.union(*views.values()))
        if module is None:
            return {"module": None, "views_missing": []}
        try:
            name = self.modules.name(module)
        except BadAddress:  # unloaded meanwhile
            return {"module": None, "views_missing": []}
        self._holders[address] = module, name
        return {"module": name, "views_missing": [view for view in views if module not in views[view]]}
