# SPDX-License-Identifier: Apache-2.0
"""dre-correlate and the real sec recognise the same: on a corpus, on the rules of sec's own manual, on rules made at
random, and in real time.

But for the last, sec runs under a clock that shows the time of the event it looks at (sec_clock.pl), so minutes pass in
a moment; that one waits for real seconds. DRE_CORRELATE_CASES asks for more than 30 sets of random rules.
"""

import gzip
import os
import pathlib
import random
import re
import subprocess
import sys
import threading
import time

import correlatekit as ground
import pytest
from conftest import ROOT, environment, program
from unpacked import unpacked

sys.path.insert(0, str(ROOT / "sec-monitor"))

from monitorlib import rulecheck, ruleset  # noqa: E402

CASES = int(os.environ.get("DRE_CORRELATE_CASES", "30"))


@pytest.mark.parametrize("seed", range(5))
def test_corpus(tmp_path, settings, seed):
    paths = ground.write(tmp_path, [path.read_text() for path in ground.CORPUS])
    lines = ground.corpus_events(seed)
    theirs = ground.by_sec(tmp_path, paths, lines)
    ours = ground.by_dre(paths, lines, "--config", settings(), "--quiet")
    assert len(theirs) > 100 and len({text.split()[0] for text in theirs}) > 8
    assert sorted(ours) == sorted(theirs)


MANUAL = pathlib.Path("/usr/share/man/man1/sec.1.gz")
SAID = """sshd[7]: Failed password for {user} from 10.0.0.{some} port 41 ssh2
sshd[7]: Accepted password for {user} from 10.0.0.{some} port 42 ssh2
user {user} login failure on tty{some}
/dev/sd{some}: File system full
kernel: nfs: server s{some} not responding, still trying
kernel: nfs: server s{some} OK
router{some}: %SYS-3-CPUHOG
database d{some} down
database d{some} up
all databases up
WAITING_FOR_BACKUP
BACKUP READY
AAA BBB CCC DDD
Test: {some}
Test2: {some} 1
Joined""".splitlines()


def manual():
    """The rules of sec(1) that we let through, each a file; what they would have programs do is written instead."""
    page = MANUAL if MANUAL.exists() else unpacked("sec", "sec") / str(MANUAL).lstrip("/")
    text = gzip.decompress(page.read_bytes()).decode(errors="replace").replace("\n.br\n", "\n")
    text = re.sub(r"\\([\\'-])", r"\1", text)  # as roff shows it
    for number, block in enumerate(re.findall(r"^(type=\w+\n(?:[^.\n].*\n)+)", text, re.MULTILINE)):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        for at, line in enumerate(lines):
            if found := re.match(r"(action2?)=(.*)", line):
                contexts = re.findall(r"(?:^|; *)((?:create|delete) [^;()]+)", found[2])
                lines[at] = f"{found[1]}={'; '.join([*contexts, f'write %script {number} {found[1]} %s'])}"
        yield "\n".join(lines) + "\n"


def test_rules_of_secs_manual(tmp_path, settings):
    some, texts, lines = random.Random(1), [], []
    for text in manual():
        book = rulecheck.parse("one", text, {"script"})
        if not book.findings and not ruleset.compile([book], {"script"})[1] and not text.startswith("type=Jump"):
            texts.append(text)
    assert len(texts) > 25 and len({text.split()[0] for text in texts}) == 7
    for n in range(600):
        text = some.choice(SAID).format(user=some.choice(["bob", "root"]), some=some.randrange(1, 3))
        lines.append(
            ground.line(some.randrange(2000) + 0.5, "/host:h/x", "syslog.message", 6, f'"message":"{text}"', f"e{n}")
        )
    lines, paths = ground.with_ticks(lines, 6000), ground.write(tmp_path, texts)
    theirs = ground.by_sec(tmp_path, paths, lines)
    assert len(theirs) > 300
    assert sorted(ground.by_dre(paths, lines, "--config", settings(), "--quiet")) == sorted(theirs)


