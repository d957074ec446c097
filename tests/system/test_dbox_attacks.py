# SPDX-License-Identifier: Apache-2.0
"""The attack catalogue: somebody with full write access to the database, and with some keys, against a full audit.

Each attack says what must be found and which entry is the first bad one. The control comes first. At the end the
verifier is made to say yes to one thing after another, and every time this catalogue must notice.
"""

import dboxforge
import pytest
from dboxforge import WRITER, mark, stamp

SINGLE = 8  # entries with a tree head each, then BATCH under one, then SINGLE more
BATCH = 500
FIRST = 2  # index of the first entry that is not the D-Box's own
LOW = FIRST + 3  # an entry under a head of its own
RUN = FIRST + SINGLE  # the first entry of the batch
MIDDLE = RUN + 200
ERASED = RUN + 400
LATE = RUN + BATCH + 1  # the first of the last ones
SALTED = LATE + 3
END = LATE + SINGLE  # size of the log


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The log that is attacked."""
    log = dboxforge.Forge(tmp_path_factory.mktemp("log") / "dbox.sqlite").create()
    log.own("dbox.started", {"log": log.keys.origin})
    log.own("dbox.client.registered", {"client": "writer"})
    log.sign()
    for number in range(SINGLE):
        log.add([b"entry %d" % number])
        log.sign()
    log.add([b"batch %d" % number for number in range(BATCH)])
    log.sign()
    log.erase(ERASED)
    log.own("dbox.erased", {"entry": ERASED, "reason": "wrong", "first": "x", "second": "y"})
    log.sign()
    for number in range(SINGLE):
        log.add([b"late %d" % number], salt=b"s" * 32 if number == 3 else b"")
        log.sign()
    log.close()
    return log


@pytest.fixture
def log(made, tmp_path):
    other = made.copy(tmp_path / "dbox.sqlite")
    yield other
    other.db.close()


@pytest.fixture(scope="module")
def foreign():
    """Another D-Box altogether."""
    return dboxforge.keys("h7.example/dbox/another")


# --- The attacks: what is done, and the marks that somebody outside holds ---


def flip(log):
    log.set(LOW, octets=b"Entry 3")


def rewrite(log, number=LOW):
    """Other octets, with everything in the row made to fit."""
    import hashlib

    log.set(number, octets=b"forged!", digest=hashlib.sha256(b"forged!").digest())
    log.fit()


def insert(log):
    log.renumber(LOW - 1, 1)
    first = log.add([b"forged"], seq=900)
    log.run("UPDATE entry SET number = ? WHERE number = ?", LOW, first)


def append(log):
    log.add([b"forged"])


def delete(log, number=LOW):
    log.remove(number)


def delete_and_renumber(log, number=LOW):
    log.remove(number)
    log.renumber(number, -1)
    log.run("UPDATE erased SET entry = entry - 1 WHERE entry > ?", number)


def swap(log, one=LOW, two=LOW + 1):
    log.run("UPDATE entry SET number = -1 WHERE number = ?", one)
    log.run("UPDATE entry SET number = ? WHERE number = ?", one, two)
    log.run("UPDATE entry SET number = ? WHERE number = -1", two)


def replay(log):
    log.add([b"entry 3"], seq=2000)


def twice(log):
    """The same entry once more, with its number, under a new head by the D-Box's keys."""
    log.run("CREATE TABLE other AS SELECT * FROM entry")
    log.run("DROP TABLE entry")
    log.run("ALTER TABLE other RENAME TO entry")
    columns = "source, seq, time, type, digest, leaf, octets, salt"
    log.run(f"INSERT INTO entry SELECT ?, {columns} FROM entry WHERE number = ?", END, LOW)
    log.set(END, time=log.time)
    log.fit()
    log.sign()


def truncate(log):
    log.run("DELETE FROM entry WHERE number >= ?", END - 4)


def restore(log, size=END - 4):
    """An old backup: entries and heads are gone."""
    log.run("DELETE FROM entry WHERE number >= ?", size)
    log.run("DELETE FROM head WHERE size > ?", size)


def fork(log):
    restore(log)
    log.time += 1000
    log.add([b"another %d" % number for number in range(9)])
    log.sign()


