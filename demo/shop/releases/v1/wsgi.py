# SPDX-License-Identifier: Apache-2.0
"""The CD shop as a WSGI application: which page answers which request. No SQL and no HTML is written here."""

import pathlib
import re
import urllib.parse

import pages
import recommend
import store

RELEASE = pathlib.Path(__file__).resolve().parent.name
FORM_LIMIT = 4096  # octets of an order form


class NotHere(Exception):
    """No such page or CD."""


class BadOrder(Exception):
    """An order form that cannot be read."""


def catalogue(shop, query, match):
    page = max(1, int(query.get("page", "1"))) if query.get("page", "1").isdecimal() else 1
    return "200 OK", pages.catalogue(shop.catalogue(page), page, recommend.suggestions(shop, None)), []


def one_cd(shop, query, match):
    cd = shop.cd(int(match[1]))
    if cd is None:
        raise NotHere
    return "200 OK", pages.one_cd(cd, recommend.suggestions(shop, cd)), []


def search(shop, query, match):
    words = query.get("q", "")[:60]
    return "200 OK", pages.results(words, shop.search(words), recommend.suggestions(shop, None)), []


def order(shop, form, match):
    """Answer 201 only after the database has committed the order."""
    try:
        customer, quantity = int(form["customer"]), int(form.get("quantity", "1"))
        cd = shop.cd(int(form["cd"]))
    except (KeyError, ValueError):
        raise BadOrder from None
    if cd is None or not 0 < quantity <= 99:
        raise BadOrder
    number = shop.order(cd, customer, quantity)
    page = pages.thanks(number, cd, recommend.suggestions(shop, cd))
    return "201 Created", page, [("Location", f"/order/{number}")]


ROUTES = (
    ("GET", re.compile(r"/"), catalogue),
    ("GET", re.compile(r"/cd/(\d{1,9})"), one_cd),
    ("GET", re.compile(r"/search"), search),
    ("POST", re.compile(r"/order"), order),
)


def fields(environ):
    """The query, or the form of a POST, as a dictionary; the last value of a name wins."""
    text = environ.get("QUERY_STRING", "")
    if environ["REQUEST_METHOD"] == "POST":
        length = environ.get("CONTENT_LENGTH") or "0"
        if not length.isdecimal() or int(length) > FORM_LIMIT:
            raise BadOrder
        text = environ["wsgi.input"].read(int(length)).decode("utf-8", "replace")
    return dict(urllib.parse.parse_qsl(text))


def answer(environ):
    for method, path, page in ROUTES:
        match = path.fullmatch(environ["PATH_INFO"])
        if match and environ["REQUEST_METHOD"] == method:
            with store.Shop() as shop:
                return page(shop, fields(environ), match)
    raise NotHere


def application(environ, start_response):
    try:
        status, page, headers = answer(environ)
    except NotHere:
        status, page, headers = "404 Not Found", pages.sorry("There is no such page."), []
    except BadOrder:
        status, page, headers = "400 Bad Request", pages.sorry("This order cannot be read."), []
    except store.Unavailable:
        status, page, headers = "503 Service Unavailable", pages.sorry("Please come back in a moment."), []
    octets = page.encode()
    headers += [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", str(len(octets))),
        ("X-Release", RELEASE),
    ]
    start_response(status, headers)
    return [octets]
