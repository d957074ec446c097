# SPDX-License-Identifier: Apache-2.0
"""dre-watch: when a monitor is raised and cleared, how an app is measured, and the files it is told by."""

import asyncio
import json
import pathlib
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from dre.cgroup import Usage  # noqa: E402
from dre.errors import UsageError  # noqa: E402
from monitorlib import probe, samplers, watch, watchfile  # noqa: E402
from monitorlib.crossing import CALM_ANSWERS, Monitor, Sample, State, step  # noqa: E402


def monitor(**changes):
    values = {"script": "s", "id": "m", "watch": "cpu", "of": "web1", "url": None, "bound": 90.0, "clear": 70.0}
    return Monitor(**{**values, "hold": 3.0, "every": 0.5, **changes})


def crossings(made, samples):
    """[(time, crossing)] of (time, value) or (time, Sample) pairs."""
    state = State()
    out = []
    for now, value in samples:
        sample = value if isinstance(value, Sample) else Sample(value)
        state, crossing = step(made, state, sample, now)
        if crossing:
            out.append((now, crossing))
    return out


def test_raised_only_after_staying_above_for_as_long_as_said():
    assert crossings(monitor(), [(0, 95), (2, 95), (2.9, 95)]) == []
    assert crossings(monitor(), [(0, 95), (2, 95), (3, 95), (4, 95)]) == [(3, "raised")]
    assert crossings(monitor(), [(0, 95), (2, 80), (3, 95), (5, 95)]) == []


def test_between_clear_and_above_nothing_changes():
    assert crossings(monitor(hold=0), [(0, 95), (1, 80), (2, 95), (3, 70), (4, 69), (5, 89)]) == [
        (0, "raised"),
        (4, "cleared"),
    ]


def test_http_needs_some_good_answers_in_a_row():
    made = monitor(watch="http", bound=0.3, clear=0.2, hold=0)
    good, bad = 0.1, Sample(0.1, "status 503")
    got = crossings(made, enumerate([0.31, good, good, bad, good, good, 0.25, good, good, good, good]))
    assert got == [(0, "raised"), (9, "cleared")]
    assert CALM_ANSWERS == 3


samples = st.lists(
    st.tuples(st.floats(0, 2), st.one_of(st.floats(0, 200), st.builds(Sample, st.floats(0, 1), st.just("no answer")))),
    max_size=60,
)


def test_raised_below_and_clear_above_and_between_nothing_changes():
    idle = monitor(bound=10.0, clear=20.0, hold=2, below=True)
    assert crossings(idle, [(0, 9), (1, 10), (2, 9), (4, 9)]) == [(4, "raised")]
    assert crossings(monitor(bound=10.0, clear=20.0, hold=0, below=True), [(0, 10), (1, 9), (2, 20), (3, 21)]) == [
        (1, "raised"),
        (3, "cleared"),
    ]
    assert crossings(idle, [(0, Sample(50, "exit status 2")), (2, 9)]) == [(2, "raised")]


@given(samples, st.floats(0, 100), st.floats(0, 100), st.floats(0, 5), st.sampled_from(["cpu", "http"]), st.booleans())
def test_crossings_alternate_and_each_has_its_reason(steps, bound, gap, hold, kind, below):
    clear = bound + gap if below else max(0.0, bound - gap)
    made = monitor(watch=kind, bound=bound, clear=clear, hold=hold, below=below)
    sign = -1 if below else 1  # of a fall the same holds, mirrored
    now, timed = 0.0, []
    for span, value in steps:
        now += span
        timed.append((now, value if isinstance(value, Sample) else Sample(value)))
    got = crossings(made, timed)
    assert [crossing for _, crossing in got] == (["raised", "cleared"] * len(got))[: len(got)]
    for moment, crossing in got:
        here = max(index for index, (when, _) in enumerate(timed) if when == moment)
        sample = timed[here][1]
        if crossing == "raised" and sum(when == moment for when, _ in timed) == 1:
            assert sample.bad or sign * sample.value > sign * bound
            # Of those at the very begin only the last need be over: that is when it went over.
            since = [s for when, s in timed[: here + 1] if when > moment - hold]
            assert all(s.bad or sign * s.value > sign * bound for s in since)
        elif sum(when == moment for when, _ in timed) == 1:
            last = [s for _, s in timed[: here + 1]][-made.answers :]
            assert all(not s.bad and sign * s.value < sign * made.clear for s in last)


