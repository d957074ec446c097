# SPDX-License-Identifier: Apache-2.0
"""Apps, the application containers: where each keeps its things, what state it is in, what it uses.

Reading only, and quick: LXC's library is imported where its answer is needed, never for `usage`. Changes are made
by dre.lifecycle and dre.snapshot.
"""

import contextlib
import functools
import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dre import cgroup, files, glance, intent, units
from dre.cgroup import Usage
from dre.conf import Conf
from dre.errors import DreError, NotFoundError, TimedOutError
from dre.glance import Host, alive
from dre.glance import started as started  # for who knows an app
from dre.spec import DHCP, Spec

FIELDS = ("name", "state", "ip", "pid", "cpu", "memory", "memory_limit", "cpu_limit", "pids", "created", "base")
IDLE = Usage(cpu_ns=0, memory=0, memory_limit=None, cpu_limit=None, pids=0, running=False)
TELL_WAIT = 5.0  # seconds for LXC to tell the state of an app
_STATES = {
    "RUNNING": "running",
    "FROZEN": "frozen",
    "FREEZING": "frozen",
    "THAWED": "running",
    "STARTING": "starting",
    "STOPPING": "stopping",
    "ABORTING": "stopping",
}


@dataclass(frozen=True)
class App:
    """The app *name*, which may or may not exist; the lock is the caller's business."""

    conf: Conf
    name: str

    @functools.cached_property
    def directory(self) -> Path:
        """LXC's directory of the container, with config, lower, delta, work, rootfs and command."""
        return self.conf.app_lxc_path / self.name

    @functools.cached_property
    def home(self) -> Path:
        """Our directory: app.json, intent.json, snapshot/TAG/."""
        return self.conf.core_state_dir / f"app/state/{self.name}"

    @functools.cached_property
    def delta(self) -> Path:
        """What the app changed of its base."""
        return self.directory / "delta"

    @functools.cached_property
    def rootfs(self) -> Path:
        """Where the overlay is mounted while the app runs."""
        return self.directory / "rootfs"

    @functools.cached_property
    def log(self) -> Path:
        """What the app's program wrote to stdout and stderr since the last start."""
        return self.conf.core_log_dir / "app" / f"{self.name}.log"

    @functools.cached_property
    def status(self) -> Path:
        """Where the app's shell writes the exit status of its program, when the app is to be restarted."""
        return self.directory / "status"

    @functools.cached_property
    def record_file(self) -> Path:
        """The processes of the last start; in /run, because a reboot ends them."""
        return self.conf.core_run_dir / f"app/{self.name}.json"

    @functools.cached_property
    def lease_file(self) -> Path:
        """The address that DHCP gave, with its length; in /run, because it ends with the app."""
        return self.conf.core_run_dir / "app" / f"{self.name}.lease"

    def address(self, spec: Spec | None = None) -> str | None:
        """The address with its length, or None: no network, or DHCP has given none yet. *spec*: for who has read it."""
        ip = (spec or self.spec()).ip
        if ip != DHCP:
            return ip
        with contextlib.suppress(FileNotFoundError):
            return self.lease_file.read_text().strip()
        return None

    def exists(self) -> bool:
        """Whether the app was made, wholly: its LXC configuration is written last and removed first."""
        return glance.there(f"{self.home}/app.json") and glance.there(f"{self.directory}/config")

    def need(self) -> Spec:
        """The Spec. Raises NotFoundError when there is no such app."""
        if not self.exists():
            raise NotFoundError(f"{self.name}: no such app")
        return self.spec()

    def spec(self) -> Spec:
        """The Spec as stored."""
        path = f"{self.home}/app.json"
        try:
            return _spec(glance.octets(path))
        except FileNotFoundError:
            raise NotFoundError(f"{self.name}: no such app") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DreError(f"{path}: damaged: {error}") from None

    def store(self, spec: Spec) -> None:
        """Make *spec* the app's, in our file and in what is derived from it."""
        files.write_atomic(self.home / "app.json", spec.to_json(), 0o600)
        self.derive(spec)

    def derive(self, spec: Spec) -> None:
        """Make what an app of this *spec* has beside our file."""
        if spec.restart != "no":
            self.status.touch(mode=0o600)
        self.refresh(spec)

    def refresh(self, spec: Spec) -> None:
        """Derive program and LXC configuration anew, where host, settings or packages have changed since.

        A power failure may leave these files empty: the next start is what mends them.
        """
        from dre import lxcconfig, parting  # here and below: a list needs none of it

        (self.directory / parting.PLACE).mkdir(mode=0o755, exist_ok=True)
        derived = {"command": lxcconfig.script(spec)}
        if spec.unprivileged:
            derived["mounts.json"] = lxcconfig.plan(spec, self.directory, self.log)
        derived["config"] = lxcconfig.render(self.conf, spec, self.log)  # last: with it there is a container
        for name, text in derived.items():
            path = self.directory / name
            if not path.exists() or path.read_text() != text:
                files.write_atomic(path, text, 0o700 if name == "command" else 0o644, durable=False)

    def intent(self) -> dict[str, Any] | None:
        """What a verb has begun and not ended, or None."""
        return intent.read(self.home)

    def begin(self, **fields: Any) -> None:
        """Write durably what is about to be done, so that the next verb can end it."""
        intent.begin(self.home, **fields)

    def done(self) -> None:
        """Forget the intent: the verb has ended."""
        intent.done(self.home)

    @contextlib.contextmanager
    def locked(self, timeout: float = 60.0) -> Iterator[None]:
        """Hold the app's lock."""
        with files.lock(self.conf.core_run_dir / "lock" / f"app-{self.name}", timeout):
            yield

    def container(self) -> Any:
        """The object of LXC's library."""
        # Late, for it is slow; by name, for it has no types, and our own directory lxc is no module.
        library = importlib.import_module("lxc")
        return library.Container(self.name, str(self.conf.app_lxc_path))

    def state(self) -> str:
        """running, stopped, frozen, starting, stopping, partial or crashed."""
        return self._now()[0]

    def _now(self, host: Host | None = None) -> tuple[str, int | None]:
        """The state, and the init's pid where `start` noted it. Asks LXC, which is slow, only where that cannot do.

        *host* is for who looks at many.
        """
        record = self.record()
        home, directory, wanted = str(self.home), str(self.directory), bool(record.get("wanted"))
        found, pid = glance.state(home, directory, record.get("init"), wanted, host or Host())
        if found != glance.UNKNOWN:
            return found, pid
        return _STATES.get(self._told()) or glance.at_rest(home, directory, wanted), None

    def _told(self) -> str:
        """The state as LXC's monitor tells it. While it starts the app it tells nothing; nor when it is stuck there.

        By a program, for the library would wait for ever.
        """
        from dre import run

        argv = ["lxc-info", "-n", self.name, "-P", str(self.conf.app_lxc_path), "-s", "-H"]
        try:
            return run.run(argv, check=False, timeout=TELL_WAIT).stdout.decode().strip()
        except TimedOutError:
            return "STARTING"

    def record(self) -> dict[str, Any]:
        """What `start` noted: wanted, init and monitor as [pid, start time], starting until it has done all; empty when
        nothing is noted.

        dre.keeping adds to it: kept (it is to be restarted), crashes, told, gave_up.
        """
        try:
            found: dict[str, Any] = json.loads(glance.text(str(self.record_file)))
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def remember(self, record: dict[str, Any]) -> None:
        """Replace what is noted of the last start."""
        self.record_file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.record_file.with_name(f".{self.record_file.name}.tmp")
        temporary.write_text(json.dumps(record))  # in /run: nothing to make durable
        temporary.rename(self.record_file)

    def init_pid(self) -> int | None:
        """The host's pid of the app's init, or None. Asks LXC only when what `start` noted is not true any more."""
        noted = alive(self.record().get("init"))
        if noted is not None:
            return noted
        if not (self.directory / "config").exists() or not Host().serves(str(self.directory)):
            return None
        from dre import run

        argv = ["lxc-info", "-n", self.name, "-P", str(self.conf.app_lxc_path), "-p", "-H"]
        answer = run.run(argv, check=False, timeout=10).stdout.strip()
        return int(answer) if answer.isdigit() and int(answer) > 0 else None

    def usage(self, pid: int | None = None) -> Usage:
        """What the app, whose init is *pid*, uses now; IDLE when it does not run."""
        pid = self.init_pid() if pid is None else pid
        if pid is None:
            return IDLE
        try:
            return cgroup.Group.of(pid).usage()
        except OSError:
            return IDLE  # it ended while we looked

    def snapshots(self) -> list[str]:
        """The tags, oldest first."""
        try:
            found = [tag for tag in os.listdir(f"{self.home}/snapshot") if units.is_name(tag)]
        except FileNotFoundError:
            return []
        return sorted(found, key=lambda tag: ((self.home / "snapshot" / tag).stat().st_mtime_ns, tag))

    def brief(self, host: Host | None = None, spec: Spec | None = None) -> dict[str, Any]:
        """The fields of a row that a person's list shows, without the many files that the others need."""
        state, pid = self._now(host)
        if pid is None and state in ("running", "frozen", "stopping"):
            pid = self.init_pid()
        address = None
        with contextlib.suppress(DreError):  # partial: what is known is the name
            address = self.address(spec)
        return {"name": self.name, "state": state, "ip": [address.partition("/")[0]] if address else [], "pid": pid}

    def row(self, host: Host | None = None) -> dict[str, Any]:
        """The fields that `list` and `status` give; cpu needs two looks, which dre.stat takes.

        *host* is for who asks for many rows.
        """
        try:
            spec = self.spec()
        except DreError:
            spec = None  # partial: what is known is the name
        host = host or Host()
        brief = self.brief(host, spec)
        used = None
        if brief["pid"] is not None and brief["state"] in ("running", "frozen", "stopping"):
            with contextlib.suppress(OSError):  # it ended while we looked
                used = cgroup.Group(host.groups(brief["pid"])).size()
        limits = spec.limits if spec else cgroup.Limits()
        return {
            **brief,
            "cpu": None,
            "memory": used.memory if used else None,
            "memory_limit": used.memory_limit if used else limits.memory,
            "cpu_limit": used.cpu_limit if used else limits.cpu,
            "pids": used.pids if used else None,
            "created": spec.created if spec else None,
            "base": spec.base if spec else None,
            "snapshots": self.snapshots(),
            "isolated": spec.isolated if spec else None,
        }

    def emit(self, what: str, sev: int = 6, **data: Any) -> None:
        """Tell the monitor that the app has changed."""
        from dre import event

        event.emit(self.conf, f"app.{what}", f"{event.host()}/app:{self.name}", {"name": self.name, **data}, sev)


_spec = functools.lru_cache(maxsize=64)(Spec.from_json)  # who serves reads the same again and again


def state_dir(conf: Conf) -> Path:
    """Where one directory per app lies."""
    return conf.core_state_dir / "app" / "state"


def names(conf: Conf) -> list[str]:
    """All apps, partial ones included, in order."""
    return glance.names(conf)


def usage(conf: Conf, name: str) -> Usage:
    """What app *name* uses now, cheaply: a few files, no LXC. Raises NotFoundError."""
    found = App(conf, units.name(name))
    found.need()
    return found.usage()


def monitor(init: int) -> int:
    """LXC's monitor of the app whose first process is *init*. Raises OSError when that is gone.

    Where the monitor was killed it is *init* itself, which the kernel kills then: no other end is left to wait for.
    """
    above = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    # Who has lost its parent is given to process 1, or in a user's session to its manager; see PR_SET_CHILD_SUBREAPER.
    orphaned = above <= 1 or Path(f"/proc/{above}/comm").read_text() == "systemd\n"
    return init if orphaned else above