def time_of_row(log):
    log.set(LOW, time=log.time)


def time_of_row_fitted(log):
    time_of_row(log)
    log.fit()


def writer_of_row(log):
    log.set(LOW, source=log.source("b" * 64, "app"))


def writer_of_source(log):
    log.run("UPDATE source SET writer = ? WHERE writer = ?", "b" * 64, WRITER)
    log.fit()


def from_another_log(log):
    """A row whose leaf is that of another log's entry."""
    text = dboxforge.header("h7.example/dbox/another", "app", WRITER, log.time, 4, b"entry 3")
    log.set(LOW, leaf=dboxforge.leaf(text)[:8])


def resign(log):
    rewrite(log)
    other = dboxforge.keys("h7.example/dbox/another")
    log.run("DELETE FROM certificate")
    for row in other.certificates:
        log.run("INSERT INTO certificate (kind, fingerprint, pem) VALUES (?, ?, ?)", *row)
    log.resign(sign=other.sign, note=other.note)


def foreign_certificate(log):
    other = dboxforge.keys("h7.example/dbox/another")
    pem = next(pem for kind, _, pem in other.certificates if kind == "sign")
    log.run("UPDATE certificate SET pem = ? WHERE kind = 'sign'", pem)


def foreign_signature(log):
    other = dboxforge.keys("h7.example/dbox/another")
    leaves = log.leaves()
    log.sign(LOW + 1, leaves, sign=other.sign)


def key_id(log):
    import base64

    lines = log.note(LOW + 1).split("\n")
    name, octets = lines[5].split(" ")[1:]
    changed = bytes([base64.b64decode(octets)[0] ^ 1]) + base64.b64decode(octets)[1:]
    lines[5] = f"— {name} {base64.b64encode(changed).decode()}"
    log.run("UPDATE head SET note = ? WHERE size = ?", "\n".join(lines), LOW + 1)


def head_at(year):
    def attack(log):
        time = log.time
        log.add([b"later"])
        text = log.keys.head(END + 1, dboxforge.root(log.leaves()), f"{year}-01-01T00:00:00.000Z")
        log.run("INSERT INTO head VALUES (?, ?)", END + 1, text)
        log.time = time

    return attack


def clock_back(log):
    """The D-Box itself, after its clock was set back an hour."""
    log.add([b"later"], time=log.time - 3_600_000)
    log.sign(time=log.time + 1)


def head_clock_back(log):
    log.add([b"later"])
    log.sign(time=log.time - 7)


def owner_stolen(log):
    """A sign key minted with the stolen key of the owner, and all history made anew with it."""
    minted = log.keys.new_sign_key()
    from dboxlib import pki
    from dre import trust

    rewrite(log)
    print_ = trust.fingerprint(minted.certificate)
    pem = pki.pem(minted.certificate).decode()
    log.run("INSERT INTO certificate (kind, fingerprint, pem) VALUES ('sign', ?, ?)", print_, pem)
    log.resign(sign=minted)


def same_keys_new_history(log):
    rewrite(log)
    log.resign()


def retired(log):
    """The old sign key, kept by somebody, signs after the hand-over."""
    from dboxlib import pki
    from dre import trust

    new = log.keys.new_sign_key()
    old = trust.fingerprint(log.keys.sign.certificate)
    print_ = trust.fingerprint(new.certificate)
    pem = pki.pem(new.certificate).decode()
    log.run("INSERT INTO certificate (kind, fingerprint, pem) VALUES ('sign', ?, ?)", print_, pem)
    log.own("dbox.key.rotated", {"old": old, "new": print_})
    log.sign()
    log.add([b"by the new key"])
    log.sign(sign=new)
    log.add([b"by the old key"])
    log.sign()


def two_heads(log):
    """One of the heads is another one of its size, by the right keys: what a split view leaves behind."""
    leaves = log.leaves()
    log.sign(LOW + 1, [*leaves[:LOW], bytes(32)])


def no_heads(log):
    log.run("DELETE FROM head")


def unsigned(log):
    lines = log.note(END).split("\n")
    lines[5] = lines[5][:-8] + "AAAAAAA="
    log.run("UPDATE head SET note = ? WHERE size = ?", "\n".join(lines), END)


