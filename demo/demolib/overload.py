# SPDX-License-Identifier: Apache-2.0
"""Scenario (1): a release overloads the shop, and the app is put back to its last good snapshot.

The limits are those of the CD-shop requirements (recognise in 1 s, accept in 1 s, restore in 300 s); the aim of 5 s
is our own and decides nothing.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from demolib import delta, shop
from demolib.journal import Event
from demolib.places import APP, HERE, SCRIPTS, STATE
from demolib.programs import dre
from demolib.story import Say, Story
from demolib.verdict import Check, Facts, Promise, at

RECOGNISE, ACCEPT, RESTORE, AIM = 1.0, 1.0, 300.0, 5.0
DELTA = Path("/var/lib/lxc") / APP / "delta"
ARCHIVE = STATE / "app/state" / APP / "snapshot" / shop.TAG / "delta.tar"


class Overload(Facts):
    """What was measured of it."""

    @property
    def overload(self) -> Event | None:
        """The detection."""
        return self.entry("shop.overload")

    @property
    def recognised(self) -> float | None:
        """When the detection was read from /run/dre/script. Its own time is a little earlier."""
        return min((when for when, event in self.arrivals if event == self.overload), default=None)

    @property
    def accepted(self) -> Event | None:
        """dre-app's word that the undo will happen, whatever comes; its intent is on the disk by then."""
        return self.told("app.undo.accepted")

    def answered(self) -> bool:
        return self.accepted is not None

    def harm(self) -> Check:
        return self.slowed("the release overloaded the shop")

    def promises(self) -> Sequence[Promise]:
        return [
            Promise("overload recognised", self.bad and self.bad.due, self.recognised, RECOGNISE),
            Promise("undo accepted", self.recognised, at(self.accepted), ACCEPT),
            Promise("service restored", at(self.accepted), self.green, RESTORE, AIM),
        ]

    def found(self) -> Mapping[str, Event | None]:
        return {
            "release": self.entry("shop.release"),
            "raised": self.entry("watch.raised", id="slow"),
            "recognised": self.overload,
            "limit": self.entry("script.step.done", action="limit"),
            "undo": self.entry("script.step.done", action="undo"),
            "restored": self.restored,
        }

    def moments(self) -> Sequence[tuple[float | None, str]]:
        found = self.found()
        return [
            (at(found["release"]), "shop.release announced"),
            (at(found["raised"]), "watch.raised: a probe of the shop is slow"),
            (self.recognised, "shop.overload read from /run/dre/script: recognised"),
            (at(found["limit"]), "script: shop-app limited"),
            (at(self.accepted), "undo accepted: its intent is on the disk"),
            (at(found["undo"]), "script: shop-app undone"),
            (at(found["restored"]), "script: the shop is restored"),
        ]


class OverloadStory(Story):
    """Release v2 compares every customer's basket with every other's on each page."""

    title = "A new release overloads the shop: it is put back to its last good snapshot"
    script = SCRIPTS / "shop-overload.yaml"
    facts = Overload
    again = f"{HERE}/deploy {shop.BAD}"

    def __init__(self) -> None:
        self.before = ""  # the digest of the app's delta with the release

    def strike(self, without: str, note: Say) -> float:
        release = shop.GOOD if without == "release" else shop.BAD
        shop.deploy(release)
        self.before = delta.of_directory(DELTA)
        moment = time.time()
        if without == "event":
            note(f"release {release} goes into service, unannounced")
        else:
            shop.announce(release)
            note(f"release {release} announced and going into service")
        shop.reload()
        return moment

    def checks(self, facts: Facts) -> list[Check]:
        """The app's delta is the snapshot's again, and was not in between."""
        saved, after = delta.of_archive(ARCHIVE), delta.of_directory(DELTA)
        noted = dre("dre-app", "snapshot", "list", APP, "--json").decode()
        whole = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest() in noted
        return [
            *super().checks(facts),
            Check(
                "the release changed the app",
                self.before != saved,
                f"digest of its delta {self.before[:16]}, of the snapshot {saved[:16]}",
            ),
            Check(
                "the undo brought the snapshot back",
                after == saved != self.before and whole,
                f"digest of its delta {after[:16]}",
            ),
        ]
