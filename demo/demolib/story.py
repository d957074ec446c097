# SPDX-License-Identifier: Apache-2.0
"""What makes one scenario of the CD shop different from the others; how all are played is demolib.scenario."""

from collections.abc import Callable
from pathlib import Path

from demolib import answers, shop
from demolib.places import ADDRESSES, APP, URL
from demolib.verdict import Check, Facts

Say = Callable[[str], None]


class Story:
    """An accident, the script that was agreed for it, and how what comes of it is judged."""

    title: str
    script: Path  # is put in force
    actions: tuple[str, ...] = ()  # programs of dscript that its steps run
    facts: type[Facts]
    url = URL  # what the load asks
    rate = 2500  # accesses a minute
    warm = 10.0  # seconds of load before the accident
    patience = 15.0  # seconds in which D-RE must have done what was agreed
    apps: tuple[str, ...] = (*ADDRESSES,)  # whose use is measured
    watched = APP  # the one that tells most
    settings = ""  # more lines of dre.conf; a later one wins
    again: str  # how a person makes the accident happen once more; {conf} stands for the option

    def lay(self) -> None:
        """Make what all stands on; there is nothing yet but the settings."""

    def make(self, say: Say) -> None:
        """Bring the service into being, while the D-Box is."""
        shop.make_tree()
        say(f"tree {shop.TREE} is there: {' '.join(shop.PACKAGES)}")
        shop.make()
        say("shop-web, shop-app and shop-db run, each in its own app")
        shop.save_good()
        say(f"release {shop.GOOD} is saved as snapshot '{shop.TAG}' and runs")

    def set_up(self, say: Say) -> None:
        """Make what this scenario needs besides; everything runs already."""

    def strike(self, without: str, note: Say) -> float:
        """Cause the accident; the moment just before it could do harm."""
        raise NotImplementedError

    def checks(self, facts: Facts) -> list[Check]:
        """What must be true of this scenario alone, asked of the service itself after the load has ended."""
        placed = answers.orders(facts.requests)
        kept = shop.orders_kept(placed)
        ok = kept == len(set(placed)) == len(placed) > 0
        return [Check("every acknowledged order is in the database", ok, f"{kept} of {len(placed)}, asked by SQL")]
