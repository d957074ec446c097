# SPDX-License-Identifier: Apache-2.0
"""One receipt for a run proves each of its entries, and nothing else."""

import random

import pytest
from dre import batch, evidence

ORIGIN, WRITER, TIME = "host/dbox/1", "a" * 64, "2026-01-01T00:00:00.000Z"
NOTE = (evidence.Signature(ORIGIN, b"\0\0\0\1", b"x" * 64),)


def header(seq, octets, salt=b""):
    return evidence.Header(ORIGIN, "app", WRITER, TIME, seq, len(octets), evidence.digest(octets, salt)).octets()


def run_of(before, parts, after, salts=()):
    """The receipt of a run with *before* other entries before it and *after* after it."""
    tree = evidence.Tree()
    other = [evidence.leaf_hash(b"other %d" % number) for number in range(before + after)]
    headers = [header(seq, octets, salts[seq - 7] if salts else b"") for seq, octets in enumerate(parts, 7)]
    tree.append([*other[:before], *map(evidence.leaf_hash, headers), *other[before:]])
    size, end = len(tree), before + len(parts) - 1
    note = evidence.Note(evidence.Head(ORIGIN, size, tree.root(size), TIME).text(), NOTE)
    salt = salts[-1] if salts else b""
    last = evidence.Receipt(headers[-1], end, tuple(tree.inclusion(end, size)), note, salt)
    return batch.Run(before, tuple(tree.inclusion(before, size)), last, tuple(salts)), tree


SHAPES = [(0, 1, 0), (0, 2, 0), (1, 1, 1), (3, 5, 2), (7, 9, 0), (8, 8, 8), (5, 100, 13), (1023, 3, 1), (0, 64, 1)]


@pytest.mark.parametrize("shape", SHAPES + [tuple(random.Random(n).choices(range(1, 60), k=3)) for n in range(20)])
def test_each_entry_has_the_receipt_it_would_have_alone(shape):
    before, count, after = shape
    parts = [b"entry %d" % number for number in range(count)]
    run, tree = run_of(before, parts, after)
    again = batch.parse(run.format().encode())
    assert again == run
    receipts = again.expand(parts)
    for number, (receipt, octets) in enumerate(zip(receipts, parts, strict=True), before):
        evidence.bind(receipt, octets)
        assert receipt.index == number and list(receipt.path) == tree.inclusion(number, len(tree))
        assert evidence.parse_receipt(receipt.format().encode()) == receipt


def test_salts_travel_with_the_run():
    salts = [bytes([number]) * 32 for number in range(3)]
    run, _ = run_of(4, [b"a", b"b", b"c"], 2, salts)
    receipts = batch.parse(run.format().encode()).expand([b"a", b"b", b"c"])
    assert [receipt.salt for receipt in receipts] == salts
    with pytest.raises(evidence.VerifyError):
        batch.Run(run.first, run.path, run.last, tuple(reversed(salts))).expand([b"a", b"b", b"c"])


def test_octets_that_were_not_logged_have_no_receipt():
    parts = [b"entry %d" % number for number in range(20)]
    run, _ = run_of(11, parts, 6)
    for number in range(20):
        wrong = [*parts[:number], b"forged!!", *parts[number + 1 :]]
        with pytest.raises(evidence.VerifyError):
            run.expand(wrong)
    for wrong in (parts[:-1], [*parts, b"more"], parts[1:], parts[::-1], []):
        with pytest.raises(evidence.VerifyError):
            run.expand(wrong)


def test_changed_receipts_are_refused_or_prove_nothing_false():
    parts = [b"entry %d" % number for number in range(9)]
    run, _ = run_of(5, parts, 4)
    text = run.format().encode()
    head = evidence.parse_head(run.last.note.text)
    true = (head.origin, head.size, head.root)
    rng = random.Random(1)
    accepted = 0
    for _ in range(3000):
        at, octet = rng.randrange(len(text)), rng.randrange(256)
        wrong = text[:at] + bytes([octet]) + text[at + 1 :]
        if wrong == text:
            continue
        try:
            receipts = batch.parse(wrong).expand(parts)
        except (evidence.VerifyError, evidence.FormatError):
            continue
        # Only what dre.trust judges may differ: the time of the tree head, and the signature lines.
        heads = {evidence.parse_head(receipt.note.text) for receipt in receipts}
        assert {(head.origin, head.size, head.root) for head in heads} == {true}
        accepted += 1
    assert accepted < 600


@pytest.mark.parametrize(
    "wrong", [b"", b"dre-run/v1\n", b"dre-run/v2\nfirst 0\n\n", b"\xff", b"dre-run/v1\nfirst 01\n\n"]
)
def test_what_is_no_receipt_of_a_run(wrong):
    with pytest.raises(evidence.FormatError):
        batch.parse(wrong)
