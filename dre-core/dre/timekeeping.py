# SPDX-License-Identifier: Apache-2.0
"""What the kernel has been told of its clock by who sets it: adjtimex(2), asked without changing anything."""

import ctypes
import os
from dataclasses import dataclass

_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint),
        *((name, ctypes.c_long) for name in ("offset", "freq", "maxerror", "esterror")),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),  # more than there is
    )


@dataclass(frozen=True)
class Told:
    """Whether somebody keeps the clock right, and by how many seconds it may be off: as estimated, and at most."""

    kept: bool
    estimate: float
    most: float


def told() -> Told:
    """What is known now. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = _Timex()
    state = libc.adjtimex(ctypes.byref(found))
    if state < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"adjtimex: {os.strerror(number)}")
    return Told(state != _TIME_ERROR, found.esterror / 1e6, found.maxerror / 1e6)
