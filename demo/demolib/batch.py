# SPDX-License-Identifier: Apache-2.0
"""Scenario (2): answers become slow; the D-Box names the batch job that was started just before, and it is stopped.

Another batch job, which has run for longer, goes on: nobody accuses it.
"""

import time
from collections.abc import Mapping, Sequence

from demolib import shop
from demolib.journal import Event
from demolib.places import DB, FEED, REPORT, SCRIPTS
from demolib.programs import dre
from demolib.story import Say, Story
from demolib.verdict import Check, Facts, Promise, at

STOP, RESTORE, AIM = 10.0, 300.0, 5.0


class Batch(Facts):
    """What was measured of it."""

    @property
    def slow(self) -> Event | None:
        return self.entry("watch.raised", id="slow")

    @property
    def stopped(self) -> Event | None:
        return self.told("app.stopped", name=REPORT)

    def answered(self) -> bool:
        return self.stopped is not None

    def harm(self) -> Check:
        return self.slowed("the batch job slowed the shop down")

    def promises(self) -> Sequence[Promise]:
        return [
            Promise("batch job stopped, from the first slow answer", self.bad and self.bad.due, at(self.stopped), STOP),
            Promise("service restored after that", at(self.stopped), self.green, RESTORE, AIM),
        ]

    def found(self) -> Mapping[str, Event | None]:
        return {
            "start of the job": self.entry("app.started", name=REPORT),
            "slow": self.slow,
            "what was stopped": self.entry("script.run.output"),
            "stop": self.entry("script.step.done", action="run"),
            "restored": self.restored,
        }

    def moments(self) -> Sequence[tuple[float | None, str]]:
        found = self.found()
        return [
            (at(found["start of the job"]), f"{REPORT} started; the D-Box has it"),
            (at(self.slow), "watch.raised: probes of the shop have been slow for a while"),
            (at(self.stopped), f"{REPORT} stopped, as the D-Box named it"),
            (at(found["stop"]), "script: the shop answers again"),
            (at(self.restored), "script: the shop is restored"),
        ]


class BatchStory(Story):
    """The nightly report, started by day, locks the orders while it counts them."""

    title = "Answers become slow: the batch job that the D-Box names is stopped"
    script = SCRIPTS / "shop-batch.yaml"
    actions = ("stop-batch",)
    facts = Batch
    warm = 20.0  # longer than the script's time within which a job is to blame, so that the other one is not
    patience = 30.0
    watched = DB
    again = f"dre-app {{conf}} start {REPORT}"

    def set_up(self, say: Say) -> None:
        shop.make_jobs()
        dre("dre-app", "start", FEED)
        say(f"{FEED} runs beside the shop, as every day; {REPORT} is there for the night")

    def strike(self, without: str, note: Say) -> float:
        moment = time.time()
        dre("dre-app", "start", REPORT)
        note(f"somebody has started {REPORT}")
        return moment

    def checks(self, facts: Facts) -> list[Check]:
        states = {name: shop.state(name) for name in (FEED, REPORT)}
        shown = ", ".join(f"{name} {state}" for name, state in states.items())
        return [
            *super().checks(facts),
            Check("no other batch job was stopped", states == {FEED: "running", REPORT: "stopped"}, shown),
        ]
