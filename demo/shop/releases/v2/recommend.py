# SPDX-License-Identifier: Apache-2.0
"""What a page suggests beside its own subject: what customers with a like taste also bought.

New in v2, and true to life: right on the developer's ten customers, hopeless on the shop's. Each page reads the
whole order history and compares every customer with every other.
"""

import collections
import itertools

COUNT = 4
TITLE = "Customers also bought"


def suggestions(shop, cd):
    """At most COUNT CDs to show beside *cd* (None: a page that is about no single CD)."""
    baskets = collections.defaultdict(set)
    for purchase in shop.purchases():
        baskets[purchase["customer"]].add(purchase["cd"])
    scores = collections.Counter()
    for mine, yours in itertools.combinations(baskets.values(), 2):
        shared = mine & yours
        if shared and (cd is None or cd["id"] in shared):
            scores.update(mine ^ yours)
    best = [number for number, _ in scores.most_common(COUNT + 1) if cd is None or number != cd["id"]]
    return shop.by_number(best[:COUNT])
