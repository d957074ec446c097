# SPDX-License-Identifier: Apache-2.0
"""The LXC configuration of an app and the hidden files of a host base, as they follow from its Spec.

Pure text and files: nothing here starts, stops or asks LXC. The Spec is the truth, the configuration is derived.
"""

import contextlib
import json
import os
import re
import shlex
import socket
from pathlib import Path
from typing import Any

from dre import files, limits, parting, sshd
from dre.conf import Conf
from dre.errors import DreError, MissingError
from dre.spec import DHCP, Spec

INIT = "/usr/sbin/init.lxc.static"  # static: a tree need not have LXC's libraries, nor the right ones
IDLE = ("/bin/sleep", "infinity")

APPARMOR = Path("/sys/module/apparmor/parameters/enabled")
APPARMOR_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
PROFILE = "lxc-container-default-cgns"  # which LXC takes when its configuration names none

# What the host as base must not show. Directories become empty ones of the app's own.
HIDDEN_DIRS = (
    "/root",
    "/home",
    "/run",
    "/tmp",  # noqa: S108 - named to be hidden
    "/var/tmp",  # noqa: S108
    "/var/backups",
    "/var/lib/dre",
    "/var/lib/lxc",
    "/var/log/dre",
    "/etc/dre",
    "/etc/ssl/private",
)
HIDDEN_FILES = (
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/security/opasswd",
    *(f"/etc/ssh/ssh_host_{kind}_key" for kind in ("rsa", "dsa", "ecdsa", "ed25519")),
)


def share() -> Path:
    """Where our own LXC configuration lies: beside the package in a source tree, else as `make install` has it."""
    beside = Path(__file__).resolve().parent.parent / "lxc"
    for place in (beside, Path("/usr/local/share/dre-core/lxc")):
        # dist-packages/lxc exists too: it is the Python binding, and has no common.conf.
        if (place / "common.conf").exists():
            return place
    return Path("/usr/share/dre-core/lxc")


def veth(bridge: str, ip: str) -> str:
    """The host's end of the app's link. Derived from bridge and address: names of apps are too long for it."""
    import hashlib  # here and below: slow to load, and only for who has a network

    return "dv" + hashlib.sha256(f"{bridge} {ip}".encode()).hexdigest()[:10]


def link(conf: Conf, spec: Spec) -> str | None:
    """The host's end of the link of the app as it is, or None when it has no network."""
    if spec.ip is None:
        return None
    return veth(conf.bridge_if, spec.name if spec.ip == DHCP else spec.ip)


def mac(spec: Spec) -> str:
    """The hardware address of its interface: with DHCP from host and name, so that the same lease is given again."""
    if spec.ip in (None, DHCP):
        import hashlib

        return "02:d8:" + hashlib.sha256(f"{socket.gethostname()} {spec.name}".encode()).digest()[:4].hex(":")
    return "02:d7:" + bytes(map(int, str(spec.ip).partition("/")[0].split("."))).hex(":")


def render(conf: Conf, spec: Spec, log: Path) -> str:
    """The text of the LXC configuration file."""
    home = conf.app_lxc_path / spec.name
    ours = share()
    for needed in (Path(INIT), ours / "common.conf"):
        if not needed.exists():
            raise MissingError(f"{needed} is missing; apt-get install liblxc-common dre-core")
    places = sources(spec, home, log)

    def seen(name: str) -> str:
        return escape(f"{home}/{BINDS}/{name}" if spec.unprivileged else places[name])

    lines = [
        ("lxc.include", f"{ours}/common.conf"),
        ("lxc.uts.name", spec.name),
        ("lxc.rootfs.path", f"dir:{home}/rootfs"),
        ("lxc.hook.version", "1"),
        ("lxc.hook.pre-start", f"{ours}/overlay{_mapper(spec, home)}"),
        ("lxc.hook.post-stop", f"{ours}/overlay"),
        *_program(conf, spec),
        ("lxc.mount.entry", f"{seen('command')} run/dre-command none bind,ro,create=file 0 0"),
        ("lxc.mount.entry", f"{seen('output')} run/dre-output none bind,create=file 0 0"),
        *([] if spec.halt is not None else _daware(seen(parting.PLACE), spec)),
        *([("lxc.mount.entry", f"{seen('status')} {STATUS}")] if spec.restart != "no" else []),
        ("lxc.seccomp.profile", f"{ours}/seccomp" if spec.seccomp == "default" else spec.seccomp),
        *_ids(spec),
        *_confinement(),
        *_network(conf, spec),
        *limits.keys(spec.limits, limits.device_for(spec.limits, conf.app_lxc_path)),
    ]
    for key, value in spec.env.items():
        lines.append(("lxc.environment", f"{key}={value}"))
    for number, item in enumerate(spec.binds):
        kind = "dir" if Path(item.source).is_dir() else "file"
        mode = "ro," if item.read_only else ""
        target = escape(item.target.lstrip("/"))
        lines.append(("lxc.mount.entry", f"{seen(str(number))} {target} none {mode}bind,create={kind} 0 0"))
    origin = f"{conf.core_state_dir}/app/state/{spec.name}/app.json"
    head = f"# Derived by dre-app from {origin}; its next change overwrites this.\n"
    return head + "".join(f"{key} = {value}\n" for key, value in lines)


