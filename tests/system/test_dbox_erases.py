# SPDX-License-Identifier: Apache-2.0
"""Octets go when two admins want it, with reason and salt; every proof stays, and nothing else goes."""

import hashlib
import json
import sqlite3

import dboxkit
import pytest

SECRET = b"password=hunter2"


@pytest.fixture(scope="module")
def log():
    made = dboxkit.copy(DRE_DBOX_STREAMS="private:erasable=yes")
    made.good("dbox-init", "--client", "second-admin", "--role", "admin")
    made.start()
    yield made
    dboxkit.remove(made)


def put(log, octets, stream):
    """Index and receipt of a new entry."""
    row = json.loads(log.good("dbox-put", "--json", "--stream", stream, stdin=octets))
    (log.path / "receipt").write_text(row["receipt"])
    return row["index"], row["receipt"]


def erase(log, index, client="admin", reason="a password in it"):
    return log.run("dbox-erase", index, "--reason", reason, "--client", client, "--json")


def stored(log, index):
    database = sqlite3.connect(log.database)
    row = database.execute("SELECT octets, salt FROM entry WHERE number = ?", (index,)).fetchone()
    database.close()
    return row


@pytest.mark.parametrize("stream", ["app", "private"])
def test_two_admins_erase_and_the_proof_stays(log, stream):
    index, receipt = put(log, SECRET, stream)
    after, _ = put(log, b"the next one", stream)
    salted = receipt.split("index ")[0].count("extra ") == 2
    assert salted == (stream == "private")
    header = log.good("dbox-get", index)
    plain = b"digest sha256 " + hashlib.sha256(SECRET).hexdigest().encode()
    assert (plain in header) != salted, "the digest of an erasable stream must not tell a guess"
    asked = json.loads(erase(log, index).stdout)
    assert (asked["state"], asked["index"]) == ("asked", index)
    # The same one again, or another reason, changes nothing.
    assert json.loads(erase(log, index).stdout)["state"] == "asked"
    assert json.loads(erase(log, index, "second-admin", "another").stdout)["state"] == "asked"
    assert log.good("dbox-get", index, "--octets") == SECRET
    done = json.loads(erase(log, index, "second-admin").stdout)
    assert (done["state"], stored(log, index)) == ("erased", (None, None))
    # Gone from what is served, and from the file.
    gone = log.run("dbox-get", index, "--octets")
    assert gone.returncode == 3 and b"are gone" in gone.stderr
    # All proofs stay: the header, the receipt that the writer kept, the other entries, the whole log.
    assert log.good("dbox-get", index) == header
    assert log.good("dbox-get", index, "--proof").startswith(b"c2sp.org/tlog-proof@v1\n")
    (log.path / "receipt").write_text(receipt)
    assert log.run("dbox-verify", log.path / "receipt", "-", stdin=SECRET).returncode == 0
    assert log.run("dbox-verify", log.path / "receipt", "-", stdin=b"other octets!!!!").returncode == 1
    assert log.good("dbox-get", after, "--octets") == b"the next one"
    why = json.loads(log.good("dbox-get", done["entry"], "--octets"))
    assert why["type"] == "dbox.erased" and why["data"]["reason"] == "a password in it"
    assert why["data"]["first"] != why["data"]["second"]
    audit = json.loads(log.run("dbox-audit", "--json", "--database", log.database).stdout.splitlines()[-1])
    assert audit["clean"] and audit["erased"] >= 1
    again = erase(log, index, "second-admin")
    assert again.returncode == 1 and b"gone already" in again.stderr


def test_nobody_else_erases(log):
    index, _ = put(log, b"kept", "app")
    for client in ("writer", "reader", "auditor"):
        assert erase(log, index, client).returncode == 4
    assert erase(log, 10**6).returncode == 3
    assert erase(log, index, reason="").returncode == 2
    assert log.run("dbox-erase", index).returncode == 2
    assert stored(log, index)[0] == b"kept"


def test_an_erased_entry_cannot_be_filled_again(log):
    """The same number with the same octets is refused: they were to be forgotten."""
    from dre import dbox
    from dre.errors import DreError

    client = dbox.Client(log.settings(), "second")
    with client.online():
        (receipt,) = client.append("app", 1, [SECRET])
        erase(log, receipt.index)
        erase(log, receipt.index, "second-admin")
        with pytest.raises(DreError, match="were erased"):
            client.append("app", 1, [SECRET])
    entry = dbox.Client(log.settings(), "reader").get(receipt.index)
    assert (entry.octets, entry.header.length) == (None, len(SECRET))
    client.close()
