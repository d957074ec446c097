# SPDX-License-Identifier: Apache-2.0
"""Mutated receipts, runs, notes, batches, exports, spools: never a crash, never accepted as something else.

DRE_CASES is the number of all cases together; the seed is printed with a failure.
"""

import io
import os
import random
import re
import tarfile

import dboxforge
import pytest

CASES = int(os.environ.get("DRE_CASES", "4000"))
SEED = int(os.environ.get("DRE_SEED", "1"))
LINES = re.compile(rb"(?<=\n)")


def mutated(chance, octets, other):
    """*octets* with one to three things done to them; *other* is a sample of the same kind to take pieces from."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(octets) + 1)
        end = min(len(octets), at + chance.choice((1, 1, 4, 32, 64, 200)))
        octets = chance.choice(HANDS)(chance, octets, other, at, end)
    return octets


def lines(chance, octets, other):
    """Lines of both, and a place among them."""
    mine = LINES.split(octets)
    return mine, LINES.split(other), chance.randrange(len(mine))


def line_removed(chance, octets, other, at, end):
    mine, _, place = lines(chance, octets, other)
    return b"".join(mine[:place] + mine[place + 1 :])


def line_doubled(chance, octets, other, at, end):
    mine, _, place = lines(chance, octets, other)
    return b"".join(mine[:place] + mine[place : place + 1] * 2 + mine[place + 1 :])


def line_of_other(chance, octets, other, at, end):
    mine, theirs, place = lines(chance, octets, other)
    mine[place] = chance.choice(theirs)
    return b"".join(mine)


def lines_swapped(chance, octets, other, at, end):
    mine, _, place = lines(chance, octets, other)
    second = chance.randrange(len(mine))
    mine[place], mine[second] = mine[second], mine[place]
    return b"".join(mine)


def number_changed(chance, octets, other, at, end):
    found = list(re.finditer(rb"[0-9]+", octets))
    if not found:
        return octets
    match = chance.choice(found)
    number = chance.choice(
        (b"0", b"-1", b"1", b"00", b"18446744073709551616", b"9" * 400, b"%d" % chance.randrange(99))
    )
    return octets[: match.start()] + number + octets[match.end() :]


HANDS = [
    lambda chance, octets, other, at, end: octets[:at] + bytes([chance.randrange(256)]) + octets[at + 1 :],
    lambda chance, octets, other, at, end: octets[:at] + octets[end:],
    lambda chance, octets, other, at, end: octets[:at] + chance.randbytes(end - at) + octets[at:],
    lambda chance, octets, other, at, end: octets[:at] + other[at:end] + octets[end:],
    lambda chance, octets, other, at, end: octets[:at],
    lambda chance, octets, other, at, end: octets[:at] + other[at:],
    line_removed, line_doubled, line_of_other, lines_swapped, number_changed,
]  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two logs under the same keys, a run of entries in each, and what verifies them."""
    from dboxlib import export, store
    from dboxlib.database import Database
    from dre import batch, evidence, trust

    made = []
    for which in (b"one", b"two"):
        path = tmp_path_factory.mktemp("log")
        log = dboxforge.Forge(path / "dbox.sqlite").create()
        log.own("dbox.started", {})
        log.sign()
        parts = [b"%s %d" % (which, number) for number in range(6)]
        first = log.add(parts)
        log.sign()
        log.add([which + b" last"], salt=b"s" * 32)
        log.sign()
        log.close()
        here = store.open(f"sqlite:{path}/dbox.sqlite")
        tree = evidence.Tree()
        tree.append(leaf for _, _, leaf in here.headers())
        note = evidence.parse_note(here.head())
        size, end = len(tree), first + len(parts) - 1
        headers = [header for _, header, _ in here.headers()]
        last = evidence.Receipt(headers[end], end, tuple(tree.inclusion(end, size)), note)
        run = batch.Run(first, tuple(tree.inclusion(first, size)), last)
        salted = evidence.Receipt(headers[-1], size - 1, tuple(tree.inclusion(size - 1, size)), note, b"s" * 32)
        stream = io.BytesIO()
        source = Database(here)
        writer = export.Writer(stream, export.Title(here.origin, here.box, size), source.chain(), source.anchors())
        writer.heads(text for _, text in here.heads())
        payloads = [here.payload(number) for number in range(size)]
        writer.entries((header, salt, octets) for header, octets, salt in payloads)
        writer.close()
        made.append(
            {
                "parts": parts,
                "run": run.format().encode(),
                "receipt": last.format().encode(),
                "salted": salted.format().encode(),
                "note": note.format().encode(),
                "export": stream.getvalue(),
                "trust": trust.load(log.keys.root_pem, here.chain().encode()),
                "chain": here.chain().encode(),
                "root": log.keys.root_pem,
            }
        )
        here.close()
    return made


