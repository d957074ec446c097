# SPDX-License-Identifier: Apache-2.0
"""The D-Box serves only whom it knows, only what the role allows, and nothing that does not fit its forms."""

import http.client
import json
import socket
import ssl
import subprocess
import warnings

import dboxkit
import pytest

box, running = dboxkit.box, dboxkit.running


@pytest.fixture(scope="module")
def shared():
    """One that runs for all tests that leave it as it was, or with an entry more."""
    made = dboxkit.copy().start()
    yield made
    dboxkit.remove(made)


def ask(box, client, method, path, body=None, headers=None, directory=None):
    """(status, body) of one request, made without our own client."""
    connection = http.client.HTTPSConnection("localhost", box.port, timeout=20, context=box.tls(client, directory))
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def named(seq, stream="app"):
    return {"X-DRE-Stream": stream, "X-DRE-Seq": str(seq)}


def test_no_client_certificate_no_connection(shared):
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask(shared, None, "GET", "/v1/checkpoint")
    openssl = subprocess.run(
        ["openssl", "s_client", "-connect", f"localhost:{shared.port}", "-quiet", "-no_ign_eof"],
        input=b"GET /v1/checkpoint HTTP/1.0\r\n\r\n",
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert b"HTTP/1" not in openssl.stdout


def test_certificate_of_another_client_ca_is_refused(shared):
    other = dboxkit.place()
    try:
        foreign = dboxkit.Box(other)
        foreign.good("dbox-init", *dboxkit.owner())  # of one owner, and yet its clients are others
        foreign.good("dbox-init", "--client", "writer", "--role", "writer")
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            ask(shared, "writer", "POST", "/v1/entries", b"x", named(1), foreign.certs / "clients")
    finally:
        dboxkit.shutil.rmtree(other)


def test_unregistered_certificate_has_no_role(box):
    import sqlite3

    box.good("dbox-init", "--client", "late", "--role", "reader")
    with sqlite3.connect(box.database) as database:
        database.execute("DROP TRIGGER client_stays")
        database.execute("DELETE FROM client WHERE name = 'late'")
    box.start()
    status, said = ask(box, "late", "GET", "/v1/checkpoint")
    assert status == 403 and b"no role here" in said


def test_old_tls_is_refused(shared):
    context = shared.tls("reader")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("localhost", shared.port), 10) as plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain, server_hostname="localhost")


ALLOWED = {
    ("POST", "/v1/entries"): {"writer"},
    ("GET", "/v1/checkpoint"): {"writer", "reader", "auditor", "admin"},
    ("GET", "/v1/keys"): {"writer", "reader", "auditor", "admin"},
    ("GET", "/v1/consistency?old=1&new=2"): {"writer", "reader", "auditor", "admin"},
    ("GET", "/v1/entries/0"): {"reader", "auditor", "admin"},
    ("GET", "/v1/entries/0/proof"): {"reader", "auditor", "admin"},
    ("GET", "/v1/entries/0/octets"): {"reader"},
    ("GET", "/v1/entries/0/signature"): {"reader"},
    ("GET", "/v1/search"): {"reader", "auditor", "admin"},
}


def test_each_role_may_do_its_part_only(shared):
    for (method, path), roles in ALLOWED.items():
        for client in ("writer", "reader", "auditor", "admin"):
            body = b"octets" if method == "POST" else None
            status, said = ask(shared, client, method, path, body, named(1))
            assert status == (200 if client in roles else 403), (client, path, said)


def test_reader_cannot_put_and_writer_cannot_get(shared):
    done = shared.run("dbox-put", "--client", "reader", stdin=b"octets")
    assert done.returncode == 4 and b"role reader may not" in done.stderr
    done = shared.run("dbox-get", "--client", "writer", "0")
    assert done.returncode == 4 and b"role writer may not" in done.stderr


def test_a_changed_role_counts_at_once_and_is_in_the_log(running):
    running.good("dbox-get", "--head")
    running.good("dbox-init", "--client", "reader", "--role", "auditor")
    assert running.run("dbox-get", "0", "--octets").returncode == 4
    rows = running.good("dbox-get", "--json", "--search", "stream=client").splitlines()
    assert [json.loads(row)["seq"] for row in rows] == list(range(1, len(dboxkit.CLIENTS) + 2))