def test_shipped_rules(tmp_path, settings):
    paths = ground.write(tmp_path, [(ground.ROOT / "sec-monitor/rules/shop.sec").read_text()])
    release = '"version":"1.{}"'
    slow = '"script":"s","id":"slow","watch":"http","value":0.4,"above":0.3'
    lines = []
    for n, (second, source, type, data) in enumerate(
        [(1, "h1", "shop.release", release.format(1)), (5, "h2", "watch.raised", slow), (6, "h1", "watch.raised", slow),
         (20, "h1", "watch.raised", slow), (40, "h1", "watch.raised", slow),
         (50, "h1", "shop.release", release.format(2)), (51, "h1", "watch.raised", slow),
         (652, "h1", "watch.raised", slow)]
    ):  # fmt: skip
        text = ground.line(second + 0.5, f"/host:{source}/x", type, 3, data, f"e{n}")
        lines.append(f'{text[:-1]},"seen":"{text[9:33]}"}}')
    lines = ground.with_ticks(lines, 660)
    theirs = ground.by_sec(tmp_path, paths, lines)
    assert sum("shop.overload" in text for text in theirs) == 3
    assert ground.by_dre(paths, lines, "--config", settings()) == theirs


@pytest.mark.parametrize("seed", range(CASES))
def test_random_rules(tmp_path, settings, seed):
    made = ground.Maker(seed)
    paths, lines = ground.write(tmp_path, made.files()), made.events()
    theirs = ground.by_sec(tmp_path, paths, lines)
    assert sorted(ground.by_dre(paths, lines, "--config", settings(), "--quiet")) == sorted(theirs)


REAL = r"""
type=SingleWithThreshold
continue=TakeNext
ptype=RegExp
pattern="source":"/host:(\w+)","type":"a\.fail"
desc=$1 fails
action=write %script %s
action2=write %script %s no more
window=2
thresh=2

type=Pair
continue=TakeNext
ptype=RegExp
pattern="source":"/host:(\w+)","type":"a\.fail"
desc=$1
action=create FAILED_$1 3 (write %script $1 is forgotten)
ptype2=RegExp
pattern2="source":"/host:$1","type":"a\.(well)"
desc2=%1
action2=write %script %s is $1
window=3

type=SingleWithSuppress
ptype=SubStr
pattern="type":"a.well"
context=FAILED_h1 || FAILED_h2
desc=well
action=write %script well after all
window=2
"""
PLAN = [(0, "h1", "fail"), (1, "h1", "fail"), (1, "h2", "fail"), (2, "h1", "well"), (3, "h2", "fail"),
        (4, "h2", "well"), (5, "h1", "fail"), (7, "h1", "fail"), (8, "h1", "well"), (10, "h2", "well")]  # fmt: skip


def test_real_time(tmp_path, settings):
    path = tmp_path / "real.sec"
    path.write_text(REAL)
    sec = ["sec", *ground.sec_argv(tmp_path, [path], "--input=-", "--notail", "--poll-timeout=0.01")]
    dre = [program("dre-correlate"), path, "--config", settings()]
    env = {**environment(), "TZ": "UTC", "LC_ALL": "C"}
    running = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, bufsize=0) for argv in (sec, dre)
    ]
    found = [[], []]

    def read(process, into):
        into += process.stdout.read().decode().splitlines()

    readers = [threading.Thread(target=read, args=pair) for pair in zip(running, found, strict=True)]
    for reader in readers:
        reader.start()
    begin = int(time.time()) + 2
    plan = [(second + 0.4, f"/host:{host}", f"a.{kind}") for second, host, kind in PLAN]
    plan += [(second + 0.05, "/host:x", ground.TICK) for second in range(16)]
    for second, source, type in sorted(plan):
        time.sleep(max(0.0, begin + second - time.time()))
        for process in running:
            process.stdin.write(ground.line(begin + second, source, type).encode() + b"\n")
    for process in running:
        process.stdin.close()
        assert process.wait(10) == 0
    for reader in readers:
        reader.join()
    theirs, ours = found
    assert len(theirs) >= 8
    assert sorted(ours) == sorted(theirs)
