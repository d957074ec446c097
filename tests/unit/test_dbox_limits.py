# SPDX-License-Identifier: Apache-2.0
"""How often one may ask, who may write where, and what a browser is told: without a server."""

import io
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "dbox"))
from dboxlib import api, clients, limits, redirect, wsgi  # noqa: E402
from dboxlib.clients import Client  # noqa: E402
from dboxlib.log import BusyError, ConflictError, QuotaError  # noqa: E402
from dre.evidence import TamperedError  # noqa: E402


def test_one_client_is_slowed_down_and_the_others_are_not():
    now = [0.0]
    rate = limits.Rate(5, clock=lambda: now[0])
    assert [rate.wait("a") for _ in range(5)] == [0.0] * 5
    assert 0 < rate.wait("a") <= 0.2 and rate.wait("b") == 0.0
    now[0] = 0.2
    assert rate.wait("a") == 0.0 and rate.wait("a") > 0
    now[0] = 100.0
    assert [rate.wait("a") for _ in range(5)] == [0.0] * 5 and rate.wait("a") > 0
    assert not any(limits.Rate(0).wait("a") for _ in range(1000))


def test_memory_of_clients_is_bounded():
    rate = limits.Rate(1, clock=lambda: 0.0)
    for number in range(3 * limits.KNOWN):
        rate.wait(str(number))
    assert len(rate._left) == limits.KNOWN


class Table:
    """Registrations; the newest of a fingerprint counts."""

    def __init__(self, *rows):
        self.rows = list(rows)

    def client(self, fingerprint):
        found = [row for row in self.rows if row.fingerprint == fingerprint]
        return found[-1] if found else None

    def clients(self, after):
        return [row for row in self.rows if row.number > after]


class Log:
    """A log that answers every submission with *error*."""

    clients_logged = 9

    def __init__(self, error):
        self.error = error
        self.told = []

    def append(self, *_):
        raise self.error

    def tampered(self, number):
        self.told.append(number)


def request(app, method="POST", path="/v1/entries", body=b"x", **environ):
    got = {}

    def start(status, headers):
        got.update(status=status, headers=dict(headers))

    given = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "HTTP_X_DRE_STREAM": "app",
        "HTTP_X_DRE_SEQ": "1",
        "DRE_CLIENT": "f",
        **environ,
    }
    got["body"] = b"".join(app(given, start))
    return got


WRITER = Client(1, "f", "n", "writer", "t", "", "", "")


@pytest.mark.parametrize(
    ("error", "status", "after"),
    [
        (BusyError("full"), "503", "1"),
        (ConflictError("other"), "409", None),
        (QuotaError("quota", True, 60), "507", "60"),
        (QuotaError("rate", False, 3), "429", "3"),
        (TamperedError(4, "changed"), "500", None),
        (RuntimeError("a bug with <secrets>"), "500", None),
    ],
)
def test_refusals_of_the_log_become_answers(error, status, after, capsys):
    log = Log(error)
    got = request(wsgi.Application(Table(WRITER), log))
    assert got["status"].startswith(status) and got["headers"].get("Retry-After") == after
    assert b"secrets" not in got["body"] and got["headers"]["X-Content-Type-Options"] == "nosniff"
    assert log.told == ([4] if isinstance(error, TamperedError) else [])


def test_too_many_requests_are_429_with_the_time_to_wait():
    app = wsgi.Application(Table(WRITER), Log(ConflictError("x")), rate=2)
    assert [request(app)["status"][:3] for _ in range(3)] == ["409", "409", "429"]
    assert int(request(app)["headers"]["Retry-After"]) >= 1


def test_one_of_too_many_connections_hears_503():
    got = request(wsgi.Application(Table(WRITER), Log(None)), DRE_CROWDED="more than 64 connections")
    assert got["status"].startswith("503") and got["headers"]["Connection"] == "close" and got["headers"]["Retry-After"]


@pytest.mark.parametrize(
    ("row", "environ"),
    [
        (WRITER, {"DRE_CLIENT": "other"}),
        (WRITER, {"DRE_CLIENT": ""}),
        (Client(1, "f", "n", "revoked", "t", "", "", ""), {}),
        (Client(1, "f", "n", "writer", "t", "", "", "2020-01-01T00:00:00.000Z"), {}),
        # A certificate that has the fingerprint of a local writer, and the other way round, is nobody.
        (Client(1, "f", "n", "writer", "t", "", "root *", ""), {}),
        (Client(1, clients.local_fingerprint("u", "*"), "n", "writer", "t", "", "", ""), {"DRE_LOCAL_USER": "u"}),
        (Client(1, clients.local_fingerprint("", "*"), "n", "writer", "t", "", " *", ""), {"DRE_LOCAL_USER": ""}),
    ],
)
def test_who_has_no_role_is_refused(row, environ):
    got = request(wsgi.Application(Table(row), Log(RuntimeError("not to be asked"))), **environ)
    assert got["status"].startswith("403"), got


def test_the_exact_executable_comes_before_any():
    rows = [
        Client(1, clients.local_fingerprint("u", "*"), "any", "writer", "t", "", "u *", ""),
        Client(2, clients.local_fingerprint("u", "/x"), "x", "revoked", "t", "", "u /x", ""),
    ]
    app = wsgi.Application(Table(*rows), Log(ConflictError("asked")))
    local = {"DRE_CLIENT": "f", "DRE_LOCAL_USER": "u"}
    assert request(app, **local, DRE_LOCAL_EXE="/y")["status"].startswith("409")
    assert request(app, **local, DRE_LOCAL_EXE="")["status"].startswith("409")
    assert request(app, **local, DRE_LOCAL_EXE="/x")["status"].startswith("403")


def test_only_the_named_resources_are_there():
    for path in ("/v1/entries/00", "/v1/entries/1/x", "/v1/entries/1\n", "/v1/", "/", "", "/v1/entries/" + "9" * 30):
        with pytest.raises(api.Refused):
            api.find("GET", path)
    assert api.find("GET", "/v1/entries/12/octets")[0] == "octets"


def test_redirect_keeps_the_host_and_nothing_else_of_a_request():
    def get(host, method="GET", path="/"):
        got = {}
        list(redirect.make(443)({"REQUEST_METHOD": method, "PATH_INFO": path, "HTTP_HOST": host},
                                lambda status, headers: got.update(status=status, **dict(headers))))  # fmt: skip
        return got

    assert get("d-box:8080")["Location"] == "https://d-box/d_box_main.html"
    assert get("[::1]:8080")["Location"] == "https://[::1]/d_box_main.html"
    for host in ("evil/x", "a@b", "a\r\nX: y", "", "x" * 300):
        assert get(host)["Location"] == "https://d-box/d_box_main.html"
    assert get("d-box", "POST")["status"].startswith("403")


class Held:
    """A connection as the watch sees it."""

    def __init__(self, owner, since, blocked=True):
        self.owner, self.since, self.blocked = owner, since, blocked


def test_one_clients_long_requests_are_cut_beyond_its_share_only():
    from dboxlib import server

    watch = server.Watch(None)
    greedy = [Held("a", float(number)) for number in range(server.SHARE + 5)]
    others = [Held("b", 0.0) for _ in range(server.SHARE)]
    young = [Held("a", 99.5) for _ in range(9)]
    ours = [Held("a", 0.0, blocked=False) for _ in range(9)]  # they wait for the disk, and not for the client
    watch._all = {*greedy, *others, *young, *ours}
    assert set(watch._greedy(100.0)) == set(greedy[server.SHARE :])
    watch._all = {*greedy[: server.SHARE], *others}
    assert watch._greedy(100.0) == []
