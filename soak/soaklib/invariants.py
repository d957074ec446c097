# SPDX-License-Identifier: Apache-2.0
"""What must hold after a soak. Pure functions: each returns a sentence for everything that is broken.

The log is judged from its export, whose form is in dbox-export(8), with nothing but SHA-256 and RFC 6962: an opinion
that owes nothing to our own code.
"""

import base64
import hashlib
import io
import itertools
import re
import statistics
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

LEAST = 500  # faults an hour
ABSENT = 90.0  # seconds within which what was killed must be back: an app waits for up to 30 of them by itself
WARM = 30.0  # seconds after which a process has loaded what it needs
LIVES = 90.0  # seconds of samples without which nothing is said of its memory
MEMORY = (4 << 20, 12 << 20)  # octets: a growth that is more than the first, and at more than the second an hour
DESCRIPTORS = (20, 40)  # open files, likewise
SHOWN = 5  # of what is lost


# --- The log ---


@dataclass(frozen=True)
class Log:
    """An export: header and octets of each entry, and of each tree head its size and root."""

    entries: Sequence[tuple[bytes, bytes]]
    heads: Sequence[tuple[int, bytes]]


def read_log(stream: IO[bytes]) -> Log:
    """What dbox-export wrote."""
    entries: list[tuple[bytes, bytes]] = []
    heads: list[tuple[int, bytes]] = []
    with tarfile.open(fileobj=stream) as tar:
        for member in tar:
            octets = tar.extractfile(member)
            assert octets is not None
            if member.name.startswith("entries-"):
                parts = _parts(octets.read())
                entries += zip(parts[::3], parts[2::3], strict=True)
            elif member.name.startswith("heads-"):
                heads += map(head, _parts(octets.read()))
    return Log(entries, heads)


def _parts(octets: bytes) -> list[bytes]:
    """Each stands after its length in 4 octets, big-endian."""
    stream, found = io.BytesIO(octets), []
    while length := stream.read(4):
        found.append(stream.read(int.from_bytes(length, "big")))
    return found


def head(note: bytes) -> tuple[int, bytes]:
    """Size and root of a tree head: origin, size, root in base64 are its first lines."""
    lines = note.split(b"\n")
    return int(lines[1]), base64.b64decode(lines[2])


def roots(headers: Iterable[bytes], sizes: Collection[int]) -> dict[int, bytes]:
    """The roots (RFC 6962) of the trees over the first entries, for those of *sizes* that there are."""
    wanted, found = set(sizes), {}
    stack: list[bytes] = []  # roots of full trees, the largest first
    if 0 in wanted:
        found[0] = hashlib.sha256().digest()
    for size, header in enumerate(headers, 1):
        node, rest = hashlib.sha256(b"\0" + header).digest(), size
        while rest % 2 == 0:
            node, rest = hashlib.sha256(b"\1" + stack.pop() + node).digest(), rest // 2
        stack.append(node)
        if size in wanted:
            *larger, root = stack
            for left in reversed(larger):
                root = hashlib.sha256(b"\1" + left + root).digest()
            found[size] = root
    return found


def false_heads(log: Log, seen: Sequence[tuple[int, bytes]]) -> list[str]:
    """Tree heads, those of the log and those that others have *seen*, that are not of these entries."""
    made = roots((header for header, _ in log.entries), {size for size, _ in (*log.heads, *seen)})
    broken = [
        f"the tree head of size {size} is not of the log's entries"
        for size, root in log.heads
        if made.get(size) != root
    ]
    broken += [f"the witness saw another tree of size {size}" for size, root in seen if made.get(size) != root]
    if not log.heads or max(size for size, _ in log.heads) != len(log.entries):
        broken.append(f"no tree head covers the {len(log.entries)} entries")
    if not seen:
        broken.append("no witness has seen the log")
    return broken


def false_entries(log: Log) -> list[str]:
    """Entries whose octets are not those of the digest in their header."""
    wrong = [
        index
        for index, (header, octets) in enumerate(log.entries)
        if f"digest sha256 {hashlib.sha256(octets).hexdigest()}\n".encode() not in header
    ]
    return [f"entries whose octets are not those that were logged: {_some(wrong)}"] if wrong else []


# --- What was acknowledged ---


def lost_records(acknowledged: Mapping[int, bytes], unsure: Collection[bytes], log: Log) -> list[str]:
    """Each record that was acknowledged is there, under its index; none, *unsure* ones neither, is there twice."""
    lost = [
        index for index, octets in acknowledged.items() if index >= len(log.entries) or log.entries[index][1] != octets
    ]
    times = Counter(octets for _, octets in log.entries)
    doubled = [octets[:40] for octets in (*acknowledged.values(), *unsure) if times[octets] > 1]
    broken = [f"acknowledged records are not in the log: {_some(lost)}"] if lost else []
    return broken + ([f"records are in the log twice: {_some(doubled)}"] if doubled else [])


def receipts(octets: bytes) -> list[tuple[int, bytes]]:
    """Index and header of each receipt in a file of them."""
    found = []
    for text in octets.split(b"c2sp.org/tlog-proof@v1\n")[1:]:
        header = re.search(rb"^extra (\S+)$", text, re.MULTILINE)
        index = re.search(rb"^index (\d+)$", text, re.MULTILINE)
        assert header is not None and index is not None
        found.append((int(index[1]), base64.b64decode(header[1])))
    return found


