# SPDX-License-Identifier: Apache-2.0
"""Scenario (3): an app fills its memory; what fills it is recorded, and it and the app that depends on it restart."""

import time
from collections.abc import Mapping, Sequence

from demolib import shop
from demolib.journal import Event
from demolib.places import APP, SCRIPTS, WEB
from demolib.programs import dre
from demolib.story import Say, Story
from demolib.verdict import Check, Facts, Promise, Usage, at

HEALTHY = 10.0
FULL = 90.0  # percent of the limit, as the script says
LIMIT = "320M"


class Memory(Facts):
    """What was measured of it."""

    @property
    def full(self) -> Event | None:
        """The monitor's word for it."""
        return self.told("watch.raised", id="full")

    @property
    def over(self) -> float | None:
        """When the memory was first seen over the limit: by the samples, or by the monitor."""
        seen = [one.time for one in self._samples() if one.time > self.began and one.full > FULL]
        return min([*seen[:1], *([at(self.full)] if self.full else [])], default=None)

    @property
    def struck(self) -> float:
        return self.over or self.began

    @property
    def green(self) -> float | None:
        """When the first 10 s of good answers began after both restarts."""
        return self.green_after(at(self.restarted(WEB)))

    def _samples(self) -> list[Usage]:
        return [one for one in self.usage if one.name == APP and one.full is not None]

    def restarted(self, name: str) -> Event | None:
        """The start of an app after its memory was full."""
        return self.told("app.started", at(self.full), name=name) if self.full else None

    def answered(self) -> bool:
        return self.restarted(WEB) is not None

    def harm(self) -> Check:
        most = max((one.full for one in self._samples()), default=0.0)
        return Check("the release filled the app's memory", self.over is not None, f"{most:.0f} % of {LIMIT} at most")

    def promises(self) -> Sequence[Promise]:
        return [Promise("healthy again, from memory over 90 %", self.over, self.green, HEALTHY)]

    def found(self) -> Mapping[str, Event | None]:
        return {
            "full": self.entry("watch.raised", id="full"),
            "diagnosis": self.entry("script.run.output"),
            f"restart of {APP}": self.entry("script.step.done", action="restart", of=APP),
            f"restart of {WEB}": self.entry("script.step.done", action="restart", of=WEB),
            "restored": self.restored,
        }

    def moments(self) -> Sequence[tuple[float | None, str]]:
        found = self.found()
        return [
            (self.over, f"memory of {APP} over 90 % of its limit"),
            (at(self.full), "watch.raised: it has been so for a while"),
            (at(found["diagnosis"]), "what fills it is recorded"),
            (at(self.restarted(APP)), f"{APP} started again"),
            (at(self.restarted(WEB)), f"{WEB}, which depends on it, started again"),
            (at(self.restored), "script: the shop is restored"),
        ]


class MemoryStory(Story):
    """Release v3 draws a cover for each suggestion, and keeps it in a cache that never finds anything again."""

    title = "An app fills its memory: it and what depends on it restart, and what filled it is recorded"
    script = SCRIPTS / "shop-memory.yaml"
    actions = ("diagnose",)
    facts = Memory
    patience = 120.0
    again = "wait: the release is still there, and fills the memory again"

    def set_up(self, say: Say) -> None:
        dre("dre-app", "limit", APP, "--memory", LIMIT)

    def strike(self, without: str, note: Say) -> float:
        shop.deploy(shop.LEAK)
        moment = time.time()
        shop.announce(shop.LEAK)
        note(f"release {shop.LEAK} announced and going into service")
        shop.reload()
        return moment

    def checks(self, facts: Facts) -> list[Check]:
        """What was recorded names what fills the memory."""
        found = facts.entry("script.run.output")
        told = found["data"]["output"] if found else ""
        named = next((line for line in told.splitlines() if "gunicorn" in line), "")
        return [
            *super().checks(facts),
            Check("the diagnosis names the processes", bool(named), " ".join(named.split())),
        ]
