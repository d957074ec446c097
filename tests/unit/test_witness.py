# SPDX-License-Identifier: Apache-2.0
"""A witness answers as C2SP's tlog-witness says, and cosigns no tree head that does not continue what it saw."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from dre import evidence, witness
from dre.errors import UsageError
from dre.evidence import FormatError, Head, Note, Signature, Tree, VerifyError

ORIGIN = "h/dbox/1"
NOW = 1795691860


class Log:
    """A log of a key, whose tree can be grown, and grown otherwise."""

    def __init__(self, leaves=()):
        self.key = Ed25519PrivateKey.generate()
        self.public = witness.Vkey(ORIGIN, evidence.ED25519, self.key.public_key().public_bytes(*witness.RAW))
        self.tree = Tree()
        self.grow(*leaves)

    def grow(self, *leaves):
        self.tree.append(hashlib.sha256(leaf).digest() for leaf in leaves)

    def note(self, size=None, key=None):
        size = len(self.tree) if size is None else size
        text = Head(ORIGIN, size, self.tree.root(size), "2026-11-23T08:00:00.123Z").text()
        return Note(text, (Signature(ORIGIN, self.public.id, (key or self.key).sign(text.encode())),))

    def request(self, old, size=None):
        size = len(self.tree) if size is None else size
        proof = self.tree.consistency(old, size) if 0 < old < size else []
        return witness.request(old, proof, self.note(size))


@pytest.fixture
def log():
    return Log([b"%d" % number for number in range(7)])


@pytest.fixture
def made(log, tmp_path):
    return witness.Witness(witness.make_key("w.example/1"), [log.public], tmp_path)


def test_cosigns_what_continues(log, made):
    answer = made.add_checkpoint(log.request(0, 3), NOW)
    assert answer.status == 200
    # The signature line, checked by hand as tlog-cosignature has it.
    dash, name, value = answer.body.rstrip("\n").split(" ")
    octets = base64.b64decode(value)
    public = made.key.public
    assert (dash, name) == ("—", "w.example/1")
    assert octets[:4] == hashlib.sha256(b"w.example/1\n\x04" + public.public).digest()[:4]
    assert int.from_bytes(octets[4:12], "big") == NOW
    text = f"cosignature/v1\ntime {NOW}\n{log.note(3).text}".encode()
    Ed25519PublicKey.from_public_bytes(public.public).verify(octets[12:], text)
    assert made.add_checkpoint(log.request(3, 7), NOW).status == 200
    assert made.add_checkpoint(log.request(7, 7), NOW + 1).status == 200  # again, for a fresh time
    assert made.last(ORIGIN).size == 7


def refused(answer, status, body=None, kind="text/plain; charset=utf-8"):
    assert (answer.status, answer.kind) == (status, kind)
    assert body is None or answer.body == body


def test_statuses_are_those_of_the_specification(log, made):
    made.add_checkpoint(log.request(0, 5), NOW)
    refused(made.add_checkpoint(log.request(3), NOW), 409, "5\n", "text/x.tlog.size")
    refused(made.add_checkpoint(log.request(0), NOW), 409, "5\n", "text/x.tlog.size")
    refused(made.add_checkpoint(log.request(0, 3), NOW), 409, "5\n", "text/x.tlog.size")  # cut back
    refused(made.add_checkpoint(witness.request(6, [], log.note(5)), NOW), 400)
    proof = log.tree.consistency(5, 7)
    refused(made.add_checkpoint(witness.request(5, proof[1:], log.note()), NOW), 422)
    refused(made.add_checkpoint(witness.request(5, [*proof, proof[0]], log.note()), NOW), 422)
    refused(made.add_checkpoint(witness.request(5, [], log.note()), NOW), 422)
    refused(made.add_checkpoint(witness.request(5, proof, log.note(key=Ed25519PrivateKey.generate())), NOW), 403)
    other = log.note().text.replace(ORIGIN, "other/log")
    refused(made.add_checkpoint(witness.request(5, proof, Note(other, log.note().signatures)), NOW), 404)
    assert made.add_checkpoint(log.request(5), NOW).status == 200  # none of that was kept


def test_a_fork_is_refused(log, made):
    made.add_checkpoint(log.request(0), NOW)
    fork = Log([b"%d" % number for number in range(6)] + [b"other"])
    fork.key, fork.public = log.key, log.public  # with the log's own key
    refused(made.add_checkpoint(fork.request(7), NOW), 409, "7\n", "text/x.tlog.size")
    fork.grow(b"more")
    refused(made.add_checkpoint(fork.request(7), NOW), 422)
    assert made.last(ORIGIN).root == log.tree.root(7)


def test_the_proof_must_be_empty_for_the_first(log, made):
    proof = log.tree.consistency(3, 7)
    refused(made.add_checkpoint(witness.request(0, proof, log.note()), NOW), 422)
    assert made.last(ORIGIN) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"old 1\n\n",
        b"old 01\n\nx\n\n\xe2\x80\x94 x AAAAAAAA\n",
        b"old -1\n\n",
        b"old 0\nAAAA\n\nx\n\n\xe2\x80\x94 x AAAAAAAA\n",
        b"old 0\n" + b"A" * 43 + b"=\n\nx\n\n",
        b"old 0\n" + (b"A" * 43 + b"=\n") * 64 + b"\nx\n",
    ],
)
def test_malformed(made, body):
    refused(made.add_checkpoint(body, NOW), 400)


def test_what_was_seen_outlives_the_witness_and_is_an_anchor(log, made, tmp_path):
    made.add_checkpoint(log.request(0, 5), NOW)
    again = witness.Witness(made.key, made.logs, tmp_path)
    refused(again.add_checkpoint(log.request(0), NOW), 409, "5\n", "text/x.tlog.size")
    note = evidence.parse_note(again.path(ORIGIN).read_text())
    assert witness.cosignatures(note, [made.key.public]) == [("w.example/1", NOW)]
    # A state that cannot be read is not taken for none.
    again.path(ORIGIN).write_text("torn")
    with pytest.raises(FormatError):
        again.add_checkpoint(log.request(0), NOW)


def test_cosignatures(log, made):
    answer = made.add_checkpoint(log.request(0), NOW)
    note = Note(log.note().text, (*log.note().signatures, *witness.signature_lines(answer.body)))
    assert witness.cosignatures(note, [made.key.public]) == [("w.example/1", NOW)]
    assert witness.cosignatures(note, [witness.make_key("w.example/1").public]) == []  # another key of that name
    assert witness.cosignatures(note, []) == []
    changed = Note(note.text.replace("time 2026", "time 2025"), note.signatures)
    with pytest.raises(VerifyError, match="cosignature of w.example/1 is wrong"):
        witness.cosignatures(changed, [made.key.public])
    # The time is signed too.
    line = note.signatures[1]
    later = Signature(line.name, line.key, (NOW + 1).to_bytes(8, "big") + line.value[8:])
    with pytest.raises(VerifyError):
        witness.cosignatures(Note(note.text, (note.signatures[0], later)), [made.key.public])


def test_keys_have_one_form(made):
    text = made.key.public.format()
    assert witness.parse_vkey(text) == made.key.public
    assert witness.parse_secret(made.key.format()).public == made.key.public
    # The example of C2SP's signed-note.
    example = witness.parse_vkey("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert (example.name, example.id.hex()) == ("PeterNeumann", "c74f20a3")
    for wrong in (text.replace("w.", "v."), text[:-4], "x", "a b+00000000+AAAA"):
        with pytest.raises(FormatError):
            witness.parse_vkey(wrong)
    found = witness.parse_keys(f"# ours\n\n{text} https://w.example:8445/\n{text}\n", "keys")
    assert [one.url for one in found] == ["https://w.example:8445", ""]
    with pytest.raises(UsageError, match="keys:2: expected a key and a URL"):
        witness.parse_keys(f"\n{text} ftp://x\n", "keys")