def lost_receipts(kept: Iterable[tuple[int, bytes]], log: Log) -> list[str]:
    """For each receipt that a client keeps, the log has that very entry."""
    lost = [index for index, header in kept if index >= len(log.entries) or log.entries[index][0] != header]
    return [f"what clients have receipts of is not in the log: {_some(lost)}"] if lost else []


def lost(what: str, acknowledged: Iterable[int], kept: Collection[int]) -> list[str]:
    """Orders and ticks: those that were acknowledged and are not there, or that were acknowledged twice."""
    given = list(acknowledged)
    missing = sorted(set(given) - set(kept))
    broken = [f"acknowledged {what} are lost: {_some(missing)}"] if missing else []
    return broken + ([f"{what} were acknowledged twice"] if len(set(given)) < len(given) else [])


def unfinished(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each response that the evidence says was begun has an end there."""
    begun, ended = set(), set()
    for event in events:
        run = event.get("data", {}).get("run")
        if event.get("type") == "script.step.begun":
            begun.add(run)
        elif event.get("type") == "script.response.done":
            ended.add(run)
    left = sorted(map(str, begun - ended))
    return [f"responses were begun and have no end: {_some(left)}"] if left else []


# --- What goes on living ---


@dataclass
class Absences:
    """How long each part was away, seen at intervals."""

    since: dict[str, float] = field(default_factory=dict)
    longest: dict[str, float] = field(default_factory=dict)

    def note(self, now: float, lacking: Collection[str]) -> None:
        """At *now* (seconds) these parts are away."""
        for name in lacking:
            begun = self.since.setdefault(name, now)
            self.longest[name] = max(self.longest.get(name, 0.0), now - begun)
        for name in set(self.since) - set(lacking):
            del self.since[name]

    def broken(self) -> list[str]:
        """Those that were away for too long."""
        long = {name: seconds for name, seconds in self.longest.items() if seconds > ABSENT}
        return [f"{name} was away for {seconds:.0f} s" for name, seconds in sorted(long.items())]


@dataclass(frozen=True)
class Sample:
    """Of a process, at a moment: seconds since the soak began, and since the process was first seen."""

    part: str
    pid: int
    time: float
    age: float
    memory: int
    descriptors: int


def slope(points: Sequence[tuple[float, float]]) -> float:
    """What the values grow by an hour, by least squares, of points (seconds, value)."""
    mean = statistics.fmean(time for time, _ in points)
    level = statistics.fmean(value for _, value in points)
    width = sum((time - mean) ** 2 for time, _ in points)
    return 3600 * sum((time - mean) * (value - level) for time, value in points) / width if width else 0.0


def growth(samples: Iterable[Sample]) -> dict[tuple[str, str], tuple[float, float]]:
    """How each part grows: by how much within the time looked at, and an hour; of its longest life, and of all lives.

    The first shows a leak, the second what becomes more from one life to the next.
    """
    lives: dict[str, dict[int, list[Sample]]] = {}
    for sample in samples:
        if sample.age >= WARM:
            lives.setdefault(sample.part, {}).setdefault(sample.pid, []).append(sample)
    found = {}
    for part, ours in lives.items():
        longest = max(ours.values(), key=lambda life: life[-1].time - life[0].time)
        for life in (longest, sorted(itertools.chain(*ours.values()), key=lambda one: one.time)):
            seconds = life[-1].time - life[0].time
            if seconds < LIVES:
                continue
            for what in ("memory", "descriptors"):
                rate = slope([(one.time, getattr(one, what)) for one in life])
                here = (rate * seconds / 3600, rate)
                found[part, what] = max(found.get((part, what), here), here)
    return found


def grown(found: Mapping[tuple[str, str], tuple[float, float]]) -> list[str]:
    """Those whose growth is not flat."""
    broken = []
    for (part, what), (whole, rate) in sorted(found.items()):
        most, hourly = MEMORY if what == "memory" else DESCRIPTORS
        if whole > most and rate > hourly:
            unit = (
                f"{whole / (1 << 20):.1f} MB, {rate / (1 << 20):.1f} MB"
                if what == "memory"
                else f"{whole:.0f}, {rate:.0f}"
            )
            broken.append(f"{what} of {part} grew by {unit} an hour")
    return broken


def leaked(what: str, before: Iterable[str], after: Iterable[str]) -> list[str]:
    """What is there now and was not before, or more often."""
    more = Counter(after) - Counter(before)
    return [f"{what} left behind: {_some(sorted(more))}"] if more else []


def too_few(counts: Mapping[str, int], kinds: Iterable[str], seconds: float) -> list[str]:
    """Faults came at the rate that was promised, and of each kind where there was time for all."""
    total = sum(counts.values())
    broken = [f"only {total} faults in {seconds:.0f} s"] if total * 3600 < LEAST * seconds else []
    return broken + [f"no fault of the kind {kind}" for kind in kinds if seconds >= 300 and not counts.get(kind)]


def _some(found: Sequence[Any]) -> str:
    shown = ", ".join(map(str, found[:SHOWN]))
    return f"{shown}{', …' if len(found) > SHOWN else ''} ({len(found)})"
