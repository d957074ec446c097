# SPDX-License-Identifier: Apache-2.0
"""The keyboard of a running system: keys that are pressed for it, and what its guest has taken of them."""

import re
from collections.abc import Sequence
from typing import Any

from dre.errors import MissingError, UsageError
from dre.system import hypervisor
from dre.system.transit import asked

MOST = 16  # keys at a time, VIR_DOMAIN_SEND_KEY_MAX_KEYS
KEYBOARD, MOUSE = 1, 12  # interrupts of a PC's PS/2 controller

# Names of keys by their numbers, from 1 on; those of linux/input-event-codes.h, without KEY_.
_FIRST = (
    "esc 1 2 3 4 5 6 7 8 9 0 minus equal backspace tab q w e r t y u i o p leftbrace rightbrace enter leftctrl"
    " a s d f g h j k l semicolon apostrophe grave leftshift backslash z x c v b n m comma dot slash rightshift"
    " kpasterisk leftalt space capslock f1 f2 f3 f4 f5 f6 f7 f8 f9 f10 numlock scrolllock"
)
KEYS = {name: number for number, name in enumerate(_FIRST.split(), 1)}
KEYS |= {"102nd": 86, "f11": 87, "f12": 88, "rightctrl": 97, "sysrq": 99, "rightalt": 100, "home": 102, "up": 103}
KEYS |= {"pageup": 104, "left": 105, "right": 106, "end": 107, "down": 108, "pagedown": 109, "insert": 110}
KEYS |= {"delete": 111, "leftmeta": 125, "rightmeta": 126, "menu": 127}
KEYS |= {"ctrl": KEYS["leftctrl"], "shift": KEYS["leftshift"], "alt": KEYS["leftalt"], "meta": KEYS["leftmeta"]}


def chords(text: str) -> list[list[int]]:
    """The numbers of keys that *text* names: `ctrl+alt+f2 r o o t enter`. Raises UsageError."""
    found = []
    for word in text.split():
        names = word.lower().split("+")
        unknown = [name for name in names if name not in KEYS]
        if unknown:
            raise UsageError(f"{unknown[0]!r}: no key has this name, such as a, 1, enter, space or ctrl in ctrl+c")
        if len(names) > MOST:
            raise UsageError(f"{word[:40]!r}: more than {MOST} keys at a time")
        found.append([KEYS[name] for name in names])
    return found


class Keyboard:
    """That of the system *name*, libvirt's *domain*."""

    def __init__(self, name: str, domain: Any) -> None:
        self._name, self._domain = name, domain

    def press(self, keys: Sequence[int], hold: int = 1) -> None:
        """Press *keys* one after another, then let go of them in reverse order, each *hold* milliseconds apart.

        QEMU has all of them when this returns, so that nothing that happens to us leaves a part undone.
        """
        import libvirt

        with hypervisor.translated(self._name):
            self._domain.sendKey(libvirt.VIR_KEYCODE_SET_LINUX, hold, list(keys), len(keys), 0)

    def interrupts(self) -> dict[int, int]:
        """How often its interrupts have been raised, by their number; raises MissingError where QEMU does not tell.

        That of the keyboard is raised for each octet that a PS/2 keyboard hands to the guest, two or more a key.
        """
        text = asked(self._domain, "human-monitor-command", {"command-line": "info irq"})
        if not isinstance(text, str):
            raise MissingError(f"{self._name}: QEMU does not tell what its keyboard does")
        return counted(text)


def counted(text: str) -> dict[int, int]:
    """The counts in QEMU's `info irq`: of the interrupts' controllers each, of which the I/O APIC numbers all lines."""
    found: dict[int, int] = {}
    ours = False
    for line in text.splitlines():
        if line.startswith("IRQ statistics for "):
            ours = "ioapic" in line
        elif ours and (told := re.fullmatch(r"\s*(\d{1,4}): (\d{1,20})\s*", line, re.ASCII)):
            found[int(told[1])] = int(told[2])
    return found
