# SPDX-License-Identifier: Apache-2.0
"""The work that goes on under the faults: records into the D-Box, and events to the monitor, by our own commands.

What is noted here was acknowledged: it must be found again at the end. A command that was killed is called again with
the same request id, so that each record is to be there exactly once.
"""

import contextlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable

from demolib.places import CONF

from soaklib import ground

BATCH = 4  # records that travel together
EVERY = {"records": 1.5, "ticks": 2.0}  # seconds
WITHIN = "10s"


class Work:
    """What has been acknowledged so far: records by index, and the numbers of ticks."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.records: dict[int, bytes] = {}
        self.ticks: list[int] = []
        self.unsure: list[bytes] = []  # sent, and never acknowledged
        self.broken: list[str] = []
        self.running: set[int] = set()  # processes at work now, for who kills some
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=("records", self._writer(name)), name=name)
            for name in ground.WRITERS
        ]
        self._threads.append(threading.Thread(target=self._repeat, args=("ticks", self._tick), name="ticks"))
        self._number = 0
        self._until = float("inf")

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self, within: float) -> None:
        """Have what is under way come to its end, for at most *within* seconds."""
        self._until = time.monotonic() + within
        self._ended.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _repeat(self, what: str, once: Callable[[], None]) -> None:
        while not self._ended.wait(EVERY[what]):
            once()

    def _writer(self, client: str) -> Callable[[], None]:
        chance = random.Random(f"{self.seed} {client}")
        number = 0

        def once() -> None:
            nonlocal number
            lines = []
            for _ in range(BATCH):
                number += 1
                lines.append(f"{client} {number} {'x' * chance.randint(1, 400)}".encode())
            argv = ["dbox-put", "--config", str(CONF), "--client", client, "--timeout", WITHIN, "--json", "--batch"]
            argv = ["ip", "netns", "exec", ground.NETWORK, *argv, "--request-id", f"{client}-{number}"]
            octets = b"\n".join(lines) + b"\n"
            while time.monotonic() < self._until:
                code, said = self._run(argv, octets)
                if code == 0:
                    rows = [json.loads(row) for row in said.splitlines()]
                    self.records.update(zip((row["index"] for row in rows), lines, strict=True))
                    return
                if code == 1 and b"No space left on device" not in said:
                    self.broken.append(f"dbox-put finds that something does not verify: {said.decode().strip()}")
                    return
                time.sleep(0.5)
            self.unsure += lines

        return once

    def _tick(self) -> None:
        self._number += 1
        argv = ["dre-event", "--config", str(CONF), "--send", "shop.tick", f"n={self._number}"]
        if self._run(argv, b"")[0] == 0:
            self.ticks.append(self._number)

    def _run(self, argv: list[str], octets: bytes) -> tuple[int, bytes]:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self.running.add(process.pid)
        try:
            said, words = process.communicate(octets, timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            said, words = process.communicate()
        finally:
            self.running.discard(process.pid)
        with contextlib.suppress(OSError):
            self._note(argv, process.returncode, words)
        return process.returncode, said or words

    def _note(self, argv: list[str], code: int, words: bytes) -> None:
        """Keep what went wrong, for who reads the logs."""
        if code:
            with (ground.HOME / "log" / "work.log").open("a") as log:
                log.write(f"{time.strftime('%H:%M:%S')} {argv[-1]}: {code}: {words.decode(errors='replace').strip()}\n")
