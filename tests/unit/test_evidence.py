# SPDX-License-Identifier: Apache-2.0
"""Header, leaf, tree and receipt against a naive tree written from RFC 6962 and against roots made by pymerkle 6.1."""

import base64
import hashlib

import pytest
from dre import evidence
from dre.evidence import FormatError, VerifyError
from hypothesis import given, settings
from hypothesis import strategies as st


def sha(octets):
    return hashlib.sha256(octets).digest()


def cut(width):
    k = 1
    while k * 2 < width:
        k *= 2
    return k


def mth(leaves):
    """MTH of RFC 6962 section 2.1, over leaf hashes."""
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return leaves[0]
    k = cut(len(leaves))
    return sha(b"\x01" + mth(leaves[:k]) + mth(leaves[k:]))


def path(m, leaves):
    """PATH of RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = cut(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m, leaves, whole):
    """SUBPROOF of RFC 6962 section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = cut(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


LEAVES = [sha(b"\x00" + b"entry %d" % number) for number in range(300)]
PYMERKLE = {
    1: "773885a613489e24ce2cf76199d6a423f042e4bbf12d7eecee912ef276c65701",
    2: "5a47662fd8a317d96049a3f9f47c55dc67ca66051baa3683dbb19b2fe09a07b0",
    3: "94fbd0dd836f50301692e6d0eade728ee19ec52bfff1606ed807c8575d5aaa19",
    7: "98c97f0ba3175cd08b031dd084b9dc4e649b64d1a28e6ea694646503173ab587",
    8: "b69732ce5c914162ca9accfaf4e95d3f9874d68805437088aaff184a4db96773",
    13: "c0c1289f00605f8d7d8780b9f4264c736ccfb84ce91708c2b27e6426bfc7d8a8",
}


def tree(size, step=7):
    made = evidence.Tree()
    for start in range(0, size, step):
        made.append(LEAVES[start : min(start + step, size)])
    return made


@pytest.mark.parametrize("size", PYMERKLE)
def test_roots_are_those_of_pymerkle(size):
    assert tree(13).root(size).hex() == PYMERKLE[size]
    assert evidence.leaf_hash(b"entry 5") == LEAVES[5]


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 300), st.data())
def test_tree_is_rfc_6962(size, data):
    index = data.draw(st.integers(0, size - 1))
    old = data.draw(st.integers(1, size))
    made = tree(size, data.draw(st.integers(1, 40)))
    assert made.root(size) == mth(LEAVES[:size])
    assert made.inclusion(index, size) == path(index, LEAVES[:size])
    assert made.consistency(old, size) == subproof(old, LEAVES[:size], True)
    evidence.verify_inclusion(LEAVES[index], index, size, path(index, LEAVES[:size]), mth(LEAVES[:size]))
    evidence.verify_consistency(old, mth(LEAVES[:old]), size, mth(LEAVES[:size]), subproof(old, LEAVES[:size], True))


@settings(deadline=None, max_examples=150)
@given(st.integers(1, 130), st.data())
def test_any_other_inclusion_proof_is_refused(size, data):
    index = data.draw(st.integers(0, size - 1))
    root, good = mth(LEAVES[:size]), path(index, LEAVES[:size])
    other = data.draw(st.integers(0, size + 1).filter(lambda number: number != index))
    wrong = [(LEAVES[index], other, size, good, root)]
    wrong.append((LEAVES[299], index, size, good, root))
    wrong.append((LEAVES[index], index, size, [*good, LEAVES[0]], root))
    wrong.append((LEAVES[index], index, size, good, LEAVES[299]))
    if good:
        at = data.draw(st.integers(0, len(good) - 1))
        wrong.append((LEAVES[index], index, size, good[:at] + good[at + 1 :], root))
        wrong.append((LEAVES[index], index, size, [*good[:at], LEAVES[298], *good[at + 1 :]], root))
    for case in wrong:
        with pytest.raises(VerifyError):
            evidence.verify_inclusion(*case)


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 130), st.data())
def test_any_other_consistency_proof_is_refused(size, data):
    old = data.draw(st.integers(1, size - 1))
    first, second, good = mth(LEAVES[:old]), mth(LEAVES[:size]), subproof(old, LEAVES[:size], True)
    wrong = [(old, LEAVES[299], size, second, good), (old, first, size, LEAVES[299], good)]
    wrong.append((old, first, size, second, [*good, LEAVES[0]]))
    wrong.append((size, second, old, first, good))
    wrong.append((old, first, old, second, []))
    at = data.draw(st.integers(0, len(good) - 1))
    wrong.append((old, first, size, second, good[:at] + good[at + 1 :]))
    wrong.append((old, first, size, second, [*good[:at], LEAVES[298], *good[at + 1 :]]))
    for case in wrong:
        with pytest.raises(VerifyError):
            evidence.verify_consistency(*case)


