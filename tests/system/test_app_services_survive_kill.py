# SPDX-License-Identifier: Apache-2.0
"""kill -9 of what the host runs for its apps, keep, autostart and autostop: the next call goes on, nothing is left.

DRE_KILLS is how often each is killed (default 2), at moments drawn from its own measured duration, in turn with the
programs it has started, as a lost session would be, and alone, as by the OOM killer. The keeper is besides killed by
strace as it begins each single change of the file system (at DRE_KILLS of these moments; at all when it is 50).
"""

import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import app_ground
import pytest
from app_ground import BRIDGE, LXC, Ground, picture
from conftest import environment, program
from test_app_restarts import end_keeper, keeper, wait_for

KILLS = int(os.environ.get("DRE_KILLS", "2"))
CALLS = "mkdir,rename,unlink,unlinkat,rmdir,symlink,fchmod,ftruncate,?renameat2,?mkdirat"
PREFIX = "t-svkill"
WEB, DB, LONE = (f"{PREFIX}-{which}" for which in ("a-web", "b-db", "c-lone"))  # WEB is after DB
ORDERED = [f"[lxc monitor] {LXC} {name}" for name in (WEB, DB, LONE)]


@pytest.fixture
def app(run, settings, tmp_path):
    with Ground(run, settings, DRE_APP_LOG_MAX="1M") as ground:
        app_ground.make_tree(tmp_path / "tree")
        try:
            yield ground
        finally:
            end_keepers(ground)


def end_keepers(app):
    """One may wait for the end of another."""
    while keeper(app):
        end_keeper(app)


