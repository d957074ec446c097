# SPDX-License-Identifier: Apache-2.0
"""The load: requests sent by a fixed schedule, whatever becomes of the earlier ones (an open loop).

Each request becomes one JSON line: n, kind, due, sent, done, status, release, order, error. Times are seconds since
the epoch. A request that has no complete answer within ANSWER_WITHIN seconds has failed and its status is null.
SIGTERM ends the schedule; what is under way is still awaited. It judges nothing: that is demolib.answers.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
import urllib.parse
from collections.abc import Sequence
from typing import IO, Any

ANSWER_WITHIN = 10.0
ANSWER_LIMIT = 1 << 20  # octets
KINDS = {"catalogue": 40, "cd": 35, "search": 15, "order": 10}  # in percent
CDS, CUSTOMERS, PAGES = 400, 800, 16
WORDS = ("Quiet", "River", "Golden", "Harbour", "Winter", "Signal")


def request(kind: str, chance: random.Random, host: str) -> bytes:
    """The octets of one request of *kind*."""
    number = chance.randint(1, CDS)
    path = {
        "catalogue": f"/?page={chance.randint(1, PAGES)}",
        "cd": f"/cd/{number}",
        "search": f"/search?q={chance.choice(WORDS)}",
        "order": "/order",
    }[kind]
    head = f"Host: {host}\r\nUser-Agent: demo-load\r\nConnection: close\r\n"
    if kind != "order":
        return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()
    form = f"cd={number}&customer={chance.randint(1, CUSTOMERS)}&quantity={chance.randint(1, 3)}"
    head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n"
    return f"POST {path} HTTP/1.1\r\n{head}\r\n{form}".encode()


def understand(octets: bytes) -> dict[str, Any]:
    """Status, release and order number of a complete answer. Raises ValueError when it is not one."""
    head, separator, body = octets.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    protocol, status, *_ = first.split(" ")
    if not separator or not protocol.startswith("HTTP/"):
        raise ValueError("not an HTTP answer")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if len(body) != int(headers.get("content-length", len(body))):
        raise ValueError("the answer broke off")
    placed = headers.get("location", "").rpartition("/order/")[2] if int(status) == 201 else ""
    return {"status": int(status), "release": headers.get("x-release"), "order": int(placed) if placed else None}


async def ask(host: str, port: int, octets: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection(host, port, limit=ANSWER_LIMIT)
    try:
        writer.write(octets)
        return understand(await reader.read(-1))
    finally:
        writer.close()


async def one(entry: dict[str, Any], host: str, port: int, octets: bytes, log: IO[str]) -> None:
    """Send one request and log it, whatever happens to it."""
    entry.update(sent=time.time(), done=None, status=None, release=None, order=None, error=None)
    try:
        entry.update(await asyncio.wait_for(ask(host, port, octets), ANSWER_WITHIN))
    except (TimeoutError, OSError, ValueError) as error:
        entry["error"] = str(error) or f"no answer within {ANSWER_WITHIN:g} s"
    entry["done"] = time.time()
    log.write(json.dumps(entry) + "\n")


async def drive(url: str, rate: float, seconds: float, log: IO[str]) -> int:
    """Send *rate* requests per minute for *seconds* or until SIGTERM; return how many."""
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or 80
    chance, tasks = random.Random(2500), set()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    start = time.time()
    count = 0
    while count * 60 / rate < seconds:
        due = start + count * 60 / rate
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), max(0.0, due - time.time()))
        if stop.is_set():
            break
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        entry = {"n": count, "kind": kind, "due": due}
        task = asyncio.create_task(one(entry, host, port, request(kind, chance, host), log))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        count += 1
    if tasks:
        await asyncio.wait(tasks)
    return count


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="load", description=sys.modules[__name__].__doc__.split("\n")[0])
    parser.add_argument("url", help="the shop, such as http://10.231.77.11")
    parser.add_argument("--rate", type=float, default=2500, help="requests per minute (default 2500)")
    parser.add_argument("--seconds", type=float, default=60, help="how long to send (default 60)")
    args = parser.parse_args(argv)
    sys.stdout.reconfigure(line_buffering=True)
    asyncio.run(drive(args.url, args.rate, args.seconds, sys.stdout))
    return 0
