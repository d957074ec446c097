# SPDX-License-Identifier: Apache-2.0
"""The page of what is watched: for who has a role, drawn on the server, and never spoiled by what it reads."""

import json
import os
import time

import pagekit
import pytest

pytestmark = pytest.mark.skipif(bool(pagekit.cannot()), reason=pagekit.cannot() or "-")


@pytest.fixture(scope="module")
def site():
    with pagekit.site() as made:
        fill(made)
        made.eve = made.browser("eve")
        yield made


def fill(made):
    from monitorlib import trend
    from monitorlib.crossing import Monitor, Sample

    trends = trend.Trends(made.place / "state/watch/trend", lambda call, *fields: call(*fields))
    slow = Monitor("shop", "slow", "http", None, "http://10.0.0.1/", 0.3, 0.2, 0.0, 0.2)
    odd = Monitor("shop", "odd", "command", None, None, 5.0, 1.0, 0.0, 10.0, argv=("<script>alert(1)</script>\u202e",))
    old = Monitor("shop", "old", "disk", None, None, 80.0, 70.0, 0.0, 5.0, path="/var")
    idle = Monitor("shop", "idle", "cpu", "web1", None, 5.0, 10.0, 0.0, 0.5, below=True)
    now = time.time()
    trends.add(idle, Sample(50.0), now - 60)
    for back in range(7200, 0, -5):
        trends.add(slow, Sample(0.9 if back < 600 else 0.1), now - back)
        trends.add(odd, Sample(-3.0), now - back)
    trends.crossed(slow, "raised", 0.9, now - 600)
    trends.add(old, Sample(50.0), now - 9 * 86400)
    trends.end()
    (made.place / "state/watch/raised.json").write_text(json.dumps([["shop", "slow"]]))


def text(site):
    return site.eve.answer.get_data(as_text=True)


def test_nobody_without_a_role_sees_it(site):
    for path in ("/watch", "/watch/shop/slow"):
        asking = site.browser()
        assert asking.get(path) == 303 and asking.answer.headers["Location"] == "/login"


def test_each_monitor_with_its_value_and_state(site):
    assert site.eve.get("/watch") == 200
    assert "slow ✗ raised 0.9 s" in site.eve.words and "odd ✓ calm -3" in site.eve.words
    assert "old ? no samples today" in site.eve.words
    assert site.eve.words.index("slow") < site.eve.words.index("odd") < site.eve.words.index("old")


@pytest.mark.parametrize("span", ["1h", "6h", "1d", "14d"])
def test_one_monitor_with_limits_and_moments(site, span):
    assert site.eve.get(f"/watch/shop/slow?span={span}") == 200
    shown = text(site)
    assert shown.count('<line class="mark raised" x1="1" ') == 1, "in the legend"
    assert shown.count('<line class="mark raised"') == 2 and shown.count('<rect class="raised" x=') == 1
    for shape in ("band", "mean", "above", "clear"):
        assert f'class="{shape}" points="' in shown
    assert "raised 20" in shown and "at 0.9" in shown
    assert "over the limit above 0.3" in site.eve.words and "calm below 0.2" in site.eve.words


def test_a_limit_that_must_not_be_fallen_below(site):
    assert site.eve.get("/watch/shop/idle") == 200
    assert "over the limit below 5" in site.eve.words and "calm above 10" in site.eve.words
    assert "below 5, clear 10" in site.eve.words


def test_what_is_watched_is_text_for_the_page(site):
    assert site.eve.get("/watch/shop/odd") == 200
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\u202e" in text(site)


@pytest.mark.parametrize(
    "path", ["/watch/shop/none", "/watch/..%2f..%2fetc/passwd", "/watch/shop/slow.10s", "/watch/a/b/c"]
)
def test_what_is_not_there_is_not_there(site, path):
    assert site.eve.get(path) == 404


def test_an_unknown_span_is_refused(site):
    assert site.eve.get("/watch/shop/slow?span=9y") == 400


def test_spoiled_files_leave_the_others_alone(site):
    place = site.place / "state/watch/trend"
    spoiled = {"a.a": b"{", "a.b": b"[]", "a.c": b'{"watch":1,"about":{},"limits":[],"moments":[]}', "a.d": b"\xff"}
    spoiled["a.e"] = b'{"watch":"cpu","about":{},"limits":[["x",1,2]],"moments":[]}'
    spoiled["a.f"] = b'{"watch":"cpu","about":[],"limits":[["2026-11-23T08:00:00.123Z",1,2]],"moments":[]}'
    for name, octets in spoiled.items():
        (place / f"{name}.json").write_bytes(octets)
        (place / f"{name}.10s").write_bytes(os.urandom(8640 * 64))
    (place / "shop.slow.10m").write_bytes(b"short")
    (site.place / "state/watch/raised.json").write_text("{")
    assert site.eve.get("/watch") == 200 and "slow" in site.eve.words and "a.a" not in site.eve.words
    assert site.eve.get("/watch/a/a") == 404 and site.eve.get("/watch/shop/slow?span=14d") == 200
    assert "No sample in this time" in site.eve.words