def one_signature(log):
    lines = log.note(END).split("\n")
    log.run("UPDATE head SET note = ? WHERE size = ?", "\n".join([*lines[:5], *lines[6:]]), END)


def newest_head_gone(log):
    log.run("DELETE FROM head WHERE size = ?", END)


def head_of_more(log):
    log.sign(END + 3, [*log.leaves(), *[bytes(32)] * 3])


def size_of_head(log):
    log.run("UPDATE head SET size = ? WHERE size = ?", END + 1, END)


def garbage_head(log):
    log.run("UPDATE head SET note = 'yes' WHERE size = ?", LOW + 1)


def erased_without_reason(log):
    log.erase(LOW, reason=False)


def erased_without_entry(log):
    log.erase(LOW)


def erased_replaced(log):
    log.set(ERASED, octets=b"other")


def salt_swapped(log):
    log.set(SALTED, salt=b"t" * 32)


def salt_removed(log):
    log.set(SALTED, salt=None)


ATTACKS = {
    # name: what is done, kind of the finding, first bad index
    "one octet flipped": (flip, "entry", LOW),
    "row rewritten to fit": (rewrite, "tree", LOW),
    "row in a batch rewritten to fit": (lambda log: rewrite(log, MIDDLE), "tree", RUN),
    "forged row inserted": (insert, "tree", LOW),
    "forged row appended": (append, "tail", END),
    "middle row deleted": (delete, "entry", LOW),
    "row of a batch deleted": (lambda log: delete(log, MIDDLE), "entry", MIDDLE),
    "deleted and renumbered": (delete_and_renumber, "tree", LOW),
    "deleted in a batch and renumbered": (lambda log: delete_and_renumber(log, MIDDLE), "tree", MIDDLE),
    "two rows swapped": (swap, "tree", LOW),
    "two rows of a batch swapped": (lambda log: swap(log, MIDDLE, MIDDLE + 1), "tree", MIDDLE),
    "row replayed at the tail": (replay, "tail", END),
    "number used twice": (twice, "number", END),
    "tail truncated": (truncate, "tail", END - 4),
    "time of a row changed": (time_of_row, "entry", LOW),
    "time of a row changed to fit": (time_of_row_fitted, "tree", LOW),
    "writer of a row changed": (writer_of_row, "entry", LOW),
    "writer changed everywhere": (writer_of_source, "tree", FIRST),
    "row of another log": (from_another_log, "entry", LOW),
    "all signed again with foreign keys": (resign, "certificate", 0),
    "sign certificate exchanged": (foreign_certificate, "certificate", 0),
    "a head signed by a foreign key": (foreign_signature, "head", LOW),
    "key id exchanged": (key_id, "head", LOW),
    "a head when its key has expired": (head_at(2060), "head", END),
    "a head before its key was made": (head_at(2001), "head", END),
    "clock set back": (clock_back, "entry", END),
    "clock set back under a head": (head_clock_back, "head", END),
    "retired key used": (retired, "head", END + 2),
    "a head of other entries": (two_heads, "tree", LOW),
    "no tree heads": (no_heads, "head", 0),
    "signature made invalid": (unsigned, "head", END - 1),
    "one signature stripped": (one_signature, "head", END - 1),
    "newest head removed": (newest_head_gone, "tail", END - 1),
    "a head of more than there is": (head_of_more, "tail", END),
    "size of a head changed": (size_of_head, "head", END - 1),
    "a head that is none": (garbage_head, "head", LOW),
    "octets removed without a reason": (erased_without_reason, "entry", LOW),
    "octets removed without an entry": (erased_without_entry, "erased", LOW),
    "erased octets replaced": (erased_replaced, "entry", ERASED),
    "salt swapped": (salt_swapped, "entry", SALTED),
    "salt removed": (salt_removed, "entry", SALTED),
}
# Seen only by who holds something of the log: name → attack, first bad index with a mark of the newest head.
OUTSIDE = {
    "old backup restored": (restore, END - 4),
    "fork after a restore": (fork, 0),
    "history made anew by the same keys": (same_keys_new_history, 0),
    "owner's key stolen, history made anew": (owner_stolen, 0),
}


