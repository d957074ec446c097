# SPDX-License-Identifier: Apache-2.0
"""The way to libvirt: one connection per process, and its errors as ours. Knows no systems."""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dre.conf import Conf
from dre.errors import DreError, MissingError, NotFoundError, NotPermittedError, TimedOutError

# Messages of libvirt and of a guest's agent may hold what a guest chose; one line of them is shown.
_LONGEST = 400


def connect(conf: Conf, read_only: bool = False) -> Any:
    """The connection to DRE_SYS_URI. Raises MissingError, with the command to type, when no libvirt answers.

    *read_only* it needs no privilege, and nothing can be changed by it.
    """
    return _connected(conf.sys_uri, read_only, os.getpid())  # a forked child must not use its parent's


def disconnect() -> None:
    """Let go of the connection; who asks for it again gets another one, if he still may."""
    _connected.cache_clear()  # it closes with the last that belongs to it


@functools.lru_cache(maxsize=1)
def _connected(uri: str, read_only: bool, _process: int) -> Any:
    try:
        import libvirt
    except ImportError:
        raise MissingError("python3-libvirt is not installed; apt-get install python3-libvirt") from None
    libvirt.registerErrorHandler(lambda *_: None, None)  # it would print what we raise
    try:
        return libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise MissingError(f"no libvirt answers at {uri}: {_line(error)}; {remedy()}") from None


def remedy() -> str:
    """The command to type where libvirt does not answer."""
    if Path("/run/systemd/system").is_dir():
        if Path("/lib/systemd/system/libvirtd.socket").exists():
            return "try: systemctl start libvirtd.socket"
        return "apt-get install libvirt-daemon-system"  # what python3-libvirt recommends is a libvirtd without units
    if Path("/etc/init.d/libvirtd").exists():
        return "try: service virtlogd start; service libvirtd start"
    if Path("/usr/sbin/libvirtd").exists():
        return "try: virtlogd -d; libvirtd -d"
    return "apt-get install libvirt-daemon-system"


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of libvirt within as ours, each with *what* before it."""
    import libvirt

    try:
        yield
    except libvirt.libvirtError as error:
        raise _kind(error)(f"{what}: {_line(error)}") from None


def _kind(error: Any) -> type[DreError]:
    import libvirt

    kinds: dict[int, type[DreError]] = {
        libvirt.VIR_ERR_NO_DOMAIN: NotFoundError,
        libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT: NotFoundError,
        libvirt.VIR_ERR_OPERATION_TIMEOUT: TimedOutError,
        libvirt.VIR_ERR_AGENT_UNRESPONSIVE: MissingError,
        libvirt.VIR_ERR_AUTH_FAILED: NotPermittedError,
        libvirt.VIR_ERR_ACCESS_DENIED: NotPermittedError,
        libvirt.VIR_ERR_OPERATION_DENIED: NotPermittedError,
        libvirt.VIR_ERR_NO_SUPPORT: MissingError,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED: MissingError,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: MissingError,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED: MissingError,
    }
    return kinds.get(error.get_error_code(), DreError)


def code(error: Any) -> int:
    """The number of an error of libvirt, VIR_ERR_*."""
    return int(error.get_error_code())


def _line(error: Any) -> str:
    return plain((error.get_error_message() or str(error)).strip().splitlines()[-1])


def plain(text: str) -> str:
    """*text* as one line without what would command a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)[:_LONGEST]
