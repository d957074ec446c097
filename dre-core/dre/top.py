# SPDX-License-Identifier: Apache-2.0
"""The table of `dre-app top`: on a terminal, renewed, sorted as keys ask. What it shows comes from dre.stat.

Plain escape sequences that every terminal of the last decades knows, so that it works over ssh and needs no terminfo.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dre.errors import UsageError

KEYS = {"c": "cpu", "m": "memory", "p": "pids", "n": "name"}
ENTER, LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"  # another screen without a cursor; the old one again
HOME, REST_OF_LINE, REST_OF_SCREEN = "\033[H", "\033[K", "\033[J"
REVERSE, PLAIN = "\033[7m", "\033[0m"

Column = tuple[str, int, Callable[[dict[str, Any]], str]]


def size(octets: float | None) -> str:
    """A number of octets in four or five characters; `-` when it is not known."""
    if octets is None:
        return "-"
    for unit in ("", "K", "M", "G"):
        if octets < 1000:
            return f"{octets:.0f}{unit}" if not unit or octets >= 100 else f"{octets:.1f}{unit}"
        octets /= 1024
    return f"{octets:.1f}T"


def _number(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: "-" if row[key] is None else f"{row[key]:.1f}" if isinstance(row[key], float) else str(row[key])


def _size(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: size(row[key])


def _pressure(kind: str) -> Callable[[dict[str, Any]], str]:
    def shown(row: dict[str, Any]) -> str:
        felt = (row["pressure"] or {}).get(kind, {}).get("some")
        return "-" if felt is None else f"{felt:.1f}"

    return shown


COLUMNS: tuple[Column, ...] = (
    ("CPU%", 6, _number("cpu")),
    ("MEMORY", 7, _size("memory")),
    ("LIMIT", 6, _size("memory_limit")),
    ("PIDS", 5, _number("pids")),
    ("READ/S", 7, _size("io_read")),
    ("WRITE/S", 7, _size("io_write")),
    ("RX/S", 6, _size("net_rx")),
    ("TX/S", 6, _size("net_tx")),
    ("HELD%", 6, _number("throttled")),
    ("OOM", 4, _number("oom_kills")),
    ("CPU-P", 5, _pressure("cpu")),
    ("MEM-P", 5, _pressure("memory")),
    ("IO-P", 5, _pressure("io")),
)


def ordered(rows: Sequence[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """*rows* by name, or with the largest of *by* first."""
    if by == "name":
        return list(rows)
    return sorted(rows, key=lambda row: (-(row[by] or 0), row["name"]))


def frame(rows: Sequence[dict[str, Any]], by: str, width: int, height: int) -> list[str]:
    """The lines to show on a screen of that size; the second is the header."""
    running = sum(row["state"] == "running" for row in rows)
    cpu = sum(row["cpu"] or 0 for row in rows)
    memory = sum(row["memory"] or 0 for row in rows)
    total = f"{len(rows)} apps, {running} running  cpu {cpu:.1f} %  memory {size(memory)}"
    first = f"{time.strftime('%H:%M:%S')}  {total}  sorted by {by}; keys: c m p n, q ends"
    head = f"{'NAME':<16} {'STATE':<8} " + " ".join(f"{title:>{wide}}" for title, wide, _ in COLUMNS)
    lines = [first, head]
    for row in ordered(rows, by)[: max(height - 2, 0)]:
        cells = " ".join(f"{text(row):>{wide}}" for _, wide, text in COLUMNS)
        lines.append(f"{row['name']:<16} {row['state']:<8} {cells}")
    return [line[:width] for line in lines[:height]]


def show(look: Callable[[], Sequence[dict[str, Any]]], interval: float) -> None:
    """Show what *look* gives every *interval* seconds until `q`. Raises UsageError where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal; `stat --interval S` prints the same")
    by = "cpu"
    with _screen() as keyboard:
        rows, due = look(), time.monotonic() + interval
        while True:
            _draw(frame(rows, by, *shutil.get_terminal_size()))
            if select.select([keyboard], [], [], max(due - time.monotonic(), 0))[0]:
                for key in os.read(keyboard, 64).decode(errors="replace") or "q":  # nothing: the terminal is gone
                    if key in "qQ":
                        return
                    by = KEYS.get(key.lower(), by)
            else:
                rows, due = look(), max(due + interval, time.monotonic())


def _draw(lines: Sequence[str]) -> None:
    shown = [f"{REVERSE}{line}{PLAIN}" if number == 1 else line for number, line in enumerate(lines)]
    sys.stdout.write(HOME + "\r\n".join(line + REST_OF_LINE for line in shown) + REST_OF_SCREEN)
    sys.stdout.flush()


@contextlib.contextmanager
def _screen() -> Iterator[int]:
    """The terminal as a screen with single keys; gives the descriptor of its keyboard. As before afterwards."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setcbreak(keyboard)
        sys.stdout.write(ENTER)
        yield keyboard
    finally:
        with contextlib.suppress(OSError):  # it may be gone
            sys.stdout.write(LEAVE)
            sys.stdout.flush()
        with contextlib.suppress(termios.error):
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    sys.exit(128 + number)
