# SPDX-License-Identifier: Apache-2.0
"""Behind dboxd and behind Apache alike: only who is known, only what the role allows, and nobody stops the others."""

import base64
import contextlib
import datetime
import hashlib
import http.client
import json
import os
import socket
import ssl
import threading
import time
import warnings

import dboxfront
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from dboxfront import ask

REFUSED = (ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)
MIB16 = 16 * 1024 * 1024
FULL = os.environ.get("DRE_FULL") == "1"


@pytest.fixture(scope="module", params=["dboxd", "apache"])
def front(request):
    if request.param == "apache" and dboxfront.missing():
        pytest.skip(dboxfront.missing())
    made = (dboxfront.Apache if request.param == "apache" else dboxfront.Dboxd)()
    yield made
    made.end()


def named(seq, stream="app"):
    return {"X-DRE-Stream": stream, "X-DRE-Seq": str(seq)}


_last = {"seq": 0}


def fresh():
    _last["seq"] += 1
    return _last["seq"]


def size(front):
    return int(ask(front, "reader", "GET", "/v1/checkpoint")[1].split(b"\n")[1])


def certificate(front, begin, end):
    """A client certificate by the box's own client CA with another time of validity, as a TLS context."""
    ca = x509.load_pem_x509_certificate((front.box.certs / "client-ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key((front.box.certs / "client-ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.utcnow()
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "timed")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=begin))
        .not_valid_after(now + datetime.timedelta(days=end))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    path = front.box.path / f"timed{begin}{end}.pem"
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.create_default_context(cafile=front.box.certs / "root.pem")
    context.load_cert_chain(path)
    return context


def test_without_certificate_no_connection(front):
    with pytest.raises(REFUSED):
        ask(front, None, "GET", "/v1/checkpoint")


def test_certificate_of_another_ca(front):
    other = dboxfront.dboxkit.place()
    try:
        key, crt = other / "k", other / "c"
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        dboxfront.subprocess.run(
            [*argv, "-subj", "/CN=D-Box client CA", "-keyout", key, "-out", crt], check=True, capture_output=True
        )
        context = front.box.tls(None)
        context.load_cert_chain(crt, key)
        with pytest.raises(REFUSED):
            ask(front, None, "GET", "/v1/checkpoint", context=context)
    finally:
        dboxfront.shutil.rmtree(other)


def test_expired_and_future_certificates_are_refused_and_an_unregistered_one_has_no_role(front):
    for begin, end in ((-2, -1), (1, 2)):
        with pytest.raises(REFUSED):
            ask(front, None, "GET", "/v1/checkpoint", context=certificate(front, begin, end))
    status, said, _ = ask(front, None, "GET", "/v1/checkpoint", context=certificate(front, -1, 1))
    assert status == 403 and b"no role here" in said


def test_revoked_counts_at_once_even_on_an_open_connection(front):
    front.box.good("dbox-init", "--client", "gone", "--role", "reader")
    context = front.box.tls("gone")
    connection = http.client.HTTPSConnection("localhost", front.box.port, timeout=30, context=context)
    connection.request("GET", "/v1/checkpoint")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.read()
    front.box.good("dbox-init", "--client", "gone", "--revoke")
    connection.request("GET", "/v1/checkpoint")
    answer = connection.getresponse()
    assert answer.status == 403 and b"revoked" in answer.read()
    connection.close()
    told = [
        json.loads(front.box.good("dbox-get", json.loads(row)["index"], "--octets"))["data"]
        for row in front.box.good("dbox-get", "--json", "--search", "stream=client").splitlines()
    ]
    assert [data["role"] for data in told if data["client"] == "gone"] == ["reader", "revoked"]


