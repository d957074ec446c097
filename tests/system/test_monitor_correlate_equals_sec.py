# SPDX-License-Identifier: Apache-2.0
"""dre-correlate and the real sec recognise the same: on a corpus, on rules made at random, and in real time.

For the first two sec runs under a clock that shows the time of the event it looks at (sec_clock.pl), so minutes pass in
a moment; the last one waits for real seconds. DRE_CORRELATE_CASES asks for more than 30 sets of random rules.
"""

import os
import subprocess
import threading
import time

import correlatekit as ground
import pytest
from conftest import environment, program

CASES = int(os.environ.get("DRE_CORRELATE_CASES", "30"))


@pytest.mark.parametrize("seed", range(5))
def test_corpus(tmp_path, settings, seed):
    paths = ground.write(tmp_path, [path.read_text() for path in ground.CORPUS])
    lines = ground.corpus_events(seed)
    theirs = ground.by_sec(tmp_path, paths, lines)
    ours = ground.by_dre(paths, lines, "--config", settings(), "--quiet")
    assert len(theirs) > 100 and len({text.split()[0] for text in theirs}) > 8
    assert sorted(ours) == sorted(theirs)


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
