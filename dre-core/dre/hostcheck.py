# SPDX-License-Identifier: Apache-2.0
"""Whether a host has what D-RE stands on: each check looks, changes nothing, and says what would help.

Each looks in a process of its own, which is killed when it takes too long: a libvirt that hangs, or a file of /proc
that does, costs its own line and no other. Nothing here prints.
"""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import dre
from dre import cgroup
from dre.conf import Conf
from dre.errors import MISSING, TIMED_OUT, DreError, MissingError, NotPermittedError

OK, WARNING, MISSES = "ok", "warning", "missing"
_LONGEST = 1000  # letters of what was found: QEMU's last words may be anything
_G = 1 << 30
ADVISED = 2 * _G  # of memory, says the specification
_KEPT = _G // 4  # what kernel and firmware of such a host keep for themselves, and do not count
_LIBVIRT = (9, 0)
_PROC, _NET = Path("/proc"), Path("/sys/class/net")
_NEEDED_V1 = ("cpu", "cpuacct", "memory", "freezer", "devices")
_NEEDED_V2 = ("cpu", "memory")
# Who keeps a clock, as /proc/PID/comm has it, and what tells how it goes.
_KEEPERS = {
    "chronyd": "chronyc tracking",
    "systemd-timesyn": "timedatectl timesync-status",
    "ntpd": "ntpq -p",
    "openntpd": "ntpctl -s status",
}


@dataclass(frozen=True)
class Finding:
    """What a check found, and what would help; *code* is that of dre.errors where it could not look, else 0."""

    check: str
    state: str
    found: str
    remedy: str | None = None
    code: int = 0


Said = tuple[str, str, str | None]  # state, what was found, remedy
Check = Callable[[Conf, bool], Said]


def look(conf: Conf, names: Sequence[str], discover: bool) -> Iterator[Finding]:
    """The findings of the checks *names*, in this order; with *discover* a DHCP server is asked."""
    begun = [(name, time.monotonic(), *_begin(conf, name, discover)) for name in names]
    try:
        for name, since, _, fd in begun:
            yield _finding(name, fd, since + CHECKS[name][1])
    finally:
        for _, _, pid, fd in begun:
            os.close(fd)
            _end(pid)


def _begin(conf: Conf, name: str, discover: bool) -> tuple[int, int]:
    """The process that makes the check *name*, and where its finding can be read."""
    from dre.run import die_with

    parent = os.getpid()
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    try:
        die_with(parent)
        os.setpgid(0, 0)  # to end what it has started as well
        item = make(conf, name, discover)
        os.write(theirs, json.dumps(asdict(replace(item, found=item.found[:_LONGEST]))).encode())
    finally:
        os._exit(0)


def _finding(name: str, fd: int, end: float) -> Finding:
    octets = b""
    while select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
        more = os.read(fd, 1 << 16)
        octets += more
        if not more:
            try:
                return Finding(**json.loads(octets))
            except ValueError:
                return Finding(name, WARNING, "could not be looked at: it ended without a word", None, MISSING)
    return Finding(name, WARNING, f"could not be looked at: no answer within {CHECKS[name][1]:g} s", None, TIMED_OUT)


