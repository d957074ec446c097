# SPDX-License-Identifier: Apache-2.0
"""libdaware for programs in Python: the same calls under the same names, see libdaware(3). Failures raise OSError.

Calls after a signal come in a thread of the library's, or with `open(loop=True)` from dispatch().
"""

import ctypes
import errno
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

EMERG, ALERT, CRIT, ERR, WARNING, NOTICE, INFO, DEBUG = range(8)

_library = ctypes.CDLL("libdaware.so.0")
_library.daware_version.restype = ctypes.c_char_p
_Signal = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
_Save = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
_Reload = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_kept: list[Any] = []  # what C may call


def _done(result: int) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def open(ident: str | None = None, loop: bool = False) -> None:
    """Begin; *ident* names the program in the log."""
    name = ident if ident is not None else sys.argv[0].rpartition("/")[2] or "python3"
    _done(_library.daware_open(name.encode(), ctypes.c_uint(loop)))


def close() -> None:
    """Put the signals back to what they were, and end."""
    _library.daware_close()
    _kept.clear()


def version() -> str:
    """The version of the library."""
    return str(_library.daware_version().decode())


def log(priority: int, event: str, message: str, **pairs: object) -> None:
    """One record to the log, with keys and values."""
    words = [text.encode(errors="surrogateescape") for pair in pairs.items() for text in map(str, pair)]
    array = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    text = message.encode(errors="surrogateescape").replace(b"\0", b"#000")
    _done(_library.daware_log_pairs(priority, event.encode(), text, array))


def dropped() -> int:
    """How many records the log did not take so far."""
    count = ctypes.c_uint64()
    _done(_library.daware_dropped(ctypes.byref(count)))
    return count.value


def on_signal(number: int, call: Callable[[int, int], object] | None) -> None:
    """Have *call* called with the number and the sender after signal *number*; None takes it back."""
    made = _Signal(0)
    if call is not None:
        wanted = call
        made = _Signal(lambda number, sender, _: _said(wanted, number, sender) and None)
    _done(_library.daware_on_signal(number, made, None))
    _kept.append(made)


def on_save(priority: int, call: Callable[[int, int], object]) -> None:
    """Have *call* called with the signal and the milliseconds left, before the program ends; it may raise OSError."""
    made = _Save(lambda number, left, _: _said(call, number, left))
    _done(_library.daware_on_save(priority, made, None))
    _kept.append(made)


def on_reload(call: Callable[[], object]) -> None:
    """Have *call* called after SIGHUP."""
    made = _Reload(lambda _: _said(call) and None)
    _done(_library.daware_on_reload(made, None))
    _kept.append(made)


def _said(call: Callable[..., object], *words: int) -> int:
    """0, or the negative errno of what *call* raised."""
    try:
        call(*words)
    except OSError as error:
        return -(error.errno or errno.EIO)
    except Exception:
        traceback.print_exc()
        return -errno.ECANCELED
    return 0


def ready() -> None:
    """Tell the service manager that the service is ready."""
    _done(_library.daware_ready())


def status(text: str) -> None:
    """Tell it what the service does."""
    _done(_library.daware_status(b"%s", text.encode()))


def heartbeat() -> None:
    """Tell it that the service lives."""
    _done(_library.daware_heartbeat())


def fd() -> int:
    """With a loop: readable when dispatch() has something to do."""
    found = ctypes.c_int()
    _done(_library.daware_fd(ctypes.byref(found)))
    return found.value


def dispatch(most: int = 64) -> int:
    """Make up to *most* calls; how many were made."""
    return _done(_library.daware_dispatch(most))


def save_file(path: str | os.PathLike[str], octets: bytes) -> None:
    """Write a file so that after a crash it has either its old contents or these."""
    _done(_library.daware_save_file(os.fsencode(path), octets, ctypes.c_size_t(len(octets))))


def pid_outside(inner: int, reference: int) -> int:
    """The number here of process *inner* of the PID namespace of process *reference*."""
    return _pid(_library.daware_pid_outside, inner, reference)


def pid_inside(outer: int, reference: int) -> int:
    """The number of process *outer* in the PID namespace of process *reference*."""
    return _pid(_library.daware_pid_inside, outer, reference)


def _pid(translate: Any, process: int, reference: int) -> int:
    found = ctypes.c_int()
    _done(translate(process, reference, ctypes.byref(found)))
    return found.value


def terminate(outer: int, milliseconds: int) -> bool:
    """SIGTERM, and SIGKILL where it has not ended after *milliseconds*; whether it had to be killed."""
    how = ctypes.c_int()
    _done(_library.daware_terminate(outer, milliseconds, ctypes.byref(how)))
    return how.value != 0
