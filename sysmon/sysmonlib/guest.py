# SPDX-License-Identifier: Apache-2.0
"""A running system as what can be looked into: from its name to its memory."""

from xml.etree import ElementTree

from dre.conf import Conf
from dre.errors import MissingError, NotPermittedError
from dre.system import hypervisor, model
from dre.system.model import System

from sysmonlib.memory import Layout, Memory, attach

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
