# SPDX-License-Identifier: Apache-2.0
"""A batch job of the shop, meant for the night: which CDs are bought by whom, counted over all orders.

True to life: its numbers have to agree with each other, so it keeps all others from ordering until it is done.
"""

import json
import pathlib

import pymysql

PARTS = 4000  # of the pairs that are compared; one takes a moment
COUNT = """
SELECT COUNT(*) FROM orders AS mine JOIN orders AS yours ON mine.customer = yours.customer AND mine.cd < yours.cd
WHERE mine.id %% %s = %s
"""

shop = pymysql.connect(**json.loads(pathlib.Path("/srv/settings.json").read_text()), autocommit=True)
with shop.cursor() as cursor:
    cursor.execute("LOCK TABLES orders AS mine READ, orders AS yours READ")
    for part in range(PARTS):
        cursor.execute(COUNT, (PARTS // 100, part % (PARTS // 100)))
        print(part, cursor.fetchone()[0], flush=True)
    cursor.execute("UNLOCK TABLES")