def cases(share):
    """Random hands for a share of all cases."""
    for number in range(max(CASES * share // 100, 1)):
        yield number, random.Random(SEED * 1_000_003 + number)


def facts(receipt):
    """What a receipt says, apart from who else signed its tree head."""
    return receipt.header, receipt.index, receipt.path, receipt.note.text, receipt.salt


@pytest.mark.parametrize(("kind", "share"), [("receipt", 25), ("salted", 19)])
def test_receipts(samples, kind, share):
    from dre import evidence
    from dre.errors import DreError

    one, two = samples
    octets = b"one last" if kind == "salted" else one["parts"][-1]
    real = facts(evidence.parse_receipt(one[kind]))
    one["trust"].check(evidence.parse_receipt(one[kind]), octets)
    accepted = 0
    for number, chance in cases(share):
        text = mutated(chance, one[kind], two[kind])
        try:
            receipt = evidence.parse_receipt(text)
            one["trust"].check(receipt, octets)
        except DreError:
            continue
        accepted += 1
        assert facts(receipt) == real, number
    assert accepted < CASES / 2


def test_runs(samples):
    from dre import batch
    from dre.errors import DreError

    one, two = samples
    real = [facts(receipt) for receipt in batch.parse(one["run"]).expand(one["parts"])]
    for number, chance in cases(25):
        text = mutated(chance, one["run"], two["run"])
        try:
            receipts = batch.parse(text).expand(one["parts"])
            one["trust"].head(receipts[-1].note)
            checked = [one["trust"].check(*pair) for pair in zip(receipts, one["parts"], strict=True)]
        except DreError:
            continue
        assert [facts(receipt) for receipt in receipts] == real and len(checked) == len(real), number


def test_notes(samples):
    from dre import evidence
    from dre.errors import DreError

    one, two = samples
    for number, chance in cases(10):
        text = mutated(chance, one["note"], two["note"])
        try:
            head = one["trust"].head(evidence.parse_note(text.decode()))
        except (DreError, UnicodeDecodeError):  # who reads notes decodes them first, and says so
            continue
        assert head.text().encode() in (one["note"].split(b"\n\n")[0] + b"\n", two["note"].split(b"\n\n")[0] + b"\n"), (
            number
        )


def test_batches():
    from dre import dbox
    from dre.errors import DreError

    one = dbox.frame([b"a" * 10, b"b", b"c" * 300])
    two = dbox.frame([b"\xff" * 20, b""])
    for number, chance in cases(10):
        octets = mutated(chance, one, two)
        try:
            parts = dbox.unframe(octets)
        except DreError:
            continue
        assert dbox.frame(parts) == octets, number


def test_certificates(samples):
    """No certificate that is not among the real ones becomes a key."""
    from dre import trust
    from dre.errors import DreError

    one, _ = samples
    for number, chance in cases(1):
        try:
            found = trust.load(one["root"], mutated(chance, one["chain"], one["root"]))
        except DreError:
            continue
        assert set(found.keys) <= set(one["trust"].keys), number


def test_exports(samples, tmp_path):
    from dboxlib import export
    from dre import audit
    from dre.errors import DreError

    one, two = samples
    path = tmp_path / "log.tar"

    def content():
        rows = [(header, salt if octets else b"", octets) for _, header, salt, octets in export.Export(path).rows()]
        return rows, [note.split("\n\n")[0] for _, note in export.Export(path).heads(0)]

    real = []
    for sample in samples:
        path.write_bytes(sample["export"])
        assert audit.Auditor(export.Export(path), one["trust"]).run().findings == []
        real.append(content())
    for number, chance in cases(8):
        # Half of them keep the form of a tar, so that what is inside is reached.
        octets = mutated(chance, one["export"], two["export"]) if number % 2 else repacked(chance, one, two)
        path.write_bytes(octets)
        try:
            source = export.Export(path)
            report = audit.Auditor(source, one["trust"]).run()
        except DreError:
            continue
        if not report.findings:
            rows, heads = content()
            whole = next((sample for sample in real if rows == sample[0][: len(rows)]), None)
            assert whole and rows and set(heads) <= set(whole[1]), number
            assert report.head.size == len(rows), number


def repacked(chance, one, two):
    """An export with one member mutated."""
    made = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(two["export"])) as other:
        theirs = {member.name: other.extractfile(member).read() for member in other.getmembers()}
    with tarfile.open(fileobj=io.BytesIO(one["export"])) as tar, tarfile.open(fileobj=made, mode="w") as new:
        members = tar.getmembers()
        chosen = chance.choice([member for member in members if member.size])
        for member in members:
            octets = tar.extractfile(member).read()
            if member is chosen:
                octets = mutated(chance, octets, theirs[member.name])
            member.size = len(octets)
            new.addfile(member, io.BytesIO(octets))
    return made.getvalue()


def test_spools(tmp_path):
    """A mutated spool is refused, or gives records that were recorded, each under its number."""
    from dre import spool
    from dre.errors import DreError

    one = spool.Spool(tmp_path / "one")
    one.append("app", [b"record %d" % number for number in range(4)], ["r/1", "-", "r/3", "r/4"])
    two = spool.Spool(tmp_path / "two")
    two.append("app", [b"other %d" % number for number in range(3)])
    octets, other = ((one.directory / "records-1").read_bytes(), (two.directory / "records-1").read_bytes())
    real = [(record.stream, record.seq, record.octets) for record in one.pending()]
    theirs = [(record.stream, record.seq, record.octets) for record in two.pending()]
    path = tmp_path / "records"
    for number, chance in cases(2):
        path.write_bytes(mutated(chance, octets, other))
        try:
            found = [(record.stream, record.seq, record.octets) for record in spool.records(path, 0, spool.FIRST)]
        except DreError:
            continue
        assert found in (real[: len(found)], theirs[: len(found)]), number
