# SPDX-License-Identifier: Apache-2.0
"""dre-rules person: who may change rules by the page, and as what; each change waits for the D-Box."""

import hashlib
import json
import os
import ssl
import subprocess

import pytest
from dre import conf
from dre.spool import Spool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as rules do")


@pytest.fixture
def person(run, settings):
    """person(ARG…, stdin="", code=0): what it printed, or said when it failed."""
    config = settings()

    def call(*argv, stdin="", code=0):
        done = run("dre-rules", "person", *argv, "--config", config, stdin=stdin.encode())
        assert done.returncode == code and b"Traceback" not in done.stderr, (argv, done.returncode, done.stderr)
        return (done.stderr if code else done.stdout).decode()

    call.config = config
    return call


@pytest.fixture
def certificate(tmp_path):
    """A certificate, and its SHA-256."""
    key, pem = tmp_path / "key", tmp_path / "pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*argv, "-subj", "/CN=kim", "-keyout", key, "-out", pem], check=True, capture_output=True)
    return pem, hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.read_text())).hexdigest()


def listed(person):
    return {row.pop("name"): row for row in map(json.loads, person("--json").splitlines())}


def test_people_get_a_role_another_one_and_none(person):
    assert len(person("ann", "--role", "author", "--generate").strip()) == 20
    person("bob", "--role", "approver", stdin="correct horse battery\n")
    assert [(one, row["role"], row["password"]) for one, row in listed(person).items()] == [
        ("ann", "author", True),
        ("bob", "approver", True),
    ]
    person("ann", "--role", "reader")
    person("bob", "--revoke")
    assert [(one, row["role"]) for one, row in listed(person).items()] == [("ann", "reader")]
    records = Spool(conf.load(person.config).core_state_dir / "spool/dbox/monitor").pending()
    told = [json.loads(record.octets)["person"] for record in records]
    assert [(one["name"], one["role"]) for one in told] == [
        ("ann", "author"),
        ("bob", "approver"),
        ("ann", "reader"),
        ("bob", "revoked"),
    ]


def test_a_certificate_is_one_persons(person, certificate):
    pem, fingerprint = certificate
    person("kim", "--role", "approver", "--certificate", pem)
    assert listed(person)["kim"] | {"time": ""} == {
        "role": "approver",
        "certificate": fingerprint,
        "time": "",
        "password": False,
    }
    assert "kim has this certificate" in person("lea", "--role", "reader", "--certificate", pem, code=2)
    person("kim", "--certificate", "-", stdin="correct horse battery\n")
    assert (listed(person)["kim"]["certificate"], listed(person)["kim"]["password"]) == ("", True)


def test_what_cannot_be_is_refused(person, tmp_path):
    (tmp_path / "no.pem").write_text("no certificate\n")
    person("ann", "--role", "author", stdin="short\n", code=2)
    person("ann", "--role", "owner", code=2)
    person("ann", "--role", "author", "--certificate", tmp_path / "no.pem", code=2)
    person("ann", "--role", "author", "--certificate", "/nonexistent", code=2)
    person("Ann!", "--role", "author", code=2)
    person("ann", code=2)
    person("--role", "author", code=2)
    person("ann", "--password", code=3)
    person("ann", "--revoke", code=3)
    person("ann", "--revoke", "--role", "author", code=2)
    assert listed(person) == {}


def test_nobody_else_reads_what_is_kept(person, tmp_path):
    person("ann", "--role", "author", "--generate")
    place = tmp_path / "state/rules-page"
    assert place.stat().st_mode & 0o777 == 0o700
    assert [(place / name).stat().st_mode & 0o777 for name in ("ui.sqlite", "secret")] == [0o600, 0o400]
