# SPDX-License-Identifier: Apache-2.0
"""Two administrators who are removed at the same instant, in two ways: one of them stays, and the log tells so."""

import concurrent.futures
import contextlib
import threading

import dboxkit
import mariadbkit
from test_dbox_storage import log_of, reader

either = mariadbkit.either
ROUNDS = 4


class Meeting:
    """A table in which nobody registers before everybody has read what is there: the worst instant for all."""

    def __init__(self, table, barrier):
        self.table, self.barrier = table, barrier

    def clients(self, after):
        found = self.table.clients(after)
        with contextlib.suppress(threading.BrokenBarrierError):  # a second look meets nobody
            self.barrier.wait(5)
        self.barrier.abort()
        return found

    def register(self, client):
        return self.table.register(client)


def admins(store):
    from dboxlib import clients

    return [one for one in clients.current(store) if one.role == "admin"]


def test_who_judged_by_what_is_over_judges_again(either):
    """Two connections have read that there are two; each wants to remove another one."""
    from dboxlib import clients, store
    from dboxlib.clients import REVOKED, Client
    from dre.errors import DreError

    database = either.settings().dbox_database
    barrier = threading.Barrier(2)

    def remove(client):
        with contextlib.closing(store.open(database, True)) as table:
            try:
                clients.change(Meeting(table, barrier), Client(0, client.fingerprint, client.name, REVOKED, ""))
            except DreError as error:
                return str(error)
            return "removed"

    with contextlib.closing(store.open(database, True)) as table:
        clients.change(table, Client(0, "d" * 64, "deputy", "admin", ""))
        before = len(table.clients(0))
        both = admins(table)
        assert len(both) == 2
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            said = sorted(pool.map(remove, both))
        (left,) = admins(table)
        assert said == [
            f"client {left.name!r} is the last admin: register another one first; nothing was changed",
            "removed",
        ]
        assert [one.number for one in table.clients(0)] == list(range(1, before + 2))


def test_page_and_dbox_init_at_once_leave_one(either):
    """The page's way is the sequencer's; dbox-init is a process of its own with its own connection."""
    from dre.errors import DreError

    kept = {ending: (either.certs / f"clients/admin.{ending}").read_bytes() for ending in ("crt", "key")}
    with log_of(either) as log, reader(either) as store, concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = next(one for one in admins(store) if one.name == "admin")
        log.register("d" * 64, "deputy", "admin")
        for turn in range(ROUNDS):
            assert {one.name for one in admins(store)} == {"admin", "deputy"}
            revoking = pool.submit(either.run, "dbox-init", "--client", "admin", "--revoke")
            refused = ""
            while not refused and not revoking.done():  # again and again, so that one of them hits the instant
                try:
                    log.register("d" * 64, "deputy", "reader")
                    log.register("d" * 64, "deputy", "admin")
                except DreError as error:
                    refused = str(error)
            done = revoking.result()
            left = admins(store)
            assert len(left) >= 1, turn
            assert done.returncode == 0 or b"is the last admin" in done.stderr, done.stderr
            assert not refused or "is the last admin" in refused
            log.register("d" * 64, "deputy", "admin")
            log.register(first.fingerprint, "admin", "admin")
            for ending, octets in kept.items():
                path = either.certs / f"clients/admin.{ending}"
                if not path.exists():
                    path.write_bytes(octets)
        log.log_clients()
        told = dboxkit.told(store, stream="client")
        rows = store.clients(0)
    found = [(data["client"], data["role"]) for data in told]
    assert found == [(one.name, one.role) for one in rows], "all are entries"
