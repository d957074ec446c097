# SPDX-License-Identifier: Apache-2.0
"""What monitors measured over time: rings of lines that are bounded, plain to read, and whole whoever is killed."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "sec-monitor"))

from dre import conf, event  # noqa: E402
from monitorlib import trend, watch  # noqa: E402
from monitorlib.crossing import Monitor, Sample  # noqa: E402

KEY, NOW = ("shop", "slow"), 1_790_000_400  # a multiple of 10 minutes


def monitor(above=0.3, clear=0.2, **changes):
    return Monitor("shop", "slow", "http", None, "http://10.0.0.1/", above, clear, 0.0, 0.2, **changes)


@pytest.fixture
def trends(tmp_path):
    return trend.Trends(tmp_path, lambda call, *fields: call(*fields))


def lines(tmp_path, ring="10s"):
    octets = (tmp_path / f"shop.slow.{ring}").read_bytes()
    return sorted(line for line in octets.replace(b"\0", b"").splitlines() if line)


def test_samples_of_ten_seconds_are_a_line_for_people_and_programs(trends, tmp_path):
    for second, value in ((0, 0.1), (4, 0.5), (9.9, 0.3), (12, 0.2)):
        trends.add(monitor(), Sample(value), NOW + second)
    trends.add(monitor(), Sample(0.2, "no answer"), NOW + 13)
    trends.end()
    first, second = (line.decode() for line in lines(tmp_path))
    assert re.fullmatch(r"2026-09-2\dT\d\d:\d\d:\d\dZ 0.1 0.3 0.5 3 *", first) and second.rstrip().endswith(
        "0.2 0.2 0.2 2 !"
    )
    assert [len(line) for line in (first, second)] == [63, 63]
    read = trend.read(tmp_path, KEY, "10s", 3600, NOW + 15)
    assert read == [trend.Point(NOW, 0.1, 0.3, 0.5, 3), trend.Point(NOW + 10, 0.2, 0.2, 0.2, 2, True)]


def test_a_day_and_a_fortnight_are_kept_and_no_more(trends, tmp_path):
    for n in range(24 * 16 * 6):
        trends.add(monitor(), Sample(n % 7), NOW + n * 600)
    trends.end()
    end = NOW + 24 * 16 * 6 * 600 - 600
    assert (tmp_path / "shop.slow.10s").stat().st_size <= 8640 * 64
    assert (tmp_path / "shop.slow.10m").stat().st_size == 2016 * 64
    day, fortnight = (trend.read(tmp_path, KEY, ring, 10**9, end) for ring in ("10s", "10m"))
    assert (len(day), len(fortnight)) == (144, 2016)
    assert [point.time for point in fortnight] == list(range(end - 2015 * 600, end + 1, 600))


def test_what_is_too_old_is_not_shown_though_it_stands_there(trends, tmp_path):
    trends.add(monitor(), Sample(1.0), NOW)
    trends.end()
    assert trend.read(tmp_path, KEY, "10s", 86400, NOW + 86400) == []
    assert len(trend.read(tmp_path, KEY, "10s", 86400, NOW + 86390)) == 1


def test_a_restart_within_a_line_loses_nothing_of_it(tmp_path):
    for value in (1.0, 5.0):
        made = trend.Trends(tmp_path, lambda call, *fields: call(*fields))
        made.add(monitor(), Sample(value), NOW + value)
        made.end()
    assert trend.read(tmp_path, KEY, "10s", 60, NOW) == [trend.Point(NOW, 1.0, 3.0, 5.0, 2)]


def test_limits_and_moments_are_kept_and_bounded(trends, tmp_path):
    trends.add(monitor(), Sample(1.0), NOW)
    for n in range(150):
        trends.crossed(monitor(), "raised", 1.0, NOW + 2 * n)
        trends.crossed(monitor(), "cleared", 0.1, NOW + 2 * n + 1)
    for n in range(30):
        trends.add(monitor(above=1.0 + n), Sample(1.0), NOW + 400 + n)
    told = trend.about(tmp_path, KEY)
    assert (len(told["moments"]), len(told["limits"])) == (200, 20)
    assert told["moments"][-1] == [event.stamp(NOW + 299), "cleared", 0.1]
    assert told["limits"][-1] == [event.stamp(NOW + 429), 30.0, 0.2]
    assert (told["watch"], told["about"]) == ("http", {"url": "http://10.0.0.1/"})


def test_spoiled_lines_are_left_out_and_do_not_stop_it(trends, tmp_path):
    (tmp_path / "shop.slow.10s").write_bytes(os.urandom(8640 * 64))
    (tmp_path / "shop.slow.json").write_text("{")
    trends.add(monitor(), Sample(1.0), NOW)
    trends.crossed(monitor(), "raised", 1.0, NOW)
    trends.end()
    assert trend.read(tmp_path, KEY, "10s", 86400, NOW) == [trend.Point(NOW, 1.0, 1.0, 1.0, 1)]
    assert len(trend.about(tmp_path, KEY)["moments"]) == 1


def test_who_is_not_sampled_any_more_goes_and_there_are_only_so_many(tmp_path):
    made = trend.Trends(tmp_path, lambda call, *fields: call(*fields))
    made.add(monitor(), Sample(1.0), NOW)
    made.end()
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 16 * 86400,) * 2)
    for n in range(trend.KEPT + 3):
        one = Monitor("s", f"m{n}", "cpu", "web1", None, 90.0, 70.0, 0.0, 0.5)
        made.add(one, Sample(1.0), NOW)
    assert len(trend.known(tmp_path)) == trend.KEPT and KEY not in trend.known(tmp_path)


@pytest.mark.parametrize("keep", [True, False])
def test_who_only_looks_keeps_nothing(settings, tmp_path, keep):
    made = watch.Watch(conf.load(settings()), lambda *told: None, pytest.fail, keep=keep)
    made.report(monitor(), Sample(0.5), time.monotonic())
    made._trends.end()
    for pool in (made._teller, made._keeper):
        pool.shutdown()
    found = sorted(path.name for path in (tmp_path / "state/watch").glob("trend/*"))
    assert found == (["shop.slow.10m", "shop.slow.10s", "shop.slow.json"] if keep else [])


def test_a_kill_leaves_whole_lines(tmp_path):
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]; from monitorlib import trend; import pathlib;"
        "from monitorlib.crossing import Monitor, Sample;"
        "made = trend.Trends(pathlib.Path(sys.argv[1]), lambda call, *fields: call(*fields)); print('on', flush=True)\n"
        "m = Monitor('shop', 'slow', 'http', None, 'http://10.0.0.1/', .3, .2, 0., .2)\n"
        f"for n in range(10**7):\n made.add(m, Sample(n / 7), {NOW} + 10 * n); made.crossed(m, 'raised', n, {NOW})"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    for _ in range(5):
        argv = [sys.executable, "-c", script, tmp_path, root / "sec-monitor", root / "dre-core"]
        child = subprocess.Popen(argv, stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"on\n"
        time.sleep(random.uniform(0.05, 0.3))
        child.send_signal(signal.SIGKILL)
        child.wait()
        octets = (tmp_path / "shop.slow.10s").read_bytes()
        written = [octets[begin : begin + 64] for begin in range(0, len(octets), 64)]
        assert len(octets) % 64 == 0 and all(trend.parse(line) for line in written if line.strip(b"\0"))
        assert trend.about(tmp_path, KEY)["moments"]