def usage(**changes):
    values = {"cpu_ns": 0, "memory": 0, "memory_limit": None, "cpu_limit": None, "pids": 1, "running": True}
    return Usage(**{**values, **changes})


def test_percent_is_of_the_containers_own_limit_else_of_the_host():
    before, now = (0.0, usage(cpu_ns=0)), usage(cpu_ns=500_000_000)
    assert samplers.measure(monitor(), before, 1.0, now, cores=2).value == 25
    assert samplers.measure(monitor(), before, 1.0, usage(cpu_ns=500_000_000, cpu_limit=50.0), cores=2).value == 100
    memory = monitor(watch="memory")
    assert samplers.measure(memory, None, 1.0, usage(memory=90, memory_limit=100)).value == 90
    assert samplers.measure(memory, None, 1.0, usage(memory=samplers.host_memory())).value == 100


def test_the_first_look_at_cpu_and_a_new_counter_say_nothing():
    assert samplers.measure(monitor(), None, 1.0, usage()) is None
    assert samplers.measure(monitor(), (0.0, usage(cpu_ns=10)), 1.0, usage(cpu_ns=5)) is None
    assert samplers.measure(monitor(), (0.0, usage(running=False)), 1.0, usage(cpu_ns=10**9)) is None


def test_what_does_not_run_uses_nothing_and_is_not_alive():
    for used in (None, usage(running=False)):
        assert samplers.measure(monitor(), None, 1.0, used) == Sample(0.0)
        assert samplers.measure(monitor(watch="liveness"), None, 1.0, used).bad
    assert not samplers.measure(monitor(watch="liveness"), None, 1.0, usage()).bad


CONTRACT = {
    "script": "web-overload",
    "monitors": [
        {"id": "busy", "watch": "cpu", "of": "web1", "above": 90.0, "clear": 70.0, "for": 3.0},
        {
            "id": "slow",
            "watch": "http",
            "url": "http://10.231.0.11/",
            "above": 0.3,
            "clear": 0.2,
            "for": 0.0,
            "every": 0.2,
        },
        {"id": "mem", "watch": "memory", "of": "web1", "above": 90.0, "clear": 80.0, "for": 1.0},
        {"id": "dead", "watch": "liveness", "of": "web1", "missing": 15.0},
    ],
}


def write(tmp_path, fields):
    path = tmp_path / "x.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


def test_reads_what_dscript_deploys(tmp_path):
    busy, slow, _, dead = watchfile.read(write(tmp_path, CONTRACT))
    assert (busy.script, busy.of, busy.hold) == ("web-overload", "web1", 3.0)
    assert (slow.url, slow.every, slow.limit) == ("http://10.231.0.11/", 0.2, 0.3)
    assert (dead.hold, dead.limit) == (15.0, 15.0)


HTTP = {"id": "m", "watch": "http", "url": "http://h/", "above": 1, "clear": 1}


@pytest.mark.parametrize(
    "item",
    [
        {**HTTP, "url": "file:///etc/passwd"},
        {**HTTP, "url": "http://h/\r\nX: y"},
        {**HTTP, "url": "http://user@h/"},
        {**HTTP, "url": "http://:80/"},
        {**HTTP, "above": 0.5},
        {**HTTP, "above": "1"},
        {**HTTP, "below": 0.5},
        {"id": "m", "watch": "cpu", "of": "a", "below": 9, "clear": 9},
        {"id": "m", "watch": "cpu", "of": "a", "below": 9},
        {"id": "m", "watch": "cpu", "of": "a", "clear": 9},
        {**HTTP, "above": True},
        {**HTTP, "above": -1},
        {**HTTP, "id": "A b"},
        {**HTTP, "more": 1},
        {**HTTP, "watch": "disk"},
        {"id": "m", "watch": "cpu", "above": 1, "clear": 1},
        {"id": "m", "watch": "cpu", "of": "../x", "above": 1, "clear": 1},
        {"id": "m", "watch": "cpu", "of": "a", "above": 1},
        {"id": "m", "watch": "liveness", "of": "a"},
        "m",
    ],
)
def test_refuses_what_it_does_not_understand(tmp_path, item):
    with pytest.raises(UsageError, match="x.json: monitor 1: "):
        watchfile.read(write(tmp_path, {"script": "s", "monitors": [item]}))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"script":"s"}', "[" * 100_000, '{"script":"S S","monitors":[]}'])
