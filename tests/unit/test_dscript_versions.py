# SPDX-License-Identifier: Apache-2.0
"""Versions of scripts: killed before any of its writes, a switch is finished or not begun after the next call."""

import datetime
import json
import os
import pathlib
import shutil
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "dscript"))

from cryptography import x509  # noqa: E402
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from dre import conf, files  # noqa: E402
from dre.errors import DreError  # noqa: E402
from dscriptlib import agreement, load, persons, store, versions  # noqa: E402

SCRIPT = (
    "dscript: 1\nname: shop\nresponses:\n  - {{id: call, when: {{event: a.b}}, steps: [{{action: notify, to: {0}}}]}}\n"
)


@pytest.fixture
def place(settings):
    return conf.load(settings())


def version(word):
    octets = SCRIPT.format(word).encode()
    script, findings = load.load(octets, "x")
    assert script is not None, findings
    return script, octets


def until(number, work):
    """Do *work* in a process that ends before its write *number*; whether it came to its end before."""
    pid = os.fork()
    if pid == 0:
        left, write = [number], files.write_atomic

        def counted(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            write(*args, **kwargs)

        files.write_atomic = counted
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def recorded(place):
    """The records of switches in the client's spool of the D-Box."""
    path = place.core_state_dir / "spool/dbox/dscript/records-1"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["data"] for line in lines if line.startswith("{") and '"script.deployed"' in line]


def test_a_deployment_that_is_killed_is_finished_or_not_begun(place):
    words, number = ["first"], 0
    versions.deploy(place, *version("first"), "")
    while True:
        word = f"w{number}"
        ended = until(number, lambda word=word: versions.deploy(place, *version(word), "why"))
        in_force = store.in_force(place, "shop")
        assert in_force in {version(words[-1])[0].sha256, version(word)[0].sha256}
        versions.deploy(place, *version(word), "why")
        words.append(word)
        assert store.in_force(place, "shop") == version(word)[0].sha256
        done = versions.history(place, "shop")
        wanted = [version(one)[0].sha256 for one in words]
        assert [one.sha256 for one in done] == wanted == [one["sha256"] for one in recorded(place)]
        assert [one.number for one in done] == list(range(1, len(words) + 1))
        if ended:
            break
        number += 1
    assert number >= 3  # the version, the history, the file in force


def person(place, name, role):
    """The private key of a new person of the register."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=1)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(hours=1)).sign(key, hashes.SHA256())
    persons.register(place, name, role, made.public_bytes(serialization.Encoding.PEM))
    return key


def test_an_approval_that_is_killed_is_finished_or_not_begun(place):
    ann, bob = person(place, "ann", "author"), person(place, "bob", "approver")
    number, done = 0, 0
    while True:
        script, octets = version(f"w{number}")
        made = versions.propose(place, script, octets, ann, "why")
        ended = until(number, lambda made=made: versions.approve(place, made.id, bob))
        if store.in_force(place, "shop") == script.sha256:
            versions.require(place, script)
        if versions.proposals(place):
            versions.approve(place, made.id, bob)
        done += 1
        assert store.in_force(place, "shop") == script.sha256 and versions.proposals(place) == []
        versions.require(place, script)
        assert [one.number for one in versions.history(place, "shop")] == list(range(1, done + 1))
        assert (
            recorded(place)[-1]["agreement"].startswith("dre-script/v1\nscript shop\n") and len(recorded(place)) == done
        )
        if ended:
            break
        number += 1
    assert number >= 3  # the agreement, the history, the file in force


def test_what_root_alone_put_in_force_is_signed_as_it_is(place):
    """It may be killed then, too; and the version before it is still the one to go back to."""
    script, octets = version("second")
    number, ended = 0, False
    while not ended:
        shutil.rmtree(place.core_state_dir, ignore_errors=True)
        versions.deploy(place, *version("first"), "")
        versions.deploy(place, script, octets, "")
        ann, bob = person(place, "ann", "author"), person(place, "bob", "approver")
        made = versions.propose(place, script, octets, ann, "why")
        ended = until(number, lambda made=made, bob=bob: versions.approve(place, made.id, bob))
        if versions.proposals(place):
            versions.approve(place, made.id, bob)
        versions.require(place, script)
        assert versions.proposals(place) == []
        assert [one.how for one in versions.history(place, "shop")] == ["deploy", "deploy", "approve"]
        told = [(one["how"], one.get("signed")) for one in recorded(place)]
        assert told == [("deploy", None), ("deploy", None), ("approve", ["ann", "bob"])]
        with pytest.raises(DreError, match="in force already"):
            versions.propose(place, script, octets, ann, "why")
        with pytest.raises(DreError, match=f"{version('first')[0].sha256[:12]}: is not signed by two"):
            versions.rollback(place, "shop", None, "")
        number += 1
    assert number >= 3  # the agreement, the history, the record


def test_a_rollback_takes_what_was_there(place):
    for word in ("one", "two", "three"):
        versions.deploy(place, *version(word), "")
    assert versions.rollback(place, "shop", None, "").sha256 == version("two")[0].sha256
    assert versions.rollback(place, "shop", 1, "back").note == "back"
    assert (store.directory(place) / "deployed/shop.yaml").read_bytes() == version("one")[1]
    assert versions.rollback(place, "shop", 1, "").number == 5  # it is in force: nothing is done
    assert [one.how for one in versions.history(place, "shop")] == ["deploy"] * 3 + ["rollback"] * 2
    for name, number in (("shop", 9), ("other", None)):
        with pytest.raises(DreError, match="no version 9|was ever deployed"):
            versions.rollback(place, name, number, "")
    (store.directory(place) / f"versions/{version('two')[0].sha256}.yaml").write_text(SCRIPT.format("x"))
    with pytest.raises(DreError, match="or was changed"):
        versions.rollback(place, "shop", 2, "")


GOOD = (
    f"dre-script/v1\nscript shop\nsha256 {'a' * 64}\nbefore none\nid {'b' * 12}\ntime 2026-11-23T08:00:00.123Z\n"
    "note so it was agreed\n\npropose ann AAAA\napprove bob AAAA\n"
)


def test_an_agreement_has_one_form():
    assert agreement.parse(GOOD, "x").format() == GOOD
    without = GOOD.replace("note so it was agreed\n", "")
    assert agreement.parse(without, "x").format() == without


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("v1", "v2"),
        ("before none\n", ""),
        ("\n\n", "\n"),
        ("note so", "note x\nnote so"),
        ("bob AAAA", "bob AA"),
        ("bob AAAA", "bob AAAA=AAA"),
        ("approve bob AAAA\n", "approve bob AAAA"),
        ("approve bob", "approve ../bob"),
        ("approve bob AAAA\n", "approve bob AAAA\napprove bob AAAA\n"),
    ],
)
def test_an_agreement_of_another_form_is_none(old, new):
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(DreError):
        agreement.parse(text, "x")
