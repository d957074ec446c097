# SPDX-License-Identifier: Apache-2.0
"""The command soak/run: stage, work, faults, calm, judgement, and a clean host afterwards whatever happens.

Exit status: 0 all invariants hold, 1 some do not and each is named, 2 it could not be run to its end.
"""

import argparse
import contextlib
import gzip
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demolib import answers, command, journal, programs, shop, stage
from demolib.command import UNDONE, cleared, say
from demolib.places import ADDRESSES, CERTS, CONF, HERE, HOME, STATE, URL
from demolib.programs import Failed, dre, settle, start, status, wait

from soaklib import faults, ground, house, invariants, processes
from soaklib.faults import Faults
from soaklib.services import Services
from soaklib.watch import REQUESTS, Watch
from soaklib.work import Work

HOLDS, BROKEN = 0, 1
CALM = 240.0  # seconds in which all must be well again
DRAIN = 60.0  # seconds for what was being handed in
SETTLED = 20.0  # seconds for what goes away by itself
PROOFS = 20  # receipts that are verified one by one


@dataclass
class Soak:
    """Its parts, and what is broken so far."""

    seed: int
    seconds: float
    say: Callable[[str], None]
    broken: list[str]

    def __post_init__(self) -> None:
        self.services = Services(self.say)
        self.work = Work(self.seed)
        self.faults = Faults(self.seed, self.seconds, self.services, self.work, self.say)
        self.watch = Watch(self.services, self.work, self.faults, self.say)

    def stop(self) -> None:
        """End everything that could begin something new."""
        self.faults.end(abandon=True)
        self.work.stop(0)
        self.watch.stop()
        self.services.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak and return its exit status."""
    args = _arguments(argv)
    return command.alone("soak", _stop if args.stop else lambda: _soak(args.seed, args.hours * 3600))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run", description="Run all of D-RE under random faults, and judge.")
    parser.add_argument("--stop", action="store_true", help="remove what a killed run left")
    parser.add_argument(
        "--hours", type=float, default=os.environ.get("HOURS") or "1", help="how long faults come (HOURS=1)"
    )
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--seed", type=int, default=seed, help="from which they are drawn (SEED=N; a new one)")
    args = parser.parse_args(argv)
    if not 0 < args.hours <= 1000:
        parser.error(f"HOURS={args.hours:g}: expected a number above 0, such as 0.1")
    return args


def _stop() -> int:
    return cleared("soak", _clear()) if HOME.exists() else HOLDS


def _clear() -> list[str]:
    ground.empty_disk()
    try:
        ground.disconnect()
    except Failed as failure:
        return [str(failure)]
    return stage.clear(say, ground.remove)


def _soak(seed: int, seconds: float) -> int:
    if stage.KEPT.exists():
        raise Failed("a demonstration was left running (KEEP=1); end it with `make demo-stop`")
    if HOME.exists():
        say("clearing away what a killed run left")
        if cleared("soak", _clear()):
            return UNDONE
    stage.check_host()
    ground.check_host()
    print(f"seed {seed}, {seconds / 3600:g} h: the same faults come again by SEED={seed}")
    before = house.look()
    soak = Soak(seed, seconds, say, [])
    code = UNDONE
    try:
        _run(soak)
        code = HOLDS
    except Failed as failure:
        print(f"soak: {failure}", file=sys.stderr)
    except KeyboardInterrupt:
        print("soak: interrupted", file=sys.stderr)
    except Exception:  # a mistake of ours has found nothing out
        traceback.print_exc()
    finally:
        command.hold_out()
        soak.stop()
        settle()
        if (code != HOLDS or soak.broken) and HOME.exists():
            print(f"logs and evidence are in {stage.keep_logs()}")
        code = max(code, cleared("soak", _clear()))
    for kind, names in _settled(before).items():
        soak.broken += invariants.leaked(f"{kind} (on the host, at the end)", before[kind], names)
    print()
    for sentence in soak.broken:
        print(f"BROKEN  {sentence}")
    if code == HOLDS and not soak.broken:
        print("All invariants hold.")
    return code or (BROKEN if soak.broken else HOLDS)


def _settled(before: house.House) -> house.House:
    """What lies about, once it is no more than before; or else after some seconds."""
    deadline = time.monotonic() + SETTLED
    while True:
        now = house.look()
        if time.monotonic() > deadline or not any(invariants.leaked(kind, before[kind], now[kind]) for kind in now):
            return now
        time.sleep(1.0)


def _run(soak: Soak) -> None:
    story = ground.SoakStory()
    stage.prepare(story, "", soak.say)
    soak.services.start()
    wait(lambda: not soak.services.lacking(processes.table()), 30, "all services")
    ground.keep_apps()
    how = ["--rate", str(story.rate), "--seconds", str(soak.seconds + 2 * CALM)]
    start("load", sys.executable, str(HERE / "load"), URL, *how, output=REQUESTS)
    wait(_serves, 60, "the shop answers")
    before = house.look()
    soak.work.start()
    soak.watch.start()
    soak.say(f"load, records and events begin; faults come for {soak.seconds / 60:g} min")
    soak.faults.run()
    soak.say("no more faults; waiting until all is well")
    soak.faults.end()
    soak.work.stop(DRAIN)
    soak.broken += soak.faults.broken + soak.work.broken
    soak.broken += _calm(soak)
    now = time.monotonic()
    soak.watch.stop()
    soak.say(soak.watch.told(now))
    soak.services.stop()
    for kind, names in _settled(before).items():
        if kind not in ("shared memory", "processes"):
            soak.broken += invariants.leaked(f"{kind} (of what runs)", before[kind], names)
    _judge(soak)


def _serves() -> bool:
    """The newest answers are good."""
    recent = answers.parse(REQUESTS.read_text())[-20:]
    return len(recent) == 20 and all(not request.failed for request in recent)


def _calm(soak: Soak) -> list[str]:
    """Wait until everything lives and has handed on what it has; what did not come to that."""

    def lacking() -> list[str]:
        absent = [f"{name} does not live" for name in sorted(soak.services.lacking(processes.table()))]
        if not _serves():
            absent.append("the shop does not answer")
        for client in ("dscript", *ground.WRITERS):
            try:
                if waits := dre("dbox-put", "--client", client, "--pending").splitlines():
                    absent.append(f"{len(waits)} records of {client} wait for the D-Box")
            except Failed as failure:
                absent.append(str(failure))
        if status("dre-monitor", "--config", str(CONF), "status").returncode:
            absent.append("dre-monitor status: not all is well")
        return absent

    deadline = time.monotonic() + CALM
    while found := lacking():
        if time.monotonic() > deadline:
            return [f"{sentence}, {CALM:g} s after the last fault" for sentence in found]
        time.sleep(1.0)
    return []


def _judge(soak: Soak) -> None:
    programs.end("load", within=20)
    broken = soak.broken
    broken += _orphans(soak.services)
    broken += invariants.too_few(soak.faults.counts, faults.KINDS, soak.seconds)
    broken += soak.watch.absences.broken()
    found = invariants.growth(soak.watch.samples)
    broken += invariants.grown(found)
    _tell(soak, found)
    requests = answers.parse(REQUESTS.read_text())
    orders = answers.orders(requests)
    broken += invariants.lost("orders", orders, set(map(int, shop.sql("SELECT id FROM shop.orders"))))
    taken = [one["data"].get("n") for one in journal.spooled() if one["type"] == "shop.tick"]
    broken += invariants.lost("events", soak.work.ticks, set(taken))
    soak.say(f"{len(orders)} orders in the database, {len(soak.work.ticks)} events in the spool")
    _evidence(soak)


def _orphans(services: Services) -> list[str]:
    """Processes of ours that belong to no service, and do not go away."""

    def left() -> list[str]:
        all_ = processes.table()
        known = {one.pid for name in services.pids for one in services.family(all_, name)}
        return [f"{one.pid} {one.words[:120]}" for one in processes.given(str(CONF)) if one.pid not in known]

    with contextlib.suppress(Failed):
        wait(lambda: not left(), SETTLED, "the end of what is no service")
    return invariants.leaked("processes", [], left())


def _evidence(soak: Soak) -> None:
    broken = soak.broken
    place = HOME / "evidence"
    place.mkdir()
    export, chain = place / "export.tar", place / "chain.pem"
    try:
        dre("dbox-witness", "--ask")
        chain.write_bytes(dre("dbox-get", "--certs"))
        programs.end("dboxd")  # nobody adds to the log from here on
        dre("dbox-export", str(export), timeout=300)
    except Failed as failure:
        broken.append(str(failure))
        return
    root = ["--root", str(CERTS / "root.pem")]
    done = status("unshare", "--net", "dbox-verify", *root, str(export), timeout=600)
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    if done.returncode:
        broken.append(f"dbox-verify of the whole log: exit status {done.returncode}: {said[-600:]}")
    with export.open("rb") as stream:
        log = invariants.read_log(stream)
    seen = [invariants.head(path.read_bytes()) for path in (ground.WITNESS / "state").rglob("*.note")]
    broken += invariants.false_heads(log, seen)
    broken += invariants.false_entries(log)
    broken += invariants.lost_records(soak.work.records, soak.work.unsure, log)
    kept = list(_receipts())
    broken += invariants.lost_receipts(kept, log)
    broken += invariants.unfinished(list(_events(log)))
    chance = random.Random(soak.seed)
    proofs = sorted((STATE / "spool/dbox").glob("*/receipts/*"))
    for path in chance.sample(proofs, min(PROOFS, len(proofs))):
        broken += _verify(path, log, [*root, "--certs", str(chain)], place)
    soak.say(f"dbox-verify: {said.splitlines()[-1] if said else ''}")
    soak.say(f"{len(log.entries)} entries, {len(log.heads)} tree heads, {len(kept)} receipts; the witness saw {seen}")


def _receipts() -> Iterator[tuple[int, bytes]]:
    """Of all clients here."""
    for path in (STATE / "spool/dbox").glob("*/receipts/*"):
        if not path.name.startswith("."):
            yield from invariants.receipts(_octets(path))


def _octets(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def _verify(path: Path, log: invariants.Log, how: Sequence[str], place: Path) -> list[str]:
    """dbox-verify of the first receipt of a file."""
    begin = b"c2sp.org/tlog-proof@v1\n"
    text = begin + _octets(path).split(begin)[1]
    index = invariants.receipts(text)[0][0]
    receipt, octets = place / "one.receipt", place / "one.octets"
    receipt.write_bytes(text)
    octets.write_bytes(log.entries[index][1] if index < len(log.entries) else b"")
    done = status("unshare", "--net", "dbox-verify", *how, str(receipt), str(octets))
    said = done.stderr.decode(errors="replace").strip()
    return [f"dbox-verify of {path.name}: exit status {done.returncode}: {said}"] if done.returncode else []


def _events(log: invariants.Log) -> Iterator[dict[str, object]]:
    """What the script engine has recorded."""
    for header, octets in log.entries:
        if b"\nstream script\n" in header:
            with contextlib.suppress(ValueError):
                yield json.loads(octets)


def _tell(soak: Soak, found: dict[tuple[str, str], tuple[float, float]]) -> None:
    for (part, what), (whole, rate) in sorted(found.items()):
        if what == "memory":
            soak.say(f"memory of {part}: {whole / 1024:+.0f} K in its time, {rate / 1024:+.0f} K an hour")
    longest = sorted(soak.watch.absences.longest.items(), key=lambda one: -one[1])[:6]
    soak.say("longest away: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in longest))
    restarts = ", ".join(f"{name} {count}" for name, count in soak.services.restarts.items())
    soak.say(f"started again: {restarts}; crashes of {len(ADDRESSES)} apps are the keeper's to mend")