def test_renewed_and_old_certificate_both_count_until_the_grace_is_over(front):
    front.box.good("dbox-init", "--client", "renews", "--role", "reader")
    old = front.box.tls("renews")
    front.box.good("dbox-init", "--client", "renews", "--renew", "--grace", "1h")
    for context in (old, front.box.tls("renews")):
        assert ask(front, None, "GET", "/v1/checkpoint", context=context)[0] == 200
    front.box.good("dbox-init", "--client", "renews", "--renew", "--grace", "0s")
    assert ask(front, "renews", "GET", "/v1/checkpoint")[0] == 200


def test_tls_versions(front):
    for version, good in (("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)):
        context = front.box.tls("reader")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = getattr(ssl.TLSVersion, version)
        context.set_ciphers("ALL:@SECLEVEL=0")
        if good:
            assert ask(front, None, "GET", "/v1/checkpoint", context=context)[0] == 200
        else:
            with socket.create_connection(("localhost", front.box.port), 10) as plain, pytest.raises(OSError):
                context.wrap_socket(plain, server_hostname="localhost")


def test_foreign_stream_is_403_and_exit_4(front):
    front.box.good("dbox-init", "--client", "bound", "--role", "writer", "--stream", "shop")
    assert ask(front, "bound", "POST", "/v1/entries", b"x", named(1, "shop"))[0] == 200
    before = size(front)
    for stream in ("app", "client", "dbox"):
        status, said, _ = ask(front, "bound", "POST", "/v1/entries", b"x", named(1, stream))
        assert status == 403 and f"may not write to stream {stream}".encode() in said
        batch = (1).to_bytes(4, "big") + b"x"
        assert ask(front, "bound", "POST", "/v1/batch", batch, named(1, stream))[0] == 403
    for stream in ("client", "dbox"):  # the D-Box's own are nobody's, whoever is bound or not
        assert ask(front, "writer", "POST", "/v1/entries", b"x", named(1, stream))[0] == 403
    assert size(front) == before
    done = front.box.run("dbox-put", "--client", "bound", "--stream", "app", stdin=b"x")
    assert done.returncode == 4 and b"may not write to stream app" in done.stderr


def test_replayed_request_is_the_same_entry(front):
    seq = fresh()
    first = ask(front, "writer", "POST", "/v1/entries", b"once", named(seq))
    before = size(front)
    for _ in range(3):
        again = ask(front, "writer", "POST", "/v1/entries", b"once", named(seq))
        assert again[0] == 200 and again[1].split(b"\n")[:3] == first[1].split(b"\n")[:3]
    # By another certificate it is another's entry; with other octets it is refused.
    assert ask(front, "writer", "POST", "/v1/entries", b"other", named(seq))[0] == 409
    assert size(front) == before


@pytest.mark.parametrize("name", ["DRE_CLIENT", "DRE-CLIENT", "SSL_CLIENT_CERT", "SSL-CLIENT-CERT", "X-DRE-CLIENT"])
def test_no_header_makes_anybody_another(front, name):
    pem = (front.box.certs / "clients/writer.crt").read_text()
    value = ssl.PEM_cert_to_DER_cert(pem)
    spoofed = {name: hashlib.sha256(value).hexdigest() if "CERT" not in name else pem.replace("\n", " ")}
    spoofed |= {"SSL-CLIENT-VERIFY": "SUCCESS", "DRE-LOCAL-USER": "root", "DRE_LOCAL_USER": "root"}
    before = size(front)
    status, said, _ = ask(front, "reader", "POST", "/v1/entries", b"x", {**named(1), **spoofed})
    assert status == 403 and b"role reader may not" in said
    assert size(front) == before


@pytest.mark.parametrize(
    ("length", "status"), [(0, 400), (1, 200), (65_535, 200), (65_536, 200), (MIB16, 200), (MIB16 + 1, 413)]
)
def test_sizes(front, length, status):
    seq, octets = fresh(), os.urandom(1) * length
    before = size(front)
    answer = ask(front, "writer", "POST", "/v1/entries", octets, named(seq))
    assert answer[0] == status, answer[1][:200]
    assert size(front) == before + (status == 200)
    if status == 200:
        assert ask(front, "reader", "GET", f"/v1/entries/{before}/octets")[1] == octets
    else:
        _last["seq"] -= 1


def test_far_too_large_and_chunked_bodies(front):
    before = size(front)
    with pytest.raises((*REFUSED, AssertionError)):  # an answer, or the end of the connection while it is sent
        status = ask(front, "writer", "POST", "/v1/entries", b"x" * (2 * MIB16), named(1))[0]
        assert status != 413
    assert ask(front, "writer", "POST", "/v1/entries", iter([b"chunked"]), named(1))[0] == 411
    # Announced only: refused by its length, and no octet of it is waited for.
    plain = socket.create_connection(("localhost", front.box.port), 20)
    with front.box.tls("writer").wrap_socket(plain, server_hostname="localhost") as sock:
        sock.sendall(b"POST /v1/entries HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\nx")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")
    assert size(front) == before


def test_oversize_headers(front):
    for headers in ({"X-Long": "x" * 20_000}, {f"X-{number}": "y" * 100 for number in range(99)} | {"X-Z": "z" * 9000}):
        try:
            status = ask(front, "reader", "GET", "/v1/checkpoint", headers=headers)[0]
        except REFUSED:
            continue  # ended before all of it was sent
        assert status in (400, 413, 414, 431), status
    with contextlib.suppress(*REFUSED):
        assert ask(front, "reader", "GET", "/v1/checkpoint?" + "q" * 70_000)[0] in (400, 413, 414)
    assert ask(front, "reader", "GET", "/v1/checkpoint")[0] == 200


def test_every_answer_tells_browsers_to_make_nothing_of_it(front):
    html = b"<script>alert(1)</script>"
    before = size(front)
    assert ask(front, "writer", "POST", "/v1/entries", html, named(fresh()))[0] == 200
    for client, path in (
        ("reader", f"/v1/entries/{before}/octets"),
        ("reader", "/v1/nothing"),
        ("writer", "/v1/search"),
    ):
        _, _, headers = ask(front, client, "GET", path)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Content-Type"].split(";")[0] in ("application/octet-stream", "text/plain")


def test_the_page_needs_no_certificate_and_the_api_does_there_too(front):
    without = front.box.tls(None)
    status, said, headers = ask(front, None, "GET", "/d_box_main.html", context=without, port=front.page)
    assert status in (200, 303, 302), said[:500]
    assert "script-src" in headers["Content-Security-Policy"] and "unsafe" not in headers["Content-Security-Policy"]
    assert "Strict-Transport-Security" not in headers  # it would break http://d-box:8080
    status, said, _ = ask(front, None, "GET", "/v1/checkpoint", context=without, port=front.page)
    assert status == 403 and b"without a certificate" in said
    assert ask(front, "reader", "GET", "/v1/checkpoint", port=front.page)[0] == 200


def plain(front, method, path, host="d-box:8080"):
    connection = http.client.HTTPConnection("127.0.0.1", front.redirect, timeout=20)
    try:
        connection.request(method, path, b"x=1" if method == "POST" else None, {"Host": host})
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.getheader("Location")
    finally:
        connection.close()


def test_in_the_clear_there_is_the_way_to_the_page_and_nothing_else(front):
    page = f"https://d-box:{front.page}/d_box_main.html"
    assert plain(front, "GET", "/d_box_main.html")[::2] == (308, page)
    assert plain(front, "GET", "/")[::2] == (308, page)
    assert plain(front, "GET", "/d_box_main.html", "box.example")[2] == page.replace("d-box", "box.example")
    for method in ("POST", "PUT", "DELETE"):
        for path in ("/d_box_main.html", "/v1/entries"):
            assert plain(front, method, path)[0] == 403
    assert plain(front, "GET", "/v1/checkpoint")[0] == 404
    status, _, location = plain(front, "GET", "/d_box_main.html", "evil/<script>")
    assert status in (308, 400, 404) and "evil" not in (location or "")


def test_silent_and_slow_ones_stop_nobody(front):
    """More than there are threads: silent, in the middle of a handshake, of a header, of a body."""
    many = 70 if FULL else 40
    slow = [socket.create_connection(("localhost", front.box.port)) for _ in range(many)]
    for number, one in enumerate(slow):
        one.sendall([b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 300][number % 4])
    context = front.box.tls("second")
    half = []
    for number in range(20):
        sock = context.wrap_socket(socket.create_connection(("localhost", front.box.port)), server_hostname="localhost")
        head = f"POST /v1/entries HTTP/1.1\r\nHost: x\r\nX-DRE-Stream: app\r\nX-DRE-Seq: {number + 1}\r\n"
        sock.sendall((head + ("Content-Length: 1000\r\n\r\nhalf" if number % 2 else "X-Half")).encode())
        half.append(sock)
    try:
        began = time.monotonic()
        for _ in range(5):
            assert ask(front, "reader", "GET", "/v1/checkpoint")[0] == 200
            assert ask(front, "writer", "POST", "/v1/entries", b"still here", named(fresh()))[0] == 200
        assert time.monotonic() - began < 60
        if FULL:  # each is ended by the server in bounded time
            for one in [*half, *slow]:
                one.settimeout(90)
                with contextlib.suppress(OSError):
                    while one.recv(4096):
                        pass
    finally:
        for one in [*half, *slow]:
            one.close()
    assert ask(front, "reader", "GET", "/v1/checkpoint")[0] == 200


def test_one_that_keeps_all_threads_busy_fast_enough_stops_nobody(front):
    """More long requests of one client than there are threads, each above the least speed."""
    context, many, ended = front.box.tls("second"), [], threading.Event()
    for number in range(40):
        sock = context.wrap_socket(socket.create_connection(("localhost", front.box.port)), server_hostname="localhost")
        head = f"POST /v1/entries HTTP/1.1\r\nHost: x\r\nX-DRE-Stream: app\r\nX-DRE-Seq: {number + 1}\r\n"
        sock.sendall(f"{head}Content-Length: {MIB16}\r\n\r\n".encode())
        sock.settimeout(2)
        many.append(sock)

    def feed():
        while not ended.wait(0.1):
            for sock in many:
                with contextlib.suppress(OSError):
                    sock.sendall(b"x" * 10_000)

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        began = time.monotonic()
        for _ in range(3):
            assert ask(front, "writer", "POST", "/v1/entries", b"still here", named(fresh()))[0] == 200
        assert time.monotonic() - began < 60
    finally:
        ended.set()
        feeding.join()
        for sock in many:
            sock.close()


def test_more_for_auditors_and_admins(front):
    """Status, heads with anchors, headers to recompute the tree from, the register; each for its roles only."""
    paths = {
        "/v1/status": {"reader", "auditor", "admin"},
        "/v1/heads?after=0": {"reader", "auditor", "admin"},
        "/v1/leaves?from=0&to=3": {"reader", "auditor"},
        "/v1/clients": {"admin"},
    }
    for path, roles in paths.items():
        for client in ("writer", "reader", "auditor", "admin"):
            assert ask(front, client, "GET", path)[0] == (200 if client in roles else 403), (client, path)
    state = json.loads(ask(front, "auditor", "GET", "/v1/status")[1])
    assert {"origin", "size", "key", "anchors", "streams", "queue", "disk", "refused", "tampered"} <= set(state)
    # The root of the newest head, recomputed from the headers alone.
    from dre import dbox, evidence

    head = evidence.parse_head(evidence.parse_note(ask(front, "auditor", "GET", "/v1/checkpoint")[1].decode()).text)
    framed = ask(front, "auditor", "GET", f"/v1/leaves?from=0&to={head.size}")[1]
    tree = evidence.Tree()
    tree.append(evidence.leaf_hash(header) for header in dbox.unframe(framed))
    assert len(tree) == head.size and tree.root(head.size) == head.root
    body = json.dumps(
        {"kind": "witness", "name": "w", "octets": base64.b64encode(b"line\n").decode(), "size": head.size}
    )
    assert ask(front, "writer", "POST", "/v1/anchors", body)[0] == 403
    assert ask(front, "admin", "POST", "/v1/anchors", body)[0] == 200
    rows = [json.loads(row) for row in ask(front, "auditor", "GET", f"/v1/heads?after={head.size - 1}")[1].splitlines()]
    (anchor,) = rows[0]["anchors"]
    assert base64.b64decode(anchor["octets"]) == b"line\n" and anchor["name"] == "w"
    for wrong in (b"", b"[]", b'{"kind":"other","octets":"eA=="}', b'{"kind":"witness","octets":"?"}', b"{" * 9000):
        assert ask(front, "admin", "POST", "/v1/anchors", wrong)[0] == 400, wrong[:50]
    registered = [json.loads(row) for row in ask(front, "admin", "GET", "/v1/clients")[1].splitlines()]
    assert {"writer", "reader", "auditor", "admin"} <= {row["client"] for row in registered}


def test_two_admins_erase_and_one_does_not(front):
    with contextlib.suppress(AssertionError):
        front.box.good("dbox-init", "--client", "other", "--role", "admin")
    number = size(front)
    assert ask(front, "writer", "POST", "/v1/entries", b"personal", named(fresh()))[0] == 200
    path, body = f"/v1/entries/{number}/erase", json.dumps({"reason": "the person asked for it"})
    for client in ("writer", "reader", "auditor"):
        assert ask(front, client, "POST", path, body)[0] == 403
    for _ in range(2):  # twice the same admin is one
        status, said, _ = ask(front, "admin", "POST", path, body)
        assert status == 200 and json.loads(said)["state"] == "asked"
    assert ask(front, "reader", "GET", f"/v1/entries/{number}/octets")[1] == b"personal"
    status, said, _ = ask(front, "other", "POST", path, json.dumps({"reason": "another reason"}))
    assert json.loads(said)["state"] == "asked"
    status, said, _ = ask(front, "other", "POST", path, body)
    assert status == 200 and json.loads(said)["state"] == "erased"
    assert ask(front, "reader", "GET", f"/v1/entries/{number}/octets")[0] == 404
    assert ask(front, "reader", "GET", f"/v1/entries/{number}/proof")[0] == 200
    assert ask(front, "admin", "POST", path, body)[0] == 409


def test_admin_rotates(front):
    before = json.loads(ask(front, "admin", "GET", "/v1/status")[1])["key"]["fingerprint"]
    assert ask(front, "auditor", "POST", "/v1/rotate", b"")[0] == 403
    status, said, _ = ask(front, "admin", "POST", "/v1/rotate", b"")
    assert status == 200 and json.loads(said)["fingerprint"] != before
    assert front.box.put(b"under the new key", client="second", stream="after")


def test_without_a_sequencer_writers_are_asked_to_come_again(front):
    """Apache says so until one is there; dboxd has started another one by then."""
    seq, before = fresh(), size(front)
    os.kill(front.box.sequencer(), 9)
    status, said, headers = ask(front, "writer", "POST", "/v1/entries", b"x", named(seq))
    if isinstance(front, dboxfront.Apache):
        assert status == 503 and headers["Retry-After"] and b"sequencer" in said
        done = front.box.run("dbox-put", "--client", "writer", "--stream", "late", "--timeout", "1", stdin=b"x")
        assert done.returncode in (5, 6) and b"waits as late 1" in done.stderr
        return
    deadline = time.monotonic() + 60
    while status != 200:
        assert status == 503 and headers["Retry-After"] and time.monotonic() < deadline, said
        time.sleep(0.1)
        status, said, headers = ask(front, "writer", "POST", "/v1/entries", b"x", named(seq))
    assert size(front) == before + 1
