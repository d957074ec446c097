# SPDX-License-Identifier: Apache-2.0
"""The rules that sec or dre-correlate runs with: what was checked, octet for octet, and what they want told again.

Neither reads /etc/dre/rules.d itself, where a file could change between the check and the load.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from dre import event, files, run
from dre.conf import Conf
from dre.errors import DreError

from monitorlib import actions, rulecheck, ruleset, spool

TEST = 120.0  # seconds for sec to read the rules: it takes 20 in a guest that is emulated on a busy host
RECENT = 10.0  # seconds; and the last
BLOCK = 16384  # octets in front of what stands in the FIFO: sec reads 8192 at once, and may hold half a line before
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.sec")
_PIPE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_ASSIGN = """# Made by dre-monitor: the names under which rules know the FIFOs.
type=Single
ptype=SubStr
pattern=SEC_STARTUP
context=SEC_INTERNAL_EVENT
desc=names of the FIFOs
action={actions}
"""


def load(conf: Conf) -> tuple[list[Path], dict[str, int]]:
    """Check the files of rules.d, copy them to the run directory; the copies, and what they want to remember.

    Raises DreError with the first finding: with half the rules, what is not recognised would be nobody's fault.
    """
    pipes = {path.name for path in conf.monitor_pipes}
    texts: dict[str, str] = {}
    for path in sorted((conf.core_etc_dir / "rules.d").glob("*.sec")):
        try:
            texts[path.name] = rulecheck.read(path)
        except (OSError, ValueError) as error:
            raise DreError(f"{path}: rules refused: {error}") from None
        findings = rulecheck.check(str(path), texts[path.name], pipes)
        if findings or not _NAME.fullmatch(path.name):
            raise DreError(f"rules refused: {findings[0] if findings else f'{path}: odd file name'}")
    directory = conf.core_run_dir / "rules"
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    for stale in directory.glob("*"):
        if stale.name not in texts:
            stale.unlink()
    made = write(conf, directory, texts)
    remembered: dict[str, int] = {}
    for text in texts.values():
        for type, seconds in rulecheck.remembered(text).items():
            remembered[type] = max(seconds, remembered.get(type, 0))
    return made, remembered


def write(conf: Conf, directory: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write what the correlator is given into *directory*: for sec the names of the FIFOs, and the files of *texts*.

    Raises DreError.
    """
    made = [directory / "-pipes.sec"]
    pipes = {path.name for path in conf.monitor_pipes}
    files.write_atomic(made[0], _ASSIGN.format(actions="; ".join(_assignments(conf))))
    for name, text in texts.items():
        try:
            told = rulecheck.for_sec(text, pipes) if conf.monitor_correlator == "sec" else text
        except ValueError as error:
            raise DreError(f"rules refused: {name}: {error}") from None
        files.write_atomic(directory / name, told)
        made.append(directory / name)
    return made


def _assignments(conf: Conf) -> list[str]:
    """`assign` actions for the FIFOs. The first is sec's stdout, which blocks while it is full instead of losing."""
    words = [f"assign %{actions.FIFO} {conf.core_run_dir / actions.FIFO}"]
    for number, path in enumerate(conf.monitor_pipes):
        if path.name == actions.FIFO:
            raise DreError(f"DRE_MONITOR_PIPES: {path}: this name is that of the FIFO for programs")
        if not _PIPE.fullmatch(path.name) or re.search(r"[\s;%$()\\]", str(path)):
            raise DreError(f"DRE_MONITOR_PIPES: {path}: rules cannot name it; use letters, digits and '_'")
        words.append(f"assign %{path.name} {path if number else '-'}")
    return words


def argv(conf: Conf, rules: list[Path]) -> list[str]:
    """The command line of sec."""
    return [
        run.need("sec"),
        *(f"--conf={path}" for path in rules),
        f"--input={conf.core_run_dir / 'ordered'}",
        "--poll-timeout=0.01",
        f"--dump={conf.core_run_dir / 'sec' / 'dump'}",
        f"--log={conf.core_log_dir / 'sec.log'}",
        "--debug=3",
        "--intevents",
        "--intcontexts",
        "--nochildterm",  # it starts no child; else sec sleeps for 3 s before it ends
        "--nodetach",
    ]