def found(log, attack, marks=()):
    """Kind and first bad index of what an audit finds, after the attack."""
    attack(log)
    report = log.audit(marks)
    first = report.first_bad
    return next(((one.kind, one.index) for one in report.findings if one.index == first), None), report


def test_control(log):
    what, report = found(log, lambda _: None)
    assert what is None and report.findings == [] and report.gaps == []
    assert (report.entries, report.heads, report.erased) == (END, 2 * SINGLE + 3, 1)
    assert report.memory.head.size == report.head.size == END


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_found(log, name):
    attack, kind, index = ATTACKS[name]
    what, report = found(log, attack)
    assert what == (kind, index), report.findings
    assert report.memory is None


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_only_an_anchor_sees(log, made, name):
    """With everything of the box in his hands, what an attacker makes is consistent: hence anchors outside."""
    attack, index = OUTSIDE[name]
    kept = mark(made.open().note(END))
    what, report = found(log, attack)
    assert what is None, report.findings
    report = log.audit([kept])
    assert (report.findings[0].kind, report.first_bad) == ("seen", index)
    # Without an attack the same mark is no obstacle.
    assert made.audit([kept]).findings == []


def test_a_receipt_narrows_down_where_a_fork_began(log, made):
    early, late = mark(made.open().note(END - 4)), mark(made.note(END))
    fork(log)
    report = log.audit([early, late])
    assert (report.findings[0].kind, report.first_bad) == ("seen", END - 4)


def test_two_signed_heads_of_one_size_are_proof(log, made):
    other = mark(log.keys.head(END, bytes(32), stamp(log.time)), "the receipt of a client")
    report = log.audit([other])
    (finding,) = report.findings
    assert finding.kind == "seen" and "prove misbehaviour" in finding.text and len(finding.proof) == 2
    assert [note.split("\n")[1] for note in finding.proof] == [str(END)] * 2
    # One that nobody signed proves nothing but is told of.
    false = mark(
        dboxforge.keys("h7.example/dbox/another").head(END, bytes(32), stamp(log.time), origin=log.keys.origin)
    )
    (finding,) = log.audit([false]).findings
    assert "do not verify" in finding.text


def judge_of(tmp_path, *keys):
    """What dbox-audit makes of a file of known witnesses."""
    from dboxlib.cmd import dbox_audit
    from dre import conf

    (tmp_path / "witnesses").write_text("".join(key.public.format() + "\n" for key in keys))
    (tmp_path / "dre.conf").write_text(f'DRE_DBOX_WITNESSES="{tmp_path}/witnesses"\n')
    return dbox_audit._Judge(conf.load(str(tmp_path / "dre.conf")))


def test_a_witness_that_is_known_convicts_history_made_anew(log, tmp_path):
    from dre import witness

    known, other = witness.make_key("w.example/1"), witness.make_key("w.example/2")
    judge = judge_of(tmp_path, known)
    for size in (LOW, END):
        log.cosign(known, size)
    log.cosign(other, END)
    report = log.audit(judge=judge)
    assert report.findings == [] and report.anchored.size == END and len(report.anchors) == 3
    same_keys_new_history(log)
    assert log.audit().findings == [], "without a known witness nothing is to be seen"
    (finding,) = log.audit(judge=judge).findings
    # The witness's first tree head ends before the entry that was changed, so it still fits.
    assert (finding.kind, finding.index) == ("anchor", LOW) and "w.example/1" in finding.text
    # An unknown witness is no evidence, and anchors that were stripped leave none.
    assert log.audit(judge=judge_of(tmp_path, witness.make_key("w.example/3"))).anchored is None
    log.run("DELETE FROM anchor")
    report = log.audit(judge=judge)
    assert (report.findings, report.anchored) == ([], None)


def test_another_log_in_its_place(log, foreign):
    other = mark(foreign.head(3, bytes(32), stamp(log.time)))
    (finding,) = log.audit([other]).findings
    assert finding.index == 0 and "wrong origin" in finding.text


