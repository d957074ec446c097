# SPDX-License-Identifier: Apache-2.0
"""dre-correlate as a filter: what it writes where, what it refuses with file and line, that nothing holds it up."""

import json
import os
import subprocess
import time

from conftest import environment, program

RULE = (
    'type=Single\nptype=RegExp\npattern="type":"a\\.(\\w+)".*"text":"([^"]*)"\ndesc=seen\naction=write %script $1 $2\n'
)


def event(second, type="a.x", text="", id="e"):
    stamp = f"2026-11-23T08:{second // 60:02d}:{second % 60:02d}.000Z"
    return f'{{"time":"{stamp}","source":"/host:h","type":"{type}","sev":6,"data":{{"text":"{text}"}},"id":"{id}"}}\n'


def write(tmp_path, text, name="a.sec"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_rules_of_rules_d_are_the_default(run, settings, tmp_path):
    (tmp_path / "etc/rules.d").mkdir(parents=True)
    assert run("dre-correlate", "--config", settings()).returncode == 2
    write(tmp_path / "etc/rules.d", RULE)
    done = run("dre-correlate", "--config", settings(), stdin=event(1, text="one").encode())
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x one\n", b"")


def test_cut_into_blocks_or_not_the_outcome_is_the_same(run, settings, tmp_path):
    path = write(
        tmp_path,
        "type=SingleWithThreshold\nptype=SubStr\npattern=a.x\ndesc=d\naction=write %script %u\nwindow=9\nthresh=2\n",
    )
    lines = "".join(event(n * n % 7 + n * 3) for n in range(200)).encode()
    whole = run("dre-correlate", path, "--config", settings(), stdin=lines)
    process = subprocess.Popen(
        [program("dre-correlate"), path, "--config", settings()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(), bufsize=0,
    )  # fmt: skip
    for begin in range(0, len(lines), 997):
        process.stdin.write(lines[begin : begin + 997])
        time.sleep(0.001)
    assert process.communicate()[0] == whole.stdout != b""


def test_other_fifos_are_written_to_by_their_path(run, settings, tmp_path):
    config = settings(DRE_MONITOR_PIPES=f"{tmp_path}/script {tmp_path}/other")
    path = write(tmp_path, RULE.replace("%script", "%other"))
    assert b"no such FIFO" in run("dre-correlate", path, "--config", config, stdin=event(1).encode()).stderr
    os.mkfifo(tmp_path / "other")
    fd = os.open(tmp_path / "other", os.O_RDWR | os.O_NONBLOCK)
    done = run("dre-correlate", path, "--config", config, stdin=event(1, text="one").encode())
    assert (done.returncode, done.stdout, os.read(fd, 100)) == (0, b"", b"x one\n")
    os.close(fd)


def test_refusals_name_file_and_line(run, settings, tmp_path):
    good = write(tmp_path, RULE, "good.sec")
    for text, line, reason in [
        ("type=Single\nptype=PerlFunc\npattern=sub { 1 }\n", 2, b"PerlFunc"),
        ("# x\n\ntype=EventGroup\n", 3, b"EventGroup"),
        ("type=Calendar\ntime=* * * * *\n", 1, b"Calendar"),
        (RULE.replace("write %script $1 $2", "shellcmd echo $1"), 5, b"shellcmd"),
        (RULE.replace("write %script $1 $2", "create A 1 (lcall %x -> ( sub { 1 } ))"), 5, b"lcall"),
        (RULE + "continue=GoTo nowhere\n", 6, b"nowhere"),
        (RULE + "context==(1)\n", 6, b"context"),
        (RULE + "window=3\n", 6, b"window"),
        (RULE.replace(r'a\.(\w+)"', '(a+)+"'), 3, b"two ways"),
        (RULE.replace(r'a\.(\w+)"', r'\pL"'), 3, rb"\p"),
        (RULE.replace("ptype=RegExp", "ptype=RegExp2"), 2, b"single lines"),
        (RULE + "context=_FILE_EVENT_x\n", 6, b"sec makes itself"),
        ("", 1, b"no rule"),
        ("type=Single\xff", 1, b"ASCII"),
    ]:
        path = tmp_path / "bad.sec"
        path.write_text(text, encoding="latin-1")
        done = run("dre-correlate", good, path, "--config", settings(), stdin=event(1).encode())
        assert (done.returncode, done.stdout) == (1, b"")
        assert f": {path}:{line}: ".encode() in done.stderr and reason in done.stderr, (text, done.stderr)
    assert run("dre-correlate", tmp_path / "none", "--config", settings()).returncode == 2


def test_explain_tells_for_each_line_rule_events_and_state(run, settings, tmp_path):
    path = write(tmp_path, RULE + "context=!QUIET\n")
    why = tmp_path / "why"
    run("dre-correlate", path, "--explain", why, "--config", settings(), stdin=event(1, text="t", id="e1").encode())
    (row,) = map(json.loads, why.read_text().splitlines())
    assert row["rule"] == f"{path}:1" and row["events"] == ["e1"] and row["output"] == "x t"
    assert row["before"] == row["after"] == {"operation": None, "contexts": {"QUIET": False}}


def test_hostile_events_start_nothing_and_stop_nothing(run, settings, tmp_path):
    path = write(tmp_path, RULE)
    lines = [
        event(1, text="$(touch ran); `touch ran`; %script | touch ran").encode(),
        b"\xff\xfe\n",
        b"\n",
        event(1, text="x" * 1_000_000).encode(),
        event(2).encode()[:-1].replace(b'"text"', b'"te\xffxt"') + b"\n",
        b'{"time":"9999-99-99T99:99:99.999Z","source":"/h","type":"a.x"}\n',
        event(3, text="last").encode(),
    ]
    done = run("dre-correlate", path, "--config", settings(), stdin=b"".join(lines), cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == b"x $(touch ran); `touch ran`; %script | touch ran"
    assert done.stdout.splitlines()[-1] == b"x last" and not (tmp_path / "ran").exists()
    assert b"left out 3 lines" in done.stderr


def test_a_pattern_that_takes_too_long_is_given_up_and_the_others_are_served(run, settings, tmp_path):
    slow = RULE.replace("\npattern=", "\ncontinue=TakeNext\npattern=" + ".*[0-9]" * 6 + "never.*", 1)
    path = write(tmp_path, slow.replace("action=write", "action=write %script slow; write") + "\n" + RULE)
    lines = event(1, text="never" + "1" * 3900) + event(2, text="2")  # a line without the word is not even tried
    begun = time.monotonic()
    done = run("dre-correlate", path, "--config", settings(), stdin=lines.encode())
    assert done.stdout.splitlines() == [b"x never" + b"1" * 3900, b"x 2"]
    assert f"{path}:1: the pattern took too long for 1 lines".encode() in done.stderr
    assert time.monotonic() - begun < 30
