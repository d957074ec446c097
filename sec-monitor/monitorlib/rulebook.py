# SPDX-License-Identifier: Apache-2.0
"""The rules that sec or dre-correlate runs with: what was checked, octet for octet, and what they want told again.

Neither reads /etc/dre/rules.d itself, where a file could change between the check and the load.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dre import files, run
from dre.conf import Conf
from dre.errors import DreError

from monitorlib import actions, retell, rulecheck, ruleset

TEST = 120.0  # seconds for sec to read the rules: it takes 20 in a guest that is emulated on a busy host
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*\.sec")
_PIPE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_ASSIGN = """# Made by dre-monitor: the names of the FIFOs in rules. While the past is told, nothing comes of it.
type=Single
ptype=SubStr
pattern=SEC_STARTUP
context=SEC_INTERNAL_EVENT
desc=names of the FIFOs
action={live}

type=Single
continue=EndMatch
ptype=RegExp
pattern=^{begin}$
desc=the past is told
action={quiet}

type=Single
continue=EndMatch
ptype=RegExp
pattern=^{end}$
desc=the present goes on
action={live}
"""


@dataclass
class Rules:
    """Files for the correlator, which event types they want told again, and for how many seconds they remember."""

    paths: list[Path]
    remembered: dict[str, int]
    memory: float


def load(conf: Conf) -> Rules:
    """Check the files of rules.d, and copy them to the run directory.

    Raises DreError with the first finding: with half the rules, what is not recognised would be nobody's fault.
    """
    pipes = {path.name for path in conf.monitor_pipes}
    texts: dict[str, str] = {}
    memory = 0.0
    for path in sorted((conf.core_etc_dir / "rules.d").glob("*.sec")):
        try:
            texts[path.name] = rulecheck.read(path)
        except (OSError, ValueError) as error:
            raise DreError(f"{path}: rules refused: {error}") from None
        book = rulecheck.parse(str(path), texts[path.name], pipes)
        if book.findings or not _NAME.fullmatch(path.name):
            raise DreError(f"rules refused: {book.findings[0] if book.findings else f'{path}: odd file name'}")
        memory = max(memory, rulecheck.memory(book, pipes))
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
    return Rules(made, remembered, memory)


def write(conf: Conf, directory: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write what the correlator is given into *directory*: for sec the names of the FIFOs, and the files of *texts*.

    Raises DreError.
    """
    made = [directory / "-pipes.sec"]
    pipes = {path.name for path in conf.monitor_pipes}
    live = _assignments(conf)
    quiet = [f"assign {words.split()[1]} /dev/null" for words in live]
    begin, end = (line.decode().strip() for line in (retell.QUIET, retell.LIVE))
    text = _ASSIGN.format(live="; ".join(live), quiet="; ".join(quiet), begin=begin, end=end)
    files.write_atomic(made[0], text)
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