@contextlib.contextmanager
def at_work(app, *argv, before=()):
    """dre-app at work, in a session of its own; what is left of it at the end is killed."""
    words = [*before, program("dre-app"), "--config", app.config, *argv]
    victim = subprocess.Popen(words, env=environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        yield victim
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(victim.pid, signal.SIGKILL)
        victim.wait(60)


def kill(victim, number):
    """Whether it was still at work when it was killed."""
    if victim.poll() is None:
        os.killpg(victim.pid, signal.SIGKILL) if number % 2 else victim.kill()
    return victim.wait(60) == -signal.SIGKILL


def shown(name, what="-s"):
    """The state of the app as LXC has it; with -p its first process."""
    return subprocess.run(["lxc-info", "-n", name, what, "-H"], capture_output=True, text=True).stdout.strip()


def halves(app):
    """Files that only a program at work may have."""
    hidden = [path for path in app.place.rglob(".*") if "tree" not in path.parts]
    return [path for path in hidden if path.name.endswith((".tmp", ".gone"))]


def told(app, name, what):
    """How often *what* was told of the app."""
    spool = app.place / "state/spool/event/emitted.jsonl"
    rows = map(json.loads, spool.read_text().splitlines()) if spool.exists() else ()
    return sum((row["type"], row["data"].get("name")) == (f"app.{what}", name) for row in rows)


def rate():
    """The rate at which LONE may send and receive, as the kernel has it: set when it runs already."""
    words = ["tc", "qdisc", "show", "dev", *(set(os.listdir(f"/sys/class/net/{BRIDGE}/brif")) or {"lo"})]
    return "tbf" in subprocess.run(words[:5], capture_output=True, text=True).stdout


def crash(app, anew=True):
    """Kill the first process of LONE, once it was started by order, which begins the count of its crashes anew."""
    if anew:
        app("stop", LONE)
        app("start", LONE)
    pid = shown(LONE, "-p")
    os.kill(int(pid), signal.SIGKILL)
    return pid


def running_after(pid):
    return shown(LONE) == "RUNNING" and shown(LONE, "-p") != pid


def goes_on(app, pid, number, moment):
    """The next keeper, or the next recover, starts the app again, as after its first crash."""
    again = ("recover",) if number % 3 == 2 else ("keep",)
    with at_work(app, *again) as second:
        if again == ("recover",):
            assert second.wait(60) == 0
        assert wait_for(lambda: running_after(pid)), f"{moment}: {app('list')}"
        assert app("exec", LONE, "--", "cat", "/etc/release") == "from the tree", moment
        assert wait_for(rate), f"{moment}: its start was not ended"
        record = app.place / "run/app" / f"{LONE}.json"
        assert json.loads(record.read_text())["crashes"] == 1, f"{moment}: {record.read_text()}"
    end_keepers(app)


def create_kept(app):
    app("create", LONE, "--base", app.place / "tree", "--restart", "on-failure:3")
    app("limit", LONE, "--net", "1M")
    app("start", LONE)  # makes the bridge
    assert rate()
    app("stop", LONE)
    end_keepers(app)
    return picture(PREFIX)


def test_keep_killed_at_any_moment_forgets_no_crash(app):
    before = create_kept(app)
    spans = []
    for _ in range(2):
        with at_work(app, "keep"):
            assert wait_for(lambda: keeper(app))
            crashes, restarts = told(app, LONE, "crashed"), told(app, LONE, "restarted")
            crash(app)
            begun = time.monotonic()
            assert wait_for(lambda count=crashes: told(app, LONE, "crashed") > count)
            seen = time.monotonic()
            assert wait_for(lambda count=restarts: told(app, LONE, "restarted") > count)
            spans.append((seen - begun, time.monotonic() - seen))
    seeing, starting = (min(span[part] for span in spans) for part in (0, 1))
    hits = 0
    for number in range(KILLS):
        with at_work(app, "keep") as victim:
            assert wait_for(lambda: keeper(app))
            crashes = told(app, LONE, "crashed")
            pid = crash(app)
            if number % 2:  # as it tells the crash, or as it starts the app again, a second later
                delay = random.uniform(0, seeing)
            else:
                assert wait_for(lambda count=crashes: told(app, LONE, "crashed") > count)
                delay = random.uniform(min(0.9, starting), starting)
            time.sleep(delay)
            hits += kill(victim, number // 2)
        goes_on(app, pid, number, f"number {number}, {delay:.3f} s of {seeing:.3f} and {starting:.3f}")
        assert 1 <= told(app, LONE, "crashed") - crashes <= 2, "killed as it has told it, it may tell it twice"
    print(f"{hits} of {KILLS} kills hit, within {seeing:.3f} s of the crash or {starting:.3f} s of its telling")
    assert hits == KILLS
    app("stop", LONE)
    assert picture(PREFIX) == before
    app("destroy", LONE)
    assert halves(app) == []


def need_strace():
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed; packaging/install-tools check brings it")


def changes(trace):
    """The changes in *trace*, each the name of a system call and which of that name it is."""
    found, seen = [], collections.Counter()
    for line in trace.read_text().splitlines():
        call = line.partition("(")[0]
        seen[call] += 1
        if re.search(r" = 0$", line):
            found.append((call, seen[call]))
    return found


def moments(app, done):
    """The changes that a keeper makes until *done* is true, from when it holds its lock."""
    trace = app.place / "trace"
    with at_work(app, "keep", before=("strace", "-qq", "-o", trace, "-e", f"trace={CALLS}")):
        assert wait_for(lambda: keeper(app))
        first = len(changes(trace))
        assert wait_for(done())
    found = changes(trace)[first:]
    assert found
    return found if KILLS >= 50 else random.sample(found, min(KILLS, len(found)))


def injected(app, moment):
    call, number = moment
    return ("strace", "-qq", "-o", app.place / "trace", "-e", f"inject={call}:signal=KILL:when={number}")


def test_keep_killed_at_any_change_forgets_no_crash(app):
    need_strace()
    before = create_kept(app)

    def restarted():
        count = told(app, LONE, "restarted")
        crash(app)
        return lambda: told(app, LONE, "restarted") > count

    hits = 0
    found = moments(app, restarted)
    for number, moment in enumerate(found):
        with at_work(app, "keep", before=injected(app, moment)) as victim:
            assert wait_for(lambda process=victim: keeper(app) or process.poll() is not None)
            crashes, restarts = told(app, LONE, "crashed"), told(app, LONE, "restarted")
            pid = crash(app)
            wait_for(lambda process=victim, was=restarts: process.poll() or told(app, LONE, "restarted") > was)
            hits += victim.poll() == -signal.SIGKILL
        goes_on(app, pid, number, f"killed at {moment} of {found}")
        assert 1 <= told(app, LONE, "crashed") - crashes <= 2, f"killed at {moment} of {found}"
    print(f"{hits} kills hit, at {found}")
    assert hits, "no kill hit"
    app("stop", LONE)
    assert picture(PREFIX) == before
    app("destroy", LONE)
    assert halves(app) == []


def test_keep_killed_as_it_cuts_a_log(app):
    """The part that was cut off is the old one or the new one, wholly, and the next keeper cuts."""
    need_strace()
    count = "i=0; while :; do echo $i; i=$((i+1)); [ $((i % 20000)) != 0 ] || sleep 0.1; done"
    app("create", LONE, "--base", app.place / "tree", "--ip", "none", "--", "sh", "-c", count)
    log, older = (app.place / "log/app" / f"{LONE}.log{suffix}" for suffix in ("", ".old"))
    app("start", LONE)

    def cut():
        last = older.stat().st_mtime_ns if older.exists() else 0
        return lambda: older.exists() and older.stat().st_mtime_ns != last and log.stat().st_size < 1 << 20

    hits = 0
    found = moments(app, cut)
    for moment in found:
        assert wait_for(lambda: log.stat().st_size > 1 << 20)
        with at_work(app, "keep", before=injected(app, moment)) as victim:
            hits += wait_for(lambda process=victim: process.poll()) == -signal.SIGKILL
        assert_counted(older)
        with at_work(app, "keep"):
            assert wait_for(cut()), f"killed at {moment} of {found}"
        assert_counted(older)
        assert halves(app) == [], f"killed at {moment} of {found}"
    print(f"{hits} kills hit, at {found}")
    assert hits == len(found)


def assert_counted(path):
    """It is whole: long, and all lines but the first and the last, which may be parts of one, count."""
    if path.exists():
        lines = path.read_text().split("\n")[1:-1]
        assert len(lines) > 1000
        assert [int(line) for line in lines] == list(range(int(lines[0]), int(lines[0]) + len(lines)))


def alive():
    """Those of the apps that run, in the order of WEB, DB, LONE; by their monitors, all seen in one look."""
    found = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout.splitlines()
    return [title in [line.strip() for line in found] for title in ORDERED]


@pytest.mark.parametrize("verb", ["autostart", "autostop"])
def test_kill_of(app, verb):
    tree = app.place / "tree"
    app("create", DB, "--base", tree)
    app("create", WEB, "--base", tree, "--after", DB, "--autostart")
    app("create", LONE, "--base", tree, "--restart", "on-failure:3", "--autostart")
    app("autostart")  # makes the bridge
    app("autostop")
    before, durations, hits = picture(PREFIX), [], 0
    for _ in range(3 if KILLS >= 10 else 2):
        for now in ("autostart", "autostop"):
            begun = time.monotonic()
            app(now)
            durations += [time.monotonic() - begun] if now == verb else []
    duration = min(durations)
    for number in range(KILLS):
        if verb == "autostop":
            app("autostart")
        end_keepers(app)
        with at_work(app, verb) as victim:
            delay = random.uniform(0, duration)
            time.sleep(delay)
            hits += kill(victim, number)
        moment = f"number {number}, killed {delay:.3f} s of {duration:.3f} s"
        web, db, _ = alive()
        assert db or not web, f"{moment}: {WEB} runs, and {DB}, which it is after, does not"
        app(verb)
        if verb == "autostart":
            assert [shown(name) for name in (WEB, DB, LONE)] == ["RUNNING"] * 3, moment
            for name in (WEB, DB, LONE):
                assert app("exec", name, "--", "cat", "/etc/release") == "from the tree", moment
            pid = crash(app, anew=False)
            assert wait_for(lambda was=pid: running_after(was)), f"{moment}: {LONE} is not kept"
            app("autostop")
        assert [shown(name) for name in (WEB, DB, LONE)] == ["STOPPED"] * 3, moment
        assert picture(PREFIX) == before, moment
    print(f"{verb}: {hits} of {KILLS} kills hit while it ran ({duration:.3f} s)")
    assert hits
    app("destroy", WEB, DB, LONE)
    assert halves(app) == []
