# SPDX-License-Identifier: Apache-2.0
"""Puts back onto the bridge what running containers have for it, after somebody has made it anew.

Only links that are in no bridge, and only into it: what is set down, as for an isolated container, stays down.
"""

import contextlib
import importlib
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dre import app as apps
from dre import bridge, lxcconfig, mark
from dre.app import App
from dre.conf import Conf
from dre.errors import DreError, NotFoundError
from dre.run import run

DOMAINS = Path("/run/libvirt/qemu")  # a file for each domain that runs


def attach(conf: Conf) -> list[str]:
    """Put them back, and return which. Raises NotFoundError where there is no bridge."""
    name = conf.bridge_if
    if not (mark.NET / name / "bridge").exists():
        raise NotFoundError(f"{name}: no such bridge; dre-bridge up makes it")
    if bridge.foreign(name):
        bridge.up(conf)  # which takes away what was for one of ours
    return again(conf)


def again(conf: Conf) -> list[str]:
    """As `attach`, for a bridge that is there."""
    found = [link for link in (*_of_apps(conf), *_of_systems(conf)) if _loose(link)]
    for link in found:
        done = run(["ip", "link", "set", link, "master", conf.bridge_if], check=False, timeout=10)
        if done.returncode != 0 and _loose(link):  # else its container has just ended
            raise DreError(
                f"{link}: cannot be put into {conf.bridge_if}: {done.stderr.decode(errors='replace').strip()}"
            )
    return found


def _loose(link: str) -> bool:
    return (mark.NET / link).exists() and not (mark.NET / link / "master").is_symlink()


def _of_apps(conf: Conf) -> Iterator[str]:
    for name in apps.names(conf):
        with contextlib.suppress(DreError):  # half made, or half removed
            link = lxcconfig.link(conf, App(conf, name).spec())
            if link is not None:
                yield link


def _of_systems(conf: Conf) -> list[str]:
    # Only where one runs: to ask libvirt is to start it, and what sets up the network at boot must not wait for that.
    if not any(DOMAINS.glob("*.xml")):
        return []
    try:
        library = importlib.import_module("libvirt")
    except ImportError:
        return []
    library.registerErrorHandler(lambda *said: None, None)  # it would print
    try:
        with contextlib.closing(library.openReadOnly(conf.sys_uri)) as host:
            texts = [domain.XMLDesc() for domain in host.listAllDomains(library.VIR_CONNECT_LIST_DOMAINS_ACTIVE)]
    except library.libvirtError:
        return []  # nobody answers, or one has ended just now
    return [link for text in texts for link in taps(text, conf.bridge_if)]


def taps(text: str, name: str) -> list[str]:
    """The host's ends of the interfaces that a running domain, described by *text*, has for bridge *name*."""
    tree: Any = xml.etree.ElementTree.fromstring(text)  # noqa: S314 - libvirt's own, not the guest's
    found = tree.iterfind("devices/interface")
    wanted = [one for one in found if any(source.get("bridge") == name for source in one.iterfind("source"))]
    return [target.get("dev") for one in wanted for target in one.iterfind("target") if target.get("dev")]
