# SPDX-License-Identifier: Apache-2.0
"""What a page suggests beside its own subject: other CDs of the same artist, else the newest ones."""

COUNT = 4
TITLE = "More for you"


def suggestions(shop, cd):
    """At most COUNT CDs to show beside *cd* (None: a page that is about no single CD)."""
    if cd is None:
        return shop.newest(COUNT)
    return [other for other in shop.by_artist(cd["artist"], COUNT + 1) if other["id"] != cd["id"]][:COUNT]