def test_truncated_tree_grows_again_as_if_nothing_had_been():
    made = tree(70)
    made.truncate(33)
    assert len(made) == 33
    made.append(LEAVES[33:90])
    assert made.root(90) == mth(LEAVES[:90])


def header(octets=b"octets", salt=b"", **changes):
    fields = {
        "log": "h7/dbox/1234",
        "stream": "script",
        "writer": "ab" * 32,
        "time": "2026-11-23T08:00:00.123Z",
        "seq": 17,
        "length": len(octets),
        "digest": evidence.digest(octets, salt),
    }
    return evidence.Header(**{**fields, **changes})


HEADER = (
    b"dre-entry/v1\nlog h7/dbox/1234\nstream script\nwriter " + b"ab" * 32 + b"\ntime 2026-11-23T08:00:00.123Z\n"
    b"seq 17\nlength 6\ndigest sha256 " + hashlib.sha256(b"octets").hexdigest().encode() + b"\n"
)


def test_header_has_exactly_one_form():
    assert header().octets() == HEADER
    assert evidence.parse_header(HEADER) == header()


@pytest.mark.parametrize(
    "change",
    [
        (b"dre-entry/v1", b"dre-entry/v2"),
        (b"log h7", b"log h7 h8"),
        (b"seq 17", b"seq 017"),
        (b"seq 17", b"seq -1"),
        (b"seq 17\n", b"seq 17\nseq 18\n"),
        (b"length 6\n", b""),
        (b"sha256", b"md5"),
        (b"writer ab", b"writer AB"),
        (b"stream script", b"stream /etc"),
        (b"08:00:00.123Z", b"08:00:00Z"),
        (b"\n", b"\r\n"),
    ],
)
def test_other_headers_are_refused(change):
    with pytest.raises(FormatError):
        evidence.parse_header(HEADER.replace(*change))


def receipt(octets=b"octets", salt=b"", index=2, size=5, **changes):
    """A receipt whose signatures are not: only its form and its tree are real."""
    entry = header(octets, salt, **changes).octets()
    leaves = [*LEAVES[:index], evidence.leaf_hash(entry), *LEAVES[index + 1 : size]]
    head = evidence.Head("h7/dbox/1234", size, mth(leaves), "2026-11-23T08:00:00.200Z")
    signatures = (evidence.Signature("h7/dbox/1234", b"abcd", b"signature"),)
    return evidence.Receipt(entry, index, tuple(path(index, leaves)), evidence.Note(head.text(), signatures), salt)


def test_receipt_is_the_text_of_tlog_proof():
    made = receipt()
    lines = made.format().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert base64.b64decode(lines[1].removeprefix("extra ")) == HEADER
    assert lines[2] == "index 2"
    assert [base64.b64decode(line) for line in lines[3:6]] == list(made.path)
    assert lines[6:9] == ["", "h7/dbox/1234", "5"]
    assert lines[10:12] == ["time 2026-11-23T08:00:00.200Z", ""]
    assert lines[12] == "— h7/dbox/1234 " + base64.b64encode(b"abcdsignature").decode()
    assert lines[13:] == [""]
    assert evidence.parse_receipt(made.format().encode()) == made


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 64), st.data(), st.sampled_from([b"", b"s" * 32]))
def test_receipt_reads_back_and_binds(size, data, salt):
    made = receipt(b"octets", salt, data.draw(st.integers(0, size - 1)), size)
    again = evidence.parse_receipt(made.format().encode())
    assert again == made
    assert evidence.bind(again, b"octets")[0].seq == 17


