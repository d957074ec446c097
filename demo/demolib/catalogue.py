# SPDX-License-Identifier: Apache-2.0
"""Made-up CDs and an order history as SQL text, the same on every run."""

import itertools
import random
from collections.abc import Iterator

CDS = 400
CUSTOMERS = 800
HISTORY = 4000  # orders placed before today

FIRST = ["Quiet", "Broken", "Golden", "Northern", "Paper", "Electric", "Hidden", "Salt", "Winter", "Velvet"]
SECOND = ["River", "Garden", "Signal", "Mirror", "Harbour", "Engine", "Letters", "Horizon", "Orchard", "Lantern"]
PLAYERS = ["Quartet", "Trio", "Ensemble", "Orchestra", "Band", "Choir"]
PLACES = ["Kyoto", "Lisbon", "Turku", "Leeds", "Bergen", "Porto", "Graz", "Osaka", "Ghent", "Oulu"]


def sql() -> Iterator[str]:
    """Statements that fill the tables `cd` and `orders`."""
    chance = random.Random(2013)
    artists = [f"{place} {players}" for place, players in itertools.product(PLACES, PLAYERS)]
    cds = [
        f"({number}, '{chance.choice(FIRST)} {chance.choice(SECOND)} {number}', '{chance.choice(artists)}', "
        f"{chance.randint(1969, 2013)}, {chance.randint(7, 30) * 100 - 1})"
        for number in range(1, CDS + 1)
    ]
    yield f"INSERT INTO cd (id, title, artist, year, cents) VALUES {', '.join(cds)};\n"
    orders = [f"({chance.randint(1, CDS)}, {chance.randint(1, CUSTOMERS)}, 1, 999)" for _ in range(HISTORY)]
    yield f"INSERT INTO orders (cd, customer, quantity, cents) VALUES {', '.join(orders)};\n"
