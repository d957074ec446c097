# SPDX-License-Identifier: Apache-2.0
"""A D-Box whose page is served, with accounts and some entries, for tests that are a browser without JavaScript."""

import atexit
import functools
import hashlib
import json
import re
import sqlite3
import ssl

import dboxkit
import pytest
from browser import PASSWORD, Browser
from dre import witness

HOSTILE = (
    b"<script>alert(1)</script><img src=x onerror=alert(2)> '); DROP TABLE entry;-- {{7*7}} {%x%}"
    b"\x1b[2J\x1b]0;owned\x07 \xe2\x80\xaereversed\xe2\x80\xac \xc2\x85 &amp; \xf0\x9f\x98\x80\n"
)
ACCOUNTS = {"alice": "admin", "bob": "admin", "carol": "reader", "dave": "writer", "erin": "auditor"}


class Site:
    """A D-Box whose page is served, with accounts and some entries."""

    def __init__(self):
        self.port, self.sessions = dboxkit.free_port(), {}
        self.box = dboxkit.copy(DRE_DBOX_PAGE_LISTEN=f"127.0.0.1:{self.port}", DRE_DBOX_STREAMS="tiny:quota=100")
        self.witness = witness.make_key("witness.example/w1")
        (self.box.path / "witnesses").write_text(f"{self.witness.public.format()}\n")
        with self.box.conf.open("a") as settings:
            settings.write(f'DRE_DBOX_WITNESSES="{self.box.path}/witnesses"\n')
        for name, role in ACCOUNTS.items():
            self.box.good("dbox-user", name, "--role", role, stdin=PASSWORD.encode() + b"\n")
        self.box.start()
        self.hostile = self.put(HOSTILE)
        self.binary = self.put(bytes(range(256)) * 300)

    def put(self, octets, stream="app"):
        receipt = self.box.put(octets, stream=stream).decode()
        return int(re.search(r"^index (\d+)$", receipt, re.M)[1])

    def browser(self, account=None, client=None):
        made = Browser(self.box, self.port, client)
        if account is None:
            return made
        made.cookies = dict(self.sessions.get(account, {}))  # a password costs a tenth of a second
        if not made.cookies or made.get("/d_box_main.html").status != 200:
            made.cookies = {}
            self.sessions[account] = dict(made.login(account).cookies)
        return made

    def ui(self, query, *values):
        with sqlite3.connect(self.box.path / "state/dbox-ui/ui.sqlite") as database:
            return database.execute(query, values).fetchall()

    def anchor(self, note, cosignature):
        dboxkit.anchor(self.box, note, cosignature)

    def entries(self, kind):
        """The data of the D-Box's own entries of one type, as they lie in its database."""
        query = "SELECT octets FROM entry JOIN type ON entry.type = type.number WHERE name = ? ORDER BY entry.number"
        with sqlite3.connect(self.box.database) as database:
            return [json.loads(octets)["data"] for (octets,) in database.execute(query, (kind,))]

    def change(self, query, *values):
        """Change the database behind everybody's back."""
        with sqlite3.connect(self.box.database) as database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
            database.execute(query, values)
        database.close()


def fingerprint(site, name):
    """How a client is named: a certificate by its own SHA-256, an account by that of its name."""
    crt = site.box.certs / "clients" / f"{name}.crt"
    if crt.exists():
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(crt.read_text())).hexdigest()
    return hashlib.sha256(f"dre-ui/v1\nuser {name}\n".encode()).hexdigest()


def states(answer):
    """The three states as the page shows them, and whether the whole page is red."""
    card = answer.text.split('id="states"')[1].split("</section>")[0]
    found = dict(re.findall(r'<li class="(\w+)"><span class="what">(\w+)</span>', card))
    pairs = re.findall(r'<li class="(\w+)"><span class="what">(\w+)</span>', card)
    assert len(found) <= len(pairs) == 3
    return {what: state for state, what in pairs}, "This entry does not verify" in answer.words


def text_of(note):
    """What is signed of a tree head."""
    return note[: note.rindex("\n\n") + 1]


@functools.lru_cache(maxsize=1)
def shared():
    """The one of this test run, for all tests that leave its log as it should be."""
    made = Site()
    atexit.register(dboxkit.remove, made.box)
    return made


@pytest.fixture
def site():
    """The shared one, in a test module as `site = sitekit.site`."""
    return shared()
