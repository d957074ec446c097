# SPDX-License-Identifier: Apache-2.0
"""The audit's frontier, numbers and memory; and vectors that others published for trees and signed notes."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from dre import audit, evidence
from hypothesis import given
from hypothesis import strategies as st

# Roots of the RFC 6962 trees over these leaves: certificate-transparency and transparency-dev/merkle test with them.
INPUTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = """
e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d
fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125
aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77
d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7
4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4
76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef
ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c
5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328
"""
# The example of golang.org/x/mod/sumdb/note, on which C2SP's signed-note is based.
VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE = """If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
"""
LEAVES = [hashlib.sha256(b"%d" % number).digest() for number in range(300)]


def test_published_roots():
    leaves = [evidence.leaf_hash(bytes.fromhex(text)) for text in INPUTS]
    tree = evidence.Tree()
    tree.append(leaves)
    for size, root in enumerate(ROOTS.split()):
        frontier = audit.Frontier()
        frontier.extend(leaves[:size])
        assert frontier.root().hex() == tree.root(size).hex() == root
        for index in range(size):
            evidence.verify_inclusion(leaves[index], index, size, tree.inclusion(index, size), bytes.fromhex(root))
        for old in range(1, size + 1):
            roots = bytes.fromhex(ROOTS.split()[old]), bytes.fromhex(root)
            evidence.verify_consistency(old, roots[0], size, roots[1], tree.consistency(old, size))


def test_published_note():
    note = evidence.parse_note(NOTE)
    assert note.format() == NOTE
    name, identity, key = VERIFIER.split("+", 2)
    octets = base64.b64decode(key)
    (line,) = note.signatures
    assert (line.name, line.key.hex()) == (name, identity)
    assert evidence.key_id(name, octets[:1], octets[1:]).hex() == identity
    ed25519.Ed25519PublicKey.from_public_bytes(octets[1:]).verify(line.value, note.text.encode())


@given(st.lists(st.integers(0, 40), max_size=12))
def test_a_frontier_is_the_tree(parts):
    frontier, tree = audit.Frontier(), evidence.Tree()
    for count in parts:
        begin = len(tree)
        leaves = LEAVES[begin : begin + min(count, 300 - begin)]
        frontier.extend(list(leaves))
        tree.append(leaves)
        assert (frontier.size(), frontier.root()) == (len(tree), tree.root(len(tree)))
        again = audit.Frontier(frontier.nodes())
        assert (again.size(), again.root()) == (frontier.size(), frontier.root())


@given(st.lists(st.integers(1, 30), unique=True))
def test_numbers_tell_what_is_missing(seqs):
    numbers = audit.Numbers()
    assert all(numbers.add(seq, seq) for seq in seqs)
    assert not any(numbers.add(seq, seq) for seq in seqs)
    missing = [number for first, last in numbers.missing() for number in range(first, last + 1)]
    assert missing == [number for number in range(1, max(seqs, default=0)) if number not in seqs]


def test_ranges_of_numbers():
    numbers = audit.Numbers()
    assert numbers.add(1, 100) and numbers.add(201, 300) and not numbers.add(90, 110) and not numbers.add(150, 210)
    assert list(numbers.missing()) == [(101, 200)]
    assert numbers.add(101, 200) and numbers.ranges == [[1, 300]]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"format":"dre-audit/v1"}', '{"format":"dre-audit/v2"}', "{" * 9]
)
def test_a_foreign_memory_is_refused(text):
    with pytest.raises(evidence.FormatError):
        audit.parse_memory(text)


def test_headers_are_matched_as_strictly_as_they_are_parsed():
    made = evidence.Header("h/l.x", "app", "a" * 64, "2026-01-01T00:00:00.000Z", 1, 3, "b" * 64).octets()
    match = audit.header_pattern("h/l.x").fullmatch
    assert match(made) and not match(made.replace(b"h/l.x", b"h/lax"))
    for at in range(len(made)):
        for octet in b"\n \x000Aa~":
            other = made[:at] + bytes([octet]) + made[at + 1 :]
            try:
                fits = evidence.parse_header(other).log == "h/l.x"
            except evidence.FormatError:
                fits = False
            assert bool(match(other)) == fits, other
