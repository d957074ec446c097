# SPDX-License-Identifier: Apache-2.0
"""What apps use, looked at again and again: rows of `stat` and `top`, with rates from the second look on.

Cheap for hundreds of apps: their control groups' files stay open, and what seldom changes is read anew only when a
directory's time says so. LXC is asked when an app comes, goes, or is changed. Nothing is changed here.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import lxcconfig
from dre.app import App
from dre.cgroup import HeldGroup, Pressure, Strain, Usage
from dre.conf import Conf
from dre.errors import DreError

RATES = ("io_read", "io_write", "net_rx", "net_tx")
FIELDS = (*RATES, "throttled", "oom_kills", "pressure")  # what a row has beside those of `list`
RENEWED = 2.0  # seconds after which the kernel has a new pressure
SETTLED = 3 * RENEWED  # seconds without any processor time after which what waits would show
STALE = 10.0  # seconds after which a pressure is read again in any case
AGED = 30.0  # and all the rest: the kernel takes memory from what does nothing, too
UNSURE = 50_000_000  # nanoseconds
LINKS = Path("/proc/net/dev")
SOCKETS = Path("/proc/net/unix")

Carried = tuple[int, int]


@dataclass
class Sample:
    """One look at a running app: what it used, how it suffered and what its link carried, at a moment."""

    moment: float
    used: Usage
    strain: Strain
    carried: Carried | None

    def rates(self, before: "Sample | None") -> dict[str, float | None]:
        """cpu in percent of one core, octets per second, percent of its quota's periods in which it was held."""
        if before is None:
            return dict.fromkeys(("cpu", *RATES, "throttled"))
        span = max(self.moment - before.moment, 1e-6)
        used, then = self.used, before.used
        received, sent = self.carried or (None, None)
        had_received, had_sent = before.carried or (None, None)
        periods = self.strain.periods - before.strain.periods
        held = self.strain.throttled - before.strain.throttled
        return {
            "cpu": _rate(used.cpu_ns / 1e7, then.cpu_ns / 1e7, span),
            "io_read": _rate(used.io_read, then.io_read, span),
            "io_write": _rate(used.io_write, then.io_write, span),
            "net_rx": _rate(received, had_received, span),
            "net_tx": _rate(sent, had_sent, span),
            "throttled": round(100 * held / periods, 1) if periods > 0 else 0.0,
        }


def _rate(now: float | None, then: float | None, span: float) -> float | None:
    """Per second; a counter that is smaller than it was has begun again: an interface was made anew."""
    return None if now is None or then is None else round(max(now - then, 0) / span, 1)