def _program(conf: Conf, spec: Spec) -> list[tuple[str, str]]:
    """LXC's small init with the program below it, or an init of the app's own."""
    if spec.halt is not None:
        return [("lxc.init.cmd", START), ("lxc.signal.halt", str(spec.halt))]
    command = f"{_inside(spec)} --name {spec.name} -- {START}"
    return [("lxc.init.cmd", command), ("lxc.mount.entry", _init(conf, spec))]


def _daware(place: str, spec: Spec) -> list[tuple[str, str]]:
    """What a D-aware program is given: how long it may save when it is stopped, and where to say how that went."""
    given = {"DAWARE_SAVE_MS": str(round(parting.WAIT * 1000)), "DAWARE_NOTIFY": f"{parting.INSIDE}/socket"} | spec.env
    words = [("lxc.environment", f"{key}={given[key]}") for key in ("DAWARE_SAVE_MS", "DAWARE_NOTIFY")]
    return [("lxc.mount.entry", f"{place} {parting.INSIDE.lstrip('/')} none bind,ro,create=dir 0 0"), *words]


def halt(container: Any, spec: Spec) -> int | None:
    """The signal that ends an init of the app's own, None for LXC's: as it was started, the *spec* may be newer."""
    command, answer = (container.get_running_config_item(key) for key in ("lxc.init.cmd", "lxc.signal.halt"))
    if not command or not answer:
        return spec.halt  # its monitor was killed
    return int(answer) if command == START else None


START = "/bin/sh /run/dre-command"
STATUS = "run/dre-status none bind,create=file 0 0"
BINDS = "binds"  # where dre.idmap mounts what an unprivileged app shall see of the host


def sources(spec: Spec, home: Path, log: Path) -> dict[str, str]:
    """Files and directories of the host that the app sees, by the names they have below BINDS."""
    found = {"command": f"{home}/command", "output": str(log)}
    if spec.halt is None:
        found[parting.PLACE] = f"{home}/{parting.PLACE}"
    if spec.restart != "no":
        found["status"] = f"{home}/status"
    return found | {str(number): item.source for number, item in enumerate(spec.binds)}


def plan(spec: Spec, home: Path, log: Path) -> str:
    """What dre.idmap is to mount for an unprivileged app. What the host shares by --bind need not be mappable."""
    # Read-only from outside: what LXC makes so inside, root of the app may make writable again.
    fixed = {"command", parting.PLACE, *(str(number) for number, item in enumerate(spec.binds) if item.read_only)}
    binds = {name: [source, not name.isdigit(), name in fixed] for name, source in sources(spec, home, log).items()}
    return json.dumps({"ids": spec.ids, "binds": binds}) + "\n"


def _mapper(spec: Spec, home: Path) -> str:
    """The words that the hook is given for an unprivileged app: the program that mounts instead of it."""
    module = Path(__file__).with_name("idmap.py")
    return f" /usr/bin/python3 -IS {shlex.quote(str(module))} {shlex.quote(str(home))}" if spec.unprivileged else ""


def _ids(spec: Spec) -> list[tuple[str, str]]:
    if not spec.unprivileged:
        # Root of the host with CAP_SYS_ADMIN mounts the host's disk, or makes /proc/sys writable; and it reads logs.
        return [("lxc.cap.drop", "sys_admin syslog")]
    if spec.ids is None:
        raise DreError(f"{spec.name}: is to be unprivileged, but has no ids")
    return [("lxc.idmap", f"{kind} 0 {spec.ids[0]} {spec.ids[1]}") for kind in "ug"]


def init_copy(conf: Conf) -> Path:
    """A copy of LXC's init alone in a directory, made when it is not there. Another version gets another directory:
    processes of running apps, and of saved ones, are of the one they were started with.
    """
    status = Path(INIT).stat()
    place = conf.core_state_dir / "app/init" / f"{status.st_size}-{status.st_mtime_ns}"
    if not (place / "init").exists():
        place.mkdir(parents=True, exist_ok=True)
        files.write_atomic(place / "init", Path(INIT).read_bytes(), 0o755)
    return place / "init"


def _inside(spec: Spec) -> str:
    return "/run/dre-init" if spec.unprivileged else "/run/dre-init/init"


def _init(conf: Conf, spec: Spec) -> str:
    """The mount of LXC's init, which unmounts its own file; CRIU could not save that, so it is in a directory.

    What CRIU cannot save anyway has the file itself.
    """
    if spec.unprivileged:
        return f"{INIT} run/dre-init none bind,ro,create=file 0 0"
    return f"{escape(str(init_copy(conf).parent))} run/dre-init none bind,ro,create=dir 0 0"