def test_same_number_same_octets_is_the_same_entry_other_octets_conflict(running):
    first = ask(running, "writer", "POST", "/v1/entries", b"octets", named(1))
    again = ask(running, "writer", "POST", "/v1/entries", b"octets", named(1))
    assert first == again and first[0] == 200
    status, said = ask(running, "writer", "POST", "/v1/entries", b"other", named(1))
    assert status == 409 and b"app 1 holds other octets" in said
    # The same number of another writer, or of another stream, is another entry.
    for client, stream in (("second", "app"), ("writer", "script")):
        status, receipt = ask(running, client, "POST", "/v1/entries", b"other", named(1, stream))
        assert status == 200 and receipt != first[1]
    # A batch with one conflict adds nothing.
    size = len(running.good("dbox-get", "--list").splitlines())
    batch = b"".join(len(part).to_bytes(4, "big") + part for part in (b"new", b"octets"))
    assert ask(running, "writer", "POST", "/v1/batch", batch, named(1))[0] == 409
    assert len(running.good("dbox-get", "--list").splitlines()) == size


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/entries", b"", named(1), 400),
        ("/v1/entries", b"x", {}, 400),
        ("/v1/entries", b"x", named(0), 400),
        ("/v1/entries", b"x", named("1e3"), 400),
        ("/v1/entries", b"x", named(1, "../x"), 400),
        ("/v1/entries", b"x", named(1, "a'; DROP TABLE entry; --"), 400),
        ("/v1/batch", b"\0\0\0\x05abc", named(1), 400),
        ("/v1/batch", b"\0\0\0\0", named(1), 400),
        ("/v1/batch", b"", named(1), 400),
        ("/v1/batch", b"\0\0\0\x01x" * 5001, named(1), 413),
        ("/v1/entries", b"x" * (16 * 1024 * 1024 + 1), named(1), 413),
        ("/v1/entries", b"x" * (17 * 1024 * 1024), named(1), 413),
        ("/v1/entries", iter([b"chunked"]), named(1), 411),
        ("/v2/entries", b"x", named(1), 405),
    ],
    ids=range(14),
)
def test_what_does_not_fit_is_refused(shared, path, body, headers, status):
    before = ask(shared, "reader", "GET", "/v1/checkpoint")
    answer = ask(shared, "writer", "POST", path, body, headers)
    assert answer[0] == status, answer
    assert ask(shared, "reader", "GET", "/v1/checkpoint") == before


def test_the_largest_entry_goes_in_and_comes_out(running):
    octets = b"\0\xff<script>\n" * 1_500_000
    octets = octets[: 16 * 1024 * 1024]
    running.put(octets)
    last = len(running.good("dbox-get", "--list").splitlines()) - 1
    assert running.good("dbox-get", last, "--octets") == octets
    assert running.run("dbox-put", stdin=octets + b"x" * 4_000_000).returncode == 2


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/entries/99", 404),
        ("/v1/entries/-1", 404),
        ("/v1/entries/0/owner", 404),
        ("/v1/consistency?old=0&new=1", 400),
        ("/v1/consistency?old=2&new=99", 400),
        ("/v1/search?stream=x'%20OR%201=1--", 200),
        ("/v1/search?number=1", 400),
        ("/v1/search?limit=ten", 400),
        ("/../../etc/passwd", 404),
    ],
)
def test_odd_questions_get_short_answers(shared, path, status):
    answer = ask(shared, "reader", "GET", path)
    assert answer[0] == status and answer[1].count(b"\n") <= 1
    if status == 200:
        assert answer[1] == b""


def test_silent_and_foreign_talkers_stop_nobody(running):
    """More of them than a moment's patience, fewer than threads: others must be served while they hang."""
    silent = [socket.create_connection(("localhost", running.port)) for _ in range(12)]
    for one, text in zip(silent, [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01", b"\xff" * 400] * 3, strict=True):
        one.sendall(text)
    assert running.put(b"still here")
    for one in silent:
        one.close()
    assert running.put(b"and again")
    assert running.stop() == 0


def test_second_dboxd_is_refused(running):
    other = running.path / "other.conf"
    other.write_text(running.conf.read_text().replace(f":{running.port}", f":{dboxkit.free_port()}"))
    other.chmod(0o644)
    done = subprocess.run(
        [dboxkit.program("dboxd"), "--config", other], capture_output=True, timeout=30, env=dboxkit.environment()
    )
    assert done.returncode == 5 and b"still locked" in done.stderr
    assert running.put(b"the first goes on")