def correlate_argv(conf: Conf, config: list[str], rules: list[Path]) -> list[str]:
    """The command line of dre-correlate, which knows the names of FIFOs by itself. Raises DreError, as load does."""
    pipes = {path.name for path in conf.monitor_pipes}
    place = conf.core_etc_dir / "rules.d"
    books = [rulecheck.parse(str(place / path.name), rulecheck.read(path), pipes) for path in rules[1:]]
    if findings := ruleset.compile(books, pipes)[1]:
        raise DreError(f"rules refused: {findings[0]}")
    directory = conf.core_state_dir / "correlate"
    return [
        str(Path(__file__).resolve().parents[1] / "dre-correlate"),  # installed beside us
        *config,
        f"--state={directory}",
        "--live",
        f"--explain={directory / 'explained.jsonl'}",
        *map(str, rules[1:]),
    ]


def has_state(conf: Conf) -> bool:
    """Whether a dre-correlate has been at work here before."""
    return (conf.core_state_dir / "correlate" / "state").exists()


def test(conf: Conf, rules: list[Path]) -> None:
    """Let sec itself read the rules, which were checked to hold no code. Raises DreError with what it says."""
    sec = argv(conf, rules)[0]
    done = run.run([sec, "--testonly", "--log=-", *(f"--conf={path}" for path in rules)], check=False, timeout=TEST)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).decode(errors="replace").splitlines() if ".sec" in line]
        raise DreError(f"rules refused by sec: {said[-1] if said else done.returncode}")


def again(
    conf: Conf, remembered: dict[str, int], unread: bytes, now: float, recent: float = RECENT, room: int = BLOCK
) -> list[bytes]:
    """What a new sec must be told, in time order: what the rules want to remember, what the old one may not have
    answered yet, and *unread*, which stood in its FIFO. Lines that the re-order filter still holds are left to it.

    What the old one may not have answered are the last *room* octets of the last *recent* seconds. Some of it comes a
    second time, then; an event is the same when its id is.
    """
    directory = conf.core_state_dir / "spool" / "ingest"
    passed = _passed(directory / "reorder.resume")
    lines: dict[bytes, None] = {}
    for type, seconds in remembered.items():
        since = event.stamp(now - seconds).encode()
        found = _lines(directory, b'"type":"%s"' % type.encode())
        lines.update((line, None) for line in found if since <= line[9:33] <= passed)
    waiting = [line for line in unread.split(b"\n") if line.startswith(b'{"time":"') and line.endswith(b"}")]
    since = event.stamp(now - recent).encode()
    until = min([passed, *(line[9:33] for line in waiting)])
    for line in sorted(spool.tail(directory, 1 << 20).split(b"\n"), key=_stamp, reverse=True):
        if since <= line[9:33] <= until and room > 0:
            room -= len(line) + 1
            lines[line] = None
    lines.update(dict.fromkeys(waiting))
    return sorted(lines, key=_stamp)


def _stamp(line: bytes) -> bytes:
    return line[9:33]


def _lines(directory: Path, needle: bytes) -> list[bytes]:
    found = []
    for _, path in spool.segments(directory):
        with contextlib.suppress(FileNotFoundError):
            octets = path.read_bytes()
            if needle in octets:
                found += [line for line in octets.split(b"\n") if needle in line]
    return found


def _passed(note: Path) -> bytes:
    """Up to when the re-order filter has released, from its note; nothing when there is none."""
    try:
        return note.read_bytes().split()[2]
    except (OSError, IndexError):
        return b""


def prepare(conf: Conf, uid: int, gid: int) -> None:
    """The places that sec or dre-correlate, as its own user, writes to."""
    homes = (conf.core_run_dir / "sec", conf.core_state_dir / "correlate")
    for home in homes:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    conf.core_log_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(conf.core_log_dir / "sec.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640)
    try:
        if os.geteuid() == 0:
            os.fchown(fd, uid, gid)
            for home in homes:
                os.chown(home, uid, gid)
    finally:
        os.close(fd)