def test_every_changed_octet_of_a_receipt_changes_what_it_says_or_is_refused():
    text = receipt().format().encode()
    signed = receipt().note.text
    for at in range(len(text)):
        for bit in (1, 2, 0x20, 0x80):
            changed = bytearray(text)
            changed[at] ^= bit
            try:
                other = evidence.parse_receipt(bytes(changed))
                evidence.bind(other, b"octets")
            except (FormatError, VerifyError):
                continue
            # What is left are the signed text and the signatures: dre.trust must refuse those.
            assert (other.note.text, other.note.signatures) != (signed, receipt().note.signatures), at


def test_other_octets_salt_or_log_do_not_bind():
    with pytest.raises(VerifyError, match="octets do not match"):
        evidence.bind(receipt(), b"octetz")
    with pytest.raises(VerifyError, match="octets do not match"):
        evidence.bind(receipt(salt=b"s" * 32, digest=evidence.digest(b"octets", b"t" * 32)), b"octets")
    with pytest.raises(VerifyError, match="wrong origin"):
        evidence.bind(receipt(log="h8/dbox/1234"), b"octets")
    with pytest.raises(VerifyError, match="older than its entry"):
        evidence.bind(receipt(time="2026-11-23T09:00:00.000Z"), b"octets")


@pytest.mark.parametrize("octets", [b"", b"\n", b"hello\n", b"c2sp.org/tlog-proof@v1\n", b"\xff\xfe", b"x" * (2 << 20)])
def test_foreign_octets_are_not_a_receipt(octets):
    with pytest.raises(FormatError):
        evidence.parse_receipt(octets)


@given(st.binary(max_size=300))
def test_parsers_only_ever_raise_format_error(octets):
    for parse in (evidence.parse_receipt, evidence.parse_header):
        with pytest.raises(FormatError):
            parse(octets)
        with pytest.raises(FormatError):
            parse(b"c2sp.org/tlog-proof@v1\nextra " + octets)


def test_key_id_is_that_of_the_specification():
    """The example of c2sp.org/signed-note: its verifier key, and the id in its signature line."""
    public = base64.b64decode("AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k")[1:]
    assert evidence.key_id("example.com/foo", evidence.ED25519, public).hex() == "530d903a"
    note = (
        "This is an example message.\n\n— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1E"
        "RYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
    )
    parsed = evidence.parse_note(note)
    assert parsed.signatures[0].key.hex() == "530d903a"
    assert parsed.format() == note
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    Ed25519PublicKey.from_public_bytes(public).verify(parsed.signatures[0].value, parsed.text.encode())


def test_what_is_stored_of_an_entry_is_compared():
    header = evidence.Header("h/l", "app", "a" * 64, "2026-01-01T00:00:00.000Z", 1, 3, evidence.digest(b"abc")).octets()
    leaf = evidence.leaf_hash(header)
    assert evidence.check_stored(7, header, leaf, b"abc").seq == 1
    assert evidence.check_stored(7, header, leaf, None).length == 3
    for wrong in (
        (header, leaf, b"abd"),
        (header, leaf, b"abc", b"s"),
        (header, bytes(32), b"abc"),
        (header[:-1], evidence.leaf_hash(header[:-1]), b"abc"),
    ):
        with pytest.raises(evidence.TamperedError) as caught:
            evidence.check_stored(7, *wrong)
        assert caught.value.index == 7 and str(caught.value).startswith("entry 7 was tampered with: ")
