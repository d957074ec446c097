# SPDX-License-Identifier: Apache-2.0
"""The shop's data in MariaDB: all the SQL of the application. One connection per worker process, renewed when lost."""

import json
import pathlib

import pymysql

SETTINGS = pathlib.Path("/srv/shop/settings.json")  # host, user, password, database
PAGE = 24
COLUMNS = "cd.id, cd.title, cd.artist, cd.year, cd.cents"

_connection = None


class Unavailable(Exception):
    """The database cannot be reached now."""


class Shop:
    """One request's transaction: committed where an order is placed, else rolled back."""

    def __enter__(self):
        global _connection
        try:
            if _connection is None:
                _connection = pymysql.connect(
                    **json.loads(SETTINGS.read_text()),
                    connect_timeout=2,
                    read_timeout=5,
                    write_timeout=5,
                    cursorclass=pymysql.cursors.DictCursor,
                )
            _connection.ping()
        except pymysql.MySQLError as error:
            _connection = None
            raise Unavailable from error
        return self

    def __exit__(self, kind, error, trace):
        global _connection
        try:
            _connection.rollback()
        except pymysql.MySQLError:
            _connection = None  # the next request connects again
        if kind and issubclass(kind, pymysql.MySQLError):
            raise Unavailable from error

    def rows(self, statement, *values):
        with _connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall()

    def catalogue(self, page):
        return self.rows(f"SELECT {COLUMNS} FROM cd ORDER BY cd.id LIMIT %s OFFSET %s", PAGE, (page - 1) * PAGE)

    def cd(self, number):
        found = self.rows(f"SELECT {COLUMNS} FROM cd WHERE cd.id = %s", number)
        return found[0] if found else None

    def search(self, words):
        literal = "".join(f"\\{character}" if character in "\\%_" else character for character in words)
        return self.rows(
            f"SELECT {COLUMNS} FROM cd WHERE cd.title LIKE %s ORDER BY cd.id LIMIT %s", f"%{literal}%", PAGE
        )

    def by_artist(self, artist, limit):
        return self.rows(f"SELECT {COLUMNS} FROM cd WHERE cd.artist = %s ORDER BY cd.year DESC LIMIT %s", artist, limit)

    def newest(self, limit):
        return self.rows(f"SELECT {COLUMNS} FROM cd ORDER BY cd.id DESC LIMIT %s", limit)

    def by_number(self, numbers):
        marks = ", ".join(["%s"] * len(numbers))
        return self.rows(f"SELECT {COLUMNS} FROM cd WHERE cd.id IN ({marks})", *numbers) if numbers else []

    def purchases(self):
        """Every (customer, cd) ever ordered."""
        return self.rows("SELECT customer, cd FROM orders")

    def order(self, cd, customer, quantity):
        """Place an order and return its number; it is durable when this returns."""
        with _connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO orders (cd, customer, quantity, cents) VALUES (%s, %s, %s, %s)",
                (cd["id"], customer, quantity, cd["cents"] * quantity),
            )
            number = cursor.lastrowid
        _connection.commit()
        return number
