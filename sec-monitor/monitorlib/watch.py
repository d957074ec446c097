# SPDX-License-Identifier: Apache-2.0
"""Sample what the scripts' monitors name, and tell of crossings. Whether one is made is decided in crossing.step.

The files in watch.d are looked at twice a second. Which monitors are raised is remembered on disk, so that a watch
that was killed does not raise them again and does clear them.
"""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dre import event, files
from dre.conf import Conf
from dre.errors import DreError, UsageError

from monitorlib import probe, samplers, trend, watchfile
from monitorlib.crossing import Monitor, Sample, State, step

RESCAN = 0.5
SHOWN = 5.0  # seconds between two versions of watch.prom
Key = tuple[str, str]  # script and id
Emit = Callable[[str, str, dict[str, Any], int], None]  # type, source, data, sev


class Watch:
    """All monitors of all files, each with a task that samples; *keep*: whether a trend of them is kept."""

    def __init__(self, conf: Conf, emit: Emit, say: Callable[[str], None], keep: bool = True) -> None:
        self.conf = conf
        self._emit = emit
        self._say = say
        self._directory = conf.core_state_dir / "script" / "watch.d"
        self._memory = conf.core_state_dir / "watch" / "raised.json"
        self._files: dict[Path, tuple[tuple[int, ...], list[Monitor]]] = {}
        self._tasks: dict[Key, tuple[Monitor, asyncio.Task[None]]] = {}
        self._states = {key: State(raised=True) for key in _remembered(self._memory)}
        # One thread, so that crossings are emitted in the order in which they were made.
        self._teller = ThreadPoolExecutor(1, "tell")
        self._keeps, self._keeper = keep, ThreadPoolExecutor(1, "keep")
        self._trends = trend.Trends(trend.directory(conf), self._keep)
        self._samplers = ThreadPoolExecutor(4, "sample")
        self._slow = ThreadPoolExecutor(16, "ask")
        self._said: set[tuple[Key, str]] = set()
        self._unkept: set[str] = set()
        self._values: dict[Key, float] = {}
        self._shown = 0.0

    async def run(self) -> None:
        """Watch until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        while not stop.is_set():
            self.rescan()
            if time.monotonic() - self._shown >= SHOWN:
                self._show()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), RESCAN)
        for _, task in self._tasks.values():
            task.cancel()
        for pool in (self._samplers, self._slow):
            pool.shutdown(wait=False, cancel_futures=True)
        self._trends.end()
        for pool in (self._teller, self._keeper):
            await asyncio.to_thread(pool.shutdown)

    def rescan(self) -> None:
        """Read what has changed in watch.d; start, replace and end monitors accordingly."""
        found = {path: _signature(path) for path in sorted(self._directory.glob("*.json"))}
        for path in set(self._files) - set(found):
            del self._files[path]
        for path, signature in found.items():
            known, monitors = self._files.get(path, ((), []))
            if signature != known:
                self._files[path] = (signature, self._read(path, monitors))
        wanted: dict[Key, Monitor] = {}
        for _, monitors in self._files.values():
            for monitor in monitors:
                wanted.setdefault((monitor.script, monitor.id), monitor)
        self._reconcile(wanted)

    def _read(self, path: Path, before: list[Monitor]) -> list[Monitor]:
        try:
            return watchfile.read(path)
        except UsageError as error:
            self._say(f"{error}; ignoring this version, as the one before goes on")
            reason = str(error).encode("ascii", "backslashreplace").decode()[:300]
            self._tell("monitor.refused", event.host() + "/watch", {"count": 1, "where": "watch", "reason": reason}, 4)
            return before

    def _reconcile(self, wanted: dict[Key, Monitor]) -> None:
        for key, (monitor, task) in list(self._tasks.items()):
            if wanted.get(key) != monitor:
                task.cancel()
                del self._tasks[key]
                self._values.pop(key, None)
                if key not in wanted:
                    self._states.pop(key, None)
        for key, monitor in wanted.items():
            task_of = self._tasks.get(key)
            if task_of is None or task_of[1].done():
                self._tasks[key] = (monitor, asyncio.get_running_loop().create_task(self._watch(monitor)))

    async def _watch(self, monitor: Monitor) -> None:
        if monitor.watch == "http":
            await probe.watch(monitor, lambda sample: self.report(monitor, sample, time.monotonic()))
            return
        look = samplers.make(self.conf, monitor)
        pool = self._slow if samplers.slow(monitor) else self._samplers
        due = known = time.monotonic()
        while True:
            now, sample, why = await asyncio.get_running_loop().run_in_executor(pool, _looked, look)
            if why:
                self._say_once(monitor, why)
            if sample or not why:
                known = now
            elif monitor.missing is not None and now - known >= monitor.missing:
                sample = Sample(0.0, f"no data: {why}")
            if sample:
                self.report(monitor, sample, now)
            due = max(due + monitor.every, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    def _say_once(self, monitor: Monitor, text: str) -> None:
        key = (monitor.script, monitor.id)
        if (key, text) not in self._said and len(self._said) < 1000:
            self._said.add((key, text))
            self._say(f"{monitor.script}: {monitor.id}: {text}; waiting for it")

    def report(self, monitor: Monitor, sample: Sample, now: float) -> None:
        """Take *sample* into account, and tell when it makes a crossing."""
        key = (monitor.script, monitor.id)
        state, crossing = step(monitor, self._states.get(key, State()), sample, now)
        self._states[key] = state
        self._values[key] = sample.value
        self._trends.add(monitor, sample, time.time())
        if crossing:
            value = now - (state.since or now) if monitor.watch == "liveness" else sample.value
            about = monitor.about
            why = {"why": sample.bad} if sample.bad and (monitor.watch != "liveness" or monitor.system) else {}
            data = {
                "script": monitor.script,
                "id": monitor.id,
                "watch": monitor.watch,
                "value": round(value, 3),
                "limit": monitor.limit,
                **about,
                **why,
            }
            source = event.host() + monitor.place
            self._tell(f"watch.{crossing}", source, data, 4 if crossing == "raised" else 6)
            self._trends.crossed(monitor, crossing, value, time.time())

    def _keep(self, write: Callable[..., None], *fields: object) -> None:
        if self._keeps:
            self._keeper.submit(self._kept, write, *fields)

    def _kept(self, write: Callable[..., None], *fields: object) -> None:
        try:
            write(*fields)
        except OSError as error:  # nobody needs a picture more than the watching itself
            text = f"{error.filename or 'trend'}: {error.strerror}; ignoring it, as only pictures are made of it"
            if text not in self._unkept:
                self._unkept.add(text)
                self._say(text)

    def _show(self) -> None:
        """Write how all monitors are in the text format of Prometheus, for node_exporter's collector `textfile`."""
        self._shown = time.monotonic()
        lines = []
        for name, values in (
            ("dre_watch_value", self._values),
            ("dre_watch_raised", {key: float(state.raised) for key, state in self._states.items()}),
        ):
            lines.append(f"# TYPE {name} gauge")
            for key, value in sorted(values.items()):
                if key in self._tasks:
                    labels = {"script": key[0], "id": key[1], "watch": self._tasks[key][0].watch}
                    written = ",".join(f'{label}="{text}"' for label, text in labels.items())
                    lines.append(f"{name}{{{written}}} {value:.6g}")
        with contextlib.suppress(OSError):  # nobody needs it more than the watching itself
            self.conf.core_run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            files.write_atomic(self.conf.core_run_dir / "watch.prom", "\n".join(lines) + "\n", durable=False)

    def _tell(self, type: str, source: str, data: dict[str, Any], sev: int) -> None:
        raised = sorted(key for key, state in self._states.items() if state.raised)
        self._teller.submit(self._tell_now, type, source, data, sev, raised)

    def _tell_now(self, type: str, source: str, data: dict[str, Any], sev: int, raised: list[Key]) -> None:
        # Told first, remembered then: killed in between, it is told twice, never not at all.
        try:
            self._emit(type, source, data, sev)
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(self._memory, json.dumps(raised) + "\n")
        except (DreError, OSError) as error:
            self._say(f"{type}: {error}")


def _looked(look: samplers.Look) -> tuple[float, Sample | None, str]:
    """When it looked, what it saw, and why it may know nothing."""
    try:
        sample, why = look(), getattr(look, "doubt", "")
    except (samplers.NoDataError, OSError, ValueError, KeyError) as error:
        sample, why = None, str(error)[:300]
    return time.monotonic(), sample, why


def _signature(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def _remembered(path: Path) -> list[Key]:
    try:
        return [(str(script), str(id)) for script, id in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return []  # nothing was raised, or nothing is known: a monitor that is over is raised (again)
