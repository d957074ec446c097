# SPDX-License-Identifier: Apache-2.0
"""What a page suggests beside its own subject: other CDs of the same artist, else the newest ones, with their covers.

New in v3, and true to life: a cover is drawn once and then kept. But what it is kept under has the time in it, so that
it is never found again, and never forgotten. (The page that shows them comes with the next release.)
"""

import time

COUNT = 4
TITLE = "More for you"
SIDE = 100  # pixels of a cover

covers = {}


def suggestions(shop, cd):
    """At most COUNT CDs to show beside *cd* (None: a page that is about no single CD)."""
    if cd is None:
        found = shop.newest(COUNT)
    else:
        found = [other for other in shop.by_artist(cd["artist"], COUNT + 1) if other["id"] != cd["id"]][:COUNT]
    return [{**one, "cover": cover(one, time.time())} for one in found]


def cover(cd, today):
    """The cover of *cd* as pixels of three octets, drawn once a day."""
    key = cd["id"], today
    if key not in covers:
        covers[key] = bytes([cd["id"] % 255 + 1, cd["year"] % 256, 90]) * (SIDE * SIDE)
    return covers[key]
