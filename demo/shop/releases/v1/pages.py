# SPDX-License-Identifier: Apache-2.0
"""The HTML of the shop. Every value from outside is escaped here, and nowhere else."""

import html

import recommend

FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="/static/shop.css"></head>
<body><header><a href="/">CD shop</a>
<form action="/search"><input name="q" aria-label="title"><button>Search</button></form></header>
<main><h1>{title}</h1>{body}</main></body></html>
"""
ITEM = '<li><a href="/cd/{id}">{title}</a> <i>{artist}</i> {year} <b>{price}</b></li>'
ORDER = (
    '<form method="post" action="/order"><input type="hidden" name="cd" value="{id}">'
    '<label>Customer <input name="customer" value="1"></label> '
    '<label>Quantity <input name="quantity" value="1"></label> <button>Order</button></form>'
)


def price(cents):
    return f"{cents // 100}.{cents % 100:02d}"


def item(cd):
    return ITEM.format(
        id=cd["id"],
        title=html.escape(cd["title"]),
        artist=html.escape(cd["artist"]),
        year=cd["year"],
        price=price(cd["cents"]),
    )


def items(cds):
    return "<ul>" + "".join(map(item, cds)) + "</ul>"


def page(title, body, suggestions=()):
    aside = f"<h2>{recommend.TITLE}</h2>{items(suggestions)}" if suggestions else ""
    return FRAME.format(title=html.escape(title), body=body + aside)


def catalogue(cds, number, suggestions):
    return page("Catalogue", items(cds) + f'<p><a href="/?page={number + 1}">More</a></p>', suggestions)


def one_cd(cd, suggestions):
    about = f"<p>{html.escape(cd['artist'])}, {cd['year']}: <b>{price(cd['cents'])}</b></p>"
    return page(cd["title"], about + ORDER.format(id=cd["id"]), suggestions)


def results(words, cds, suggestions):
    return page(f"Titles with “{words}”", items(cds), suggestions)


def thanks(number, cd, suggestions):
    return page("Thank you", f"<p>Order {number}: {html.escape(cd['title'])}</p>", suggestions)


def sorry(message):
    return page("Sorry", f"<p>{html.escape(message)}</p>")
