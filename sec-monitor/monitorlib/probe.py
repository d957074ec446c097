# SPDX-License-Identifier: Apache-2.0
"""Ask a web server, again and again, without waiting for its last answer.

A request that has no answer when it is as old as the limit is slow at that moment; what comes of it later is not
looked at, so that an old request cannot speak for a server that has meanwhile been put right.
"""

import asyncio
import contextlib
import time
import urllib.parse
from collections.abc import Callable

from monitorlib.crossing import Monitor, Sample

IN_FLIGHT = 16  # requests of one monitor that may wait at once
GIVE_UP = 3.0  # seconds until a request is abandoned
MOST = 1024 * 1024  # octets of an answer that are read


async def watch(monitor: Monitor, report: Callable[[Sample], None]) -> None:
    """Send a request every `monitor.every` seconds until cancelled; *report* gets one sample for each."""
    flying: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    try:
        while True:
            if len(flying) < IN_FLIGHT:  # else those that wait say already that it is slow
                task = asyncio.create_task(_one(monitor, report))
                flying.add(task)
                task.add_done_callback(flying.discard)
            due = max(due + monitor.every, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
    finally:
        for task in list(flying):
            task.cancel()


async def _one(monitor: Monitor, report: Callable[[Sample], None]) -> None:
    begun = time.monotonic()
    asked = asyncio.create_task(_get(monitor.url or ""))
    try:
        done, _ = await asyncio.wait([asked], timeout=GIVE_UP if monitor.below else monitor.bound)
        age = time.monotonic() - begun
        if not done:
            report(Sample(age, "no answer"))
            await asyncio.wait([asked], timeout=GIVE_UP - age)  # its connection still counts as one in flight
        else:
            report(Sample(age, asked.result()))
    finally:
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked


async def _get(url: str) -> str:
    """Ask for *url* and read the whole answer; why it is bad, or nothing."""
    parts = urllib.parse.urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc
    writer = None
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
        # HTTP/1.0: the answer ends with the connection, so nothing of it needs to be understood.
        writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: dre-watch\r\n\r\n".encode("ascii"))
        first = await reader.readline()
        size = 0
        while size < MOST and (block := await reader.read(65536)):
            size += len(block)
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error or "no connection")[:80]
    finally:
        if writer:
            writer.transport.abort()
    words = first.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return "not HTTP"
    return "" if 200 <= int(words[1]) < 400 else f"status {int(words[1])}"
