# SPDX-License-Identifier: Apache-2.0
"""The files by which an app knows its own name and whom to ask for others: resolv.conf, hosts and hostname in its /etc.

They are put into the delta of the app while it is stopped, at its create and at each start. A file that the app has
changed, or replaced, is the app's and stays as it is: ours are known by an attribute with the digest of what we wrote.
Names on the bridge are dre.dnsmasq's.
"""

import contextlib
import ipaddress
import os
import stat
from pathlib import Path

from dre import lxcconfig, network
from dre.app import App
from dre.conf import Conf
from dre.spec import DHCP, Spec

MARK = "user.dre.made"
# What the host asks. systemd-resolved has itself in the first, at an address that is the host's alone.
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def write(app: App, spec: Spec) -> None:
    """Bring the files of the stopped app up to date."""
    texts = wanted(app.conf, spec)
    etc = _etc(app) if texts else None
    if etc is None:
        return
    try:
        for name, text in texts.items():
            found = _ours(etc, name)
            if found is not None and found != text.encode():
                _replace(etc, name, text.encode())
    finally:
        os.close(etc)


def wanted(conf: Conf, spec: Spec) -> dict[str, str]:
    """What the files should hold. On the host as base only resolv.conf: the other two are the host's, as all else."""
    texts = {}
    if spec.ip is not None:
        texts["resolv.conf"] = resolv_conf(conf)
    if spec.base != "host":
        own = str(spec.ip).partition("/")[0] if spec.ip not in (None, DHCP) else "127.0.1.1"
        full = f"{spec.name}.{conf.bridge_domain} {spec.name}"
        texts["hosts"] = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own} {full}\n"
        texts["hostname"] = f"{spec.name}\n"
    return {name: text for name, text in texts.items() if text}


def resolv_conf(conf: Conf) -> str:
    """The bridge as name server where it is one, else those of the host that an app can reach; empty without any."""
    ours = network.nameserver(conf)
    if ours is not None:
        return f"search {conf.bridge_domain}\nnameserver {ours}\n"
    for path in RESOLVERS:
        try:
            words = [line.split() for line in path.read_text(errors="replace").splitlines()]
        except OSError:
            continue
        servers = [word[1] for word in words if len(word) > 1 and word[0] == "nameserver" and _reachable(word[1])]
        if servers:
            search = [" ".join(word) for word in words if word and word[0] in ("search", "domain")]
            return "".join(f"{line}\n" for line in (*search[-1:], *(f"nameserver {server}" for server in servers)))
    return ""


def _reachable(server: str) -> bool:
    """Whether an app can ask this one: it has but IPv4, and a loopback of its own."""
    with contextlib.suppress(ValueError):
        return not ipaddress.IPv4Address(server).is_loopback
    return False


def _etc(app: App) -> int | None:
    """The directory etc of the delta, made like that of the base if there is none; None where it is no directory."""
    place, base = app.delta / "etc", app.directory / "lower/etc"
    if not os.path.lexists(place):
        if base.is_symlink() or not base.is_dir():
            return None
        lxcconfig.like(base, place)
    try:
        # Whatever the app has made of it: not through a link.
        return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None


def _ours(etc: int, name: str) -> bytes | None:
    """What the file holds if it is ours to replace, empty when the delta has none; None when it is the app's."""
    try:
        # Looked at before it is opened: it may be a device, and no process of the app can change it meanwhile.
        found = os.stat(name, dir_fd=etc, follow_symlinks=False)
    except FileNotFoundError:
        return b""
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
        return b""  # the kernel's sign for "deleted": the app did without, and is given one all the same
    if not stat.S_ISREG(found.st_mode):
        return None
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=etc)
    with open(fd, "rb") as stream:
        octets = stream.read(1 << 16)
        with contextlib.suppress(OSError):
            if os.getxattr(fd, MARK) == _digest(octets):
                return octets
    return None


def _replace(etc: int, name: str, octets: bytes) -> None:
    temporary = f".{name}.dre"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=etc)  # of a start that was killed
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644, dir_fd=etc)
    with open(fd, "wb") as stream:
        os.fchmod(fd, 0o644)
        stream.write(octets)
        stream.flush()
        with contextlib.suppress(OSError):  # a file system without attributes: then it is the app's from now on
            os.setxattr(fd, MARK, _digest(octets))
    os.rename(temporary, name, src_dir_fd=etc, dst_dir_fd=etc)


def _digest(octets: bytes) -> bytes:
    import hashlib  # slow to load, and only for a start

    return hashlib.sha256(octets).hexdigest().encode()