def test_refuses_a_file_of_another_form(tmp_path, text):
    with pytest.raises(UsageError):
        watchfile.read(write(tmp_path, text))


def serve(answer):
    """A server on loopback that gives each connection *answer(number)* = (seconds, octets); its port."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0), backlog=100)

    def one(connection, number):
        with connection:
            connection.recv(4096)
            delay, octets = answer(number)
            time.sleep(delay)
            connection.sendall(octets)

    def loop():
        number = 0
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=one, args=(connection, number), daemon=True).start()
            number += 1

    threading.Thread(target=loop, daemon=True).start()
    return listener.getsockname()[1]


OK = b"HTTP/1.0 200 OK\r\n\r\nhello"


def probe_for(port, seconds, **changes):
    got = []
    made = monitor(watch="http", url=f"http://127.0.0.1:{port}/", bound=0.3, clear=0.2, hold=0, every=0.05, **changes)

    async def run():
        task = asyncio.create_task(probe.watch(made, got.append))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())
    return got


def test_an_unanswered_request_is_slow_at_the_limit_and_the_next_does_not_wait_for_it():
    got = probe_for(serve(lambda number: (2.0 if number == 0 else 0.0, OK)), 0.8)
    assert [sample.bad for sample in got].count("no answer") == 1
    assert len([sample for sample in got if not sample.bad]) >= 5
    assert min(sample.value for sample in got if sample.bad) >= 0.3


def test_where_fast_is_wrong_a_slow_answer_is_waited_for():
    got = probe_for(serve(lambda _: (0.4, OK)), 0.7, below=True)
    assert got and all(0.4 <= sample.value < 0.7 and not sample.bad for sample in got)


def test_errors_are_bad_whatever_their_time():
    assert {sample.bad for sample in probe_for(serve(lambda _: (0, b"HTTP/1.0 503 no\r\n\r\n")), 0.2)} == {"status 503"}
    assert {sample.bad for sample in probe_for(serve(lambda _: (0, b"hello\r\n")), 0.2)} == {"not HTTP"}
    assert all(sample.bad for sample in probe_for(1, 0.2))


def test_crossings_are_told_in_order_and_remembered_over_a_restart(tmp_path, settings):
    from dre import conf

    made = conf.load(settings())
    told = []
    first = watch.Watch(made, lambda type, source, data, sev: told.append((type, source, data)), print)
    slow = monitor(watch="http", of=None, url="http://h/", bound=0.3, clear=0.2, hold=0)
    first.report(slow, Sample(0.31, "no answer"), 1.0)
    first._teller.shutdown()
    ((type, source, data),) = told
    assert type == "watch.raised" and source.endswith("/watch")
    assert list(data) == ["script", "id", "watch", "value", "limit", "url", "why"]
    second = watch.Watch(made, lambda type, source, data, sev: told.append((type, source, data)), print)
    for moment in range(5):
        second.report(slow, Sample(0.4), moment)
    for moment in range(5):
        second.report(slow, Sample(0.1), moment)
    second._teller.shutdown()
    assert [item[0] for item in told] == ["watch.raised", "watch.cleared"]


def test_a_changed_file_takes_effect_and_a_broken_one_leaves_the_last_version_on(tmp_path, settings):
    from dre import conf

    made = conf.load(settings())
    directory = made.core_state_dir / "script" / "watch.d"
    directory.mkdir(parents=True)
    told = []

    async def run():
        watcher = watch.Watch(made, lambda type, *rest: told.append(type), lambda text: None)
        (directory / "a.json").write_text(json.dumps(CONTRACT))
        watcher.rescan()
        first = {key: item for key, (item, _) in watcher._tasks.items()}
        (directory / "a.json").write_text("{broken")
        watcher.rescan()
        assert {key: item for key, (item, _) in watcher._tasks.items()} == first
        (directory / "a.json").write_text(json.dumps({**CONTRACT, "monitors": CONTRACT["monitors"][:1]}))
        watcher.rescan()
        assert [key for key in watcher._tasks] == [("web-overload", "busy")]
        (directory / "a.json").unlink()
        watcher.rescan()
        assert watcher._tasks == {}
        await asyncio.sleep(0)
        await asyncio.to_thread(watcher._teller.shutdown)

    asyncio.run(run())
    assert told == ["monitor.refused"]
    assert len(CONTRACT["monitors"]) == 4
