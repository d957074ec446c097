# SPDX-License-Identifier: Apache-2.0
"""dbox-init gives, changes, renews and takes roles; the rules hold, and a call that was killed is finished later."""

import calendar
import json
import os
import pathlib
import sqlite3
import stat
import subprocess
import sys
import time

import dboxkit
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "dbox"))
from dboxlib import clients  # noqa: E402

box = dboxkit.box


def rows(box, name):
    with sqlite3.connect(box.database) as database:
        query = "SELECT fingerprint, role, streams, local, until FROM client WHERE name = ? ORDER BY number"
        return list(database.execute(query, (name,)))


def fingerprint(crt):
    """As openssl tells it."""
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", crt], capture_output=True, check=True
    )
    return done.stdout.decode().split("=")[1].strip().replace(":", "").lower()


def listed(box):
    return {
        (row["client"], row["role"]): row
        for row in map(json.loads, box.good("dbox-init", "--clients", "--json").splitlines())
    }


def test_a_writer_is_bound_to_streams_and_that_is_listed(box):
    box.good("dbox-init", "--client", "web", "--role", "writer", "--stream", "shop", "--stream", "app")
    assert rows(box, "web") == [(fingerprint(box.certs / "clients/web.crt"), "writer", "app shop", "", "")]
    row = listed(box)["web", "writer"]
    assert row["streams"] == ["app", "shop"] and row["fingerprint"] == rows(box, "web")[0][0] and row["expires"]
    lines = box.good("dbox-init", "--clients").decode().splitlines()
    assert [line.split()[0] for line in lines] == [*dboxkit.CLIENTS, "web"]
    # The same again is refused, other streams are a change.
    done = box.run("dbox-init", "--client", "web", "--role", "writer", "--stream", "app", "--stream", "shop")
    assert done.returncode == 1 and b"there already" in done.stderr
    box.good("dbox-init", "--client", "web", "--role", "writer")
    assert [row[2] for row in rows(box, "web")] == ["app shop", ""]


def test_the_last_admin_stays(box):
    before = rows(box, "admin")
    for argv in (["--revoke"], ["--role", "reader"]):
        done = box.run("dbox-init", "--client", "admin", *argv)
        assert done.returncode == 1 and b"is the last admin" in done.stderr, argv
    assert rows(box, "admin") == before and (box.certs / "clients/admin.key").exists()
    box.good("dbox-init", "--client", "deputy", "--role", "admin")
    box.good("dbox-init", "--client", "admin", "--revoke")
    assert box.run("dbox-init", "--client", "deputy", "--role", "auditor").returncode == 1


def test_renewing_the_last_admin_is_no_removal(box):
    box.good("dbox-init", "--client", "admin", "--renew")
    assert [(row[1], bool(row[4])) for row in rows(box, "admin")] == [
        ("admin", False),
        ("admin", False),
        ("admin", True),
    ]
    assert box.run("dbox-init", "--client", "admin", "--revoke").returncode == 1


def test_revoked_stays_revoked_and_its_files_go(box):
    old = fingerprint(box.certs / "clients/writer.crt")
    box.good("dbox-init", "--client", "writer", "--revoke")
    assert not list((box.certs / "clients").glob("writer.*"))
    box.good("dbox-init", "--client", "writer", "--revoke")  # again: nothing more to do
    assert [row[:2] for row in rows(box, "writer")] == [(old, "writer"), (old, "revoked")]
    box.good("dbox-init", "--client", "writer", "--role", "writer")
    new = fingerprint(box.certs / "clients/writer.crt")
    assert new != old and rows(box, "writer")[-1][:2] == (new, "writer")
    assert {("writer", "revoked"), ("writer", "writer")} <= set(listed(box))
    assert box.run("dbox-init", "--client", "nobody", "--revoke").returncode == 3


def test_renew_keeps_name_role_streams_and_the_old_one_for_a_while(box):
    box.good("dbox-init", "--client", "web", "--role", "writer", "--stream", "shop")
    crt, key = box.certs / "clients/web.crt", box.certs / "clients/web.key"
    old, old_key = fingerprint(crt), key.read_bytes()
    box.good("dbox-init", "--client", "web", "--renew", "--grace", "2d")
    new = fingerprint(crt)
    assert new != old and key.read_bytes() != old_key and stat.S_IMODE(key.stat().st_mode) == 0o400
    found = {row[0]: row for row in rows(box, "web")}
    assert found[new][1:] == ("writer", "shop", "", "")
    assert found[old][1:3] == ("writer", "shop")
    left = calendar.timegm(time.strptime(found[old][4][:19], "%Y-%m-%dT%H:%M:%S")) - time.time()
    assert 86400 < left <= 2 * 86400
    assert sorted(path.name for path in crt.parent.glob("web.*")) == ["web.crt", "web.key"]
    public = [
        subprocess.run(["openssl", *argv], capture_output=True, check=True).stdout
        for argv in (["pkey", "-in", key, "-pubout"], ["x509", "-in", crt, "-noout", "-pubkey"])
    ]
    assert public[0] == public[1]