def test_gaps_are_told_and_are_no_findings(log):
    log.add([b"x"], seq=10_000)
    log.sign()
    report = log.audit()
    assert report.findings == []
    ((writer, stream, first, last),) = [(gap.writer, gap.stream, gap.first, gap.last) for gap in report.gaps]
    assert (writer, stream, first, last) == (WRITER, "app", BATCH + 2 * SINGLE + 1, 9_999)


def test_an_audit_goes_on_where_the_last_one_ended(log):
    from dre import audit

    first = log.audit()
    memory = audit.parse_memory(first.memory.format())
    log.add([b"more %d" % number for number in range(5)])
    log.sign()
    report = log.audit(memory=memory)
    assert (report.findings, report.begin, report.entries, report.heads) == ([], END, 5, 2)
    assert report.memory.head == log.audit().memory.head
    # Nothing new is no finding; a tail without a head is, and so is a log that was cut or that forked.
    memory = audit.parse_memory(report.memory.format())
    assert log.audit(memory=memory).findings == []
    for attack, kind, index in ((append, "tail", END + 5), (restore, "head", END + 5), (fork, "tree", END + 5)):
        attack(log)
        report = log.audit(memory=audit.parse_memory(memory.format()))
        assert (report.findings[0].kind, report.first_bad) == (kind, index), report.findings


def test_mariadb(made):
    """The whole catalogue by the same statements in a database of MariaDB, the control first."""
    import mariadbkit

    mariadbkit.needed()
    log = dboxforge.MariaForge(mariadbkit.server(), made)
    assert found(log.reset(made), lambda _: None)[1].findings == []
    seen = {name: found(log.reset(made), attack)[0] for name, (attack, _, _) in ATTACKS.items()}
    log.db.close()
    assert seen == {name: (kind, index) for name, (_, kind, index) in ATTACKS.items()}


# --- Who checks the checker ---


def undetected(made, tmp_path, names):
    """The attacks that are not found as they should be."""
    missed = []
    for name in names:
        attack, kind, index = ATTACKS[name]
        log = made.copy(tmp_path / "mutant.sqlite")
        try:
            if found(log, attack)[0] != (kind, index):
                missed.append(name)
        finally:
            log.db.close()
    return missed


def yes(monkeypatch, what):
    """Let the verifier say yes to one thing."""
    from dre import audit, evidence, trust

    mutants = {
        "everything": lambda: monkeypatch.setattr(audit.Auditor, "_find", lambda *_: None),
        "signatures": lambda: monkeypatch.setattr(trust.LogKey, "signed", lambda *_: True),
        "notes": lambda: monkeypatch.setattr(trust.Trust, "head", lambda _, note: evidence.parse_head(note.text)),
        "roots": lambda: monkeypatch.setattr(audit.Frontier, "root", lambda _: Anything()),
        "retired keys": lambda: monkeypatch.setattr(audit.Auditor, "_retired", lambda *_: None),
        "numbers": lambda: monkeypatch.setattr(audit.Numbers, "add", lambda *_: True),
        "reasons": lambda: monkeypatch.setattr(audit.Reasons, "why", lambda *_: True),
        "missing entries": lambda: monkeypatch.setattr(audit.Auditor, "_beyond", lambda *_: None),
    }
    mutants[what]()


class Anything:
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __hash__(self):
        return 0


MUTANTS = {
    # what says yes: attacks that are missed then
    "everything": [name for name, (_, kind, _) in ATTACKS.items() if kind != "certificate"],
    "signatures": ["signature made invalid"],
    "notes": ["a head signed by a foreign key", "key id exchanged", "one signature stripped"],
    "roots": ["row rewritten to fit", "forged row inserted", "two rows swapped", "a head of other entries"],
    "retired keys": ["retired key used"],
    "numbers": ["number used twice"],
    "reasons": ["octets removed without an entry"],
    "missing entries": ["tail truncated", "a head of more than there is"],
}


@pytest.mark.parametrize("what", MUTANTS)
def test_a_verifier_that_says_yes_fails_this_catalogue(made, tmp_path, monkeypatch, what):
    yes(monkeypatch, what)
    assert undetected(made, tmp_path, MUTANTS[what]) == MUTANTS[what]