def _end(pid: int) -> None:
    """Have the process and what it started ended; one that the kernel holds is not waited for."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    for _ in range(50):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.01)


def make(conf: Conf, name: str, discover: bool) -> Finding:
    """The finding of the check *name*, made here and now."""
    try:
        return Finding(name, *CHECKS[name][0](conf, discover))
    except MissingError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding(name, MISSES, found, remedy or None)
    except NotPermittedError as error:
        return Finding(name, WARNING, f"could not be looked at: {error}", "run it as root", error.code)
    except DreError as error:
        return Finding(name, WARNING, f"could not be looked at: {error}", None, max(error.code, 2))
    except (OSError, ValueError, LookupError) as error:
        return Finding(name, WARNING, f"could not be looked at: {error}", None, MISSING)


def virtualisation(conf: Conf, _: bool) -> Said:
    """What runs the code of systems: KVM on VT-x or AMD-V, or the emulator."""
    from dre.system import virt

    kind = _processor()
    if os.geteuid() and virt.KVM.exists() and not os.access(virt.KVM, os.R_OK | os.W_OK) and conf.sys_virt != "tcg":
        raise NotPermittedError(f"{virt.KVM} is root's")
    chosen, why = virt.choose(conf, _kernel(conf), keep=False)
    if chosen == "kvm":
        return OK, f"{kind or 'KVM'}: systems run under KVM: {why}", None
    if conf.sys_virt == "tcg":
        return OK, f"TCG: systems run under QEMU's emulator: {why}", None
    if why == virt.NOT_TRIED:
        remedy = "dre-base brings one; or say what to use: DRE_SYS_VIRT"
    elif virt.KVM.exists():
        remedy = "try another kernel or host; DRE_SYS_VIRT=tcg says that the emulator will do"
    elif kind:
        remedy = f"modprobe {'kvm_intel' if kind == 'VT-x' else 'kvm_amd'}, or switch {kind} on in the firmware"
    else:
        remedy = "switch on VT-x or AMD-V in the firmware, or nested virtualisation in the hypervisor beneath"
    return WARNING, f"TCG: systems run under QEMU's emulator, some ten times slower: {why}", remedy


def _processor() -> str | None:
    """What the processor calls its virtualisation, if it has one."""
    text = (_PROC / "cpuinfo").read_text(errors="replace")
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "VT-x" if "vmx" in flags else "AMD-V" if "svm" in flags else None


def _kernel(conf: Conf) -> Path | None:
    """That of the base image of systems, to try KVM with."""
    from dre import images

    try:
        return images.find(conf, conf.sys_default_base).kernel
    except (DreError, OSError):
        return None


def memory(conf: Conf, _: bool) -> Said:
    """How much there is, and how many systems of the default size still fit."""
    lines = (line.split() for line in (_PROC / "meminfo").read_text(errors="replace").splitlines())
    told = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1 and words[1].isdecimal()}
    if not {"MemTotal", "MemAvailable"} <= set(told):
        raise DreError(f"{_PROC}/meminfo does not say how much memory there is")
    total, free, one = told["MemTotal"], told["MemAvailable"], conf.sys_default_memory
    room = free // one if one else 0
    found = f"{total / _G:.1f}G, of which {free / _G:.1f}G can be had: room for {room} more systems of {one >> 20}M"
    if total < ADVISED - _KEPT:
        return WARNING, found, f"a host of systems has {ADVISED // _G}G and 512M for each; apps need far less"
    if not room:
        return WARNING, found, "end what uses it (dre-app top), or lower DRE_SYS_DEFAULT_MEMORY"
    return OK, found, None


def dhcp(conf: Conf, discover: bool) -> Said:
    """Whether a DHCP server gives addresses where the host's link leads, if containers are to have some from there."""
    from dre import nat, uplink
    from dre.bridge import foreign

    out = conf.bridge_uplink or uplink.port(conf.bridge_if) or next(iter(nat.uplinks("", nat.V4)), None)
    if out is None:
        return WARNING, "no link leads outside: there is no default route", "set one up, or name it: DRE_BRIDGE_UPLINK"
    if not (_NET / out).exists():
        return MISSES, f"DRE_BRIDGE_UPLINK: {out}: no such interface", "ip link show tells which there are"
    wanted = bool(conf.bridge_uplink) or uplink.port(conf.bridge_if) is not None or foreign(conf.bridge_if)
    link = _master(out)
    if (_NET / link / "operstate").read_text() == "down\n":
        return MISSES if wanted else WARNING, f"{link} is down", f"ip link set {link} up, or plug its cable in"
    if discover:
        return _asked(link, wanted)
    lease = _lease(link)
    if lease:
        return OK, f"{link} {lease}", None
    if not wanted and conf.bridge_nat:
        return (
            OK,
            f"{link} has no lease, and {conf.bridge_if} needs none: it gives addresses, and translates them",
            None,
        )
    return WARNING, f"{link} has no lease, which does not say that no server is there", "ask one: dre-check --discover"


def _asked(link: str, wanted: bool) -> Said:
    from dre import discover

    try:
        offer = discover.ask(link)
    except PermissionError:
        raise NotPermittedError("to ask a DHCP server needs root") from None
    if offer:
        return OK, f"{link}: the DHCP server {offer.server} offers {offer.address}", None
    remedy = "give containers fixed addresses (--ip ADDR/LEN), or let the bridge give them: DRE_BRIDGE_DHCP"
    return MISSES if wanted else WARNING, f"{link}: no DHCP server answers within {discover.DEADLINE:g} s", remedy