def test_renew_that_was_killed_is_finished_by_the_next(box):
    crt, key = box.certs / "clients/writer.crt", box.certs / "clients/writer.key"
    old, pem = fingerprint(crt), crt.read_bytes()
    box.good("dbox-init", "--client", "writer", "--renew")
    new, registered = fingerprint(crt), rows(box, "writer")
    # As if killed between the two renames: the certificate still under its other name, the key in place.
    crt.rename(crt.with_name("writer.crt.next"))
    crt.write_bytes(pem)
    box.good("dbox-init", "--renew-due", "1d")
    assert fingerprint(crt) == new != old and rows(box, "writer") == registered
    assert not list(crt.parent.glob("*.next")) and key.exists()


def test_renew_due_renews_what_ends_soon_and_nothing_else(box):
    before = {path.name: path.read_bytes() for path in (box.certs / "clients").iterdir()}
    assert box.good("dbox-init", "--renew-due", "30d") == b""
    assert {path.name: path.read_bytes() for path in (box.certs / "clients").iterdir()} == before
    box.good("dbox-init", "--client", "second", "--revoke")
    box.good("dbox-init", "--renew-due", "3650d")
    after = {path.name: path.read_bytes() for path in (box.certs / "clients").iterdir()}
    assert set(after) == {name for name in before if not name.startswith("second.")}
    assert all(after[name] != before[name] for name in after)
    box.good("dbox-init", "--renew-due", "30d")
    assert {path.name: path.read_bytes() for path in (box.certs / "clients").iterdir()} == after


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the spool of a local writer is given to its user")
def test_a_local_writer_has_no_certificate(box):
    box.good("dbox-init", "--client", "here", "--role", "writer", "--local", "root:/usr/bin/python3")
    real = os.path.realpath("/usr/bin/python3")
    known = subprocess.run(
        ["sha256sum"], input=f"dre-local/v1\nuser root\nexe {real}\n".encode(), capture_output=True, check=True
    ).stdout.split()[0]
    assert rows(box, "here") == [(known.decode(), "writer", "", f"root {real}", "")]
    assert not list((box.certs / "clients").glob("here.*"))
    row = listed(box)["here", "writer"]
    assert (row["user"], row["executable"], row["expires"]) == ("root", real, None)
    assert (box.path / "state/spool/dbox/here").is_dir()
    box.good("dbox-init", "--client", "any", "--role", "writer", "--local", "root")
    assert rows(box, "any")[0][3] == "root *"
    box.good("dbox-init", "--client", "here", "--revoke")
    assert rows(box, "here")[-1][1] == "revoked"


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["--client", "a", "--role", "reader", "--stream", "app"], 2, b"only a writer"),
        (["--client", "a", "--role", "writer", "--stream", "dbox"], 2, b"own"),
        (["--client", "a", "--role", "writer", "--stream", "A b"], 2, b"not a name"),
        (["--client", "a", "--role", "writer", *[f"--stream=s{number}" for number in range(65)]], 2, b"at most 64"),
        (["--stream", "app"], 2, b"go together"),
        (["--client", "a", "--role", "writer", "--revoke"], 2, b"alone"),
        (["--revoke"], 2, b"alone"),
        (["--clients", "--client", "a"], 2, b"all clients"),
        (["--client", "a", "--renew"], 3, b"no certificate to renew"),
        (["--client", "a", "--role", "writer", "--local", "no-such-user"], 3, b"no user"),
        (["--client", "a", "--role", "writer", "--local", "root:/no/such"], 3, b"no such executable"),
        (["--client", "a", "--role", "writer", "--local", "root:relative"], 2, b"absolute path"),
        (["--client", "a", "--role", "writer", "--local", "a b:/bin/sh"], 2, b"not the name of a user"),
        (["--client", "a", "--role", "writer", "--local", "root", "--owner", "root"], 2, b"--owner"),
        (["--renew-due", "soon"], 2, b"not a duration"),
    ],
)
def test_wrong_calls_change_nothing(box, argv, status, said):
    done = box.run("dbox-init", *argv)
    assert done.returncode == status and said in done.stderr, done.stderr
    assert not rows(box, "a") and not list((box.certs / "clients").glob("a.*"))


def test_rules_in_themselves():
    writer = clients.Client(1, "f", "n", "writer", "t", "app shop", "", "2026-01-01T00:00:00.000Z")
    assert writer.may_write_to("app") and not writer.may_write_to("other")
    assert writer.holds("2025-12-31T23:59:59.999Z") and not writer.holds("2026-01-01T00:00:00.001Z")
    free = clients.Client(1, "f", "n", "writer", "t")
    assert free.may_write_to("anything") and not free.may_write_to("client") and not free.may_write_to("dbox")
    assert not clients.Client(1, "f", "n", "revoked", "t").holds("2026-01-01T00:00:00.000Z")
    assert clients.candidates("u", "/x") == [clients.local_fingerprint("u", "/x"), clients.local_fingerprint("u", "*")]
    assert clients.candidates("u", "") == [clients.local_fingerprint("u", "*")]
