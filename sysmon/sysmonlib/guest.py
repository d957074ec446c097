# SPDX-License-Identifier: Apache-2.0
"""A running system as what can be looked into: from its name to its memory."""

import ctypes
import os
import pwd
from xml.etree import ElementTree

from dre import privilege
from dre.conf import Conf
from dre.errors import MissingError, NotPermittedError
from dre.system import hypervisor, model
from dre.system.model import System

from sysmonlib.memory import Layout, Memory, attach

_SET_PDEATHSIG, _GET_PDEATHSIG, _NO_NEW_PRIVS = 1, 2, 38  # linux/prctl.h
_UNITS = {"b": 1, "bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def memory(conf: Conf, name: str) -> Memory:
    """The memory of the system *name*.

    Raises NotFoundError where there is none, MissingError where its memory cannot be read, NotPermittedError.
    """
    domain = System(conf, name).need()
    with hypervisor.translated(name):
        text = domain.XMLDesc(0)
    pid = model.pid(conf, name)
    if pid is None:
        raise MissingError(f"{name}: its memory cannot be read: it does not run on this host")
    try:
        return attach(pid, layout(text))
    except MissingError as error:
        raise MissingError(f"{name}: its memory cannot be read: {error}") from None
    except PermissionError:
        raise NotPermittedError(f"{name}: to read its memory needs root") from None
    except OSError as error:
        raise MissingError(f"{name}: its memory cannot be read: {error.strerror}") from None


def account(name: str) -> pwd.struct_passwd:
    """The user *name*, whom we can become. Raises NotPermittedError, MissingError."""
    return privilege.account(name, "sysmon", "dre-sysmon")


def become(user: pwd.struct_passwd) -> None:
    """Become *user* for good, with what is open: the memory of a guest was made by whoever wants to be believed.

    A signal that was asked for at the parent's end is asked for again: the kernel forgets it then, see prctl(2).
    """
    libc, number, parent = ctypes.CDLL(None, use_errno=True), ctypes.c_int(0), os.getppid()
    libc.prctl(_GET_PDEATHSIG, ctypes.byref(number))
    privilege.become(user.pw_uid, user.pw_gid)
    libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    if number.value:
        libc.prctl(_SET_PDEATHSIG, number.value)
        if os.getppid() != parent:  # it has ended before that
            os._exit(1)


def layout(text: str) -> Layout:
    """How QEMU lays out the memory that the definition *text* of libvirt asks for. Raises MissingError."""
    top = ElementTree.fromstring(text)  # noqa: S314 - libvirt's own, not the guest's
    kind, size = top.find("os/type"), top.find("memory")
    if kind is None or size is None or kind.get("arch") != "x86_64":
        raise MissingError("it is not of the architecture x86_64")
    if top.find("launchSecurity") is not None:
        raise MissingError("it is encrypted (launchSecurity of libvirt)")
    if top.find("maxMemory") is not None:
        raise MissingError("memory may be plugged into it (maxMemory of libvirt), which is not followed")
    return Layout.of(int(size.text or 0) * _UNITS.get(size.get("unit", "KiB"), 1 << 10), kind.get("machine", ""))