class Watched:
    """One app under observation."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._seen: tuple[int, ...] = ()
        self._row: dict[str, Any] = {}
        self._group: HeldGroup | None = None
        self._link = ""
        self._before: Sample | None = None
        self._pulse: tuple[bytes, ...] = ()
        self._carried = ""
        self._calm = self._frozen = self._pressed = False
        self._pressure: Pressure | None = None
        self._felt = self._stirred = self._read = -AGED
        self._last: dict[str, Any] = {}
        self._places = [str(app.home), str(app.home / "snapshot")]
        # What `start` noted, and the address that DHCP gave.
        self._notes = [str(app.record_file), str(app.record_file.with_suffix(".lease"))]
        self._socket = f"@{app.directory}/command\n"

    def row(self, noted: bool, links: dict[str, str], sockets: "Sockets") -> dict[str, Any] | None:
        """The row as it is now, or None when there is no such app any more.

        *noted* is whether a note in /run may have changed. As long as nothing happens it is the same object.
        """
        seen = self._signature(noted)
        if not seen[0]:
            self.close()
            return None
        if seen != self._seen or (self._group is None and self._stirs(sockets)):
            self._look_up()
            # What was changed a moment ago may change again within the same tick of the file system's clock.
            self._seen = seen if time.time_ns() - max(seen) > UNSURE else ()
        try:
            if self._group is not None and (sample := self._sample(self._group, links.get(self._link, ""))) is not None:
                self._last = self._shown(sample)
        except OSError:  # it has ended
            self.close()
            self._row = self.app.row()
            self._last = {**self._row, **dict.fromkeys(FIELDS)}
        return self._last

    def _sample(self, group: HeldGroup, link: str) -> Sample | None:
        """A new sample, read no more than needed; None when neither now nor at the look before anything happened."""
        now, before = time.monotonic(), self._before
        pulse, pressure = group.pulse(), self._pressure
        quiet = pulse == self._pulse and before is not None
        if not quiet:
            self._stirred = now
        # Where nothing waits, and nothing has run that could have begun to, there is no pressure to come.
        rests = not self._pressed and now - self._stirred >= SETTLED
        if now - self._felt >= (STALE if rests else RENEWED):
            self._pressure, self._felt = group.pressure(), now
            self._pressed = any(share for kind in (self._pressure or {}).values() for share in kind.values())
        calm, self._calm = self._calm, quiet and link == self._carried and pressure == self._pressure
        self._pulse, self._carried = pulse, link
        if before is None or not quiet or now - self._read >= AGED:
            self._read, self._frozen = now, group.frozen()
            return Sample(now, group.usage(), group.strain(), _octets(link))
        if calm and self._calm:
            before.moment = now
            return None
        return Sample(now, before.used, before.strain, _octets(link))

    def _shown(self, sample: Sample) -> dict[str, Any]:
        """The row of *sample*, which is the one to compare with from now on."""
        rates = sample.rates(self._before)
        self._before = sample
        return {
            **self._row,
            "state": "frozen" if self._frozen else "running",
            "cpu": rates.pop("cpu"),
            "memory": sample.used.memory,
            "memory_limit": sample.used.memory_limit,
            "cpu_limit": sample.used.cpu_limit,
            "pids": sample.used.pids,
            **rates,
            "oom_kills": sample.strain.oom_kills,
            "pressure": self._pressure,
        }

    def close(self) -> None:
        """Let go of its files."""
        if self._group is not None:
            self._group.close()
        self._group = self._before = None
        self._felt = self._stirred = self._read = -AGED

    def _signature(self, noted: bool) -> tuple[int, ...]:
        """The times at which what a row is made of was last changed; 0 where there is nothing."""
        home = _changed(self._places[0])
        # What did not exist a moment ago is made in the home, whose time changes with that.
        same = self._seen[:2] == (home, 0)
        places = (home, 0 if same else _changed(self._places[1]))
        notes = tuple(map(_changed, self._notes)) if noted or not self._seen else self._seen[len(places) :]
        return places + notes

    def _stirs(self, sockets: "Sockets") -> bool:
        """Whether an app that was not running may run now, by whomever it was started."""
        return self._row["state"] not in ("stopped", "crashed", "partial") or self._socket in sockets.text()

    def _look_up(self) -> None:
        """Ask anew for all that is known of the app."""
        before, self._row = self._row, self.app.row()
        self._last = {**self._row, **dict.fromkeys(FIELDS)}
        self._pulse, self._calm = (), False
        if self._group is not None and self._row["pid"] == before["pid"]:
            return  # the same processes: go on counting
        self.close()
        if self._row["state"] not in ("running", "frozen"):
            return
        with contextlib.suppress(OSError, DreError):
            self._link = lxcconfig.link(self.app.conf, self.app.spec()) or ""
            self._group = HeldGroup.of(self._row["pid"])


class Sockets:
    """The kernel's table of sockets, where LXC's monitors show; read at most once in a round."""

    def __init__(self) -> None:
        self._text: str | None = None

    def text(self) -> str:
        """The table."""
        if self._text is None:
            self._text = SOCKETS.read_text()
        return self._text


class Watch:
    """The apps *names*, or whatever apps there are."""

    def __init__(self, conf: Conf, names: Sequence[str] = ()) -> None:
        self.conf = conf
        self.names = names
        self._apps: dict[str, Watched] = {}
        self._made = self._noted = -1

    def look(self) -> list[dict[str, Any]]:
        """A row for each app, in the order of their names."""
        self._find()
        changed = _changed(str(self.conf.core_run_dir / "app"))
        noted, self._noted = changed != self._noted, changed
        links, sockets = _links(), Sockets()
        rows = []
        for name, watched in list(self._apps.items()):
            row = watched.row(noted, links, sockets)
            if row is None:
                del self._apps[name]
            else:
                rows.append(row)
        return rows

    def _find(self) -> None:
        made = _changed(str(apps.state_dir(self.conf)))
        if made == self._made:
            return
        self._made = made
        wanted = [name for name in self.names or apps.names(self.conf) if App(self.conf, name).home.exists()]
        for name in self._apps.keys() - set(wanted):
            self._apps[name].close()
        self._apps = {name: self._apps.get(name) or Watched(App(self.conf, name)) for name in wanted}


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116 - a Path would take longer to make than the kernel to answer
    except OSError:
        return 0


def _links() -> dict[str, str]:
    """What the kernel counts of each link, as it writes it."""
    lines = [line.partition(":") for line in LINKS.read_text().splitlines()]
    return {name.lstrip(): numbers for name, _, numbers in lines}


def _octets(link: str) -> Carried | None:
    """Octets that an app received and sent; the host's end of its link counts the other way round."""
    words = link.split()
    return (int(words[8]), int(words[0])) if words else None
