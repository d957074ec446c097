# SPDX-License-Identifier: Apache-2.0
"""What dre-watch samples: values over time, limits, and when a monitor was raised. Files are only read."""

import json
import time
from dataclasses import dataclass
from typing import Any

from dre import event
from flask import Blueprint, abort, current_app, render_template, request

from monitorlib import trend
from monitorlib.page import graph
from monitorlib.page.ask import ask

views = Blueprint("watch", __name__)
SPANS = {  # name: words, seconds, ring
    "1h": ("1 hour", 3600, "10s"),
    "6h": ("6 hours", 6 * 3600, "10s"),
    "1d": ("1 day", 86400, "10s"),
    "14d": ("14 days", 14 * 86400, "10m"),
}
UNITS = {"http": "s", "clock": "s", "mysql": "s", "apache": "accesses/min", "liveness": "", "command": ""}  # others: %
FRESH = 60.0  # seconds after which a value is told to be old
LISTED = 50  # moments in the table


@dataclass(frozen=True)
class Seen:
    """One monitor as the page shows it."""

    key: trend.Key
    watch: str
    about: str
    unit: str
    above: float
    clear: float
    raised: bool
    value: float | None
    age: float
    drawn: graph.Graph
    moments: list[tuple[float, str, float]]

    @property
    def side(self) -> str:
        """Where a value is over the limit."""
        return "below" if self.clear > self.above else "above"

    @property
    def fresh(self) -> bool:
        """Whether it is sampled now."""
        return self.value is not None and self.age < FRESH


@views.get("/watch")
def overview() -> str:
    """All monitors, each with its last hour."""
    ask("watch")
    place = trend.directory(current_app.config["CONF"])
    raised, now = _raised(), time.time()
    found = [one for key in trend.known(place) if (one := _seen(key, "1h", raised, now))]
    found.sort(key=lambda one: (not one.fresh, not one.raised, one.key))
    return render_template("watch.html", found=found, box=(graph.WIDTH, graph.HEIGHT))


@views.get("/watch/<script>/<identity>")
def monitor(script: str, identity: str) -> str:
    """One monitor over a span of time."""
    ask("watch")
    span, key = request.args.get("span", "1h"), (script, identity)
    place = trend.directory(current_app.config["CONF"])
    if span not in SPANS:
        abort(400, f"span: one of {', '.join(SPANS)}")
    seen = _seen(key, span, _raised(), time.time()) if key in trend.known(place) else None
    if seen is None:
        abort(404, "no such monitor")
    moments = [(event.stamp(when), kind, value) for when, kind, value in seen.moments[: -LISTED - 1 : -1]]
    return render_template(
        "monitor.html", one=seen, span=span, spans=SPANS, moments=moments, box=(graph.WIDTH, graph.HEIGHT)
    )


def _raised() -> set[trend.Key]:
    """What dre-watch remembers as raised."""
    path = current_app.config["CONF"].core_state_dir / "watch" / "raised.json"
    try:
        return {(str(script), str(identity)) for script, identity in json.loads(path.read_bytes())}
    except (OSError, ValueError, TypeError):
        return set()


def _seen(key: trend.Key, span: str, raised: set[trend.Key], now: float) -> Seen | None:
    """The monitor *key*; None where its file is spoiled."""
    place = trend.directory(current_app.config["CONF"])
    _, length, ring = SPANS[span]
    step = trend.RINGS[ring][0]
    points = trend.read(place, key, ring, length, now)
    newest = trend.read(place, key, "10s", trend.RINGS["10s"][0] * trend.RINGS["10s"][1], now)[-1:]
    try:
        told: dict[str, Any] = trend.about(place, key)
        limits = [(event.seconds(since), float(above), float(clear)) for since, above, clear in told["limits"]]
        moments = [(event.seconds(when), str(kind), float(value)) for when, kind, value in told["moments"]]
        drawn = graph.draw(points, limits, moments, now - length, now, step)
        about = " ".join(f"{kind} {value}" for kind, value in told["about"].items())
        return Seen(
            key,
            str(told["watch"]),
            about,
            UNITS.get(told["watch"], "%"),
            *limits[-1][1:],
            key in raised,
            newest[0].mean if newest else None,
            now - newest[0].time - 10 if newest else 0.0,
            drawn,
            moments,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, event.EventError):
        return None