def _confinement() -> list[tuple[str, str]]:
    """What to say of AppArmor: nothing where the kernel has none (CRIU wants that) or LXC's profile is loaded.

    Where the kernel has it but nobody loaded the profile, as without the package apparmor, LXC would not start.
    """
    try:
        enabled = APPARMOR.read_text().startswith("Y")
    except OSError:
        return []
    with contextlib.suppress(OSError):
        if f"{PROFILE} (" in APPARMOR_PROFILES.read_text():
            return []
    return [("lxc.apparmor.profile", "unconfined")] if enabled else []


def _network(conf: Conf, spec: Spec) -> list[tuple[str, str]]:
    end = link(conf, spec)
    if end is None:
        return [("lxc.net.0.type", "empty")]
    # LXC calls it before it sets the app's end up: not one packet gets out, with lxc-start by hand neither.
    cut = [("lxc.net.0.script.up", f"{share()}/isolate")] if spec.isolated else []
    fixed = [("lxc.net.0.ipv4.address", str(spec.ip)), ("lxc.net.0.ipv4.gateway", str(conf.bridge_address.ip))]
    return [
        ("lxc.net.0.type", "veth"),
        ("lxc.net.0.link", conf.bridge_if),
        ("lxc.net.0.flags", "up"),
        ("lxc.net.0.name", "eth0"),
        ("lxc.net.0.veth.pair", end),
        ("lxc.net.0.hwaddr", mac(spec)),
        *cut,
        *([] if spec.ip == DHCP else fixed),
    ]


def script(spec: Spec) -> str:
    """The shell script that becomes the app's program: no argument can be lost or become code on this way."""
    begin = "exec >>/run/dre-output 2>&1\n"
    words = " ".join(map(shlex.quote, spec.command or IDLE))
    if (spec.restart == "no" and spec.sshd_port is None) or spec.halt is not None:
        return f"{begin}exec {words}\n"
    # The shell stays to tell how the program ended. Of the signals of a stop it only waits for the program's end.
    before, after = ("", "") if spec.sshd_port is None else (sshd.script(spec), sshd.AFTER)
    told = "" if spec.restart == "no" else "echo $status >/run/dre-status\n"
    return f"{begin}{before}trap : HUP INT QUIT TERM\n{words}\nstatus=$?\n{after}{told}exit $status\n"


def escape(path: str) -> str:
    """A path as fstab(5) wants it."""
    return re.sub(r"[\s\\#]", lambda match: f"\\{ord(match[0]):03o}", path)


def hide(conf: Conf, delta: Path) -> None:
    """Put into *delta* what hides the host's own data from an app with the host as base. May be repeated.

    The delta hides better than mounts would: root inside the app can unmount, but cannot reach below its overlay.
    """
    places = (conf.core_state_dir, conf.core_run_dir, conf.core_etc_dir, conf.core_log_dir, conf.app_lxc_path)
    named: list[str] = [*HIDDEN_DIRS, *map(str, places)]
    # Where one is a symbolic link, what it points to must be hidden as well.
    for path in sorted({*named, *(os.path.realpath(path) for path in named)}):
        if any(str(above) in named for above in Path(path).parents):
            continue  # hidden with the directory that holds it
        hidden = _parents(delta, path)
        if hidden is not None and not os.path.lexists(hidden):
            like(Path(path), hidden)
        if hidden is not None and hidden.is_dir() and not hidden.is_symlink():
            os.setxattr(hidden, "trusted.overlay.opaque", b"y")
    for path in HIDDEN_FILES:
        hidden = _parents(delta, path)
        if hidden is not None and not os.path.lexists(hidden):
            if path in ("/etc/shadow", "/etc/gshadow"):
                hidden.touch(mode=0o600)  # programs expect one; an empty one lets nobody in
            else:
                os.mknod(hidden, 0o20000, 0)  # a whiteout: the kernel's sign for "deleted from the lower layer"


def _parents(delta: Path, path: str) -> Path | None:
    """The place of *path* in the delta, its parent directories made; None when the host has none to hide."""
    parent = Path(path).parent
    if not parent.is_dir() or parent.is_symlink():
        return None
    here = delta
    for part in parent.parts[1:]:
        here /= part
        if os.path.lexists(here) and (here.is_symlink() or not here.is_dir()):
            return None  # of a delta that came from elsewhere: below it nothing of the host is seen
        if not here.is_dir():
            like(Path("/") / here.relative_to(delta), here)
    return here / Path(path).name


def like(original: Path, made: Path) -> None:
    """Make directory *made* with the mode and owner of *original*."""
    made.mkdir()
    with contextlib.suppress(FileNotFoundError):
        status = original.stat()
        os.chown(made, status.st_uid, status.st_gid)
        made.chmod(status.st_mode & 0o7777)