def _master(link: str) -> str:
    """The bridge that *link* is a port of, which takes what comes in; else *link*."""
    try:
        return (_NET / link / "master").readlink().name
    except OSError:
        return link


def _lease(link: str) -> str | None:
    """What is said of an address that does not last for ever, as a DHCP client sets one."""
    from dre.run import run

    rows = json.loads(run(["ip", "-j", "-4", "addr", "show", "dev", link], timeout=5).stdout)
    for address in (item for row in rows for item in row.get("addr_info", ())):
        if address.get("dynamic"):
            left = address.get("valid_life_time")
            return f"has {address.get('local')}/{address.get('prefixlen')} by DHCP for {left} s more"
    return None


def groups(conf: Conf, _: bool) -> Said:
    """Whether the kernel has the control groups that limits and freezing are made of."""
    from dre.groups import CONTROLLERS, HIERARCHIES

    root = cgroup.ROOT
    if cgroup.unified(root):
        kind, needed, used = "version 2", {*_NEEDED_V2}, [*CONTROLLERS]
        there = (root / "cgroup.controllers").read_text().split()
    else:
        kind, needed, used = "version 1", {*_NEEDED_V1}, [*HIERARCHIES, "devices"]
        there = [name for name in used if (root / name / "cgroup.procs").exists()]
        if (root / "unified/cgroup.procs").exists():
            kind = "version 1 beside version 2"
    if not there:
        return MISSES, f"no control groups are mounted at {root}", f"mount -t cgroup2 none {root}, or boot with systemd"
    place = root if cgroup.unified(root) else root / there[0]
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return MISSES, f"{place} is mounted read-only", "run D-RE on the host itself, not in a container of it"
    lacking = [name for name in used if name not in there]
    if lacking:
        remedy = "boot with cgroup_enable=memory" if "memory" in lacking else "take a kernel that has them"
        state = MISSES if needed & set(lacking) else WARNING
        return state, f"{kind}, without {', '.join(lacking)}", remedy
    return OK, f"{kind}: {', '.join(used)}", None


def libvirt(conf: Conf, _: bool) -> Said:
    """Whether libvirt answers, and is new enough."""
    from dre.system import hypervisor

    try:
        connection = hypervisor.connect(conf, read_only=True)
    except MissingError as error:
        said, remedy = str(error), hypervisor.remedy()
        if not said.endswith(f"; {remedy}"):
            raise
        return MISSES, said.removesuffix(f"; {remedy}"), remedy
    with hypervisor.translated(conf.sys_uri):
        number, kind = connection.getLibVersion(), hypervisor.plain(connection.getType())
    version = (number // 1000000, number // 1000 % 1000, number % 1000)
    found = f"libvirt {'.'.join(map(str, version))} answers at {conf.sys_uri} ({kind})"
    if version[:2] < _LIBVIRT:
        return WARNING, found, f"libvirt {'.'.join(map(str, _LIBVIRT))} or newer is wanted"
    return OK, found, None


def clock(conf: Conf, _: bool) -> Said:
    """Whether somebody keeps the clock right: events, evidence and certificates go by it."""
    from dre import event, timekeeping

    made = Path(dre.__file__).stat().st_mtime
    if time.time() < made - 86400:
        return (
            MISSES,
            f"the clock says {event.stamp()}, when D-RE did not yet exist",
            "date -s …, then apt-get install chrony",
        )
    told = timekeeping.told()
    if told.kept:
        return OK, f"kept right, at most {told.most:.3f} s off", None
    keeper = next((name for name in map(_comm, _PROC.glob("[0-9]*/comm")) if name in _KEEPERS), None)
    if keeper:
        return WARNING, f"not right yet, although {keeper} runs", f"wait some minutes, then ask: {_KEEPERS[keeper]}"
    return WARNING, "nobody keeps it right", "apt-get install chrony, or timedatectl set-ntp true"


def _comm(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""  # it has just ended


# What each asks of, and after how many seconds it is given up; the first is slow where KVM does not work.
CHECKS: dict[str, tuple[Check, float]] = {
    "virt": (virtualisation, 20.0),
    "memory": (memory, 5.0),
    "dhcp": (dhcp, 15.0),
    "cgroup": (groups, 5.0),
    "libvirt": (libvirt, 5.0),
    "clock": (clock, 5.0),
}
