# SPDX-License-Identifier: Apache-2.0
"""What D-RE keeps of a system beside libvirt's definition of it, and the properties that create and set take.

Memory, processors, limits, disks and links are libvirt's to keep: read and changed there alone, so that virsh and
virt-manager agree with us.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dre import properties, units
from dre.errors import UsageError
from dre.properties import NOW, REFUSED, Property, hook, yes
from dre.spec import interval, kept, names


@dataclass(frozen=True)
class Spec:
    """What system.json holds. *base* is the name or the path of the image; *ip* has its length, or is DHCP."""

    name: str
    base: str
    created: str
    mac: str
    ip: str | None = None  # None: no network
    ssh_keys: tuple[str, ...] = ()  # lines of authorized_keys for root
    request: str | None = None
    isolated: bool = False
    net: int | None = None  # octets per second, each way
    autostart: bool = False
    after: tuple[str, ...] = ()  # systems that are to run before it
    snapshot_every: float | None = None  # seconds
    snapshot_keep: int = 4
    cloud: bool = False  # it is told who it is by a seed of cloud-init
    disk_size: int | None = None  # bytes that its first disk was made or grown to; None: as its image
    dedicated: tuple[int, ...] = ()  # processors of the host that are its alone
    warm: str | None = None  # the warm state that its first start goes on from
    fresh: bool = False  # a clone that has not been started: its ssh host keys are still another's

    def to_json(self) -> str:
        """The text of system.json."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The Spec of a system.json; raises ValueError, KeyError or TypeError when it is not one."""
        data: dict[str, Any] = json.loads(text)
        for key in ("ssh_keys", "after", "dedicated"):
            data[key] = tuple(data.get(key, ()))
        return cls(**data)


def disk_size(text: str) -> int:
    """Bytes of a disk. Raises UsageError."""
    size = units.size(text)
    if size < 1 << 20:
        raise UsageError(f"disk-size {text!r}: expected a size of 1M or more")
    return -(-size // 512) * 512  # whole sectors


# The key is the option without its dashes; with `_` for `-` it is the field of Spec.
PROPERTIES: dict[str, Property] = {
    "ip": Property(
        "ADDR/LEN|dhcp|none",
        "its address (default: the next free one)",
        lambda word: None if word == "none" else str(word),
        show=lambda value: [value or "none"],
        live=REFUSED,
        check="dre.system.address:check",
    ),
    "ssh-key": Property(
        "FILE",
        "public keys that may log in as root (default: root's of the host)",
        lambda words: hook("dre.system.identity:keys")(words),
        many=True,
        live=REFUSED,
    ),
    "disk-size": Property("SIZE", "grow its first disk to SIZE", disk_size, check="dre.system.growing:check", live=NOW),
    "autostart": Property("", "start it with the host", yes, flag=True, live=NOW),
    "after": Property(
        "SYSTEM[,SYSTEM...]", "start these before it", names, many=True, check="dre.system.order:check", live=NOW
    ),
    "snapshot-every": Property(
        "DURATION|none",
        "save it that often: a checkpoint while it runs, else a snapshot",
        interval,
        show=lambda value: [f"{value:g}s" if value else "none"],
        live=NOW,
    ),
    "snapshot-keep": Property("N", "how many of these stay (default: 4)", kept, live=NOW),
}


def field_of(key: str) -> str:
    """The field of Spec that holds property *key*."""
    return "ssh_keys" if key == "ssh-key" else key.replace("-", "_")


def add_options(verb: argparse.ArgumentParser) -> None:
    """Add an option for each property."""
    properties.add_options(verb, PROPERTIES)


def from_options(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of Spec that options set. Raises UsageError."""
    return properties.from_options(args, PROPERTIES, field_of)


def from_words(words: Sequence[str]) -> dict[str, Any]:
    """The fields of Spec that `key=value` words set. Raises UsageError."""
    return properties.from_words(words, PROPERTIES, field_of)
